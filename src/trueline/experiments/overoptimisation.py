"""Over-optimisation: gold against the proxy that is optimised, over the distance from SFT, and best-of-n as the floor.

Gao, Schulman and Hilton 2022 (arXiv 2210.10760) fit the gold reward over d = sqrt(KL(pi || SFT)):

    best-of-n:  R(d) = d (alpha - beta d)          reinforcement learning:  R(d) = d (alpha - beta log d)

with R = 0 at SFT. Rafailov et al. 2024 (arXiv 2406.02900) find the second form for DPO, within its first epoch. Here
both are least squares per seed, in gains over the same seed's SFT, with intervals over seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import comb, log
from typing import Any

import numpy as np

from trueline.experiments.contrasts import METRIC
from trueline.study.comparisons import arm_interval
from trueline.study.matrix import ArmRuns, Cell
from trueline.study.statistics import Interval, seed_interval

__all__ = [
    "FORMS",
    "Curve",
    "Fit",
    "above_floor",
    "best_of_n",
    "best_of_n_kl",
    "curves_of",
    "early_stopping",
    "fit",
    "floor_curves",
    "gain_at",
    "overoptimisation_json",
]

Array = np.ndarray
FORMS: Mapping[str, Any] = {
    "best-of-n": lambda d: (d, -(d**2)),
    "RL": lambda d: (d, -d * np.log(np.where(d > 0, d, 1.0))),
}
"""Form -> the two columns whose coefficients are alpha and beta."""
NS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)


def best_of_n_kl(n: int) -> float:
    """log n - (n - 1) / n, nats: an upper bound that is reached where scores have no ties (Beirami et al. 2024)."""
    return log(n) - (n - 1) / n


def best_of_n(proxy: Sequence[float], gold: Sequence[float], n: int) -> tuple[float, float]:
    """Mean proxy and gold of the proxy's favourite of n, over all subsets of the N samples: unbiased, no resampling.

    With samples in the order of the proxy the k-th (from 1) is the favourite of comb(k - 1, n - 1) of the comb(N, n)
    subsets (Nakano et al. 2021). Equal proxies share what falls on them.
    """
    p, g = np.asarray(proxy, dtype=np.float64), np.asarray(gold, dtype=np.float64)
    size = len(p)
    if not 1 <= n <= size:
        raise ValueError(f"n: {n} of {size} samples")
    weights = np.array([comb(k - 1, n - 1) for k in range(1, size + 1)], dtype=np.float64) / comb(size, n)
    order = np.argsort(p, kind="stable")
    shared = weights.copy()
    values = p[order]
    for value in np.unique(values):
        tied = values == value
        shared[tied] = weights[tied].mean()
    return float(shared @ values), float(shared @ g[order])


@dataclass(frozen=True)
class Curve:
    """One seed of one row: d = sqrt(KL), and the gains in proxy and gold over that seed's start, by checkpoint."""

    d: Array
    proxy: Array
    gold: Array


def curves_of(row: ArmRuns) -> list[Curve]:
    """Of every seed, from the checkpoints on the selection prompts; the first one is the start."""
    found = []
    for cell in row.cells:
        points = [p.metrics for p in cell.curve]
        names = ("selection/sampled/kl", "selection/sampled/proxy", "selection/sampled/gold")
        table = np.array([[m[name] for name in names] for m in points if all(m.get(n) is not None for n in names)])
        if len(table) > 2:
            d = np.sqrt(np.maximum(table[:, 0], 0.0))
            found.append(Curve(d, table[:, 1] - table[0, 1], table[:, 2] - table[0, 2]))
    return found


def floor_curves(sft: ArmRuns, ns: Sequence[int] = NS) -> list[Curve]:
    """Best-of-n of SFT's own samples on the test prompts, of every seed, as far as its samples go."""
    return [_floor(cell, ns) for cell in sft.cells]


def _floor(cell: Cell, ns: Sequence[int]) -> Curve:
    rows = [r for r in cell.scores[("selected", "test", "sampled")].values() if "proxy" in r]
    kept = [(r["proxy"], r["gold"]) for r in rows if all(v is not None for v in (*r["proxy"], *r["gold"]))]
    most = min(len(proxy) for proxy, _ in kept)
    used = [n for n in ns if n <= most]
    means = np.array([np.mean([best_of_n(p, g, n) for p, g in kept], axis=0) for n in used])
    d = np.sqrt([best_of_n_kl(n) for n in used])
    return Curve(d, means[:, 0] - means[0, 0], means[:, 1] - means[0, 1])


