"""Figures as inline SVG: text stays text, colours become CSS variables, the bytes depend on the data alone."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from trueline.study.drawing import draw
from trueline.study.matrix import ArmRuns, Checkpoint, Study, Variant
from trueline.study.programs import by_example

__all__ = ["MARKS", "Plot", "figures", "slug"]

# arm -> (placeholder colour, marker, dash); Okabe and Ito's palette lives in the page's CSS under the arm's slug
MARKS: dict[str, tuple[str, str, str]] = {
    "sft": ("#0a0000", "s", "-"),
    "sft-chosen": ("#0a0001", "v", ":"),
    "best-of-n": ("#0a0002", "D", ""),
    "dpo": ("#0a0003", "o", "-"),
    "dpo-iter": ("#0a0004", "^", "--"),
    "ppo": ("#0a0005", "o", "-"),
    "dpo+ppo": ("#0a0006", "s", "-"),
    "rloo": ("#0a0007", "v", "-."),
    "cdpo": ("#0a0009", "D", "--"),
    "ipo": ("#0a000a", "^", "-"),
    "dpo-positive": ("#0a000b", "s", "-."),
    "ln-dpo": ("#0a000c", "v", "--"),
    "simpo": ("#0a000d", "D", "-"),
    "kto": ("#0a000e", "^", ":"),
    "dpo-nll": ("#0a000f", "D", "-."),
}
OTHER = ("#0a0008", "x", "-")

X = Callable[[Checkpoint, ArmRuns], float | None]


@dataclass(frozen=True)
class Plot:
    """One figure: `caption` is what to look for; `svg` is safe to inline beside others."""

    name: str
    title: str
    caption: str
    svg: str


@dataclass(frozen=True)
class _Panel:
    name: str
    title: str
    caption: str
    x: X
    xlabel: str
    ylabel: str
    keys: tuple[tuple[str, str], ...]  # metric key and line style ("" keeps the arm's own)
    per_seed: bool = True
    relative: bool = False  # to the start of each curve


def slug(arm: str) -> str:
    """The arm's CSS name; arms that are not ours share one colour."""
    return re.sub(r"[^a-z]+", "-", arm) if arm in MARKS else "other"


def _root_kl(point: Checkpoint, _: ArmRuns) -> float | None:
    kl = point.metrics.get("selection/sampled/kl")
    return None if kl is None else float(np.sqrt(max(kl, 0.0)))


def _sampled_tokens(point: Checkpoint, arm: ArmRuns) -> float | None:
    samples = any(p.sampled_tokens for cell in arm.cells for p in cell.curve)
    return float(point.sampled_tokens) if samples else None


def _progress(point: Checkpoint, arm: ArmRuns) -> float:
    last = max(p.step for cell in arm.cells for p in cell.curve)
    return 100.0 * point.step / max(last, 1)


KL_LABEL = "square root of KL to the original SFT (nats per response)"
PROGRESS = "share of the arm's training (%)"
PANELS = (
    _Panel(
        "gold-kl",
        "Gold against distance from SFT",
        "What the judge gives for each step away from SFT. Higher at the same KL is better; a curve that turns down "
        "has gone too far. Best-of-n stands at its analytic KL.",
        _root_kl,
        KL_LABEL,
        "gold",
        (("selection/sampled/gold", ""),),
    ),
    _Panel(
        "proxy-kl",
        "Proxy against distance from SFT",
        "The learned reward on the same samples. Where it goes on rising while gold falls, it is being exploited.",
        _root_kl,
        KL_LABEL,
        "proxy reward",
        (("selection/sampled/proxy", ""),),
    ),
    _Panel(
        "gold-flops",
        "Gold over compute",
        "Learning curves over what the arm's own training spends.",
        lambda p, _: p.flops,
        "FLOPs",
        "gold",
        (("selection/sampled/gold", ""),),
    ),
    _Panel(
        "gold-tokens",
        "Gold over sampled tokens",
        "The same over tokens sampled while training; arms that sample nothing are left out.",
        _sampled_tokens,
        "sampled tokens",
        "gold",
        (("selection/sampled/gold", ""),),
    ),
    _Panel(
        "logps",
        "Log-probability of the pairs",
        "Chosen solid, rejected dashed. If both fall, probability moves to responses that are in no pair.",
        _progress,
        PROGRESS,
        "log-probability (nats per response)",
        (("pairs/logps_chosen", "-"), ("pairs/logps_rejected", "--")),
        per_seed=False,
    ),
    _Panel(
        "log-ratios",
        "Log-ratio to the start, on pairs and on own samples",
        "Chosen solid, rejected dashed, the policy's own samples dotted (their mean log-ratio to SFT is the KL). Own "
        "samples rise in every arm that moves; where both sides of the pairs fall below 0, what rises is in no pair.",
        _progress,
        PROGRESS,
        "log pi / pi_start (nats per response)",
        (("pairs/logps_chosen", "-"), ("pairs/logps_rejected", "--"), ("selection/sampled/kl", ":")),
        per_seed=False,
        relative=True,
    ),
    _Panel(
        "outside",
        "Mass outside the pairs",
        "Share of samples with a structure that occurs in no preference pair.",
        _progress,
        PROGRESS,
        "share of samples",
        (("selection/sampled/outside", ""),),
    ),
    _Panel(
        "length",
        "Response length",
        "Longer is not better in itself: see the difference at equal length.",
        _progress,
        PROGRESS,
        "tokens per response",
        (("selection/sampled/length", ""),),
    ),
)


