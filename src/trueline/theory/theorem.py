"""Theorem 4.1 of arXiv 2404.10719 in numbers: its table, its limit, soft labels, and the condition it rests on.

The theorem: the policies that PPO reaches with a learned reward are a proper subset of DPO's minimisers. The inclusion
always holds. It is proper only where the reference gives some response probability 0; with full support and a reward
class as rich as the policies the two sets are equal (arXiv 2503.01067 says the same of matched classes in general).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trueline.theory.tabular import (
    bradley_terry_minimizer,
    bradley_terry_population_loss,
    dpo_minimizer,
    dpo_population_loss,
    implicit_reward,
    optimal_policy,
    wins_table,
    within_support,
)

__all__ = [
    "Inclusion",
    "limit_loss",
    "one_pair_optimum",
    "price_of_response",
    "random_bandit",
    "soft_label_minimizers",
    "support_inclusion",
]


def limit_loss(kept: float, rejected: Sequence[float], *, beta: float) -> Tensor:
    """log(1 + (b / a)^beta), the DPO loss of Table 1's single pair at pi(y1) = a, pi(y2) = b -> 0 as b -> 0.

    a may be any number above 0: the loss does not see where the rest of the mass is.
    """
    b = torch.tensor(rejected, dtype=torch.float64)
    return torch.log1p((b / kept).pow(beta))


def one_pair_optimum(ref: Tensor, gaps: Sequence[float], *, beta: float) -> Tensor:
    """The KL-regularised optimum for r(y1) - r(y2) = gap, other rewards 0 and r(y1) = -r(y2) = gap / 2, [G, Y].

    L_R pushes the gap to infinity; the optimum's mass goes to y1, and what the reference forbids stays at 0.
    """
    rewards = torch.zeros(len(gaps), len(ref), dtype=torch.float64)
    rewards[:, 0] = torch.tensor(gaps, dtype=torch.float64) / 2
    rewards[:, 1] = -rewards[:, 0]
    return optimal_policy(ref.expand_as(rewards), rewards, beta=beta)


def soft_label_minimizers(ref: Tensor, win: float, masses: Sequence[float], *, beta: float) -> Tensor:
    """DPO's minimisers for the one pair y1, y2 labelled y1 with probability `win`, by their mass on y3, [M, 3].

    The loss fixes pi(y1) / pi(y2) = ref(y1) / ref(y2) (win / (1 - win))^(1 / beta) and nothing else.
    """
    ratio = (ref[0].log() - ref[1].log() + torch.logit(torch.tensor(win, dtype=torch.float64)) / beta).exp()
    m = torch.tensor(masses, dtype=torch.float64)
    second = (1 - m) / (1 + ratio)
    return torch.stack((second * ratio, second, m), -1)


def price_of_response(ref: Tensor, mass: float, *, beta: float) -> Tensor:
    """r(y3) - r(y1) that makes pi = (1 - mass, 0, mass) the KL-regularised optimum, for each reference [..., 3].

    beta (log(mass / ref(y3)) - log((1 - mass) / ref(y1))): it grows with the logarithm of 1 / ref(y3), so a response
    that the reference hardly ever says costs little, and one that it never says costs infinity.
    """
    m = torch.tensor(mass, dtype=ref.dtype)
    return beta * (torch.logit(m) - ref[..., 2].log() + ref[..., 0].log())


@dataclass(frozen=True)
class Inclusion:
    """What `support_inclusion` found over many bandits, with a full-support reference and with a zero in it.

    `rebuilt`: the largest |pi - optimal_policy(f(pi))| over DPO minimisers pi with full support. `loss_gap`: the
    largest distance of L_R(f(pi)) from its minimum. `outside`: of the references with a zero, how many have a DPO
    minimiser that no reward leads to; `outside_gap`: the distance of those minimisers' loss from the minimum.
    """

    bandits: int
    rebuilt: float
    loss_gap: float
    outside: int
    outside_gap: float


def support_inclusion(seeds: Sequence[int], *, beta: float, mass: float = 0.9) -> Inclusion:
    """Both halves of the theorem on random bandits, one per seed.

    A minimiser with a free reward on every connected set stands for the whole set of minimisers. With a zero in the
    reference, the minimiser is the one of Table 1's kind: `mass` on a response that the reference never says.
    """
    rebuilt, loss_gap, outside, outside_gap = 0.0, 0.0, 0, 0.0
    for seed in seeds:
        ref, wins, free = random_bandit(seed)
        minimum = bradley_terry_population_loss(bradley_terry_minimizer(wins), wins)
        policy = dpo_minimizer(ref, wins, beta=beta, free=free)
        reward = implicit_reward(policy, ref, beta=beta)
        rebuilt = max(rebuilt, float((optimal_policy(ref, reward, beta=beta) - policy).abs().max()))
        loss_gap = max(loss_gap, float((bradley_terry_population_loss(reward, wins) - minimum).abs()))
        zeroed = torch.cat((ref[:-1] / ref[:-1].sum(), ref.new_zeros(1)))  # the last response is in no pair
        kept = dpo_minimizer(zeroed, wins, beta=beta)
        drifted = torch.cat((kept[:-1] * (1 - mass), kept.new_tensor([mass])))
        outside += not within_support(drifted, zeroed)
        outside_gap = max(outside_gap, float((dpo_population_loss(drifted, zeroed, wins, beta=beta) - minimum).abs()))
    return Inclusion(len(seeds), rebuilt, loss_gap, outside, outside_gap)


def random_bandit(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """A reference, a table of soft-labelled pairs, and a reward constant on each connected set of them.

    4 to 8 responses; a chain of pairs over some of them; the last response is in no pair.
    """
    generator = torch.Generator().manual_seed(seed)
    size = int(torch.randint(4, 9, (), generator=generator))
    ref = torch.randn(size, generator=generator, dtype=torch.float64).softmax(-1)
    chain = torch.randperm(size - 1, generator=generator)[: int(torch.randint(2, size, (), generator=generator))]
    labels = 0.1 + 0.8 * torch.rand(len(chain) - 1, generator=generator, dtype=torch.float64)
    pairs = [(int(i), int(j), 1.0, float(p)) for i, j, p in zip(chain[:-1], chain[1:], labels)]
    free = torch.randn(size, generator=generator, dtype=torch.float64)
    free[chain] = free[chain[0]].clone()
    return ref, wins_table(size, pairs), free
