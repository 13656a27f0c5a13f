"""Checks at the door of a public function: a wrong shape or dtype is an error that names the argument."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["require_mask", "require_rank", "require_same_shape", "widened"]


def require_same_shape(**tensors: Tensor) -> None:
    """Raise ValueError naming the first argument whose shape differs from the first argument's."""
    (first, model), *rest = tensors.items()
    for name, tensor in rest:
        if tensor.shape != model.shape:
            raise ValueError(f"{name}: shape {tuple(tensor.shape)} differs from {first}'s {tuple(model.shape)}")


def require_mask(mask: Tensor, x: Tensor, name: str = "mask") -> None:
    """Raise ValueError unless `mask` is boolean with the shape of `x`.

    A 0/1 float mask is refused: it also admits weights and inverted padding masks, and `nan * 0` is not 0.
    """
    if mask.dtype != torch.bool:
        raise ValueError(f"{name}: expected a boolean tensor (True = counts), got {mask.dtype}")
    if mask.shape != x.shape:
        raise ValueError(f"{name}: shape {tuple(mask.shape)} differs from the values' {tuple(x.shape)}")


def require_rank(rank: int, **tensors: Tensor) -> None:
    """Raise ValueError naming the first argument that has not exactly `rank` dimensions."""
    for name, tensor in tensors.items():
        if tensor.dim() != rank:
            raise ValueError(f"{name}: expected {rank} dimension(s), got shape {tuple(tensor.shape)}")


def widened(x: Tensor) -> Tensor:
    """`x` in float32 where it is an integer or a half type, so that sums and exponentials keep digits."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()
