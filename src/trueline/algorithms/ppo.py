"""Proximal policy optimisation (Schulman et al. 2017, arXiv 1707.06347), per token.

rho = exp(logprobs - old_logprobs). Gradient flows through `logprobs` and `values` only; the rest is constant. At the
first step of a rollout rho is 1 everywhere, and the policy gradient is that of REINFORCE with these advantages.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trueline.algorithms.divergence import kl_k3
from trueline.algorithms.masking import masked_moments
from trueline.algorithms.shapes import require_same_shape, widened

__all__ = [
    "approx_kl",
    "clip_fraction",
    "clipped_policy_loss",
    "clipped_value_loss",
    "explained_variance",
    "truncated_importance",
]


def clipped_policy_loss(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, *, clip_range: float) -> Tensor:
    """max(-A rho, -A clip(rho, 1 - clip_range, 1 + clip_range)) per token (equation 7, negated)."""
    unclipped, clipped = _surrogates(logprobs, old_logprobs, advantages, clip_range)
    return torch.maximum(unclipped, clipped)


def clip_fraction(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, *, clip_range: float) -> Tensor:
    """1.0 per token where the clip binds (the gradient is cut), else 0.0: its masked mean is `policy/clipfrac`."""
    unclipped, clipped = _surrogates(logprobs, old_logprobs, advantages, clip_range)
    return (clipped > unclipped).to(unclipped.dtype)


def clipped_value_loss(values: Tensor, old_values: Tensor, returns: Tensor, *, clip_range: float | None) -> Tensor:
    """max((V - R)^2, (V_clip - R)^2) / 2 per token with V_clip = V_old + clip(V - V_old, -clip_range, clip_range).

    `clip_range` None is the plain half squared error. With value normalisation all three are in normalised units.
    """
    require_same_shape(values=values, old_values=old_values, returns=returns)
    error = (values - returns).square()
    if clip_range is None:
        return 0.5 * error
    _require_positive(clip_range)
    clipped = old_values + (values - old_values).clamp(-clip_range, clip_range)
    return 0.5 * torch.maximum(error, (clipped - returns).square())


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    """1 - var(R - V) / var(R) over the counted tokens: 1 perfect, 0 no better than a constant, negative worse.

    0 where the returns do not vary: there is nothing to explain.
    """
    require_same_shape(values=values, returns=returns)
    residual = masked_moments(returns.double() - values.double(), mask).var
    total = masked_moments(returns, mask).var
    return torch.where(total > 0, 1 - residual / total.clamp_min(torch.finfo(torch.float64).tiny), 0.0)


def approx_kl(logprobs: Tensor, old_logprobs: Tensor) -> Tensor:
    """(rho - 1) - log rho per token: k3 for KL(old policy || policy), the samples being the old policy's."""
    return kl_k3(old_logprobs, logprobs)


def truncated_importance(logprobs: Tensor, engine_logprobs: Tensor, *, cap: float) -> Tensor:
    """min(cap, pi_trainer(token) / pi_engine(token)) per token: a constant factor of the policy's loss.

    Samples of an engine with an arithmetic of its own are of a slightly other distribution than the trainer's; weighted
    so, their gradient is that of the trainer's, up to the cap (Yao et al. 2025, truncated importance sampling; Munos et
    al. 2016, arXiv 1606.02647, for the truncation). 1 where both agree.
    """
    require_same_shape(logprobs=logprobs, engine_logprobs=engine_logprobs)
    if not cap >= 1:
        raise ValueError(f"cap: must be at least 1, got {cap}")
    return (widened(logprobs) - widened(engine_logprobs)).exp().clamp_max(cap).detach()


def _surrogates(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, clip_range: float) -> tuple[Tensor, Tensor]:
    require_same_shape(logprobs=logprobs, old_logprobs=old_logprobs, advantages=advantages)
    _require_positive(clip_range)
    ratio = (widened(logprobs) - widened(old_logprobs)).exp()
    return -advantages * ratio, -advantages * ratio.clamp(1 - clip_range, 1 + clip_range)


def _require_positive(clip_range: float) -> None:
    if not clip_range > 0:
        raise ValueError(f"clip_range: must be positive, got {clip_range}")
