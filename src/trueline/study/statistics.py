"""Intervals and tests over seeds and prompts. Arrays are `[seed, prompt]`; samples of one prompt are averaged first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import fsum, inf, isfinite, nan, sqrt

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "Crossed",
    "Interval",
    "KLMatch",
    "crossed_variance",
    "equivalent",
    "holm",
    "kl_matched",
    "length_controlled_difference",
    "paired_interval",
    "prompt_interval",
    "sample_means",
    "seed_interval",
    "seeds_needed",
    "wilson",
]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A mean with its two-sided t interval. Infinite bounds and p = 1 say that one seed carries no such information."""

    mean: float
    low: float
    high: float
    se: float
    df: float
    p: float

    @property
    def finite(self) -> bool:
        return bool(np.isfinite(self.low) and np.isfinite(self.high))


@dataclass(frozen=True)
class Crossed:
    """Mean and its variance twice: seeds and prompts crossed, and seeds alone, each with its degrees of freedom."""

    mean: Array
    variance: Array
    df: Array
    seed_variance: Array
    seed_df: float

    def half_width(self, level: float = 0.95) -> Array:
        """Half-width of the t interval: the wider of the two."""
        from scipy.special import stdtrit

        crossed = stdtrit(self.df, 0.5 + level / 2) * np.sqrt(self.variance)
        return np.maximum(crossed, stdtrit(self.seed_df, 0.5 + level / 2) * np.sqrt(self.seed_variance))


@dataclass(frozen=True)
class KLMatch:
    """Two arms at one KL. `interval` is of a - b over seeds, None where a seed has no bracketing checkpoints."""

    fraction: float
    kl: float
    gold_a: float | None
    gold_b: float | None
    interval: Interval | None


def sample_means(samples: Sequence[Sequence[Sequence[float]]]) -> Array:
    """`[seed][prompt][sample]`, ragged in samples, to `[seed, prompt]`: each prompt weighs the same whatever it holds.

    A prompt without a finite sample becomes nan, which the callers drop in pairs.
    """
    return np.array([[_finite_mean(prompt) for prompt in seed] for seed in samples], dtype=np.float64)


def _finite_mean(values: Sequence[float]) -> float:
    kept = [v for v in values if v is not None and isfinite(v)]
    return fsum(kept) / len(kept) if kept else nan


def crossed_variance(differences: ArrayLike) -> Crossed:
    """Variance of the mean of `[..., S, P]` differences under a crossed seed x prompt model, S of at least 2.

    With `d_sp = mu + seed_s + prompt_p + error_sp`, `E[MS_s] = e + P*s`, `E[MS_p] = e + S*p`, `E[MS_e] = e`, so

        Var(mean) = (MS_s + MS_p - MS_e) / (S P),   df = (MS_s + MS_p - MS_e)^2 / sum_k MS_k^2 / df_k

    (Satterthwaite 1946; Searle, Casella and McCulloch, Variance Components, ch. 4), and never below what the seeds
    alone show, `MS_s / (S P)` on S - 1 degrees of freedom.
    """
    d = np.asarray(differences, dtype=np.float64)
    if d.ndim < 2 or d.shape[-2] < 2 or d.shape[-1] < 1:
        raise ValueError(f"differences must be [..., seeds >= 2, prompts >= 1], got {d.shape}")
    seeds, prompts = d.shape[-2:]
    ms_seed, ms_prompt, ms_error = _mean_squares(d)
    excess, count = np.maximum(ms_prompt - ms_error, 0.0), seeds * prompts
    df = np.maximum(_satterthwaite(ms_seed, excess, ms_error, seeds, prompts), seeds - 1.0)
    return Crossed(d.mean((-2, -1)), (ms_seed + excess) / count, df, ms_seed / count, seeds - 1.0)


def _satterthwaite(ms_seed: Array, excess: Array, ms_error: Array, seeds: int, prompts: int) -> Array:
    """df of `ms_seed + excess`, where excess is MS_p - MS_e (not below 0); S - 1 where nothing varies."""
    spread = ms_seed**2 / (seeds - 1)
    if prompts > 1:
        by_prompt = (excess + ms_error) ** 2 / (prompts - 1) + ms_error**2 / ((seeds - 1) * (prompts - 1))
        spread = spread + np.where(excess > 0, by_prompt, 0.0)
    return np.where(spread > 0, (ms_seed + excess) ** 2 / np.where(spread > 0, spread, 1.0), seeds - 1.0)


