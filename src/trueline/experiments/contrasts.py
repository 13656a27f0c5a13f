"""What one change does: paired differences between two rows, corrected within a family, in words that claim no more.

Each difference is shown at the selected checkpoint and at the end of training, and at equal KL to the original SFT
where both rows pass through that KL: a change that only moves an arm along one curve is told from one that lifts it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from trueline.study.comparisons import differences
from trueline.study.matrix import ArmRuns
from trueline.study.statistics import Interval, KLMatch, holm, kl_matched, paired_interval

__all__ = ["HELPED", "HURT", "NONE", "UNDECIDED", "Contrast", "Effect", "effects", "kl_curves", "sentence", "word"]

HELPED, HURT, NONE, UNDECIDED = "helped", "hurt", "no visible effect", "undecided"
ALPHA = 0.05
METRIC = "test/sampled/gold"


@dataclass(frozen=True)
class Contrast:
    """`what` was changed from row `b` to row `a`, in `regime` (what was held equal, or the setting it was tried in)."""

    what: str
    a: str
    b: str
    regime: str = ""


@dataclass(frozen=True)
class Effect:
    """a - b. `selected` is the difference that is judged (Holm within its family); `end` is the one at the end of
    training; `per_seed` belongs to `selected`; `at_kl` are differences at equal KL, of those that are comparable."""

    contrast: Contrast
    selected: Interval
    p_adjusted: float
    end: Interval | None
    per_seed: tuple[float, ...]
    at_kl: tuple[KLMatch, ...]
    word: str


def effects(rows: Mapping[str, ArmRuns], contrasts: Sequence[Contrast], margin: float) -> tuple[Effect, ...]:
    """The contrasts of one family, whose rows were all run; the correction is over all of them."""
    held = [c for c in contrasts if c.a in rows and c.b in rows]
    found = [differences(rows[c.a], rows[c.b], METRIC) for c in held]
    pairs = [(c, d) for c, d in zip(held, found) if d is not None]
    intervals = [paired_interval(d) for _, d in pairs]
    adjusted = holm([interval.p for interval in intervals])
    return tuple(
        Effect(
            contrast=c,
            selected=interval,
            p_adjusted=p,
            end=_at_end(rows, c),
            per_seed=tuple(float(v) for v in d.mean(axis=1)),
            at_kl=_at_equal_kl(rows[c.a], rows[c.b]),
            word=word(interval, p, margin),
        )
        for (c, d), interval, p in zip(pairs, intervals, adjusted)
    )


def word(interval: Interval, p_adjusted: float, margin: float) -> str:
    """`helped` and `hurt` where the two are separated at 5%; `no visible effect` where the whole interval lies within
    the margin; otherwise `undecided`: these runs do not say."""
    if p_adjusted < ALPHA and interval.finite:
        return HELPED if interval.mean > 0 else HURT
    return NONE if -margin <= interval.low and interval.high <= margin else UNDECIDED


def _at_end(rows: Mapping[str, ArmRuns], c: Contrast) -> Interval | None:
    d = differences(rows[c.a], rows[c.b], METRIC, "end")
    return None if d is None else paired_interval(d)


def kl_curves(arm: ArmRuns) -> list[list[tuple[float, float]]]:
    """Per seed, KL to the original SFT and gold of each checkpoint on the selection prompts."""
    kl, gold = "selection/sampled/kl", "selection/sampled/gold"
    points = ([p.metrics for p in cell.curve] for cell in arm.cells)
    return [[(m[kl], m[gold]) for m in curve if m.get(kl) is not None and m.get(gold) is not None] for curve in points]


def _at_equal_kl(a: ArmRuns, b: ArmRuns) -> tuple[KLMatch, ...]:
    left, right = kl_curves(a), kl_curves(b)
    if any(len(curve) < 2 for curve in (*left, *right)):
        return ()
    return tuple(match for match in kl_matched(left, right) if match.interval is not None)


def sentence(effect: Effect, unit: str, digits: int = 2) -> str:
    """One line that says what the change did, by how much, and where."""
    from trueline.study.document import figure_text, interval_text

    c, interval = effect.contrast, effect.selected
    where = f" ({c.regime})" if c.regime else ""
    by = f"{interval_text(interval, digits)} {unit}"
    said = {
        HELPED: f"{c.what}{where} helped by {by}.",
        HURT: f"{c.what}{where} hurt: {by}.",
        NONE: f"{c.what}{where} had no visible effect: {by}, all of it within the margin.",
        UNDECIDED: f"{c.what}{where}: undecided, {by}.",
    }[effect.word]
    signs = sum(np.sign(effect.per_seed))
    if effect.word == UNDECIDED and abs(signs) == len(effect.per_seed) > 1:
        said = said[:-1] + f", the same sign in all {len(effect.per_seed)} seeds."
    if effect.end is not None:
        said += f" At the end of training {interval_text(effect.end, digits)}."
    if effect.at_kl:
        match = effect.at_kl[-1]
        at = figure_text(match.kl, 1)
        said += f" At equal KL ({at} nats) {interval_text(match.interval, digits)}."
    return said
