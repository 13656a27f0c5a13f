"""Reductions over the tokens that count. A mask is boolean and True where a token counts.

What stands outside a mask never matters, not even a NaN: values are selected with `where`, not multiplied by zero.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from trueline.algorithms.shapes import require_mask, widened

__all__ = [
    "Moments",
    "masked_mean",
    "masked_mean_per_row",
    "masked_moments",
    "masked_sum",
    "masked_var",
    "merge",
    "normalize",
]

_RESOLUTION = 1e-12  # a spread below this part of the mean is rounding of the mean, not data


class Moments(NamedTuple):
    """Count, mean and sum of squared deviations (float64 scalars): what two parts of a batch need to be joined."""

    count: Tensor
    mean: Tensor
    m2: Tensor

    @property
    def var(self) -> Tensor:
        """The biased variance m2 / count; 0 where nothing was counted."""
        return self.m2 / self.count.clamp_min(1)


def masked_sum(x: Tensor, mask: Tensor) -> Tensor:
    """sum_i m_i x_i over all dimensions, in at least float32. Gradient 1 inside the mask, 0 outside."""
    require_mask(mask, x)
    return _selected(x, mask).sum()


def masked_mean(x: Tensor, mask: Tensor, *, denominator: float | Tensor | None = None) -> Tensor:
    """sum_i m_i x_i / denominator.

    `denominator` is the number of counted tokens of the whole optimiser step (all micro-batches, all ranks): the parts
    then add up to the mean of the whole, and so do their gradients. Without it, the mask's own count, which is right
    only where this batch is the whole step. Raises ValueError where the denominator is zero or less.
    """
    total = masked_sum(x, mask)
    count = mask.sum() if denominator is None else denominator
    if count <= 0:
        where = "mask: no token counts" if denominator is None else f"denominator: must be positive, got {denominator}"
        raise ValueError(f"{where}, the mean is undefined")
    return total / count


def masked_mean_per_row(x: Tensor, mask: Tensor) -> Tensor:
    """The mean over the last dimension, [..., T] -> [...]. Raises ValueError where a row counts no token."""
    require_mask(mask, x)
    count = mask.sum(-1)
    if not bool(count.all()):
        raise ValueError("mask: a row counts no token, its mean is undefined")
    return _selected(x, mask).sum(-1) / count


def masked_moments(x: Tensor, mask: Tensor) -> Moments:
    """Count, mean and squared deviations of the tokens that count, two passes in float64. Empty masks give zeros."""
    require_mask(mask, x)
    count = mask.sum().double()
    mean = _selected(x.double(), mask).sum() / count.clamp_min(1)
    deviations = _selected(x.double() - mean, mask)
    return Moments(count, mean, deviations.square().sum())


def merge(a: Moments, b: Moments) -> Moments:
    """The moments of the union of two disjoint parts (Chan, Golub, LeVeque 1979, equation 2.1).

    With d = mean_b - mean_a: mean = mean_a + d n_b / n, M2 = M2_a + M2_b + d^2 n_a n_b / n. An empty part is neutral.
    """
    count = a.count + b.count
    share = b.count / count.clamp_min(1)
    shift = b.mean - a.mean
    return Moments(count, a.mean + shift * share, a.m2 + b.m2 + shift.square() * a.count * share)


def masked_var(x: Tensor, mask: Tensor, *, unbiased: bool = False) -> Tensor:
    """The variance of the tokens that count: M2 / n, or M2 / (n - 1) where `unbiased`, in the dtype of `x`.

    Raises ValueError where fewer than one (two, if unbiased) tokens count.
    """
    moments = masked_moments(x, mask)
    freedom = moments.count - int(unbiased)
    if freedom <= 0:
        raise ValueError(f"mask: {int(moments.count)} token(s) count, the variance is undefined")
    return (moments.m2 / freedom).to(widened(x).dtype)


def normalize(x: Tensor, mask: Tensor, *, eps: float = 1e-5, moments: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """(x - mean) / (std + eps) with the biased variance over **all** counted tokens of the batch; 0 outside the mask.

    The advantage normalisation of the paper's recipe (arXiv 2404.10719, section 5; ReaLHF `masked_normalization`):
    float64, before the split into minibatches. `moments` is the (mean, variance) of the tokens of all ranks, reduced by
    the caller (`merge`); without it, this batch's own. A single token or a batch without spread gives zeros.
    """
    require_mask(mask, x)
    if moments is None:
        own = masked_moments(x, mask)
        mean, var = own.mean, own.var
    else:
        mean, var = (torch.as_tensor(m, dtype=torch.float64, device=x.device) for m in moments)
    std = var.sqrt()
    kept = mask & (std > _RESOLUTION * mean.abs())
    return _selected((x.double() - mean) / (std + eps), kept).to(widened(x).dtype)


def _selected(x: Tensor, mask: Tensor) -> Tensor:
    x = widened(x)
    return torch.where(mask, x, torch.zeros((), dtype=x.dtype, device=x.device))
