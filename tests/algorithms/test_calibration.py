"""Calibration of a pairwise judge: hand-derived corners, what chance alone shows, and overconfidence."""

from __future__ import annotations

import math

import pytest
import torch

from trueline.algorithms.reward_modeling import (
    Bin,
    calibration_error,
    calibration_error_by_chance,
    margin_confidence,
    reliability_bins,
)

BY_HAND = [
    # one bin: predicted (0.6 + 0.8) / 2 = 0.7, observed 1 / 2: 0.2
    ([0.6, 0.8], [1.0, 0.0], 1, [Bin(2, 0.7, 0.5)], 0.2),
    # two bins of two: |0.5 - 0.55| = 0.05 and |1 - 0.85| = 0.15, equal weights: 0.1
    ([0.8, 0.5, 0.9, 0.6], [1.0, 0.0, 1.0, 1.0], 2, [Bin(2, 0.55, 0.5), Bin(2, 0.85, 1.0)], 0.1),
    # five predictions in two bins: the first holds three. 3/5 |1/3 - 0.2| + 2/5 |1 - 0.9| = 0.08 + 0.04
    ([0.1, 0.2, 0.3, 0.9, 0.9], [0.0, 0.0, 1.0, 1.0, 1.0], 2, [Bin(3, 0.2, 1 / 3), Bin(2, 0.9, 1.0)], 0.12),
    # three predictions allow one bin of at least two: ten are asked for, one is made
    ([0.5, 0.6, 0.7], [1.0, 0.5, 0.0], 10, [Bin(3, 0.6, 0.5)], 0.1),
]


@pytest.mark.parametrize(("p", "o", "bins", "expected", "error"), BY_HAND)
def test_bins_and_error_by_hand(p, o, bins, expected, error) -> None:
    found = reliability_bins(torch.tensor(p), torch.tensor(o), bins=bins)
    assert [b.count for b in found] == [b.count for b in expected]
    for b, e in zip(found, expected):
        assert b == pytest.approx(e, abs=1e-7)
    assert calibration_error(found) == pytest.approx(error, abs=1e-7)


def test_margins_fold_at_one_half() -> None:
    """sigmoid(ln 3) = 3/4: the model prefers the first side with 0.75, or the second; a tie is half right."""
    confidence, right = margin_confidence(torch.tensor([math.log(3), -math.log(3), 0.0]))
    assert confidence.tolist() == pytest.approx([0.75, 0.75, 0.5])
    assert right.tolist() == [1.0, 0.0, 0.5]


def _labelled(temperature: float, n: int = 20000) -> tuple[torch.Tensor, torch.Tensor]:
    """n pairs whose label is drawn from sigmoid(m): what a model says that is `temperature` times as sure."""
    generator = torch.Generator().manual_seed(3)
    m = torch.randn(n, generator=generator, dtype=torch.float64)
    won = torch.rand(n, generator=generator, dtype=torch.float64) < torch.sigmoid(m)
    return margin_confidence(temperature * torch.where(won, m, -m))


def test_labels_drawn_from_the_model_itself_show_no_more_than_chance() -> None:
    """The error is a mean of ten |deviations| with mean c and, each being half-normal, deviation c sqrt(pi / 2 - 1)
    = 0.756 c a bin, 0.24 c for their mean: within c (1 - 4 x 0.24), c (1 + 4 x 0.24)."""
    bins = reliability_bins(*_labelled(1.0))
    chance = calibration_error_by_chance(bins)
    # 2000 a bin, p near 0.68: sqrt(2 x 0.68 x 0.32 / (pi 2000)) = 0.0083, the mean over bins a little less
    assert 0.005 < chance < 0.0095
    assert calibration_error(bins) < 2 * chance


@pytest.mark.parametrize("temperature", [0.25, 4.0])
def test_a_model_that_is_too_sure_or_too_modest_shows_by_the_known_amount(temperature) -> None:
    """E |sigmoid(t |m|) - sigmoid(|m|)| for standard normal m, by a fine sum; calibration errors average within a bin,
    where the sign of the gap does not change, so the two agree but for noise."""
    m = torch.linspace(0, 8, 40001, dtype=torch.float64)
    weight = torch.exp(-0.5 * m * m)
    gap = ((torch.sigmoid(temperature * m) - torch.sigmoid(m)).abs() * weight).sum() / weight.sum()
    bins = reliability_bins(*_labelled(temperature))
    assert float(gap) > 0.1
    assert calibration_error(bins) == pytest.approx(float(gap), abs=0.01)
    assert all((b.predicted > b.observed) == (temperature > 1) for b in bins[1:])


def test_order_does_not_matter_and_bad_input_is_refused() -> None:
    confidence, right = _labelled(1.0, 500)
    turned = reliability_bins(confidence.flip(0), right.flip(0))
    for a, b in zip(turned, reliability_bins(confidence, right)):
        assert a == pytest.approx(b)
    with pytest.raises(ValueError, match="at least one"):
        reliability_bins(torch.tensor([]), torch.tensor([]))
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        reliability_bins(torch.tensor([1.2]), torch.tensor([1.0]))
