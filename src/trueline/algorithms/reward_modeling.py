"""The Bradley-Terry reward model, P(chosen beats rejected) = sigmoid(r(chosen) - r(rejected)), and its calibration."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from trueline.algorithms.shapes import require_same_shape, widened

__all__ = [
    "Bin",
    "bradley_terry_loss",
    "calibration_error",
    "calibration_error_by_chance",
    "margin_confidence",
    "pairwise_accuracy",
    "reliability_bins",
]


class Bin(NamedTuple):
    """`count` predictions: the mean of their probabilities, and the share of the outcomes that came true."""

    count: int
    predicted: float
    observed: float


def bradley_terry_loss(chosen_scores: Tensor, rejected_scores: Tensor) -> Tensor:
    """-log sigmoid(r_chosen - r_rejected) per pair (Ouyang et al. 2022, arXiv 2203.02155, equation 1).

    A constant added to both scores changes nothing: the reward is known up to a shift per prompt.
    """
    require_same_shape(chosen_scores=chosen_scores, rejected_scores=rejected_scores)
    return -logsigmoid(widened(chosen_scores) - widened(rejected_scores))


def pairwise_accuracy(chosen_scores: Tensor, rejected_scores: Tensor) -> Tensor:
    """Per pair 1.0 where chosen scores higher, 0.5 for a tie, 0.0 else: a constant scorer has mean 0.5, not 0 or 1."""
    require_same_shape(chosen_scores=chosen_scores, rejected_scores=rejected_scores)
    return 0.5 * (1 + torch.sign(widened(chosen_scores) - widened(rejected_scores)))


def margin_confidence(margins: Tensor) -> tuple[Tensor, Tensor]:
    """sigmoid(|m|) and whether m > 0, per margin m = r_chosen - r_rejected [B]: what the model says of the side that
    it prefers, and whether that side was chosen (0.5 for a tie).

    Folding at one half makes the calibration independent of the order in which the two sides of a pair stand.
    """
    wide = widened(margins)
    return torch.sigmoid(wide.abs()), 0.5 * (1 + torch.sign(wide))


def reliability_bins(probabilities: Tensor, outcomes: Tensor, *, bins: int = 10) -> list[Bin]:
    """Predictions [B] in rising order, cut into bins of equal count (the first ones hold one more).

    Equal counts, not equal widths: a weak reward model puts nearly all its probabilities into one bin of width a tenth
    (Nguyen and O'Connor 2015, arXiv 1508.05154, section 4). With fewer than 2 x `bins` predictions there are fewer
    bins. Outcomes lie in [0, 1]. Raises ValueError for no predictions or probabilities outside [0, 1].
    """
    require_same_shape(probabilities=probabilities, outcomes=outcomes)
    if probabilities.numel() == 0 or bins < 1:
        raise ValueError(f"probabilities: at least one and one bin, got {probabilities.numel()} and {bins}")
    if not bool(((probabilities >= 0) & (probabilities <= 1)).all()):
        raise ValueError("probabilities: must lie in [0, 1]")
    order = torch.argsort(probabilities, stable=True)
    parts = min(bins, max(1, probabilities.numel() // 2))
    held = torch.tensor_split(order, parts)
    p, o = probabilities.double(), outcomes.double()
    return [Bin(len(rows), float(p[rows].mean()), float(o[rows].mean())) for rows in held]


def calibration_error(bins: Sequence[Bin]) -> float:
    """sum over bins of n_b / n |observed_b - predicted_b| (Guo et al. 2017, arXiv 1706.04599, equation 3)."""
    total = sum(b.count for b in bins)
    return sum(b.count * abs(b.observed - b.predicted) for b in bins) / total


def calibration_error_by_chance(bins: Sequence[Bin]) -> float:
    """What `calibration_error` is in the mean for a perfectly calibrated model with these bins.

    |observed - predicted| of a bin is then the absolute value of a nearly normal variable of variance p (1 - p) / n_b,
    whose mean is sqrt(2 p (1 - p) / (pi n_b)). An error of about this size says nothing against the model.
    """
    total = sum(b.count for b in bins)
    spread = (math.sqrt(2 * b.predicted * (1 - b.predicted) / (math.pi * b.count)) for b in bins)
    return sum(b.count * s for b, s in zip(bins, spread)) / total
