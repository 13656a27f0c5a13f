"""How right a judge of pairs is, and how well it knows it: counts and calibration, for `done.json`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from trueline.algorithms.reward_modeling import (
    calibration_error,
    calibration_error_by_chance,
    margin_confidence,
    reliability_bins,
)
from trueline.types import Pair

__all__ = ["calibration", "counts", "length_controls"]

_EQUAL = 0.1
"""Sides count as equally long where the shorter has at least nine tenths of the longer one's characters."""


def counts(kinds: Sequence[str], margins: Sequence[float]) -> dict[str, dict[str, float]]:
    """`right` of `pairs` over all and for each kind of prompt that has a name; a tie is half right."""
    groups = {"all": list(margins)} if margins else {}
    for kind in sorted(set(kinds) - {""}):
        groups[kind] = [margin for k, margin in zip(kinds, margins) if k == kind]
    return {
        name: {"right": sum(1.0 if m > 0 else 0.5 * (m == 0) for m in held), "pairs": len(held)}
        for name, held in groups.items()
    }


def calibration(margins: Sequence[float]) -> dict[str, Any]:
    """Expected calibration error of sigmoid(|margin|), what it would be by chance alone, and its bins."""
    confidence, right = margin_confidence(torch.tensor(margins, dtype=torch.float64))
    bins = reliability_bins(confidence, right)
    return {
        "ece": calibration_error(bins),
        "by_chance": calibration_error_by_chance(bins),
        "bins": [bin._asdict() for bin in bins],
    }


def length_controls(pairs: Sequence[Pair], margins: Sequence[float]) -> dict[str, dict[str, dict[str, float]]]:
    """`longer_wins`: what preferring the longer side alone would reach; `equal_length`: the judge on pairs whose sides
    are equally long, where that rule knows nothing."""
    longer = [float(len(p.chosen) - len(p.rejected)) for p in pairs]
    equal = [
        i
        for i, p in enumerate(pairs)
        if abs(len(p.chosen) - len(p.rejected)) <= _EQUAL * max(len(p.chosen), len(p.rejected))
    ]
    kinds = [p.prompt.kind for p in pairs]
    return {
        "longer_wins": counts(kinds, longer),
        "equal_length": counts([kinds[i] for i in equal], [margins[i] for i in equal]),
    }
