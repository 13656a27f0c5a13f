"""What a person sees while a study runs and when it ends. Quiet without a terminal: a line per finished cell."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from trueline.study.design import Node
from trueline.study.page import visible

__all__ = ["Screen", "show_arms", "show_over_prompts"]

# Relative cost of the pages (CPU seconds of the embedded world): the time left is this plan scaled by what was seen.
_WEIGHTS = {
    "sft": 17.0,
    "pairs": 1.0,
    "reward": 9.0,
    "judge": 4.0,
    "dpo": 13.0,
    "kto": 20.0,
    "dpo-iter": 15.0,
    "ppo": 27.0,
    "rloo": 18.0,
    "select": 2.5,
    "evaluate": 2.0,
}


# The same where programs are run: the sandbox takes most of the time of whatever asks for verdicts.
_PROGRAM_WEIGHTS = {
    "sft": 62.0,
    "pairs": 28.0,
    "reward": 10.0,
    "dpo": 7.0,
    "dpo-iter": 35.0,
    "ppo": 55.0,
    "rloo": 45.0,
    "select": 4.0,
    "evaluate": 13.0,
}


class Screen:
    """A live table of arms by seeds with the time left and one sample growing better."""

    def __init__(self, console: Console, nodes: Sequence[Node], workers: int) -> None:
        self.console, self.workers = console, workers
        self.nodes = {node.key: node for node in nodes}
        self._weights = _PROGRAM_WEIGHTS if any(hasattr(node.world, "pairs_from") for node in nodes) else _WEIGHTS
        self.share = dict.fromkeys(self.nodes, 0.0)
        self.objectives: dict[str, str] = {}
        self.sample: tuple[str, int, str] | None = None
        self.began = time.perf_counter()
        self.reused: set[str] = set()
        self._started: set[str] = set()
        self._live = Live(self.render(), console=console, refresh_per_second=4) if console.is_terminal else None

    def __enter__(self) -> Screen:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live:
            self._live.update(self.render())
            self._live.stop()

    def report(self, key: str, progress: Any) -> None:
        """Take in one progress report."""
        node = self.nodes.get(key)
        if node is None:
            return
        if progress.warning:
            self.console.print(f"  seed {node.seed} {_label(node)}: {visible(progress.warning)}", markup=False)
        elif progress.note == "done":
            if key not in self._started:
                self.reused.add(key)
            elif not self._live and self.share[key] >= 0:
                self.console.print(
                    f"[{time.perf_counter() - self.began:6.1f} s] seed {node.seed} {_label(node)} done", highlight=False
                )
            self.share[key] = 1.0
        elif progress.note == "queued":
            self._started.add(key)
        elif progress.total == 0:
            if node.page not in ("evaluate", "pairs", "select") and node.arm not in self.objectives:
                self.objectives[node.arm] = progress.note
                if not self._live:
                    self.console.print(f"  {_label(node)}: {progress.note}", highlight=False)
        else:
            self._started.add(key)
            self.share[key] = 0.99 * progress.step / progress.total
            if progress.sample and node.page in ("ppo", "sft"):
                self.sample = (_label(node), progress.step, progress.sample)
        if self._live:
            self._live.update(self.render())

    def expected_minutes(self) -> float:
        """The whole plan by the weights above, spread over the workers."""
        return max(1.0, sum(self._weights.get(node.page, 10.0) for node in self.nodes.values()) / self.workers / 60)

    def seconds_left(self) -> float | None:
        """Remaining work of the plan at the speed seen so far, over the workers; None while nothing has been seen."""
        own = [key for key in self.nodes if key not in self.reused]
        weights = {key: self._weights.get(self.nodes[key].page, 10.0) for key in own}
        done = sum(weights[key] * self.share[key] for key in own)
        total = sum(weights.values())
        elapsed = time.perf_counter() - self.began
        return None if done < 0.02 * total or elapsed < 3 else elapsed * (total - done) / done

    def render(self) -> Table:
        """The table as it stands."""
        left = self.seconds_left()
        title = f"{time.perf_counter() - self.began:.0f} s" + (
            f", about {_span(left)} left" if left is not None else ""
        )
        table = Table(title=title, title_justify="left", expand=False, show_edge=False)
        table.add_column("stage or arm")
        seeds = sorted({node.seed for node in self.nodes.values()})
        for seed in seeds:
            table.add_column(f"seed {seed}", justify="right")
        for label in dict.fromkeys(_label(node) for node in self.nodes.values() if not node.measures):
            table.add_row(label, *(self._cell(label, seed) for seed in seeds))
        table.add_row("evaluation", *(self._cell("evaluation", seed) for seed in seeds))
        if self.sample:
            label, step, text = self.sample
            table.caption = Text(f"{label} at step {step}: {visible(text)[:150]}", style="italic")
            table.caption_justify = "left"
        return table

    def _cell(self, label: str, seed: int) -> str:
        keys = [k for k, n in self.nodes.items() if n.seed == seed and _label(n) == label]
        if not keys:
            return ""
        share = sum(self.share[key] for key in keys) / len(keys)
        if share >= 1:
            return "[green]done[/green]"
        return "[dim].[/dim]" if share == 0 else f"{100 * share:.0f}%"


def _label(node: Node) -> str:
    if node.measures:
        return "evaluation"
    other = {"no-shift": "no shift", "people": "people"}.get(node.variant, "")
    return f"{node.arm} ({other})" if other and node.arm != "sft" else node.arm


def _span(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.1f} min"


def show_arms(console: Console, report: dict[str, Any]) -> None:
    """The arm table of the last screen: gold (pass@1 of programs) with its interval, KL, length, cost."""
    for variant in report["variants"]:
        table = Table(title=f"{report['task']}, {variant['label']}", title_justify="left", show_edge=False)
        for name, justify in (
            ("arm", "left"),
            (_gold_name(report), "right"),
            ("95% interval", "right"),
            ("KL to SFT", "right"),
            ("length", "right"),
            ("PFLOP", "right"),
            ("seconds", "right"),
            ("", "left"),
        ):
            table.add_column(name, justify=justify)
        for arm in variant["arms"]:
            table.add_row(*_arm_row(arm))
        console.print(table)


def show_over_prompts(console: Console, report: dict[str, Any]) -> None:
    """Paired differences of single checkpoints, with intervals over prompts alone."""
    if not report["over_prompts"]:
        return
    table = Table(title="Paired by prompt; intervals over prompts alone", title_justify="left", show_edge=False)
    for name, justify in (("difference", "left"), (_gold_name(report), "right"), ("95% interval", "right")):
        table.add_column(name, justify=justify)
    for row in report["over_prompts"]:
        low, high = row["ci95"]
        interval = f"\\[{low:+.2f}, {high:+.2f}]" if low is not None else ""
        table.add_row(f"{row['a']} - {row['b']}", f"{row['difference']:+.2f}", interval)
    console.print(table)


def _gold_name(report: dict[str, Any]) -> str:
    return "pass@1" if "programs" in report else "gold"


def _arm_row(arm: dict[str, Any]) -> Iterable[str]:
    gold = arm["metrics"]["test/sampled/gold"]
    low, high = gold["ci95"] if gold["ci95"] else (None, None)
    interval = f"[{low:.2f}, {high:.2f}]".replace("[", "\\[", 1) if low is not None else "one seed"
    kl = arm["metrics"].get("test/sampled/kl", {}).get("mean")
    length = arm["metrics"].get("test/sampled/length", {}).get("mean")
    collapsed = sum(map(bool, arm["collapsed"]))
    mark = (
        f"[red]ends below SFT {collapsed}/{len(arm['collapsed'])}[/red]" if collapsed and arm["name"] != "sft" else ""
    )
    return (
        arm["name"],
        f"{gold['mean']:.2f}",
        interval,
        "" if kl is None else f"{kl:.2f}",
        "" if length is None else f"{length:.1f}",
        f"{arm['cost']['flops'] / 1e15:.4f}" if arm["cost"]["flops"] else "",
        f"{arm['cost']['seconds']:.0f}" if arm["cost"]["flops"] else "",
        mark,
    )
