"""Simulated studies with known truth: do the intervals cover, does the correction hold, is the power what is said?

A study is arms x seeds x prompts x samples, with the structure of real ones: what all arms share at a seed or a prompt
cancels in the paired differences; what an arm does of its own at a seed, at a prompt, and at a seed on a prompt does
not. The simulated scores go through the very functions that a study uses: `paired_interval`, `holm`, `seeds_needed`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from trueline.seeds import generator
from trueline.study.comparisons import ALPHA, CANDIDATES, FAMILY
from trueline.study.statistics import holm, paired_interval, seeds_needed, wilson

__all__ = ["REGIMES", "Regime", "Studied", "power_record", "simulate", "studied_json"]

Array = np.ndarray
EFFECTS: Mapping[str, Mapping[str, float]] = {
    "nothing": dict.fromkeys(CANDIDATES, 0.0),
    "one ahead": dict.fromkeys(CANDIDATES, 0.0) | {"ppo": 1.5},
}
"""True means by arm. Under the second, one of the four declared differences is null (both - DPO), the rest are not."""


@dataclass(frozen=True)
class Regime:
    """Standard deviations, in gold, of what is an arm's own: at a seed, at a prompt, at a seed on a prompt, and of one
    sample. With `collapse` a run loses `fall` with that probability (outcomes come in two kinds); with `binary` a
    sample is right or wrong and the deviations are of its log-odds."""

    name: str
    seed: float
    prompt: float
    both: float
    sample: float = 0.7
    collapse: float = 0.0
    fall: float = 2.0
    binary: bool = False


REGIMES = (
    Regime("seeds differ most", 0.35, 0.2, 0.2),
    Regime("prompts differ most", 0.05, 0.6, 0.3),
    Regime("both", 0.2, 0.5, 0.3),
    Regime("a seed on a prompt", 0.1, 0.1, 0.8),
    Regime("seeds do not differ", 0.0, 0.3, 0.3),
    Regime("right or wrong", 0.4, 0.8, 0.6, binary=True),
    Regime("one run in five collapses", 0.2, 0.4, 0.3, collapse=0.2),
    Regime("one run in two collapses", 0.2, 0.4, 0.3, collapse=0.5),
)
"""The last two break what a t interval assumes; they are there to say by how much."""
PROMPTS, SAMPLES = 60, 2


@dataclass(frozen=True)
class Studied:
    """What came of `studies` simulated studies of one regime, number of seeds, and truth.

    `covered` counts intervals that hold the truth, of `intervals`; `false` counts studies in which a true null was
    rejected after Holm; `found` counts rejections of differences that exist, of `real`; `widths` are mean half-widths.
    """

    regime: Regime
    truth: str
    seeds: int
    studies: int
    intervals: int
    covered: int
    false: int
    raw_false: int
    found: int
    real: int
    half_width: float
    settings: Mapping[str, int] = field(default_factory=dict)

    @property
    def coverage(self) -> float:
        return self.covered / self.intervals

    @property
    def false_positives(self) -> float:
        """Share of studies with any false positive, after the correction."""
        return self.false / self.studies


def simulate(
    regime: Regime,
    truth: str,
    seeds: int,
    studies: int,
    *,
    seed: int = 0,
    prompts: int = PROMPTS,
    samples: int = SAMPLES,
) -> Studied:
    """Draw that many studies of the declared family and judge each as a study is judged."""
    effects = EFFECTS[truth]
    means = {arm: _true_mean(regime, effects[arm]) for arm in CANDIDATES}
    nulls = [abs(means[a] - means[b]) < 1e-12 for a, b in FAMILY]
    covered = false = raw = found = 0
    widths = []
    for number in range(studies):
        rng = generator(seed, f"simulation/{regime.name}/{truth}/{seeds}", number)
        scores = {arm: _scores(rng, regime, effects[arm], seeds, prompts, samples) for arm in CANDIDATES}
        intervals = [paired_interval(scores[a] - scores[b]) for a, b in FAMILY]
        adjusted = holm([interval.p for interval in intervals])
        for (a, b), interval in zip(FAMILY, intervals):
            covered += interval.low <= means[a] - means[b] <= interval.high
            widths.append((interval.high - interval.low) / 2)
        false += any(null and p < ALPHA for null, p in zip(nulls, adjusted))
        raw += any(null and interval.p < ALPHA for null, interval in zip(nulls, intervals))
        found += sum(not null and p < ALPHA for null, p in zip(nulls, adjusted))
    real = studies * (len(nulls) - sum(nulls))
    settings = {"prompts": prompts, "samples": samples}
    return Studied(
        regime,
        truth,
        seeds,
        studies,
        studies * len(FAMILY),
        covered,
        false,
        raw,
        found,
        real,
        float(np.mean(widths)),
        settings,
    )


def _scores(rng: np.random.Generator, regime: Regime, effect: float, seeds: int, prompts: int, samples: int) -> Array:
    """One arm's [seed, prompt] means over samples; what arms share is left out, since differences are paired."""
    level = effect + rng.normal(0, regime.seed, (seeds, 1)) + rng.normal(0, regime.prompt, (1, prompts))
    level = level + rng.normal(0, regime.both, (seeds, prompts))
    if regime.collapse:
        level = level - regime.fall * (rng.random((seeds, 1)) < regime.collapse)
    if regime.binary:
        return rng.binomial(samples, 1 / (1 + np.exp(-level))) / samples
    return level + rng.normal(0, regime.sample / np.sqrt(samples), (seeds, prompts))


