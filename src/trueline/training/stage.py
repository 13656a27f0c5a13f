"""What a training page is given besides its config: where to write, what came before, how far it may go.

The page owns its loop; the stage owns the bookkeeping that all pages share (progress, metrics, checkpoints, resume,
samples on the way, the budget).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch

from trueline.data.batches import TokenBatch, Tokenized
from trueline.data.chat import ChatTokenizer
from trueline.distributed.settings import ClusterSettings
from trueline.distributed.sharding import Rows, shard
from trueline.distributed.world import current
from trueline.models.adapters import LoraSettings
from trueline.models.decoder import Decoder, Precision
from trueline.models.heads import ScalarModel
from trueline.models.scoring import Sampling, forbidden_mask
from trueline.rollout.engine import RolloutEngine
from trueline.rollout.settings import RolloutSettings
from trueline.rollout.vllm import FAR
from trueline.runs import checkpoint, stopping
from trueline.runs.cell import Cell, read_jsonl
from trueline.runs.costs import write_costs
from trueline.runs.meter import BudgetMeter
from trueline.runs.trackers import Trackers
from trueline.seeds import uniforms
from trueline.tasks.task import Task
from trueline.training.engines import Engines
from trueline.training.gates import Gates
from trueline.training.memory import Room
from trueline.types import Prompt

__all__ = ["Limits", "Progress", "Stage"]

Placed = TypeVar("Placed", Decoder, ScalarModel)

# Steps differ in length: the next one may take a tenth more FLOPs than any before it. It runs no more programs.
_HEADROOM = {"flops": 1.1, "executions": 1.0}


@dataclass(frozen=True)
class Progress:
    """One report of a running stage, for the screen."""

    cell: str
    method: str
    step: int
    total: int
    note: str = ""
    sample: str = ""
    warning: str = ""
    """Said whatever else is on the screen."""


@dataclass(frozen=True)
class Limits:
    """Limits that are not the method's own: of lengths, of memory, of the budget, of steps."""

    max_prompt_tokens: int
    max_new_tokens: int
    micro_tokens: int = 8192
    precision: Precision = "fp32"
    budget: float | None = None
    budget_rule: Literal["flops", "executions"] = "flops"
    max_steps: int | None = None
    snapshots: int = 8
    stop_share: float = 1.0
    """Of the planned steps: schedules see the whole plan, the run stops here."""
    lora: LoraSettings | None = None
    """Adapters are trained in place of the weights."""
    gradient_checkpointing: bool = False


class _Pace:
    """The cost of the largest step so far: what the budget must still hold for the next one.

    Where every `period`-th step costs more than the others (it samples), the two kinds are told apart.
    """

    def __init__(self) -> None:
        self.period = 1
        self.mark = 0.0
        self.largest: dict[str, float] = {}

    def book(self, step: int, cost: float) -> None:
        kind = self._kind(step)
        self.largest[kind] = max(self.largest.get(kind, 0.0), cost)

    def expected(self, step: int) -> float:
        return self.largest.get(self._kind(step), max(self.largest.values(), default=0.0))

    def _kind(self, step: int) -> str:
        return "first" if step % self.period == 0 else "other"

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        return {}, {"largest": dict(self.largest)}

    def load(self, state: tuple[Mapping[str, torch.Tensor], Mapping[str, Any]]) -> None:
        self.largest = dict(state[1]["largest"])


