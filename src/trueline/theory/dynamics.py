"""What training DPO does to responses in no pair, from one and the same uniform reference, by learner and optimiser.

Plain gradient descent on a table can only lower them (`bandits.highest_unlabelled`). Each other corner of the two by
two can raise them: Adam breaks the balance of a table's steps, shared parameters move cells that no pair names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trueline.theory.bandits import dpo_flow
from trueline.theory.grid import Beds, GridSettings
from trueline.theory.learners import adam, descend, gradient_descent
from trueline.theory.matching import mean_kl
from trueline.theory.objectives import bradley_terry, dpo
from trueline.theory.tabular import wins_table

__all__ = ["CORNERS", "Corner", "largest_rise", "matched_class_gap", "one_pair_flow", "train_corner"]

CORNERS = (("table", "gradient descent"), ("table", "Adam"), ("mlp", "gradient descent"), ("mlp", "Adam"))
_RATES = {"table": {"gradient descent": 16.0, "Adam": 0.02}, "mlp": {"gradient descent": 4.0, "Adam": 3e-3}}
_RAISED = 1e-9  # less than this is rounding


@dataclass(frozen=True)
class Corner:
    """One learner under one optimiser: KL and largest rise along the way, [T, N] each.

    The largest rise is over all responses in no pair of their prompt; it is 0 at the start.
    """

    kl: Tensor
    rise: Tensor

    @property
    def highest(self) -> Tensor:
        """The largest rise anywhere along the way, [N]; 0 where none ever rose."""
        return self.rise.amax(0).clamp(min=0.0)

    @property
    def raised(self) -> Tensor:
        """Whether any response in no pair ever rose, [N]."""
        return self.highest > _RAISED

    def rise_at(self, kl: float) -> Tensor:
        """The largest rise where the KL is first reached, linear between two places, [N]; nan where it is not."""
        past = self.kl >= kl
        after = past.double().argmax(0).clamp(min=1)
        worlds = torch.arange(self.kl.shape[1])
        low, high = self.kl[after - 1, worlds], self.kl[after, worlds]
        share = ((kl - low) / (high - low)).clamp(0, 1)
        value = torch.lerp(self.rise[after - 1, worlds], self.rise[after, worlds], share)
        return torch.where(past.any(0), value, torch.nan)


def train_corner(beds: Beds, learner: str, optimizer: str, *, beta: float, steps: int) -> Corner:
    """DPO from the beds' reference; `learner` and `optimizer` are one of `CORNERS`."""
    rate = _RATES[learner][optimizer]
    made = adam(rate) if optimizer == "Adam" else gradient_descent(rate)
    path = descend(beds.policy_learner(learner), dpo(beds.worlds, beta=beta), made, steps=steps, every=2)
    ref = beds.worlds.ref
    return Corner(mean_kl(path, ref.expand_as(path)), largest_rise(path, ref, beds.worlds.covered))


def largest_rise(path: Tensor, ref: Tensor, covered: Tensor) -> Tensor:
    """max over responses in no pair of pi - ref along a path of logits [T, N, X, Y] -> [T, N]."""
    return (path.softmax(-1) - ref.exp()).masked_fill(covered, -torch.inf).amax((-2, -1))


def one_pair_flow(ref: Sequence[float], *, beta: float = 1.0, step_size: float = 0.02, steps: int = 2000) -> Tensor:
    """DPO's gradient descent on a table of three responses with the pair y1 over y2 -> policies [steps + 1, 3].

    A zero in the reference is a logit that never moves: the flow of the other two is run, and the zero stays.
    """
    start = torch.tensor(ref, dtype=torch.float64)
    if start[2] > 0:
        wins = wins_table(3, [(0, 1, 1.0, 1.0)])
        return dpo_flow(start, wins, beta=beta, step_size=step_size, steps=steps)
    two = dpo_flow(start[:2], wins_table(2, [(0, 1, 1.0, 1.0)]), beta=beta, step_size=step_size, steps=steps)
    return torch.cat((two, two.new_zeros(len(two), 1)), -1)


def matched_class_gap(beds: Beds, settings: GridSettings) -> float:
    """The largest difference between DPO's policy and the reward route's, both classes being the same MLP.

    The reward is r = beta (z - z at the start) with z the very MLP that is DPO's policy: the class of DPO's implicit
    rewards. Trained with the Bradley-Terry loss, and made a policy by the KL-regularised optimum with coefficient beta,
    it must be DPO's policy at every step. What is returned is rounding (of plain gradient descent: Adam blows up the
    rounding of gradients that are 0).
    """
    worlds, beta = beds.worlds, settings.beta
    policy, loss = beds.policy_learner("mlp"), bradley_terry(beds.worlds)
    start = policy.start()
    trained = {
        "optimizer": gradient_descent(_RATES["mlp"]["gradient descent"]),
        "steps": settings.steps,
        "every": max(1, settings.steps // 10),
    }
    from_pairs = descend(policy, dpo(worlds, beta=beta), **trained)
    from_rewards = descend(policy, lambda z: loss(beta * (z - start)), **trained)
    optimum = (worlds.ref + beta * (from_rewards - start) / beta).softmax(-1)
    return float((optimum - from_pairs.softmax(-1)).abs().max())
