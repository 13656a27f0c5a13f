"""What a model is, in 16 hex digits: the digest of its parameters' names, shapes and bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn

__all__ = ["fingerprint", "fingerprint_tensors"]


def fingerprint(model: nn.Module) -> str:
    """The first 16 hex digits of the sha256 over all parameters."""
    return fingerprint_tensors(dict(model.named_parameters()))


def fingerprint_tensors(tensors: Mapping[str, Tensor]) -> str:
    """The same for a mapping of names to tensors. Where they lie in parts, every process must ask."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach()
        tensor = (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).cpu().contiguous()
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
