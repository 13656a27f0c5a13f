"""One prompt, finitely many responses: the closed forms behind PPO and DPO (arXiv 2404.10719, section 4.1).

A policy and a reference are probability vectors [Y], a reward is a vector [Y]. `wins[i, j]` is the probability that the
pair (i, j) is drawn **and** i is preferred, so a label with noise fills both `wins[i, j]` and `wins[j, i]`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from trueline.algorithms.dpo import implicit_rewards

__all__ = [
    "CounterExample",
    "bradley_terry_minimizer",
    "bradley_terry_population_loss",
    "classes_coincide",
    "counter_example",
    "dpo_minimizer",
    "dpo_population_loss",
    "implicit_reward",
    "objective",
    "optimal_policy",
    "optimal_value",
    "wins_table",
    "within_support",
]


def optimal_policy(ref: Tensor, rewards: Tensor, *, beta: float) -> Tensor:
    """pi*(y) = ref(y) exp(r(y) / beta) / Z: what PPO converges to when nothing is left to optimise.

    A response outside the reference's support stays at exactly 0, whatever its reward.
    """
    _check_distribution(ref=ref)
    return torch.softmax(_tilted(ref, rewards, beta), -1)


def optimal_value(ref: Tensor, rewards: Tensor, *, beta: float) -> Tensor:
    """max_pi J(pi) = beta log sum_y ref(y) exp(r(y) / beta)."""
    _check_distribution(ref=ref)
    return beta * torch.logsumexp(_tilted(ref, rewards, beta), -1)


def objective(policy: Tensor, ref: Tensor, rewards: Tensor, *, beta: float) -> Tensor:
    """J(pi) = E_pi[r] - beta KL(pi || ref); minus infinity where the policy leaves the reference's support."""
    _check_distribution(policy=policy, ref=ref)
    divergence = (torch.xlogy(policy, policy) - torch.xlogy(policy, ref)).sum(-1)
    return (policy * rewards).sum(-1) - beta * divergence


def wins_table(size: int, pairs: Iterable[tuple[int, int, float, float]]) -> Tensor:
    """The table [size, size] of `pairs` (i, j, weight, probability that i wins); the weights are normalised."""
    table = torch.zeros(size, size, dtype=torch.float64)
    for i, j, weight, probability in pairs:
        if i == j or weight <= 0 or not 0 <= probability <= 1:
            raise ValueError(f"pairs: {(i, j, weight, probability)} is no comparison of two responses")
        table[i, j] += weight * probability
        table[j, i] += weight * (1 - probability)
    return table / table.sum()


def bradley_terry_population_loss(rewards: Tensor, wins: Tensor) -> Tensor:
    """L_R = -sum_ij wins_ij log sigmoid(r_i - r_j). Rewards may be infinite where their difference is defined."""
    _check_table(rewards, wins)
    i, j = wins.nonzero(as_tuple=True)
    return -(wins[i, j] * logsigmoid(rewards[i] - rewards[j])).sum()


def implicit_reward(policy: Tensor, ref: Tensor, *, beta: float) -> Tensor:
    """f(pi) = beta log(pi / ref), the inverse of `optimal_policy` up to a constant; nan where both are 0."""
    return implicit_rewards(policy.log(), ref.log(), beta=beta)


def dpo_population_loss(policy: Tensor, ref: Tensor, wins: Tensor, *, beta: float) -> Tensor:
    """L_DPO(pi) = L_R(f(pi)): DPO's loss is the reward model's loss at the implicit reward."""
    _check_distribution(policy=policy, ref=ref)
    return bradley_terry_population_loss(implicit_reward(policy, ref, beta=beta), wins)


