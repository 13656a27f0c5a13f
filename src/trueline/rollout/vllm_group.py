"""Weights to a vLLM server over a process group: between GPUs NCCL, between CPUs gloo. No folder need be shared.

The trainer is rank 0; every worker of the server, made ready by `inside/trueline_receiver.py`, is another. A tensor
goes over as soon as it is there: the policy need not lie in one piece anywhere.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from trueline.errors import InputError, RunError
from trueline.rollout.inside.trueline_receiver import address_towards, from_trainer, meet
from trueline.rollout.vllm_client import VllmServer

__all__ = ["WeightGroup", "Wire"]

_SECONDS = 25.0
"""For the workers to come, and for each tensor to be taken."""
_PAUSE = 1e-4

Wire = Sequence[tuple[str, str, tuple[int, ...]]]
"""Names, types ("float32") and shapes of tensors in the order in which they go over."""


class WeightGroup:
    """The group with the workers of one server. Raises RunError where they do not come, or are lost later; InputError
    where they know nothing of a group."""

    def __init__(self, server: VllmServer, device: torch.device) -> None:
        self._server, self._device = server, device
        try:
            ranks = sorted(server.workers("trueline_rank", {}, read=int))
        except RunError as error:
            raise InputError(
                f"the server takes no weights over a group ({error})", where=server.name, field="rollout.transfer",
                remedy="start it as docs/vllm.md says, with --worker-extension-cls, or rollout.transfer=files",
            ) from None  # fmt: skip
        if ranks != list(range(len(ranks))):
            raise RunError(f"{server.name}: workers {ranks}: a server of several engines takes weights as files only")
        self._backend = "nccl" if device.type == "cuda" else "gloo"
        host = address_towards(*server.address)
        self._store = dist.TCPStore(
            host, 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=_SECONDS)
        )
        size = 1 + len(ranks)
        told = self._asked(
            "trueline_join",
            {
                "host": host, "port": self._store.port, "size": size, "backend": self._backend, "seconds": _SECONDS,
            },
        )  # fmt: skip
        try:
            self._group = meet(dist.PrefixStore("weights", self._store), 0, size, self._backend, host, _SECONDS)
            told.result()
        except RuntimeError as error:
            raise self._lost("the workers did not come", error, told) from None

    def send(self, wire: Wire, tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Hand over tensors that come in the order of `wire`."""
        told = self._asked("trueline_receive", {"weights": [list(w) for w in wire]})
        try:
            for (name, dtype, shape), (own, tensor) in zip(wire, tensors, strict=True):
                if (own, tuple(tensor.shape)) != (name, tuple(shape)):
                    raise ValueError(f"{own} {tuple(tensor.shape)} in the place of {name} {tuple(shape)}")
                sent = from_trainer(self._group, tensor.to(self._device, getattr(torch, dtype)).contiguous())
                while not sent.is_completed():
                    if told.done():
                        told.result()
                        raise RuntimeError("the workers were done before all weights were there")
                    time.sleep(_PAUSE)
                sent.wait()
            told.result()
        except RuntimeError as error:
            raise self._lost("the workers are lost while weights go over", error, told) from None

    def _asked(self, method: str, arguments: Mapping[str, Any]) -> Future:
        """What the workers answer, once they do. The end of this process does not wait for it, as a pool's would."""
        told: Future = Future()

        def ask() -> None:
            try:
                told.set_result(self._server.workers(method, arguments))
            except BaseException as error:
                told.set_exception(error)

        threading.Thread(target=ask, daemon=True).start()
        return told

    def _lost(self, what: str, error: Exception, told: Future) -> RunError:
        """What the server says of it where it says something; else the group's error."""
        try:
            told.result(timeout=5)
        except RunError as words:
            return words
        except TimeoutError:
            pass
        return RunError(
            f"{self._server.name}: {what} ({str(error).splitlines()[0][:200]}); run the same command again: it goes on "
            "from the last checkpoint"
        )

    def close(self) -> None:
        """Leave the group; nothing more is sent."""
        self._group = self._store = None
