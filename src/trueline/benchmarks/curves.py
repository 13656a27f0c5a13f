"""What a sample costs against batch, response length, model size and processes; our side alone, rows of full length."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trueline.benchmarks.comparison import spread, today
from trueline.benchmarks.flops import parameter_count
from trueline.benchmarks.machine import describe, threads_here
from trueline.benchmarks.sides import our_side
from trueline.benchmarks.starting import starting_models
from trueline.benchmarks.work import Work, batches_of, standard_work, write_work

__all__ = ["Point", "measure_curves", "points_of"]

_ROUNDS = 3
_BATCHES, _LENGTHS = (16, 32, 64, 128, 256, 512), (32, 64, 128, 256, 512, 1024)
_SIZES = ("tiny", "small", "medium")
_PPO_LIMIT = {"batch": 128, "length": 256}
"""Beyond these a PPO iteration takes minutes on two cores."""


@dataclass(frozen=True)
class Point:
    """One point: on which curve, of which kind, at which x (as it is drawn), with which work, in how many processes."""

    curve: str
    x: float
    work: Work
    processes: int = 1


def points_of(quick: bool = False) -> list[Point]:
    """All points; `quick`: few and small."""
    kinds = ("rollout", "sft", "ppo")
    size, batches, lengths, sizes = "small", _BATCHES, _LENGTHS, _SIZES
    if quick:
        kinds, size, batches, lengths, sizes = ("sft",), "tiny", (16, 32), (32,), ("tiny",)
    found = []
    for kind in kinds:
        plain = replace(standard_work(kind, ragged=False, size=size, threads=threads_here()), batch_size=16, epochs=1)
        found += [Point("batch", n, replace(plain, batch_size=n)) for n in batches if _runs(kind, "batch", n)]
        found += [Point("length", n, replace(plain, max_new_tokens=n)) for n in lengths if _runs(kind, "length", n)]
        found += [Point("size", parameter_count(name), replace(plain, size=name)) for name in sizes]
        counts = () if quick else (1, 2) if threads_here() > 1 else (1,)
        found += [Point("processes", n, replace(plain, threads=1), n) for n in counts]
    return found


def _runs(kind: str, curve: str, n: int) -> bool:
    return kind != "ppo" or n <= _PPO_LIMIT[curve]


def measure_curves(quick: bool = False, step: Callable[[], None] = lambda: None) -> dict[str, Any]:
    """The record: a list of points with seconds a round and a sample, the median of a few rounds each."""
    rows = []
    for point in points_of(quick):
        rows.append(_measure(point))
        step()
    return {
        "name": "curves", "points": rows, "quick": quick, "rounds": _ROUNDS,
        "machine": describe("cpu", threads_here()), "date": today(),
    }  # fmt: skip


def _measure(point: Point) -> dict[str, Any]:
    work = point.work
    with tempfile.TemporaryDirectory(prefix="trueline-bench-") as name, ExitStack() as stack:
        start = starting_models(work, Path(name) / "start", look=False)
        batches = batches_of(work, _ROUNDS + 1)
        sides = []
        for number in range(point.processes):
            folder = Path(name) / str(number)
            write_work(work, folder, start.model, start.reward, batches)
            sides.append(our_side(folder, work.threads, f"process {number}"))
        for side in sides:
            stack.enter_context(side).ready()
        seconds, lengths = [], []
        for _ in range(_ROUNDS + 1):
            for side in sides:
                side.ask()
            answers = [side.hear() for side in sides]
            seconds.append(max(answer.seconds for answer in answers))
            lengths += [answer.result.get("val/length", work.max_new_tokens) for answer in answers]
    samples = work.batch_size * point.processes
    return {
        "curve": point.curve, "label": work.kind, "x": point.x, "seconds": spread(seconds[1:]),
        "per_sample": statistics.median(seconds[1:]) / samples, "mean_length": statistics.mean(lengths),
        "size": work.size, "batch_size": work.batch_size, "max_new_tokens": work.max_new_tokens,
        "threads": work.threads, "processes": point.processes,
    }  # fmt: skip