@dataclass
class Stage:
    """One run of one page."""

    method: str
    seed: int
    task: Task
    cell: Cell
    tokenizer: ChatTokenizer
    limits: Limits
    inputs: Mapping[str, Path] = field(default_factory=dict)
    report: Callable[[Progress], None] = lambda progress: None
    charged: tuple[str, ...] = ()
    """Names of the inputs whose cost an evaluated arm is charged with."""
    trackers: Trackers | None = None
    device: torch.device = torch.device("cpu")  # noqa: RUF009 - immutable
    rollout: RolloutSettings = RolloutSettings()  # noqa: RUF009 - immutable
    cluster: ClusterSettings = ClusterSettings()  # noqa: RUF009 - immutable

    def __post_init__(self) -> None:
        self.world = current()
        self._found = checkpoint.newest(self.cell.checkpoints, self.cell.stopped)
        self.gates = Gates(self.cell, resumed=self._found.folder is not None)
        self.engines = Engines(self.rollout, self.world, self.tokenizer, self.cluster, self.warn)
        self.facts: dict[str, Any] = {}
        self.room = Room()
        self.meter = BudgetMeter(4.0 if self.limits.lora else 6.0)  # a frozen weight gets no gradient
        self.sampling = Sampling(forbidden=self.forbidden())
        self._pace = _Pace()
        self._out_of_budget = self._cut_by_budget = False
        self._registry: dict[str, checkpoint.Stateful] = {}
        self._clock = time.perf_counter()
        self._paused = 0.0
        self._watched: list[Prompt] = []

    # tokens

    def forbidden(self) -> torch.Tensor:
        """The vocabulary mask of tokens that must not be sampled, applied to every log-prob alike."""
        return forbidden_mask(self.tokenizer.vocab_size, self.tokenizer.forbidden_ids, self.device)

    def tokenize(self, prompt: Prompt, response: str) -> Tokenized:
        """Ids of a prompt and a complete response. A response past the limit loses its end, and its end token."""
        ids = self.tokenizer.encode_response(response)[: self.limits.max_new_tokens]
        return Tokenized(self.prompt_ids(prompt), tuple(ids), prompt.id)

    def prompt_ids(self, prompt: Prompt) -> tuple[int, ...]:
        """Ids of a prompt; one that is longer than the limit loses its oldest part."""
        return tuple(self.tokenizer.encode_prompt(prompt)[-self.limits.max_prompt_tokens :])

    def placed(self, model: Placed, rows: Rows | None = None) -> Placed:
        """A model on the stage's device, in its precision; among several processes, its weights in parts.

        A model whose weights are on no device yet comes with `rows` to read them by.
        """
        model.trunk.precision = self.limits.precision
        if self.limits.gradient_checkpointing:
            model.trunk.compute_again()
        return shard(model if rows else model.to(self.device), self.world, rows)

    def engine(self, policy: Decoder) -> RolloutEngine:
        """A rollout engine that samples from `policy`."""
        engine = self.engines.of(policy)
        if (proof := self.engines.proof) is not None:
            self.gates.ask(
                "server has the weights",
                "the mean gap of the server's log-probs of fixed rows and the policy's, after each hand-over,",
                proof.gap,
                high=FAR,
                remedy="it holds another model",
            )
        return engine

    # life

    def begin(self, registry: Mapping[str, checkpoint.Stateful], objective: str) -> int:
        """Register what a checkpoint holds, say the objective, resume if there is something to resume.

        Returns the next step.
        """
        self._registry = {**registry, "meter": self.meter, "pace": self._pace}
        (self.cell / "objective.txt").write_text(objective + "\n", encoding="utf-8")
        self.report(Progress(self.cell.directory.name, self.method, 0, 0, note=objective))
        self._clock = time.perf_counter()
        for damage in self._found.damaged:
            self.cell.log("incidents", {"what": "checkpoint left out", "why": damage})
            self.warn(f"{damage}: left out, and what is before it is used")
        if self._found.folder is None:
            self.cell.rewind(-1)
            return 0
        checkpoint.restore(self._found.folder, self._found.step, self._registry)
        if self.world.leads:
            checkpoint.retain(self.cell.checkpoints, self._found.step)
        self.cell.rewind(self._found.step)
        self._clock = time.perf_counter() - self._seconds_so_far()
        return self._found.step

    def warn(self, text: str) -> None:
        """Say it whatever else is on the screen."""
        self.report(Progress(self.cell.directory.name, self.method, 0, 0, warning=text))

    def _seconds_so_far(self) -> float:
        timings = self.cell / "timings.jsonl"
        return max((row["seconds"] for row in read_jsonl(timings)), default=0.0) if timings.exists() else 0.0

    def samples_every(self, steps: int) -> None:
        """Tell the budget that every `steps`-th step samples first, and so costs more than the others."""
        self._pace.period = steps

    def total_steps(self, planned: int, *, executions: int = 0) -> int:
        """The steps that are planned, cut by `train.max_steps`, and by what a budget of executions pays for.

        `executions` is how many programs a step runs at most. Snapshots are spread over the steps that will be taken.
        """
        if self.limits.budget is not None and self.limits.budget_rule == "executions" and executions:
            affordable = max(1, int(self.limits.budget // executions))
            self._cut_by_budget, planned = affordable < planned, min(planned, affordable)
        return planned if self.limits.max_steps is None else min(planned, self.limits.max_steps)

    def may_step(self, step: int, total: int) -> bool:
        """Whether step number `step` (from 0) is within the plan and the budget.

        A step like the largest one so far, and a little more, must fit under the cap. What is spent from here to
        `end_step` is that step's cost.
        """
        if step >= max(1, round(self.limits.stop_share * total)):
            return False
        self._pace.mark = self._used()
        cap, headroom = self.limits.budget, _HEADROOM[self.limits.budget_rule]
        self._out_of_budget = cap is not None and self._used() + headroom * self._pace.expected(step) > cap and step > 0
        return not self._out_of_budget

    def _used(self) -> float:
        """What the budget counts."""
        return self.meter.flops if self.limits.budget_rule == "flops" else float(self.meter.reward_calls)

    def end_step(self, step: int, total: int, metrics: Mapping[str, float], policy: Decoder | None) -> None:
        """Book a finished step: metrics, timings, progress; every total/snapshots steps a checkpoint with samples."""
        self._pace.book(step, self._used() - self._pace.mark)
        self.meter.seconds = time.perf_counter() - self._clock - self._paused
        done = step + 1
        self.cell.log("metrics", {"step": done} | dict(metrics) | self._spent())
        if self.trackers is not None:
            self.trackers.log(dict(metrics) | self._spent(), done)
        self.cell.log("timings", {"step": done, "seconds": round(self.meter.seconds, 4)})
        last = not self.may_step(done, total)
        note = " ".join(f"{name}={value:.3g}" for name, value in list(metrics.items())[:3])
        sample = ""
        if last or self._due(done, total):
            sample = self.snapshot(done, policy)
        self.report(Progress(self.cell.directory.name, self.method, done, total, note, sample))
        if not last and self.world.total(float(stopping.requested()))[0] > 0:  # asked of one is asked of all
            stopping.end_of_step(lambda: self._save(self.cell.stopped, done) if not sample else None, asked=True)

    def snapshot(self, done: int, policy: Decoder | None) -> str:
        """A checkpoint after `done` steps, with samples; returns the first of them. Its time is not the method's."""
        began = time.perf_counter()
        # Samples first: a run that is killed in between resumes before this step and writes them again.
        sample = self._sample(policy, done) if policy is not None else ""
        self._save(self.cell.checkpoints, done)
        self.cell.drop_stopped()
        self._paused += time.perf_counter() - began
        return sample

    def _save(self, folder: Path, done: int) -> None:
        self.cell.sync_logs()
        checkpoint.save(folder, done, self._registry)

    def _due(self, done: int, total: int) -> bool:
        # Snapshots lie at total/n, 2 total/n, ... rounded; a plan of fewer steps has one at each.
        n = min(self.limits.snapshots, total)
        return n > 0 and (done * n) // total > ((done - 1) * n) // total

    def _spent(self) -> dict[str, Any]:
        m = self.meter
        return {
            "spent/flops": m.flops,
            "spent/sampled_tokens": m.sampled_tokens,
            "spent/trained_tokens": m.trained_tokens,
        }

    def _sample(self, policy: Decoder, step: int) -> str:
        """Sample a few fixed prompts, as every method does while it trains; returns the first response."""
        if not self._watched:
            self._watched = self.task.prompts("selection")[:4]
        ids = [self.prompt_ids(p) for p in self._watched]
        limit = self.limits.max_new_tokens
        draws = uniforms(self.seed, "watch", 0, range(len(ids)), limit)
        rollout = self.engine(policy).generate(ids, draws, max_new_tokens=limit, sampling=self.sampling)
        texts = [self.tokenizer.decode(response) for response in rollout.responses()]
        for prompt, text in zip(self._watched, texts):
            row = {"step": step, "pick": "training", "prompt_id": prompt.id, "prompt": prompt.text, "response": text}
            self.cell.log("samples", row)
        return f"{self._watched[0].messages[-1].content} -> {texts[0]}"

    def finish(self, **facts: Any) -> None:
        """Write the cost and mark the cell as complete."""
        if self.trackers is not None:
            self.trackers.close()
        self.engines.close()
        self.cell.drop_stopped()
        write_costs(self.cell.directory, {"own": self.meter.cost()})
        self.cell.finish(
            method=self.method,
            seed=self.seed,
            flops=self.meter.flops,
            stopped_by_budget=self._out_of_budget or self._cut_by_budget,
            **self.facts,
            **facts,
        )


def batch_on(batch: TokenBatch, stage: Stage) -> TokenBatch:
    """The batch on the stage's device."""
    return batch if stage.device.type == "cpu" else batch.to(stage.device)
