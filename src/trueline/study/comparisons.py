"""Which arms are compared, on what, and with which correction; the family is declared before any number is seen."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from trueline.study.matrix import ArmRuns, Study, Variant, paired
from trueline.study.statistics import (
    Array,
    Interval,
    holm,
    kl_matched,
    length_controlled_difference,
    paired_interval,
    prompt_interval,
    seed_interval,
)

__all__ = [
    "ALPHA",
    "CANDIDATES",
    "FAMILY",
    "LEAD",
    "Comparison",
    "arm_interval",
    "compare",
    "controlled",
    "differences",
    "find",
    "over_prompts",
]

CANDIDATES = ("dpo", "dpo-iter", "ppo", "dpo+ppo")
FLOORS = ("sft", "sft-chosen", "best-of-n")
LEAD = ("ppo", "dpo")
FAMILY = (LEAD, ("ppo", "dpo-iter"), ("dpo+ppo", "ppo"), ("dpo+ppo", "dpo"))
ALPHA = 0.05


@dataclass(frozen=True)
class Comparison:
    """a - b on one metric. `family` is "declared" (then `p_adjusted` is Holm's) or "exploratory" (then it is None).

    `interval` is None where the two cannot be compared (no bracketing checkpoints, lengths that never differ).
    """

    a: str
    b: str
    metric: str
    interval: Interval | None
    family: str
    p_adjusted: float | None = None

    @property
    def separated(self) -> bool:
        """Whether the two differ at 5%: after Holm within the declared family, by the raw interval outside it."""
        p = self.p_adjusted if self.p_adjusted is not None else (self.interval.p if self.interval else 1.0)
        return p < ALPHA


def differences(a: ArmRuns, b: ArmRuns, key: str, pick: str = "selected") -> Array | None:
    """a - b as `[seed, prompt]`; `[seed, 1]` where only figures per seed exist, None where neither exists."""
    raw = paired(a, b, key, pick)
    if raw is not None:
        return raw
    left, right = a.figure(key, pick), b.figure(key, pick)
    return None if left is None or right is None else (np.array(left) - np.array(right))[:, None]


def arm_interval(arm: ArmRuns, key: str, pick: str = "selected") -> tuple[Interval, list[float]] | None:
    """Interval and values per seed of one arm's metric: from raw scores where they exist, else from seed figures."""
    table = arm.table(key, pick)
    if table is not None:
        return paired_interval(table[1]), [float(v) for v in table[1].mean(axis=1)]
    values = arm.figure(key, pick)
    return None if values is None else (seed_interval(values), values)


def compare(study: Study, variant: Variant) -> tuple[Comparison, ...]:
    """The declared family (in the primary variant, Holm over those of its members that ran), then the exploratory ones.

    A family member always has the orientation of `FAMILY`; other pairs put the method before the floor.
    """
    metric = study.manifest.metric
    rows = []
    for a, b in _pairs(variant):
        d = differences(variant.arms[a], variant.arms[b], metric)
        family = "declared" if variant.primary and (a, b) in FAMILY else "exploratory"
        if d is not None:
            rows.append(Comparison(a, b, metric, paired_interval(d), family))
    declared = [row for row in rows if row.family == "declared"]
    adjusted = dict(zip(((row.a, row.b) for row in declared), holm([row.interval.p for row in declared])))
    return tuple(replace(row, p_adjusted=adjusted.get((row.a, row.b))) for row in rows)


def _pairs(variant: Variant) -> Iterator[tuple[str, str]]:
    ran = variant.arms
    listed = [*FAMILY, *((a, b) for a, b in combinations(CANDIDATES, 2) if {a, b} not in map(set, FAMILY))]
    listed += [(arm, floor) for floor in FLOORS for arm in ran if arm not in FLOORS]
    listed += [(floor, "sft") for floor in FLOORS[1:]]
    others = [arm for arm in ran if arm not in CANDIDATES and arm not in FLOORS]
    listed += [(arm, candidate) for arm in others for candidate in CANDIDATES]
    return ((a, b) for a, b in listed if a in ran and b in ran)


def over_prompts(study: Study, variant: Variant) -> tuple[Comparison, ...]:
    """Where one seed ran: the same pairs with intervals over prompts alone. They compare these checkpoints, not what
    training again would give."""
    if len(study.manifest.seeds) > 1:
        return ()
    rows = []
    for a, b in _pairs(variant):
        d = differences(variant.arms[a], variant.arms[b], study.manifest.metric)
        if d is not None and (b == "sft" or (a, b) in FAMILY):
            rows.append(Comparison(a, b, study.manifest.metric, prompt_interval(d), "exploratory"))
    return tuple(rows)


def find(rows: tuple[Comparison, ...], a: str, b: str) -> Comparison | None:
    """The comparison of two arms, whichever way round it is listed."""
    return next((row for row in rows if {row.a, row.b} == {a, b}), None)


def controlled(study: Study, variant: Variant) -> tuple[Comparison, ...]:
    """The family's pairs again, exploratory: at equal response length, and at equal KL to the original SFT."""
    rows: list[Comparison] = []
    for a, b in ((variant.arms[a], variant.arms[b]) for a, b in FAMILY if a in variant.arms and b in variant.arms):
        rows.extend(_at_equal_length(study.manifest.metric, a, b))
        rows.extend(_at_equal_kl(a, b))
    return tuple(rows)


def _at_equal_length(metric: str, a: ArmRuns, b: ArmRuns) -> Iterator[Comparison]:
    scores, lengths = paired(a, b, metric), paired(a, b, f"{metric.rsplit('/', 1)[0]}/length")
    if scores is not None and lengths is not None and scores.shape == lengths.shape:
        interval = length_controlled_difference(scores, lengths)
        yield Comparison(a.name, b.name, f"{metric} at equal length", interval, "exploratory")


def _at_equal_kl(a: ArmRuns, b: ArmRuns) -> Iterator[Comparison]:
    curves = [_kl_curves(a), _kl_curves(b)]
    if all(len(curve) > 1 for arm in curves for curve in arm):
        for match in kl_matched(*curves):
            metric = f"selection/sampled/gold at {match.fraction:.0%} KL ({match.kl:.2f} nats)"
            yield Comparison(a.name, b.name, metric, match.interval, "exploratory")


def _kl_curves(arm: ArmRuns) -> list[list[tuple[float, float]]]:
    kl, gold = "selection/sampled/kl", "selection/sampled/gold"
    points = ([p.metrics for p in cell.curve] for cell in arm.cells)
    return [[(m[kl], m[gold]) for m in curve if m.get(kl) is not None and m.get(gold) is not None] for curve in points]
