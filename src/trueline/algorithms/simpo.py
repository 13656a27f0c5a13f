"""Simple preference optimisation (Meng et al. 2024, arXiv 2405.14734): no reference, lengths normalised, a margin."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid

from trueline.algorithms.shapes import require_same_shape, widened

__all__ = ["simpo_loss", "simpo_rewards"]


def simpo_loss(
    chosen: Tensor, rejected: Tensor, chosen_lengths: Tensor, rejected_lengths: Tensor, *, beta: float, gamma: float
) -> Tensor:
    """-log sigmoid(beta log pi(chosen) / |chosen| - beta log pi(rejected) / |rejected| - gamma) per pair (equation 6).

    Each [B]; log-probs are sums over the response, lengths are response tokens. `gamma` is the target margin in reward
    units (0 or more); implementations that ask for gamma / beta mean this one divided by beta. Gradient flows through
    `chosen` and `rejected`. A wrong shape, an empty response, beta or gamma out of range raise ValueError.
    """
    require_same_shape(
        chosen=chosen, rejected=rejected, chosen_lengths=chosen_lengths, rejected_lengths=rejected_lengths
    )
    if not beta > 0:
        raise ValueError(f"beta: must be positive, got {beta}")
    if not gamma >= 0:
        raise ValueError(f"gamma: must not be negative, got {gamma}")
    margins = simpo_rewards(chosen, chosen_lengths, beta=beta) - simpo_rewards(rejected, rejected_lengths, beta=beta)
    return -logsigmoid(margins - gamma)


def simpo_rewards(logprobs: Tensor, lengths: Tensor, *, beta: float) -> Tensor:
    """beta log pi(y) / |y| per response: what generation ranks by (equation 4). [B], [B] -> [B]."""
    require_same_shape(logprobs=logprobs, lengths=lengths)
    if not bool((lengths > 0).all()):
        raise ValueError("lengths: a response needs at least one token")
    return beta * widened(logprobs) / lengths
