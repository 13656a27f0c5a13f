"""Exact gradient flows of DPO on a tabular softmax policy: what training does, as opposed to what minimisers exist.

The set of DPO's minimisers contains policies with mass on unseen responses (Table 1). Gradient descent on tabular
logits does not go there: the gradient on the logit of a response in no pair is exactly 0, for the normaliser cancels in
every difference. Its probability can still move, because the others' logits do: from a uniform reference it only
falls; it rises for a while where the rejected response starts out more likely than the chosen one. `highest_unlabelled`
is the most that any plain gradient descent can make of it. Adam is not bound by it: it rescales each logit's gradient
by itself, so the steps of a connected set no longer sum to 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trueline.theory.tabular import implicit_reward

__all__ = [
    "dpo_flow",
    "dpo_logit_gradient",
    "highest_unlabelled",
    "largest_unlabelled_mass",
    "sign_descent_peak",
]


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


def highest_unlabelled(ref: Tensor, wins: Tensor) -> Tensor:
    """u / (u + sum_k |C_k| GM(ref over C_k)): the unlabelled never have more mass than this, u under the reference.

    C_k are the connected sets of compared responses, GM the geometric mean. A step moves two logits of a set by +d and
    -d, whatever its size, its batch of pairs or its momentum, so the moves d_i of a set sum to 0 and sum_i ref_i
    exp(d_i) >= |C_k| GM (inequality of the means). A uniform reference gives u itself. `ref` [Y], `wins` [Y, Y].
    """
    reach = ((wins + wins.T) > 0).double() + torch.eye(len(ref), dtype=torch.float64)
    for _ in range(len(ref)):
        reach = ((reach @ reach) > 0).double()
    labelled = (wins + wins.T).sum(1) > 0
    size = reach.sum(1)
    geometric = torch.exp((reach * ref.log()).sum(1) / size)  # each member of a set counts it 1 / size times
    rest, unlabelled = geometric[labelled].sum(), ref[~labelled].sum()
    return unlabelled / (unlabelled + rest)


def sign_descent_peak(size: int, rejected: int) -> float:
    """The most that one unlabelled response gets when y1 is preferred to `rejected` others and steps are signs.

    Adam with constant gradients is sign descent: y1's logit is +s and each rejected one's -s, so from a uniform
    reference Z = size - 1 - k + exp(s) + k exp(-s), smallest at exp(s) = sqrt(k): 1 / (size - 1 - k + 2 sqrt(k)). It is
    above 1 / size for k > 1, where plain gradient descent never gets.
    """
    return 1 / (size - 1 - rejected + 2 * rejected**0.5)
