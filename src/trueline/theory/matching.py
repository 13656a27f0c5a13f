"""Policies at one and the same KL to the reference, and what they do there.

Two ways lead to a KL: a penalty (the KL-regularised optimum of a reward, its coefficient chosen for the KL) and a stop
(the first place of a training path that is so far away). KL(pi || ref) is the mean over prompts, exact, in nats.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from trueline.algorithms.divergence import kl_exact
from trueline.theory.worlds import Worlds

__all__ = ["Outcomes", "mean_kl", "outcomes", "path_at_kl", "penalised_at_kl"]

_HALVINGS = 60
_COEF_RANGE = 40.0  # coefficients from exp(-40) to exp(40)


class Outcomes(NamedTuple):
    """Of each world's policy, [N].

    `best`: mean mass on the best responses. `rise`: the largest gain of probability over the reference of a response in
    no pair of its prompt (negative where all fell). `outside`: mean mass on the responses in no pair. `utility`: mean.
    """

    best: Tensor
    rise: Tensor
    outside: Tensor
    utility: Tensor


def mean_kl(logits: Tensor, ref: Tensor) -> Tensor:
    """KL(pi || ref) averaged over prompts, [..., X, Y] -> [...]."""
    return kl_exact(logits, ref).mean(-1)


def penalised_at_kl(ref: Tensor, rewards: Tensor, target: float) -> tuple[Tensor, Tensor]:
    """The optimum ref exp(r / coef) / Z whose mean KL is `target` -> (log-probs [N, X, Y], coef [N]).

    The KL falls with the coefficient, so halving its logarithm finds it. Where no coefficient goes so far (a constant
    reward, or a target beyond the argmax policy's KL) log-probs and coefficient are nan.
    """
    low = torch.full((len(ref),), -_COEF_RANGE, dtype=ref.dtype)
    high = -low
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        short = mean_kl(ref + rewards * torch.exp(middle).view(-1, 1, 1), ref) < target
        low, high = torch.where(short, middle, low), torch.where(short, high, middle)
    logprobs = (ref + rewards * torch.exp(high).view(-1, 1, 1)).log_softmax(-1)
    reached = ((mean_kl(logprobs, ref) - target).abs() < 1e-6 * max(target, 1e-3)).view(-1, 1, 1)
    coef = torch.exp(-high)
    return torch.where(reached, logprobs, torch.nan), torch.where(reached.view(-1), coef, torch.nan)


def path_at_kl(path: Tensor, ref: Tensor, target: float) -> Tensor:
    """Where a path of logits [T, N, X, Y] first has KL `target` -> log-probs [N, X, Y]; nan where it never does.

    Between two neighbouring places the logits are taken as a straight line.
    """
    past = mean_kl(path, ref.unsqueeze(0).expand_as(path)) >= target
    after = past.double().argmax(0).clamp(min=1)
    worlds = torch.arange(path.shape[1])
    start, end = path[after - 1, worlds], path[after, worlds]
    low, high = torch.zeros(path.shape[1], dtype=path.dtype), torch.ones(path.shape[1], dtype=path.dtype)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        short = mean_kl(torch.lerp(start, end, middle.view(-1, 1, 1)), ref) < target
        low, high = torch.where(short, middle, low), torch.where(short, high, middle)
    logprobs = torch.lerp(start, end, high.view(-1, 1, 1)).log_softmax(-1)
    return torch.where(past.any(0).view(-1, 1, 1), logprobs, torch.nan)


def outcomes(logprobs: Tensor, worlds: Worlds) -> Outcomes:
    """What a policy does in each world; nan in, nan out."""
    probs, covered = logprobs.exp(), worlds.covered
    rise = (probs - worlds.ref.exp()).masked_fill(covered, -torch.inf).amax((1, 2))
    return Outcomes(
        best=probs.diagonal(dim1=1, dim2=2).mean(-1),
        rise=torch.where(probs.isnan().any(-1).any(-1), torch.nan, rise),
        outside=probs.masked_fill(covered, 0.0).sum(-1).mean(-1),
        utility=(probs * worlds.utilities).sum(-1).mean(-1),
    )
