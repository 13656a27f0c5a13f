"""How often programs pass: pass@k, n@k, intervals over problems, and what went wrong. No model, no execution."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from math import comb, fsum, inf

import numpy as np
from numpy.typing import ArrayLike

from trueline.seeds import generator

__all__ = [
    "ERRORS", "VERDICTS", "Breakdown", "Estimate", "Tally", "Trial", "bootstrap", "breakdown", "clustered_n_at_k",
    "n_at_k", "pass_at_k", "pass_at_ks", "tally",
]  # fmt: skip

VERDICTS = ("pass", "fail", "limit", "infrastructure")
ERRORS = ("syntax", "runtime", "wrong", "timeout", "memory", "output")


@dataclass(frozen=True)
class Estimate:
    """A mean over problems with its two-sided bootstrap interval."""

    mean: float
    low: float
    high: float
    problems: int


@dataclass(frozen=True)
class Tally:
    """Of one problem: n samples that were judged, c of them passed; `infrastructure` could not be judged."""

    n: int
    c: int
    infrastructure: int = 0


@dataclass(frozen=True)
class Trial:
    """One sample: whether it passes the public tests, whether it passes the hidden ones, and what it printed.

    `cluster` is equal for samples that behave alike on shared inputs (AlphaCode, section 4.5).
    """

    public: bool
    passed: bool
    cluster: Hashable = None


@dataclass(frozen=True)
class Breakdown:
    """Shares of the judged samples, which sum to 1; `infrastructure` counts those that were not judged."""

    judged: int
    shares: Mapping[str, float] = field(default_factory=dict)
    infrastructure: int = 0


# --- pass@k --------------------------------------------------------------------------------------------------------


def pass_at_k(n: int, c: int, k: int) -> float:
    """Unbiased pass@k of one problem: `1 - C(n-c, k) / C(n, k)` (Chen et al. 2021, eq. 1); c of n samples passed.

    The nearest float to the rational number. Raises ValueError unless 0 <= c <= n and 1 <= k <= n.
    """
    if not 0 <= c <= n or not 1 <= k <= n:
        raise ValueError(f"pass_at_k needs 0 <= c <= n and 1 <= k <= n, got n={n}, c={c}, k={k}")
    return float(1 - Fraction(comb(n - c, k), comb(n, k)))


def pass_at_ks(tallies: Iterable[Tally], ks: Sequence[int] = (1, 10, 100), *, seed: int = 0) -> dict[int, Estimate]:
    """pass@k over problems, each k with its interval; a k above the fewest samples of any problem is left out.

    A problem all of whose samples failed for infrastructure has no samples, so that every k is left out: judge again.
    """
    counts = list(tallies)
    fewest = min((t.n for t in counts), default=0)
    return {k: bootstrap([pass_at_k(t.n, t.c, k) for t in counts], seed=seed) for k in ks if k <= fewest}


def tally(rows: Iterable[tuple[str, str]]) -> dict[str, Tally]:
    """(task id, verdict) of each sample to counts by task, in the order of first sight.

    A limit counts as a failure of the program. Infrastructure is no verdict on it and is left out of n.
    """
    found: dict[str, Counter[str]] = {}
    for task, verdict in rows:
        if verdict not in VERDICTS:
            raise ValueError(f"unknown verdict {verdict!r}: one of {', '.join(VERDICTS)}")
        found.setdefault(task, Counter())[verdict] += 1
    return {
        task: Tally(counts.total() - counts["infrastructure"], counts["pass"], counts["infrastructure"])
        for task, counts in found.items()
    }


# --- n@k -----------------------------------------------------------------------------------------------------------


def n_at_k(trials: Sequence[Trial], n: int, k: int | None = None) -> float:
    """n@k of one problem: of k samples those that pass the public tests are kept, n of them submitted at random.

    The probability that one of these passes the hidden tests (Li et al. 2022, section 2.2), in closed form: of all K
    trials m pass the public tests, c of these the hidden ones; M of the m fall among k drawn without replacement, so

        n@k = sum_j P(M = j) (1 - C(m-c, s) / C(m, s)),  s = min(n, j),  M hypergeometric(K, m, k).

    Fewer are submitted where fewer are left, and none where none passes the public tests. `k` None: all trials.
    """
    total, kept = len(trials), [trial for trial in trials if trial.public]
    drawn = total if k is None else k
    if n < 1 or not 1 <= drawn <= total:
        raise ValueError(f"n_at_k needs n >= 1 and 1 <= k <= {total} samples, got n={n}, k={drawn}")
    m, c = len(kept), sum(trial.passed for trial in kept)
    chance = Fraction(0)
    for j in range(max(1, drawn - (total - m)), min(m, drawn) + 1):
        submitted = min(n, j)
        weight = Fraction(comb(m, j) * comb(total - m, drawn - j), comb(total, drawn))
        chance += weight * (1 - Fraction(comb(m - c, submitted), comb(m, submitted)))
    return float(chance)


def clustered_n_at_k(trials: Sequence[Trial], n: int) -> float:
    """n@k with clustering, k being all trials: one submission from each cluster, the largest first, then round again.

    Clusters are of the samples that pass the public tests (Li et al. 2022, section 4.5); equal sizes go by first sight.
    From a cluster of s with c right ones, q are taken at random: `1 - prod C(s-c, q) / C(s, q)`.
    """
    if n < 1 or not trials:
        raise ValueError(f"clustered_n_at_k needs n >= 1 and samples, got n={n} and {len(trials)} samples")
    clusters: dict[Hashable, list[bool]] = {}
    for trial in trials:
        if trial.public:
            clusters.setdefault(trial.cluster, []).append(trial.passed)
    largest_first = sorted(clusters.values(), key=len, reverse=True)
    taken = [0] * len(largest_first)
    for _ in range(min(n, sum(map(len, largest_first)))):
        open_ones = [i for i, cluster in enumerate(largest_first) if taken[i] < len(cluster)]
        taken[min(open_ones, key=lambda i: (taken[i], i))] += 1
    missed = Fraction(1)
    for cluster, q in zip(largest_first, taken):
        missed *= Fraction(comb(len(cluster) - sum(cluster), q), comb(len(cluster), q))
    return float(1 - missed)


# --- intervals and errors ------------------------------------------------------------------------------------------


def bootstrap(values: ArrayLike, *, level: float = 0.95, draws: int = 4000, seed: int = 0) -> Estimate:
    """The mean of one value per problem with the percentile interval of means of problems drawn anew.

    It covers the choice of problems and the luck of the samples, not another training run. Where every value is 0, or
    every one 1, drawing anew shows nothing: the exact bound `1 - (alpha/2)^(1/P)` of Clopper and Pearson stands
    instead. One problem has infinite bounds. Raises ValueError for no values or for one that is not finite.
    """
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or x.size == 0 or not np.isfinite(x).all():
        raise ValueError(f"bootstrap needs one finite value per problem, got shape {x.shape}")
    if not 0 < level < 1 or draws < 1:
        raise ValueError(f"bootstrap needs 0 < level < 1 and draws >= 1, got {level} and {draws}")
    count, mean = len(x), fsum(x) / len(x)
    if count == 1:
        return Estimate(mean, -inf, inf, 1)
    if mean in (0.0, 1.0) and (x == mean).all():
        reach = 1 - ((1 - level) / 2) ** (1 / count)
        return Estimate(mean, max(0.0, mean - reach), min(1.0, mean + reach), count)
    rng = generator(seed, "passk/bootstrap")
    chunk = max(1, 2_000_000 // count)  # bounds memory at many problems
    means = [x[rng.integers(count, size=(min(chunk, draws - i), count))].mean(axis=1) for i in range(0, draws, chunk)]
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2])
    return Estimate(mean, float(low), float(high), count)


def breakdown(rows: Iterable[tuple[str, str | None]]) -> Breakdown:
    """(verdict, error) of each sample to the share of passes and of each error among those that were judged.

    Raises ValueError for an unknown verdict or error, a pass with an error and a failure without.
    """
    counts: Counter[str] = Counter()
    for verdict, error in rows:
        if verdict not in VERDICTS:
            raise ValueError(f"unknown verdict {verdict!r}: one of {', '.join(VERDICTS)}")
        if verdict in ("fail", "limit") and error not in ERRORS:
            raise ValueError(f"a verdict {verdict} needs an error of {', '.join(ERRORS)}, got {error!r}")
        if verdict == "pass" and error:
            raise ValueError(f"a pass has no error, got {error!r}")
        counts[error if verdict in ("fail", "limit") else verdict] += 1
    judged = counts.total() - counts["infrastructure"]
    shares = {name: counts[name] / judged for name in ("pass", *ERRORS)} if judged else {}
    return Breakdown(judged, shares, counts["infrastructure"])