@dataclass(frozen=True)
class Fit:
    """alpha and beta with intervals over seeds, the share of variance that the form leaves, and where it peaks."""

    form: str
    alpha: Interval
    beta: Interval
    left: float
    peak: float | None


def fit(curves: Sequence[Curve], form: str, which: str = "gold") -> Fit | None:
    """Least squares of one form on each seed's curve; None where no seed moves."""
    found, left = [], []
    for curve in curves:
        values, moved = getattr(curve, which), curve.d > 1e-6
        if moved.sum() < 2:
            continue
        design = np.stack(FORMS[form](curve.d[moved]), axis=1)
        coefficients, *_ = np.linalg.lstsq(design, values[moved], rcond=None)
        found.append(coefficients)
        spread = float(((values[moved] - values[moved].mean()) ** 2).sum())
        left.append(float(((values[moved] - design @ coefficients) ** 2).sum()) / max(spread, 1e-12))
    if not found:
        return None
    alpha, beta = (seed_interval([float(c[i]) for c in found]) for i in (0, 1))
    return Fit(form, alpha, beta, float(np.mean(left)), _peak(form, alpha.mean, beta.mean))


def _peak(form: str, alpha: float, beta: float) -> float | None:
    """d of the highest gold: alpha / (2 beta), or exp(alpha / beta - 1); None where the curve does not turn."""
    if beta <= 0:
        return None
    return alpha / (2 * beta) if form == "best-of-n" else float(np.exp(min(alpha / beta - 1, 50.0)))


def gain_at(curve: Curve, d: float, which: str = "gold") -> float | None:
    """The gain where the curve first passes the distance, linear between checkpoints; None where it never does."""
    values = getattr(curve, which)
    for i in range(len(curve.d) - 1):
        low, high = sorted((curve.d[i], curve.d[i + 1]))
        if low <= d <= high and high > low:
            share = (d - curve.d[i]) / (curve.d[i + 1] - curve.d[i])
            return float((1 - share) * values[i] + share * values[i + 1])
    return None


def above_floor(curves: Sequence[Curve], floor: Sequence[Curve], d: float) -> Interval | None:
    """Gain in gold less best-of-n's at one distance, over the seeds that have both; None for fewer than two."""
    pairs = [(gain_at(a, d), gain_at(b, d)) for a, b in zip(curves, floor)]
    gaps = [a - b for a, b in pairs if a is not None and b is not None]
    return seed_interval(gaps) if len(gaps) > 1 else None


def early_stopping(row: ArmRuns) -> dict[str, Any]:
    """Test gold at the end, at the checkpoint of the highest proxy on held-out prompts (early stopping by reward), and
    at the one of the highest gold there; and by how many of the seeds the first two differ."""
    found = {pick: arm_interval(row, METRIC, pick) for pick in ("end", "proxy", "selected")}
    same = sum(cell.picks.get("proxy") == cell.picks.get("end") for cell in row.cells)
    return {pick: None if f is None else f[0] for pick, f in found.items()} | {"proxy_is_end": same}


def overoptimisation_json(rows: Mapping[str, ArmRuns], floor_row: str) -> dict[str, Any]:
    """Fits, curves, floors and picks of every row that moves."""
    from trueline.experiments.parts import interval_json

    floor = floor_curves(rows[floor_row])
    moving = {name: curves_of(row) for name, row in rows.items() if name != floor_row}
    moving = {name: curves for name, curves in moving.items() if len(curves) == len(rows[name].cells)}
    fits = {name: [f for form in FORMS if (f := fit(curves, form))] for name, curves in moving.items()}
    fits["best-of-n"] = [f for form in FORMS if (f := fit(floor, form))]
    reach = float(np.mean([c.d[-1] for c in floor]))
    return {
        "floor": {"d": floor[0].d.tolist(), "gold": np.mean([c.gold for c in floor], axis=0).tolist(),
                  "proxy": np.mean([c.proxy for c in floor], axis=0).tolist()},
        "fits": {
            name: [
                {"form": f.form, "left": f.left, "peak_d": f.peak}
                | {"alpha": interval_json(f.alpha), "beta": interval_json(f.beta)}
                for f in group
            ]
            for name, group in fits.items()
        },
        "above_floor": {
            name: [
                {"d": d, "gain": interval_json(above_floor(curves, floor, d))}
                for d in (0.25 * reach, 0.5 * reach, 0.75 * reach, 0.95 * reach)
            ]
            for name, curves in moving.items()
        },
        "early_stopping": {
            name: {k: interval_json(v) if isinstance(v, Interval) else v for k, v in early_stopping(rows[name]).items()}
            for name in moving
        },
    }  # fmt: skip
