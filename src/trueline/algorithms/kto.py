"""Kahneman-Tversky optimisation (Ethayarajh et al. 2024, arXiv 2402.01306): good and bad responses, not pairs.

Log-probs are sums over a response's tokens; r = log pi - log ref of a response.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trueline.algorithms.shapes import require_same_shape, widened

__all__ = ["kto_loss", "kto_reference_point"]


def kto_loss(
    logprobs: Tensor,
    ref_logprobs: Tensor,
    desirable: Tensor,
    reference_point: Tensor | float,
    *,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Tensor:
    """lambda_y - v per **response** (section 4, the KTO loss), v its value above or below the reference point z0:

        desirable     v = lambda_D sigmoid(beta (r - z0))
        undesirable   v = lambda_U sigmoid(beta (z0 - r))

    `logprobs`, `ref_logprobs` [B], `desirable` [B] boolean, z0 a scalar. lambda / 2 where r = z0, between 0 and lambda
    elsewhere: a response that is far on either side of z0 has almost no gradient. Gradient flows through `logprobs`,
    never through z0. A wrong shape, a mask that is not boolean, or a setting that is not positive raise ValueError.
    """
    require_same_shape(logprobs=logprobs, ref_logprobs=ref_logprobs, desirable=desirable)
    if desirable.dtype != torch.bool:
        raise ValueError(f"desirable: expected a boolean tensor, got {desirable.dtype}")
    for name, value in (
        ("beta", beta),
        ("desirable_weight", desirable_weight),
        ("undesirable_weight", undesirable_weight),
    ):
        if not value > 0:
            raise ValueError(f"{name}: must be positive, got {value}")
    ratios = widened(logprobs) - widened(ref_logprobs)
    distance = ratios - torch.as_tensor(reference_point, dtype=ratios.dtype, device=ratios.device).detach()
    return torch.where(
        desirable,
        desirable_weight * torch.sigmoid(-beta * distance),
        undesirable_weight * torch.sigmoid(beta * distance),
    )


def kto_reference_point(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """z0 = max(0, mean of log pi - log ref) over mismatched pairs, [B], [B] -> scalar, without gradient (section 4).

    Row i is a prompt with the response of another prompt: a biased estimate of KL(pi || ref), but one that needs no
    sampling. Raises ValueError where there is no row.
    """
    require_same_shape(logprobs=logprobs, ref_logprobs=ref_logprobs)
    if logprobs.numel() == 0:
        raise ValueError("logprobs: no mismatched pair, the reference point is undefined")
    return (widened(logprobs) - widened(ref_logprobs)).detach().mean().clamp_min(0.0)
