"""Exact gradient flows of DPO on a tabular softmax policy: what training does, as opposed to what minimisers exist.

The set of DPO's minimisers contains policies with mass on unseen responses (Table 1). Gradient descent on tabular
logits does not go there: the gradient on the logit of a response in no pair is exactly 0, for the normaliser cancels in
every difference. Its probability can still move, because the others' logits do: from a uniform reference it only
falls; it rises for a while where the rejected response starts out more likely than the chosen one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trueline.theory.tabular import implicit_reward

__all__ = ["dpo_flow", "dpo_logit_gradient", "largest_unlabelled_mass"]


def dpo_logit_gradient(logits: Tensor, ref: Tensor, wins: Tensor, *, beta: float) -> Tensor:
    """dL_DPO/dlogit_i = -beta sum_j [wins_ij sigmoid(f_j - f_i) - wins_ji sigmoid(f_i - f_j)], in closed form.

    f is the implicit reward. The entries of each pair cancel, so the gradient sums to 0 over each connected set.
    """
    f = implicit_reward(torch.softmax(logits, -1), ref, beta=beta)
    pull = wins * torch.sigmoid(f.unsqueeze(0) - f.unsqueeze(1))
    return -beta * (pull.sum(1) - pull.sum(0))


def dpo_flow(ref: Tensor, wins: Tensor, *, beta: float, step_size: float, steps: int) -> Tensor:
    """Gradient descent on the logits from the reference -> the policies [steps + 1, Y], the first being the reference.

    Raises ValueError where the reference has a zero: a logit of minus infinity never moves.
    """
    if bool((ref <= 0).any()):
        raise ValueError("ref: must be positive everywhere, a logit of minus infinity has no flow")
    logits = ref.log()
    policies = [ref]
    for _ in range(steps):
        logits = logits - step_size * dpo_logit_gradient(logits, ref, wins, beta=beta)
        policies.append(torch.softmax(logits, -1))
    return torch.stack(policies)


def largest_unlabelled_mass(policies: Tensor, wins: Tensor) -> Tensor:
    """The largest total probability of the responses in no pair along a trajectory [S, Y] -> scalar."""
    unlabelled = (wins + wins.T).sum(1) == 0
    return policies[:, unlabelled].sum(-1).max()