def _true_mean(regime: Regime, effect: float) -> float:
    """The mean over all seeds, prompts and samples that there could be."""
    mean = effect - regime.collapse * regime.fall
    if not regime.binary:
        return mean
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    spread = np.sqrt(regime.seed**2 + regime.prompt**2 + regime.both**2)
    return float((weights / (1 + np.exp(-(mean + spread * nodes)))).sum() / weights.sum())


def power_record(regime: Regime, pilot: int, studies: int, *, effect: float, power: float = 0.8, seed: int = 0) -> dict:
    """The statement "about n seeds would settle it": n from pilots of that many seeds, and what n seeds then do.

    The truth is a difference of `effect` between two arms; each pilot's statement is for that difference, so that what
    is tested is the statement and not the pilot's luck with the mean. `reached` is how often a fresh study of the
    median number of seeds parts the two at 5%.
    """
    needed = []
    for number in range(studies):
        rng = generator(seed, f"simulation/pilot/{regime.name}/{pilot}", number)
        a, b = (_scores(rng, regime, m, pilot, PROMPTS, SAMPLES) for m in (effect, 0.0))
        needed.append(seeds_needed(a - b, effect, power=power) or 201)
    n = int(np.median(needed))
    parted = 0
    for number in range(studies if n <= 200 else 0):
        rng = generator(seed, f"simulation/fresh/{regime.name}/{pilot}", number)
        a, b = (_scores(rng, regime, m, n, PROMPTS, SAMPLES) for m in (effect, 0.0))
        interval = paired_interval(a - b)
        parted += interval.p < ALPHA and interval.mean > 0
    low, high = (int(v) for v in np.percentile(needed, [10, 90]))
    return {
        "regime": regime.name, "pilot_seeds": pilot, "effect": effect, "said": power, "seeds": n,
        "seeds_80": [low, high], "reached": parted / studies, "studies": studies,
    }  # fmt: skip


def studied_json(found: Studied) -> dict[str, Any]:
    """A row of statistics.json, with Wilson intervals of what the simulation itself leaves open."""
    return {
        "regime": found.regime.name, "truth": found.truth, "seeds": found.seeds, "studies": found.studies,
        "coverage": found.coverage, "coverage_ci95": list(wilson(found.covered, found.intervals)),
        "false_positives": found.false_positives, "false_positives_ci95": list(wilson(found.false, found.studies)),
        "uncorrected": found.raw_false / found.studies,
        "power": found.found / found.real if found.real else None, "half_width": found.half_width, **found.settings,
    }  # fmt: skip