def _mean_squares(d: Array) -> tuple[Array, Array, Array]:
    seeds, prompts = d.shape[-2:]
    grand = d.mean((-2, -1), keepdims=True)
    by_seed, by_prompt = d.mean(-1, keepdims=True), d.mean(-2, keepdims=True)
    ms_seed = prompts * ((by_seed - grand) ** 2).sum((-2, -1)) / (seeds - 1)
    if prompts == 1:
        return ms_seed, np.zeros_like(ms_seed), np.zeros_like(ms_seed)
    ms_prompt = seeds * ((by_prompt - grand) ** 2).sum((-2, -1)) / (prompts - 1)
    residual = d - by_seed - by_prompt + grand
    return ms_seed, ms_prompt, (residual**2).sum((-2, -1)) / ((seeds - 1) * (prompts - 1))


def paired_interval(differences: ArrayLike, level: float = 0.95) -> Interval:
    """The mean difference with a t interval that covers new seeds and new prompts alike (`crossed_variance`).

    `differences` is `[seed, prompt]`: arm a minus arm b on the same seed and prompt. The interval is the wider, and p
    the larger, of the crossed estimate and of the seeds alone: an MS_s that is small by chance is otherwise given many
    degrees of freedom, and three seeds then cover 92% and not 95%. One seed gives infinite bounds: variation over
    prompts says nothing of variation over training runs.
    """
    d = np.asarray(differences, dtype=np.float64)
    if d.ndim != 2 or d.size == 0:
        raise ValueError(f"differences must be [seed, prompt] and not empty, got {d.shape}")
    if not np.isfinite(d).all():
        raise ValueError("differences must be finite: drop prompts without a score first")
    if d.shape[0] == 1:
        return Interval(float(d.mean()), -inf, inf, inf, 0.0, 1.0)
    c = crossed_variance(d)
    crossed = _t_interval(float(c.mean), sqrt(c.variance), float(c.df), level)
    by_seed = _t_interval(float(c.mean), sqrt(c.seed_variance), c.seed_df, level)
    wider = max(crossed, by_seed, key=lambda interval: interval.high - interval.low)
    return replace(wider, p=max(crossed.p, by_seed.p))


def prompt_interval(values: Array) -> Interval:
    """t interval over prompts alone of `[seed, prompt]`: how sure a difference between these very checkpoints is.

    It says nothing about training again: for that `paired_interval` needs seeds.
    """
    from scipy.special import stdtr, stdtrit

    means = np.asarray(values, dtype=np.float64).mean(axis=0)
    n, mean = len(means), float(means.mean())
    if n < 2:
        return Interval(mean, -inf, inf, inf, 0.0, 1.0)
    se, df = float(means.std(ddof=1) / sqrt(n)), float(n - 1)
    if se == 0:
        return Interval(mean, mean, mean, 0.0, df, 1.0 if mean == 0 else 0.0)
    half = float(stdtrit(df, 0.975)) * se
    return Interval(mean, mean - half, mean + half, se, df, float(2 * stdtr(df, -abs(mean) / se)))


def seed_interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """The t interval over seeds of a figure that has one value per seed (the prompt part is not separable there)."""
    return paired_interval(np.asarray(values, dtype=np.float64)[:, None], level)


def _t_interval(mean: float, se: float, df: float, level: float) -> Interval:
    from scipy.special import stdtr, stdtrit

    if se <= 1e-12 * max(1.0, abs(mean)):  # the same number everywhere: rounding is not evidence
        return Interval(mean, mean, mean, 0.0, df, 1.0 if abs(mean) < 1e-12 else 0.0)
    half = float(stdtrit(df, 0.5 + level / 2)) * se
    return Interval(mean, mean - half, mean + half, se, df, float(2 * stdtr(df, -abs(mean) / se)))


