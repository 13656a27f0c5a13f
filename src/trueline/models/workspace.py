"""Runs of memory for what passes keep, multiply and pass on, handed from each pass to the next: one for the trunk, one
for the logits.

Allocated tensor by tensor, the heap of the C library grows to several times of what is alive. Long-lived tensors come
to lie between the short-lived ones; and torch asks for aligned memory, which glibc cannot serve from what a freed
tensor of the same size has left, so that equal passes, one after the other, take more each time (tests/models/
test_workspace.py). Asking the system for fresh pages at each tensor cost a sixth of a step.
"""

from __future__ import annotations

import ctypes
import math
import sys
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["floats_of_low", "give_back", "lend", "low", "release", "trim", "views"]

_ALIGNED = 16  # floats: a cache line
_spare: dict[str, Tensor] = {}  # one at most for each use


def lend(use: str, shapes: Sequence[tuple[int, ...]]) -> tuple[Tensor, list[Tensor]]:
    """The memory, and an uninitialised fp32 view of it for each shape; on the CPU.

    It is the caller's until `give_back`; where it is just let go of, it is freed.
    """
    needed = sum(_sizes(shapes))
    memory = _spare.pop(use, None)
    if memory is None or len(memory) < needed:
        memory = None  # freed before asking for more
        memory = torch.empty(needed, dtype=torch.float32)
    return memory, views(memory, shapes)


def views(memory: Tensor, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
    """Views of lent memory, one behind the other."""
    sizes = _sizes(shapes)
    pieces = memory[: sum(sizes)].split(sizes)
    return [piece[: math.prod(shape)].view(shape) for piece, shape in zip(pieces, shapes)]


def _sizes(shapes: Sequence[tuple[int, ...]]) -> list[int]:
    return [-(-math.prod(shape) // _ALIGNED) * _ALIGNED for shape in shapes]


def floats_of_low(numbers: int, pieces: int) -> int:
    """How many floats of memory that many bf16 numbers take in that many views."""
    return -(-(numbers + pieces * _ALIGNED) // 2)


def low(memory: Tensor, *shapes: tuple[int, ...]) -> list[Tensor]:
    """bf16 views of `memory`, one behind the other."""
    return views(memory.view(torch.bfloat16), shapes)


def give_back(use: str, memory: Tensor) -> None:
    """For the next pass; the views of it must not be used any more."""
    if use not in _spare or len(_spare[use]) < len(memory):
        _spare[use] = memory


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