def bradley_terry_minimizer(wins: Tensor, *, tolerance: float = 1e-13) -> Tensor:
    """The reward of least norm that minimises L_R: Newton's method, each connected set of responses with mean 0.

    L_R sees only differences within a connected set: a constant may be added to each set, and a response in no pair may
    have any reward. Raises ValueError where no finite minimiser exists (Ford 1957): some responses of a set are never
    beaten by the others, as with a deterministic label.
    """
    if not _finite_minimizer(wins):
        raise ValueError("wins: some responses are never beaten by the rest of their set, rewards would diverge")
    rewards = torch.zeros(wins.shape[0], dtype=torch.float64)
    drawn = wins + wins.T
    for _ in range(200):
        probability = torch.sigmoid(rewards.unsqueeze(1) - rewards.unsqueeze(0))
        gradient = (drawn * probability - wins).sum(1)
        if gradient.abs().max() < tolerance:
            break
        curvature = drawn * probability * (1 - probability)
        hessian = torch.diag(curvature.sum(1)) - curvature
        step = torch.linalg.pinv(hessian, hermitian=True) @ gradient
        rewards = rewards - step / (1 + step.abs().max())  # shortened far away, Newton's own near the end
    return rewards


def dpo_minimizer(ref: Tensor, wins: Tensor, *, beta: float, free: Tensor | None = None) -> Tensor:
    """A minimiser of L_DPO, through r = f(pi): `optimal_policy` of a minimiser of L_R.

    With soft labels L_DPO fixes the ratios within each connected set and nothing else. `free` [Y] is a reward that is
    constant on each set and moves among the minimisers; without it, the one that gradient descent on tabular logits
    reaches from the reference (each pair moves two logits by +d and -d, so each set keeps its sum).
    """
    rewards = bradley_terry_minimizer(wins)
    if free is not None:
        if bool(((wins > 0) & (free.unsqueeze(1) != free.unsqueeze(0))).any()):
            raise ValueError("free: must be equal for two responses that are compared")
        rewards = rewards + free
    return optimal_policy(ref, rewards, beta=beta)


def within_support(policy: Tensor, ref: Tensor) -> bool:
    """Whether the policy is a KL-regularised optimum of some reward: no mass where the reference has none."""
    return not bool(((policy > 0) & (ref == 0)).any())


def classes_coincide(ref: Tensor) -> bool:
    """The support condition: with a full-support reference (and any reward allowed) Pi_PPO = Pi_DPO.

    For a DPO minimiser pi, r = f(pi) is then defined, minimises L_R, and has pi as its KL-regularised optimum. Theorem
    4.1's inclusion is proper only where the reference gives some response probability 0 (see also arXiv 2503.01067).
    """
    return bool((ref > 0).all())


@dataclass(frozen=True)
class CounterExample:
    """A reference, a preference table, a DPO minimiser, and the policy that PPO reaches."""

    ref: Tensor
    wins: Tensor
    dpo_policy: Tensor
    ppo_policy: Tensor


def counter_example() -> CounterExample:
    """Table 1 of arXiv 2404.10719: the only pair is y1 over y2 and the reference never says y3.

    L_DPO = log(1 + (pi(y2) / pi(y1))^beta) is 0 wherever pi(y2) = 0, even with 0.9 on y3. PPO cannot leave the support.
    """
    vectors = ([0.5, 0.5, 0.0], [0.1, 0.0, 0.9], [1.0, 0.0, 0.0])
    ref, dpo_policy, ppo_policy = (torch.tensor(v, dtype=torch.float64) for v in vectors)
    return CounterExample(ref, wins_table(3, [(0, 1, 1.0, 1.0)]), dpo_policy, ppo_policy)


def _tilted(ref: Tensor, rewards: Tensor, beta: float) -> Tensor:
    if not beta > 0:
        raise ValueError(f"beta: must be positive, got {beta}")
    return torch.where(ref > 0, ref.log() + rewards / beta, float("-inf"))


def _finite_minimizer(wins: Tensor) -> bool:
    beats = (wins > 0).double()
    reach = beats + torch.eye(len(wins), dtype=torch.float64)
    for _ in range(len(wins)):
        reach = ((reach @ reach) > 0).double()
    return bool((reach == reach.T).all())


def _check_distribution(**distributions: Tensor) -> None:
    for name, p in distributions.items():
        total = p.detach().sum(-1)
        if bool((p < 0).any()) or not torch.allclose(total, torch.ones_like(total)):
            raise ValueError(f"{name}: not a probability vector: {p.tolist()}")


def _check_table(rewards: Tensor, wins: Tensor) -> None:
    if wins.shape != (len(rewards), len(rewards)):
        raise ValueError(f"wins: shape {tuple(wins.shape)} for {len(rewards)} responses")
