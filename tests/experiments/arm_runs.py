"""Arms with made-up scores: what the analysis of an experiment reads, without a run directory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from trueline.study.matrix import ArmRuns, Cell, Checkpoint

__all__ = ["arm_of", "drawn"]


def arm_of(
    name: str,
    selected: Sequence[Sequence[float]],
    *,
    end: Sequence[Sequence[float]] | None = None,
    curve: Sequence[Sequence[tuple[float, float]]] = (),
    more: Mapping[str, Sequence[float]] | None = None,
) -> ArmRuns:
    """`selected` and `end` are gold as [seed][prompt]; `curve` is [seed][(KL, gold)] of the checkpoints; `more` are
    figures per seed at every pick."""
    end = selected if end is None else end
    cells = []
    for seed, (first, last) in enumerate(zip(selected, end)):
        tables = {"selected": first, "end": last}
        figures = {
            pick: {"test/sampled/gold": float(np.mean(values))} | {k: float(v[seed]) for k, v in (more or {}).items()}
            for pick, values in (tables | {"proxy": last}).items()
        }
        scores = {
            (pick, "test", "sampled"): {str(i): {"gold": [float(v)]} for i, v in enumerate(values)}
            for pick, values in tables.items()
        }
        points = tuple(
            Checkpoint(i, 1e9 * i, 100 * i, 100 * i, {"selection/sampled/kl": kl, "selection/sampled/gold": gold})
            for i, (kl, gold) in enumerate(curve[seed] if curve else ())
        )
        cost = {"flops": 1e12, "seconds": 3.0}
        cells.append(
            Cell(
                name, seed, f"{name}-{seed}", points, {"selected": 1, "end": 1}, figures, scores, (), cost, cost, False
            )
        )
    return ArmRuns(name, tuple(cells))


def drawn(mean: float, *, seeds: int = 5, prompts: int = 30, seed_sd: float = 0.02, start: int = 0) -> np.ndarray:
    """Gold [seed, prompt] around a mean; the same prompts are hard for all."""
    prompt = np.random.default_rng(0).normal(0, 0.4, prompts)
    rng = np.random.default_rng(start + 1)
    return mean + prompt + rng.normal(0, seed_sd, (seeds, 1)) + rng.normal(0, 0.05, (seeds, prompts))
