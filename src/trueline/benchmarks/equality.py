"""Whether both sides did the same thing: equal losses on equal batches, or samples of one distribution.

A comparison of speed whose results differ is no comparison: it ends in an error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite, sqrt
from typing import Any

from trueline.benchmarks.work import ONLINE, Work
from trueline.errors import RunError

__all__ = ["check_equal", "equal_losses", "equal_samples"]

LOSS_TOLERANCE = {"fp32": 2e-3, "bf16": 2e-2}
"""Relative, of each round's loss. Rounding differs between implementations and grows with each step."""
Z_LIMIT = 4.5
"""Standard errors by which means over all rounds may differ: chance passes it once in 150,000 metrics."""
_DRIFT = 0.02
"""Of a metric's spread: what the policies of the two sides may have moved apart by the updates of the rounds."""
_FLOORS = {"length": 0.1}
"""Of the mean: where almost no response ends early, the few samples of the starting model may show none that does."""
_METRICS = {"length": "val/length", "nll": "objective/entropy", "score": "objective/scores"}

Results = Sequence[Mapping[str, float]]


def check_equal(work: Work, ours: Results, peer: Results, samples: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """For `equal` in a record. `samples`: the spread of single samples of the starting model, by metric.

    Raises RunError where the sides differ.
    """
    if work.kind in ONLINE:
        found = equal_samples(ours, peer, samples, work.batch_size)
    else:
        found = equal_losses([r["loss"] for r in ours], [r["loss"] for r in peer], LOSS_TOLERANCE[work.precision])
    if not found["agrees"]:
        raise RunError(
            f"bench {work.kind}: the two sides did not do the same work, so their times do not compare: {found}"
        )
    return found


def equal_losses(ours: Sequence[float], peer: Sequence[float], tolerance: float) -> dict[str, Any]:
    """Losses of the same batches, round by round, against a relative tolerance."""
    apart = [abs(a - b) / max(abs(a), abs(b), 1e-12) for a, b in zip(ours, peer, strict=True)]
    found = {"what": "loss of every round", "tolerance": tolerance, "largest_difference": max(apart)}
    # a NaN is above every tolerance
    return found | {"ours": list(ours), "peer": list(peer), "agrees": all(gap <= tolerance for gap in apart)}


def equal_samples(
    ours: Results, peer: Results, samples: Mapping[str, Mapping[str, float]], batch_size: int
) -> dict[str, Any]:
    """Means over all samples of all rounds: length, nats per token, score. z is in standard errors of their difference,
    from the spread of single samples."""
    metrics = {}
    for name, key in _METRICS.items():
        if name not in samples or not all(key in row for row in [*ours, *peer]):
            continue
        means = [sum(row[key] for row in rows) / len(rows) for rows in (ours, peer)]
        spread = max(samples[name]["std"], _FLOORS.get(name, 0.0) * samples[name]["mean"])
        error = spread * sqrt(1 / (len(ours) * batch_size) + 1 / (len(peer) * batch_size))
        gap = abs(means[0] - means[1]) - _DRIFT * spread
        z = max(0.0, gap / max(error, 1e-9)) if isfinite(gap) else 1e9
        metrics[name] = {"ours": means[0], "peer": means[1], "spread": spread, "z": z}
    found = {"what": "mean over the samples of all rounds", "tolerance": f"z < {Z_LIMIT:g}", "metrics": metrics}
    return found | {"agrees": {"length", "nll"} <= set(metrics) and all(m["z"] < Z_LIMIT for m in metrics.values())}
