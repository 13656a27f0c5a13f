"""The Bradley-Terry reward model: P(chosen beats rejected) = sigmoid(r(chosen) - r(rejected))."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from trueline.algorithms.shapes import require_same_shape, widened

__all__ = ["bradley_terry_loss", "pairwise_accuracy"]


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
