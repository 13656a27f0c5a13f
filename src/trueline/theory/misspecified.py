"""Three responses, a policy with one parameter: DPO can reverse an order that the reward model gets right.

The policy is pi(y) = ref(y) exp(theta phi(y)) / Z, phi = (1, 0, -1), ref uniform: it can rank y1, y2, y3 this way or
the other way round, nothing else. The true rewards rank y1 > y3 > y2, which it cannot. DPO is then logistic regression
of the labels on phi's differences, and its answer depends on which pairs were compared how often. With a share w of
the pairs (y2, y3) and the rest (y1, y2), both of difference 1, the loss is

    L(theta) = -q log sigmoid(beta theta) - (1 - q) log sigmoid(-beta theta),
    q = (1 - w) sigmoid(r1 - r2) + w sigmoid(r2 - r3),   so   theta = logit(q) / beta,

negative as soon as w > (sigmoid(r1 - r2) - 1/2) / (sigmoid(r1 - r2) - sigmoid(r2 - r3)), with endless data. A reward
model with one number per response recovers r from the same labels, whatever w in (0, 1), and the best theta for it
has dJ / dtheta = Cov_pi(phi, r) - beta theta Var_pi(phi) = 0. The effect is that of Gopalan et al. 2025 (arXiv
2510.20413); example and derivation are our own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from trueline.theory.tabular import (
    bradley_terry_minimizer,
    bradley_terry_population_loss,
    implicit_reward,
    objective,
    optimal_policy,
    wins_table,
)

__all__ = [
    "OneParameter",
    "best_theta",
    "dpo_theta",
    "free_policy",
    "linear_policy",
    "population_theta",
    "recovered_rewards",
    "reversal_share",
]

_RANGE, _PLACES = 60.0, 24001  # theta is first looked for on a grid: J need not be concave in it


@dataclass(frozen=True)
class OneParameter:
    """The example's numbers: `share` is w."""

    rewards: tuple[float, float, float] = (2.0, 0.0, 0.5)
    features: tuple[float, float, float] = (1.0, 0.0, -1.0)
    share: float = 0.9
    beta: float = 0.5

    @property
    def ref(self) -> Tensor:
        """Uniform."""
        return torch.full((3,), 1 / 3, dtype=torch.float64)

    @property
    def true_rewards(self) -> Tensor:
        """As a vector, [3]."""
        return torch.tensor(self.rewards, dtype=torch.float64)

    @property
    def wins(self) -> Tensor:
        """The comparisons with Bradley-Terry labels, endless data: the table of `tabular.wins_table`."""
        r = self.true_rewards
        pairs = [(0, 1, 1 - self.share), (1, 2, self.share)]
        return wins_table(3, [(i, j, weight, float(torch.sigmoid(r[i] - r[j]))) for i, j, weight in pairs])


def linear_policy(case: OneParameter, theta: float) -> Tensor:
    """ref exp(theta phi) / Z, [3]."""
    return torch.softmax(case.ref.log() + theta * torch.tensor(case.features, dtype=torch.float64), -1)


def dpo_theta(case: OneParameter) -> float:
    """logit(q) / beta, DPO's minimiser in closed form (features as in the default)."""
    q = case.wins[0, 1] + case.wins[1, 2]
    return float(torch.logit(q)) / case.beta


def reversal_share(case: OneParameter) -> float:
    """The share of (y2, y3) among the pairs above which DPO's theta is negative."""
    r = case.true_rewards
    first, second = torch.sigmoid(r[0] - r[1]), torch.sigmoid(r[1] - r[2])
    return float((first - 0.5) / (first - second))


def population_theta(case: OneParameter) -> float:
    """DPO's minimiser found without the closed form: the root of dL / dtheta by halving, gradients by autograd."""

    def slope(theta: float) -> float:
        at = torch.tensor(theta, dtype=torch.float64, requires_grad=True)
        logits = case.ref.log() + at * torch.tensor(case.features, dtype=torch.float64)
        reward = implicit_reward(torch.softmax(logits, -1), case.ref, beta=case.beta)
        (gradient,) = torch.autograd.grad(bradley_terry_population_loss(reward, case.wins), at)
        return -float(gradient)

    return _root(slope, -_RANGE, _RANGE)


def recovered_rewards(case: OneParameter) -> Tensor:
    """What a reward model with one number per response learns from the same labels: the true rewards, mean 0."""
    return bradley_terry_minimizer(case.wins)


def best_theta(case: OneParameter, rewards: Tensor) -> float:
    """argmax_theta E_pi[r] - beta KL(pi || ref) within the one-parameter class: PPO with this reward, converged."""
    phi = torch.tensor(case.features, dtype=torch.float64)

    def slope(theta: float) -> float:
        p = linear_policy(case, theta)
        mean = (p * phi).sum()
        return float((p * (phi - mean) * (rewards - case.beta * theta * phi)).sum())

    places = torch.linspace(-_RANGE, _RANGE, _PLACES, dtype=torch.float64)
    policies = torch.softmax(case.ref.log() + places.unsqueeze(1) * phi, -1)
    refs, values = case.ref.expand_as(policies), rewards.expand_as(policies)
    near = float(places[objective(policies, refs, values, beta=case.beta).argmax()])
    width = 2 * _RANGE / (_PLACES - 1)
    return _root(slope, near - width, near + width)


def free_policy(case: OneParameter, rewards: Tensor) -> Tensor:
    """The KL-regularised optimum when any policy is allowed."""
    return optimal_policy(case.ref, rewards, beta=case.beta)


def _root(slope: Callable[[float], float], low: float, high: float) -> float:
    """Where a falling function of theta crosses 0."""
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) > 0 else (low, middle)
    return (low + high) / 2
