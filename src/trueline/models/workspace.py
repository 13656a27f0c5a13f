"""One run of memory for what a forward pass keeps for its backward pass, handed from each training pass to the next.

Kept tensor by tensor, the heap of the C library grows to several times of what is alive: long-lived tensors (moments,
gradients) come to lie between the short-lived ones, and what was freed around them fits nothing. A PPO run of 5.6M
parameters held 1.6 GB for 1.1 GB of tensors. Asking the system for fresh pages at each tensor cost a sixth of a step.
"""

from __future__ import annotations

import ctypes
import math
import sys
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["give_back", "lend", "release", "trim"]

_ALIGNED = 16  # floats: a cache line
_spare: list[Tensor] = []  # one at most


def lend(shapes: Sequence[tuple[int, ...]]) -> tuple[Tensor, list[Tensor]]:
    """The memory, and an uninitialised fp32 view of it for each shape; on the CPU.

    It is the caller's until `give_back`; where it is just let go of, it is freed.
    """
    sizes = [-(-math.prod(shape) // _ALIGNED) * _ALIGNED for shape in shapes]
    memory = _spare.pop() if _spare and len(_spare[0]) >= sum(sizes) else None
    if memory is None:
        release()  # before asking for more
        memory = torch.empty(sum(sizes), dtype=torch.float32)
    pieces = memory[: sum(sizes)].split(sizes)
    return memory, [piece[: math.prod(shape)].view(shape) for piece, shape in zip(pieces, shapes)]


def give_back(memory: Tensor) -> None:
    """For the next pass; the views of it must not be used any more."""
    if not _spare or len(_spare[0]) < len(memory):
        _spare[:] = [memory]


def release() -> None:
    """Return what waits for the next training pass to the system: what keeps nothing need not lie on top of it."""
    _spare.clear()


def trim() -> None:
    """Have the C library return the heap that is free: what sampling and scoring left behind need not lie below a
    training pass. glibc alone has the call; elsewhere nothing happens."""
    if sys.platform.startswith("linux"):
        give = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if give is not None:
            give(0)
