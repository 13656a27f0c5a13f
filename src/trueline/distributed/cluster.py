"""Work on many machines: actors of a Ray cluster, of which one may be lost at any time.

Ray is an extra (`trueline[ray]`) and is imported when a cluster is asked for. Every call here is safe to repeat: an
actor computes a function of what it was given, so that the part of a lost one is computed by its successor, and each
answer is taken once.
"""

from __future__ import annotations

import importlib.util
import os
import secrets
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from trueline.distributed.settings import ClusterSettings
from trueline.errors import InputError, RunError

__all__ = ["ActorPool", "Actors", "connect", "connected", "is_loss", "loss_of", "room"]

_NAMESPACE = "trueline"
_MOST_LOSSES = 3
_PATIENCE = 30.0
"""Seconds in which a lost worker must be replaced, or the run ends."""
_STARTING = 300.0
"""Seconds in which a worker that has room must have started: on a busy machine it takes longer."""


def connected() -> bool:
    """Whether this process speaks with a cluster."""
    ray = sys.modules.get("ray")  # not imported here: it reads its environment when it is
    return ray is not None and ray.is_initialized()


@contextmanager
def connect(settings: ClusterSettings) -> Iterator[str]:
    """Speak with the cluster in here; gives its address. Nothing where there is none ("" then), or where this process
    speaks with one already.

    Raises InputError without Ray, without token authentication, or where the versions are others; RunError where the
    cluster is not there or takes another token.
    """
    if not settings.address or connected():
        yield settings.address
        return
    if importlib.util.find_spec("ray") is None:
        raise InputError("Ray is not installed", field="cluster.address", remedy="pip install 'trueline[ray]'")
    local = settings.address == "local"
    if local:  # ours alone: a token that nobody else knows
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    elif os.environ.get("RAY_AUTH_MODE") != "token" and not settings.unsafe:
        raise InputError(
            "a cluster without tokens runs any code for whoever reaches its port", field="cluster.address",
            remedy="start every node with RAY_AUTH_MODE=token and one token (ray get-auth-token), and set both here; "
            "or cluster.unsafe=true on a network of your own",
        )  # fmt: skip
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if not local:
        _knock(settings.address)
    import ray

    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        started = {"include_dashboard": False} if local else {"address": settings.address}
        ray.init(namespace=_NAMESPACE, log_to_driver=False, logging_level="ERROR", **started)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        raise _refused(settings.address, error) from None
    for number, handler in handlers.items():  # Ray puts its own in their place: a stop would save nothing
        signal.signal(number, handler if handler is not None else signal.SIG_DFL)
    try:
        yield ray.get_runtime_context().gcs_address
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """Raise RunError where nobody answers: Ray itself would ask for minutes."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        return  # "auto" and the like: Ray knows where
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except OSError as error:
        raise _refused(address, error) from None


def _refused(address: str, error: Exception) -> Exception:
    said = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
    if "ersion mismatch" in str(error):
        return InputError(
            f"the cluster runs other versions ({said})", where=address, field="cluster.address",
            remedy="the same Python and Ray on every machine",
        )  # fmt: skip
    return RunError(
        f"no Ray cluster at {address} that takes this token ({said}); start it with ray start --head, set "
        "RAY_AUTH_TOKEN to its token, or use cluster.address=local"
    )


def room(cpus: float, gpus: float) -> int:
    """How many workers with such a share the machines that are there could hold, were they idle."""
    import ray

    have = ray.cluster_resources()
    found = int(have.get("CPU", 0.0) / cpus + 1e-9)
    return min(found, int(have.get("GPU", 0.0) / gpus + 1e-9)) if gpus else found


def is_loss(error: BaseException) -> bool:
    """Whether an error says that a worker or its machine is gone, and nothing of the work."""
    if not connected():
        return False
    from ray import exceptions

    lost = (
        exceptions.RayActorError, exceptions.WorkerCrashedError, exceptions.NodeDiedError,
        exceptions.ObjectLostError, exceptions.ActorUnavailableError, exceptions.OutOfMemoryError,
    )  # fmt: skip
    return isinstance(error, lost)


def loss_of(error: BaseException) -> str:
    """A loss in a few words."""
    return str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__


class Actors:
    """Makes actors of one class, each with its share of a machine, spread over the machines."""

    def __init__(self, kind: type, *arguments: Any, cpus: float, gpus: float = 0.0, calls: int = 1) -> None:
        """`calls`: how many an actor answers at a time."""
        import ray

        # A worker is replaced here, by what it was told: Ray's own restart would forget that.
        self._kind = ray.remote(kind).options(
            num_cpus=cpus, num_gpus=gpus, max_restarts=0, max_task_retries=0, max_concurrency=calls,
            scheduling_strategy="SPREAD",
        )  # fmt: skip
        self._arguments, self.cpus, self.gpus = arguments, cpus, gpus

    def make(self) -> Any:
        """A new one; it may wait for room."""
        return self._kind.remote(*self._arguments)


class ActorPool:
    """`count` actors that compute parts of a call; what `bring` did to them is done to a new one too.

    `tell` is called with a sentence when one is lost. Raises RunError where three are lost without an answer between,
    where one finds no machine for half a minute, or where one with room has not started after five.
    """

    def __init__(
        self,
        actors: Actors,
        count: int,
        *,
        name: str,
        tell: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._actors, self._name, self._tell = actors, name, tell
        self._prepare: Callable[[Any], Any] = lambda actor: None
        self._losses = 0
        self._held = [actors.make() for _ in range(count)]
        self._there(self._held)

    def __len__(self) -> int:
        return len(self._held)

    def bring(self, prepare: Callable[[Any], Any]) -> None:
        """Bring every actor to another state; later ones begin there."""
        self._prepare = prepare
        self.each([lambda actor: prepare(actor)] * len(self))

    def each(self, calls: Sequence[Callable[[Any], Any]]) -> list[Any]:
        """The answers of calls (actor -> reference), in order; call i goes to actor i modulo their number."""
        import ray

        answers: list[Any] = [None] * len(calls)
        waiting = {self._start(i, call): i for i, call in enumerate(calls)}
        while waiting:
            (reference,), _ = ray.wait(list(waiting), num_returns=1)
            index = waiting.pop(reference)
            try:
                answers[index] = ray.get(reference)
                self._losses = 0
            except BaseException as error:
                if not is_loss(error):
                    raise
                self._replace(index, error)
                for ref, i in list(waiting.items()):  # what else that actor had
                    if i % len(self) == index % len(self):
                        del waiting[ref]
                        waiting[self._start(i, calls[i])] = i
                waiting[self._start(index, calls[index])] = index
        return answers

    def _start(self, index: int, call: Callable[[Any], Any]) -> Any:
        return call(self._held[index % len(self)])

    def _replace(self, index: int, error: BaseException) -> None:
        self._losses += 1
        self._tell(f"a {self._name} is gone ({loss_of(error)}); another takes its part")
        if self._losses >= _MOST_LOSSES:
            raise RunError(
                f"{self._name}s were lost {self._losses} times without an answer ({loss_of(error)}); what is finished "
                "is kept: run the same command again"
            ) from None
        self._held[index % len(self)] = actor = self._actors.make()
        self._there([actor])
        self._prepare(actor)

    def _there(self, actors: Sequence[Any]) -> None:
        """Wait until actors have found their machines; RunError where there is no room for them. Where there is room,
        they are starting: on a machine that is busy that takes longer."""
        import ray

        missing, until = [actor.__ray_ready__.remote() for actor in actors], time.monotonic() + _STARTING
        while True:
            _, missing = ray.wait(missing, num_returns=len(missing), timeout=_PATIENCE)
            if not missing:
                return
            have, wanted = ray.available_resources(), {"CPU": self._actors.cpus, "GPU": self._actors.gpus}
            free = ", ".join(f"{have.get(name, 0.0):g} {name}" for name, amount in wanted.items() if amount)
            if any(have.get(name, 0.0) < amount for name, amount in wanted.items()):
                raise RunError(
                    f"{len(missing)} {self._name}s found no machine within {_PATIENCE:g} s ({free} free): bring "
                    "machines back or ask for less, then run the same command again"
                )
            if time.monotonic() > until:
                raise RunError(
                    f"{len(missing)} {self._name}s did not start within {_STARTING:g} s, though there is room ({free} "
                    "free): look at the machines, then run the same command again"
                )

    def close(self) -> None:
        """End the actors; where the connection is gone they are too."""
        if connected():
            import ray

            for actor in self._held:
                ray.kill(actor, no_restart=True)
        self._held = []
