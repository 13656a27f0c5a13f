"""The processes of one run: their number, this one's place, and what they tell each other.

Every process holds the whole of a batch (ids and numbers, which are small) and computes a part of its rows; sums over
the processes put the parts together. Control flow is the same everywhere, so that every process comes to every
exchange. Started by `torchrun`, which sets RANK, WORLD_SIZE and LOCAL_RANK; without it there is one process and
nothing is sent.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from trueline.distributed.started import processes
from trueline.errors import InputError, RunError

__all__ = ["World", "alone", "current", "losses_told", "together"]

Rows = TypeVar("Rows")
_LOST = ("Connection closed", "Connection reset", "onnection refused", "peer", "NCCL", "Timed out", "unhandled system")
_PATIENCE = datetime.timedelta(hours=24)
"""How long a process waits for the others: one of them evaluates while they do nothing. A process that is gone is
noticed by its connection, not by this."""


class World:
    """This process among `size`; `rank` 0 leads: it alone writes and speaks."""

    def __init__(self, rank: int = 0, size: int = 1, device: torch.device | None = None) -> None:
        self.rank, self.size = rank, size
        self.device = device or torch.device("cpu")

    @property
    def leads(self) -> bool:
        """Whether this process writes and speaks."""
        return self.rank == 0

    def part(self, rows: Rows) -> Rows:
        """This process's share of rows (an array or tensor): every size-th, so that similar lengths spread evenly."""
        return rows[self.rank :: self.size]

    def sum_(self, *tensors: Tensor) -> None:
        """Each tensor becomes its sum over the processes."""
        if self.size == 1:
            return
        with losses_told():
            for tensor in tensors:
                held = tensor.to(self.device)
                dist.all_reduce(held)
                if held is not tensor:
                    tensor.copy_(held)

    def total(self, *numbers: float) -> list[float]:
        """Sums over the processes, in float64."""
        if self.size == 1:
            return list(numbers)
        held = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        self.sum_(held)
        return held.tolist()

    def everyone(self, value: Any) -> list[Any]:
        """What each process has, by rank."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        with losses_told():
            dist.all_gather_object(found, value)
        return found

    def from_leader(self, value: Any) -> Any:
        """The leader's value, everywhere."""
        if self.size == 1:
            return value
        held = [value if self.leads else None]
        with losses_told():
            dist.broadcast_object_list(held, src=0)
        return held[0]

    def meet(self) -> None:
        """Wait until every process is here."""
        self.everyone(None)


_ALONE = World()
_world = _ALONE


def current() -> World:
    """The processes that this one computes with now."""
    return _world


@contextmanager
def together(device: str = "cpu") -> Iterator[World]:
    """The other processes, where there are any, for as long as this lasts.

    However it ends, this process parts from them before it ends itself: one whose group's threads still run at its
    exit aborts now and then (5 of 60 over gloo), and SIGABRT takes the place of its exit code. Only NCCL is left as it
    is after an error, because parting over it waits for those that are gone.
    """
    global _world
    if processes() == 1 or _world.size > 1:
        yield _world
        return
    _world = _join(device)
    orderly = False
    try:
        yield _world
        orderly = True
    finally:
        held, _world = _world, _ALONE
        if orderly or held.device.type == "cpu":
            dist.destroy_process_group()


def _join(device: str) -> World:
    """Meet the other processes; NCCL on GPUs (one each), gloo on CPUs."""
    size = processes()
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
    if missing:
        raise InputError(
            f"{size} processes, but {', '.join(missing)} is not set", field="WORLD_SIZE", remedy="start with torchrun"
        )
    place = torch.device("cpu")
    if device == "cuda":
        place = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        if place.index >= torch.cuda.device_count():
            raise InputError(
                f"{torch.cuda.device_count()} GPUs for {place.index + 1} processes or more", field="--nproc-per-node",
                remedy="start one process for each GPU",
            )  # fmt: skip
        torch.cuda.set_device(place)
    try:
        dist.init_process_group("nccl" if device == "cuda" else "gloo", timeout=_PATIENCE)
    except (RuntimeError, ValueError, OSError) as error:
        raise RunError(f"the {size} processes do not find each other ({error}); is the port in use?") from None
    return World(dist.get_rank(), size, place)


@contextmanager
def alone() -> Iterator[None]:
    """What runs in here runs as if there were no others."""
    global _world
    held, _world = _world, _ALONE
    try:
        yield
    finally:
        _world = held


@contextmanager
def losses_told() -> Iterator[None]:
    """A lost process in words: the others must end as well, and the run goes on from its checkpoint."""
    try:
        yield
    except RuntimeError as error:
        if not any(word in str(error) for word in _LOST):
            raise
        raise RunError(
            f"another process of this run is gone ({str(error).splitlines()[0][:160]}); run the same command again: "
            "it goes on from the last checkpoint"
        ) from None
