"""From scores to token rewards to advantages. Tensors are [B, T]: one row per response, one column per token position.

A response may stand anywhere in its row (left padding, a prompt before it, right padding after it): places outside the
mask are skipped and come out as 0. Nothing here is meant to carry a gradient; call it under `torch.no_grad`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from trueline.algorithms.divergence import kl_k1
from trueline.algorithms.shapes import require_mask, require_rank, require_same_shape, widened

__all__ = ["best_of_n_kl", "gae", "group_advantages", "last_token", "rloo_advantages", "shape_rewards"]


def last_token(mask: Tensor) -> Tensor:
    """True at the last counted token of each row, [B, T] -> [B, T]. Raises ValueError where a row counts none."""
    require_rank(2, mask=mask)
    require_mask(mask, mask)
    if not bool(mask.any(-1).all()):
        raise ValueError("mask: a row counts no token, there is no last one")
    remaining = mask.flip(-1).cumsum(-1).flip(-1)
    return mask & (remaining == 1)


def shape_rewards(
    scores: Tensor,
    logprobs: Tensor,
    ref_logprobs: Tensor,
    mask: Tensor,
    *,
    kl_coef: float,
    scored: Tensor | None = None,
) -> Tensor:
    """r_t = -kl_coef (log pi(y_t) - log ref(y_t)) + [t is the last token] score (Ziegler et al. 2019, equation 2).

    `scores` [B], log-probs and `mask` [B, T] -> [B, T]. The score goes to the last **counted** token, never to padding.
    `scored` [B] boolean: False withholds a row's score (a response that did not end by itself) but not its KL term.
    Raises ValueError where a row counts no token: its score would vanish silently.
    """
    require_mask(mask, logprobs)
    require_rank(1, scores=scores)
    if scores.shape != logprobs.shape[:1]:
        raise ValueError(f"scores: {scores.shape[0]} for {logprobs.shape[0]} rows")
    scores = widened(scores)
    if scored is not None:
        require_mask(scored, scores, "scored")
        scores = scores.masked_fill(~scored, 0.0)
    penalty = kl_k1(logprobs, ref_logprobs).masked_fill(~mask, 0.0)
    return last_token(mask) * scores.unsqueeze(-1) - kl_coef * penalty


def gae(
    rewards: Tensor,
    values: Tensor,
    mask: Tensor,
    *,
    gamma: float = 1.0,
    lam: float = 1.0,
    bootstrap: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (Schulman et al. 2016, arXiv 1506.02438, equation 16) -> (advantages, returns).

    delta_t = r_t + gamma V_{t+1} - V_t, A_t = delta_t + gamma lam A_{t+1}, returns = A + V. `values[:, t]` is the value
    of the state **before** token t. `bootstrap` [B] is the value after the last token: 0 (the default) where the
    response ended by itself, the critic's estimate where it was cut off.
    """
    require_same_shape(rewards=rewards, values=values)
    require_rank(2, rewards=rewards)
    require_mask(mask, rewards)
    rewards, values = widened(rewards).masked_fill(~mask, 0.0), widened(values).masked_fill(~mask, 0.0)
    advantage = rewards.new_zeros(rewards.shape[0])
    next_value = advantage if bootstrap is None else bootstrap.to(values)
    require_same_shape(rewards_rows=advantage, bootstrap=next_value)
    backwards: list[Tensor] = []
    for reward, value, counts in zip(reversed(rewards.unbind(1)), reversed(values.unbind(1)), reversed(mask.unbind(1))):
        delta = reward + gamma * next_value - value
        advantage = torch.where(counts, delta + gamma * lam * advantage, advantage)
        next_value = torch.where(counts, value, next_value)
        backwards.append(advantage)
    advantages = torch.stack(backwards[::-1], dim=1).masked_fill(~mask, 0.0)
    return advantages, advantages + values


def rloo_advantages(scores: Tensor, *, group_size: int, counted: Tensor | None = None) -> Tensor:
    """score minus the mean score of the prompt's other responses (Ahmadian et al. 2024, arXiv 2402.14740).

    `scores` [B] with the `group_size` responses of one prompt in consecutive rows -> [B]. Unbiased: the baseline does
    not contain the response's own score. `counted` [B] boolean: a False row has no score; it is in no baseline, and its
    advantage is 0, as is that of a row without any other. Raises ValueError for a group of one, which has no others.
    """
    groups, known = _grouped(scores, group_size), _known(scores, counted, group_size)
    groups = groups.masked_fill(~known, 0.0)
    count = known.sum(-1, keepdim=True) - 1
    others = (groups.sum(-1, keepdim=True) - groups) / count.clamp(min=1)
    return (groups - others).masked_fill(~known | (count < 1), 0.0).flatten()


def group_advantages(scores: Tensor, *, group_size: int, eps: float = 1e-4, counted: Tensor | None = None) -> Tensor:
    """(score - mean) / (std + eps) within each prompt's group: GRPO (Shao et al. 2024, arXiv 2402.03300, section 4.1).

    `scores` [B], groups in consecutive rows -> [B]. The standard deviation is the sample's (n - 1), as TRL and verl
    have it; the paper does not say. A group whose responses score alike gives zeros. `counted` as in `rloo_advantages`.
    """
    groups, known = _grouped(scores, group_size), _known(scores, counted, group_size)
    groups = groups.masked_fill(~known, 0.0)
    count = known.sum(-1, keepdim=True)
    centred = (groups - groups.sum(-1, keepdim=True) / count.clamp(min=1)).masked_fill(~known, 0.0)
    std = (centred.square().sum(-1, keepdim=True) / (count - 1).clamp(min=1)).sqrt()
    return (centred / (std + eps)).flatten()


def best_of_n_kl(n: int) -> float:
    """log n - (n - 1) / n: KL(best of n || base) in nats where no two responses are equal.

    Stiennon et al. 2020 (arXiv 2009.01325), appendix G.3; an upper bound in general (Beirami et al. 2024, 2401.01879).
    """
    if n < 1:
        raise ValueError(f"n: must be at least 1, got {n}")
    return math.log(n) - (n - 1) / n


def _known(scores: Tensor, counted: Tensor | None, group_size: int) -> Tensor:
    if counted is None:
        return torch.ones_like(scores, dtype=torch.bool).unflatten(0, (-1, group_size))
    require_mask(counted, scores, "counted")
    return counted.unflatten(0, (-1, group_size))


def _grouped(scores: Tensor, group_size: int) -> Tensor:
    require_rank(1, scores=scores)
    if group_size < 2:
        raise ValueError(
            f"group_size: must be at least 2, got {group_size}; a group of one has nothing to compare with"
        )
    if scores.shape[0] % group_size:
        raise ValueError(f"scores: {scores.shape[0]} rows do not divide into groups of {group_size}")
    return widened(scores).unflatten(0, (-1, group_size))