PROGRAM_WORDS: dict[str, dict[str, str]] = {
    "gold-kl": {
        "title": "pass@1 against distance from SFT",
        "caption": "What the hidden tests give for each step away from SFT. Higher at the same KL is better; a curve "
        "that turns down has gone too far. Best-of-n stands at its analytic KL.",
        "ylabel": "pass@1",
    },
    "proxy-kl": {
        "title": "Prompts' own examples against distance from SFT",
        "caption": "Share of the same programs that pass the example in their prompt. Where it goes on rising while "
        "pass@1 falls, programs are fitted to the example.",
        "ylabel": "share that passes its example",
    },
    "gold-flops": {"title": "pass@1 over compute", "ylabel": "pass@1"},
    "gold-tokens": {"title": "pass@1 over sampled tokens", "ylabel": "pass@1"},
}


def figures(study: Study) -> tuple[Plot, ...]:
    """The figures of the primary variant, in reading order; one whose metrics no arm has is left out."""
    panels = (_of_programs(panel, study) for panel in PANELS) if study.manifest.by_tests else PANELS
    plots = (_plot(panel, study.primary) for panel in panels)
    return tuple(plot for plot in plots if plot is not None)


def _of_programs(panel: _Panel, study: Study) -> _Panel:
    """The panel in the words of programs; the reward model's keeps its own where one was trained."""
    words = PROGRAM_WORDS.get(panel.name, {})
    return panel if panel.name == "proxy-kl" and not by_example(study.manifest) else replace(panel, **words)


def _plot(panel: _Panel, variant: Variant) -> Plot | None:
    drawn: list[bool] = []

    def paint(axes: Any) -> None:
        drawn.extend([_draw(axes, panel, arm) for arm in variant.arms.values()])
        if panel.name in ("gold-flops", "gold-tokens"):
            axes.xaxis.set_major_formatter(_si_formatter())
        if panel.name == "outside":
            axes.set_ylim(bottom=0)

    svg = draw(panel.name, panel.title, paint, xlabel=panel.xlabel, ylabel=panel.ylabel, colours=_colours())
    return Plot(panel.name, panel.title, panel.caption, svg) if any(drawn) else None


def _colours() -> dict[str, str]:
    """Each arm's placeholder and the page's variable that it stands for."""
    return {colour: f"var(--{slug(arm)})" for arm, (colour, _, _) in MARKS.items()} | {OTHER[0]: "var(--other)"}


def _si_formatter() -> Any:
    from matplotlib.ticker import EngFormatter

    return EngFormatter(sep=" ")


def _draw(axes: Any, panel: _Panel, arm: ArmRuns) -> bool:
    colour, marker, dash = MARKS.get(arm.name, OTHER)
    if arm.name == "best-of-n" or all(len(cell.curve) < 2 for cell in arm.cells):
        return _draw_mark(axes, panel, arm, colour, marker)
    drawn = False
    for key, style in panel.keys:
        lines = [_line(panel, arm, curve) for curve in arm.curve(key)]
        lines = [line - [0.0, line[0, 1] * panel.relative] for line in lines if len(line)]
        if not lines:
            continue
        drawn = True
        mean = np.mean(lines, axis=0) if len({len(line) for line in lines}) == 1 else None
        for line in lines if panel.per_seed or mean is None else ():
            width, alpha = (0.9, 0.4) if mean is not None else (1.6, 0.9)
            axes.plot(*line.T, color=colour, linestyle="-", linewidth=width, alpha=alpha)
        if mean is not None:
            look = {"marker": marker, "markersize": 4.5, "markeredgewidth": 0.0, "clip_on": False, "zorder": 3}
            axes.plot(*mean.T, color=colour, linestyle=style or dash or "-", linewidth=2.0, **look)
    return drawn


def _draw_mark(axes: Any, panel: _Panel, arm: ArmRuns, colour: str, marker: str) -> bool:
    """An arm without a training curve is one mark: best-of-n at its analytic KL, others where they were measured."""
    key = panel.keys[0][0]
    values = [curve[-1][1] for curve in arm.curve(key) if curve]
    if not values or panel.name not in ("gold-kl", "proxy-kl"):
        return False
    kls = [cell.analytic_kl for cell in arm.cells if cell.analytic_kl is not None]
    if not kls:
        kls = [p.metrics.get("selection/sampled/kl") for cell in arm.cells for p in cell.curve[-1:]]
    if any(kl is None for kl in kls):
        return False  # its distance cannot be measured: it has no place on this axis
    x = float(np.sqrt(max(np.mean(kls), 0.0)))
    axes.plot(
        [x], [np.mean(values)], marker=marker, markersize=8, color=colour, linestyle="none", zorder=4, clip_on=False
    )
    return True


def _line(panel: _Panel, arm: ArmRuns, curve: Iterable[tuple[Checkpoint, float]]) -> np.ndarray:
    points = [(panel.x(point, arm), value) for point, value in curve]
    return np.array([(x, y) for x, y in points if x is not None], dtype=np.float64).reshape(-1, 2)
