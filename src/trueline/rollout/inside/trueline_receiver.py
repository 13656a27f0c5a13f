"""A vLLM worker's side of a hand-over of weights: a process group with the trainer, and what comes over it.

This file runs in the server's environment, by itself: `vllm serve --worker-extension-cls trueline_receiver.Receiver`
with its folder on PYTHONPATH. The trainer reads `meet` and `from_trainer` from it, so that both sides do alike.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

__all__ = ["Receiver", "address_towards", "from_trainer", "meet"]


def address_towards(host: str, port: int) -> str:
    """The address of this machine by which `host` is reached. Nothing is sent."""
    family, kind, _, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as probe:
        probe.connect(place)
        return str(probe.getsockname()[0])


def meet(store: dist.Store, rank: int, size: int, backend: str, own: str, seconds: float) -> Any:
    """A process group apart from the process's own: NCCL between GPUs, gloo by the address `own` between CPUs."""
    if backend == "nccl":
        options = dist.ProcessGroupNCCL.Options()
        options._timeout = timedelta(seconds=seconds)
        return dist.ProcessGroupNCCL(store, rank, size, options)
    options = dist.ProcessGroupGloo._Options()
    options._devices = [dist.ProcessGroupGloo.create_device(hostname=own)]
    options._timeout = timedelta(seconds=seconds)
    return dist.ProcessGroupGloo(store, rank, size, options)


def from_trainer(group: Any, tensor: torch.Tensor) -> Any:
    """The broadcast of a tensor by rank 0, under way: to be waited for."""
    options = dist.BroadcastOptions()
    options.rootRank, options.rootTensor = 0, 0
    return group.broadcast([tensor], options)


class Receiver:
    """Methods that a worker gets beside its own; the trainer calls them in every worker at once.

    The trainer is rank 0 of the group, a worker one more than its rank among the workers.
    """

    def trueline_rank(self) -> int:
        """This worker's place among the workers."""
        return int(self.rank)

    def trueline_join(self, host: str, port: int, size: int, backend: str, seconds: float) -> None:
        """Meet the trainer, whose store listens at `host` and `port`; it, and later each tensor, has `seconds`."""
        store = dist.TCPStore(host, port, is_master=False, timeout=timedelta(seconds=seconds))
        own = address_towards(host, port)
        self._trueline = meet(dist.PrefixStore("weights", store), 1 + int(self.rank), size, backend, own, seconds)
        self._trueline_device = torch.device(self.device if backend == "nccl" else "cpu")

    def trueline_receive(self, weights: Sequence[Sequence[Any]]) -> None:
        """Take tensors of these names, types and shapes in this order, and serve with them."""
        try:
            self.reload_weights(weights_iterator=self._trueline_incoming(weights))
        except BaseException:
            self._trueline = None  # its connections close: the trainer, which sends on, sees that at once
            raise

    def _trueline_incoming(self, weights: Sequence[Sequence[Any]]) -> Iterator[tuple[str, torch.Tensor]]:
        for name, dtype, shape in weights:
            tensor = torch.empty(tuple(shape), dtype=getattr(torch, dtype), device=self._trueline_device)
            from_trainer(self._trueline, tensor).wait()
            yield name, tensor
