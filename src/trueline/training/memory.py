"""Out of memory: the same sums in smaller parts, instead of an end.

A batch's loss is a sum over micro-batches whose denominators are those of the whole batch, so where one does not fit,
it is halved and the step begun again; its result is the same but for rounding.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from trueline.distributed.world import World, current

__all__ = ["Part", "Room", "each", "is_out_of_memory"]

Rows = TypeVar("Rows", Tensor, np.ndarray)
_WORDS = ("out of memory", "can't allocate memory", "not enough memory", "cannot allocate memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed: torch's error on a GPU, its allocator's words on a CPU, Python's MemoryError."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in _WORDS)


@dataclass(frozen=True)
class Part:
    """Rows with what computes their part of a loss, where one step has parts of several kinds."""

    work: Callable[[Tensor], Tensor]
    rows: Tensor

    def __call__(self) -> Tensor:
        return self.work(self.rows)

    def __len__(self) -> int:
        return len(self.rows)


class Room:
    """Into how many parts micro-batches are divided because whole ones did not fit; grows, and is kept for the run."""

    def __init__(self) -> None:
        self.parts = 1

    def divide(self, micros: Iterable[Any]) -> Iterator[Any]:
        """The micro-batches (rows, or `Part`s), each in `parts` parts of neighbouring rows."""
        for micro in micros:
            if isinstance(micro, Part):
                yield from (Part(micro.work, rows) for rows in _parts(micro.rows, self.parts))
            else:
                yield from _parts(micro, self.parts)

    def shrink(self, micros: Iterable[Any]) -> bool:
        """Halve once more; False where every part is a single row already."""
        if self.parts >= max(map(len, micros)):
            return False
        self.parts *= 2
        release()
        return True


def each(groups: Iterable[Rows], work: Callable[[Rows], None], room: Room, out: Sequence[Tensor] = ()) -> None:
    """`work` on every group of rows; one that does not fit is halved, as are later ones. `work` must write by rows.

    Among several processes each does its part of every group, and `out`, which `work` writes to and which begin at
    zero, are put together.
    """
    world = current()
    if world.size > 1:
        _each_together(world, groups, work, out)
        return
    waiting = list(room.divide(groups))[::-1]
    while waiting:
        rows = waiting.pop()
        try:
            work(rows)
            continue
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or len(rows) < 2:
                raise
        room.parts *= 2
        release()  # outside the handler: its traceback holds what is to be released
        waiting = [part for group in [*waiting, rows] for part in _parts(group, 2)[::-1]]


def _each_together(world: World, groups: Iterable[Rows], work: Callable[[Rows], None], out: Sequence[Tensor]) -> None:
    for rows in groups:
        mine = world.part(rows)
        work(mine if len(mine) else rows[:1])  # every process takes part in every pass
        if not len(mine):
            for tensor in out:
                tensor[torch.as_tensor(rows[:1], device=tensor.device)] = 0
    world.sum_(*out)


def release() -> None:
    """Give back what the failed attempt held."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _parts(rows: Rows, count: int) -> list[Rows]:
    size = max(1, -(-len(rows) // count))
    return [rows[i : i + size] for i in range(0, len(rows), size)]
