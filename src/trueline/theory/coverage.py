"""How much of what a policy may say the data has seen: concentrability coefficients, exact, on tables [N, X, Y].

Song et al. 2024 (arXiv 2406.01462): offline contrastive methods need the data to cover every policy, a method that
holds the KL to the reference online needs it to cover the policies within that KL. A coefficient is a largest ratio of
probabilities; it is infinite where the data never shows a response that the policy may give.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["all_policy_coefficient", "kl_ball_coefficient", "single_policy_coefficient"]

_HALVINGS = 60


def single_policy_coefficient(policy: Tensor, data: Tensor) -> Tensor:
    """max_{x, y} pi(y | x) / mu(y | x) over what the policy says, [N, X, Y] twice -> [N]."""
    ratio = torch.where(policy > 0, policy / data, 0.0)
    return ratio.amax((1, 2))


def all_policy_coefficient(data: Tensor) -> Tensor:
    """sup_pi max_{x, y} pi / mu = max 1 / mu, [N, X, Y] -> [N]: infinite unless every response is in the data."""
    return (1 / data).amax((1, 2))


def kl_ball_coefficient(ref: Tensor, radius: float) -> Tensor:
    """sup of max_{x, y} pi(y | x) / ref(y | x) over all pi whose KL to ref, averaged over prompts, is `radius` at most.

    All of X times the radius may be spent on one prompt, and there it is best spent on one response y, the others
    keeping their proportions: pi(y) = p with p log(p / q) + (1 - p) log((1 - p) / (1 - q)) = X radius, q = ref(y), or
    p = 1 where -log q is no more than that. `ref` [N, X, Y] -> [N].
    """
    budget = radius * ref.shape[1]
    low, high = ref.clone(), torch.ones_like(ref)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        within = _two_point_kl(middle, ref) <= budget
        low, high = torch.where(within, middle, low), torch.where(within, high, middle)
    largest = torch.where(-ref.log() <= budget, torch.ones_like(ref), low)
    return (largest / ref).amax((1, 2))


def _two_point_kl(p: Tensor, q: Tensor) -> Tensor:
    return torch.xlogy(p, p / q) + torch.xlogy(1 - p, (1 - p) / (1 - q))