def holm(pvalues: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values, in the order given: `max_{j<=i} min(1, (m - j) p_(j))`, j from 0."""
    order = np.argsort(np.asarray(pvalues, dtype=np.float64), kind="stable")
    adjusted, running = [0.0] * len(order), 0.0
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (len(order) - rank) * pvalues[index]))
        adjusted[index] = running
    return adjusted


def equivalent(interval: Interval, margin: float) -> bool:
    """Whether the whole interval lies within plus or minus `margin` (stricter than two one-sided tests at 5%)."""
    return bool(-margin <= interval.low and interval.high <= margin)


def seeds_needed(
    differences: ArrayLike, target: float, level: float = 0.95, limit: int = 200, *, power: float = 0.5
) -> int | None:
    """The fewest seeds at which a difference of `target` leaves 0 outside its interval with probability `power`, the
    prompts staying as they are: expected half-width + z_power standard errors below `target`.

    At power 0.5 that is a half-width equal to the target: a difference that stays as it is is then parted from 0 in
    one study of two. Uses the variance components of `differences [seed, prompt]`. None: one seed (no components), or
    more than `limit`, as when the prompts alone are too few.
    """
    from scipy.special import ndtri

    d = np.asarray(differences, dtype=np.float64)
    if d.ndim != 2 or d.shape[0] < 2 or not target > 0:
        return None
    seeds, prompts = d.shape
    ms_seed, ms_prompt, ms_error = _mean_squares(d)
    prompt_part = np.maximum(ms_prompt - ms_error, 0.0) / seeds
    for n in range(2, limit + 1):
        excess, count = n * prompt_part, n * prompts
        df = np.maximum(_satterthwaite(ms_seed, excess, ms_error, n, prompts), n - 1.0)
        expected = Crossed(d.mean(), (ms_seed + excess) / count, df, ms_seed / count, n - 1.0)
        spread = np.sqrt(np.maximum(expected.variance, expected.seed_variance))
        if expected.half_width(level) + float(ndtri(power)) * spread < target:
            return n
    return None


def wilson(successes: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson score interval for a share: roots of `(p - x/n)^2 = z^2 p (1 - p) / n`. No trials: [0, 1]."""
    from scipy.special import ndtri

    if n == 0:
        return 0.0, 1.0
    share, z2 = successes / n, float(ndtri(0.5 + level / 2)) ** 2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = sqrt(z2 * (share * (1 - share) / n + z2 / (4 * n * n))) / (1 + z2 / n)
    # the ends are exact in the algebra and must not miss 0 or 1 by rounding
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    return low, 1.0 if successes == n else min(1.0, centre + half)


def length_controlled_difference(
    score_differences: ArrayLike, length_differences: ArrayLike, level: float = 0.95
) -> Interval | None:
    """The score difference at equal length: the intercept `a` of `score = a + b * length + u` over paired prompts.

    The interval is `paired_interval` of the intercept's influence values `a + u * (1 - m (l - m) / V)`, with m and V
    the mean and variance of the length differences: their mean is `a`, and seeds and prompts stay crossed. None where
    every length difference is the same nonzero number, which leaves the intercept undetermined. Both are
    `[seed, prompt]`; lengths in tokens.
    """
    scores = np.asarray(score_differences, dtype=np.float64)
    lengths = np.asarray(length_differences, dtype=np.float64)
    if scores.shape != lengths.shape:
        raise ValueError(f"length_differences {lengths.shape} must have the shape of score_differences {scores.shape}")
    centre, variance = lengths.mean(), lengths.var()
    if variance < 1e-12:
        return paired_interval(scores, level) if abs(centre) < 1e-9 else None
    slope = ((lengths - centre) * (scores - scores.mean())).mean() / variance
    intercept = scores.mean() - slope * centre
    residual = scores - intercept - slope * lengths
    return paired_interval(intercept + residual * (1 - centre * (lengths - centre) / variance), level)


def kl_matched(
    curves_a: Sequence[ArrayLike],
    curves_b: Sequence[ArrayLike],
    fractions: Sequence[float] = (0.25, 0.5, 1.0),
    level: float = 0.95,
) -> tuple[KLMatch, ...]:
    """Gold of two arms at equal KL to the original SFT, per seed, at fractions of the smaller of their largest KLs.

    A curve is `[checkpoint, 2]` in training order: KL (nats per sequence) and gold; one per seed. Gold is linear in
    sqrt(KL) between the first two neighbouring checkpoints that bracket the target (Gao et al. 2022 use sqrt(KL) as
    the distance); where a seed has none, nothing is extrapolated and `interval` is None.
    """
    if len(curves_a) != len(curves_b) or not curves_a:
        raise ValueError(f"curves_a and curves_b must be one per seed, got {len(curves_a)} and {len(curves_b)}")
    pairs = [(np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)) for a, b in zip(curves_a, curves_b)]
    largest = [min(float(a[:, 0].max()), float(b[:, 0].max())) for a, b in pairs]
    return tuple(_match(pairs, [fraction * kl for kl in largest], fraction, level) for fraction in fractions)


def _match(pairs: list[tuple[Array, Array]], targets: list[float], fraction: float, level: float) -> KLMatch:
    kl = float(np.mean(targets))
    golds = [(_at_kl(a, target), _at_kl(b, target)) for (a, b), target in zip(pairs, targets)]
    if any(a is None or b is None for a, b in golds):
        return KLMatch(fraction, kl, None, None, None)
    both = np.array(golds, dtype=np.float64)
    interval = seed_interval(both[:, 0] - both[:, 1], level)
    return KLMatch(fraction, kl, float(both[:, 0].mean()), float(both[:, 1].mean()), interval)


def _at_kl(curve: Array, target: float) -> float | None:
    """Gold at KL `target`; an estimate of KL below zero counts as zero, and a target of zero has no bracket."""
    if not target > 0:
        return None
    root, goal = np.sqrt(np.maximum(curve[:, 0], 0.0)), sqrt(target)
    for i in range(len(curve) - 1):
        low, high = sorted((root[i], root[i + 1]))
        if low <= goal <= high:
            weight = 1.0 if low == high else (goal - root[i]) / (root[i + 1] - root[i])
            return float((1 - weight) * curve[i, 1] + weight * curve[i + 1, 1])
    return None
