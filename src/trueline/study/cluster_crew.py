"""The workers of a study on a Ray cluster: the same verbs as a crew of processes, and one lost worker is one lost cell.

What every machine needs: this package in the same version, and the folder of the command, the run directory and the
files it reads under the same names.
"""

from __future__ import annotations

import os
import platform
import queue
import secrets
import signal
import time
from concurrent.futures import Future
from contextlib import AbstractContextManager, ExitStack, suppress
from pathlib import Path
from typing import Any

from trueline import __version__
from trueline.distributed.cluster import Actors, is_loss, loss_of, room
from trueline.distributed.settings import ClusterSettings
from trueline.errors import InputError, RunError
from trueline.runs import stopping
from trueline.runs.lock import held
from trueline.study.job import Job, run_job

__all__ = ["ClusterCrew", "WorkerLost"]

_PATIENCE = 20.0
"""Seconds without a machine after which the run ends."""
_HANDOVER = 30.0
"""Seconds in which a cell that a lost worker held must be free for its successor."""


class WorkerLost(Exception):
    """A worker or its machine is gone; its cell goes on from its checkpoint elsewhere."""


class ClusterCrew:
    """At most `count` cells at a time, each in an actor with its share of a machine, in files below `directory`."""

    def __init__(self, settings: ClusterSettings, count: int, directory: Path) -> None:
        import ray
        from ray.util.queue import Queue
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        self._count, self._settings = count, settings
        self._room, self._asked, self._none_since = count, time.monotonic(), 0.0
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self._queue = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})
        self.channel = _Channel(self._queue)
        self._mark = (directory / "cells" / f".cluster-{secrets.token_hex(4)}.tmp").resolve()
        self._mark.write_text("every machine of the run must see this\n", encoding="utf-8")
        self._actors = Actors(
            _Worker,
            self._queue,
            os.getcwd(),
            str(self._mark),
            __version__,
            cpus=settings.cpus,
            gpus=settings.gpus,
            calls=2,
        )
        self._idle: list[Any] = []
        self._busy: dict[Future, Any] = {}

    @property
    def full(self) -> bool:
        """Whether every worker that there is a machine for has a cell; RunError where no machine is left."""
        if time.monotonic() - self._asked > 1.0:
            self._asked = time.monotonic()
            self._room = room(self._settings.cell_cpus, self._settings.cell_gpus)
            self._none_since = 0.0 if self._room else self._none_since or self._asked
            if self._none_since and self._asked - self._none_since > _PATIENCE:
                raise RunError(
                    "no machine of the cluster has room for a cell any more; what is finished is kept: bring machines "
                    "back and run the same command again"
                )
        return len(self._busy) >= min(self._count, self._room)

    def submit(self, job: Job) -> Future:
        """The job's future: its result, the error it ended with, or WorkerLost."""
        actor = self._idle.pop() if self._idle else self._actors.make()
        outcome: Future = Future()
        self._busy[outcome] = actor
        actor.run.remote(job).future().add_done_callback(lambda told: self._settle(outcome, actor, told))
        return outcome

    def _settle(self, outcome: Future, actor: Any, told: Future) -> None:
        error = told.exception()
        self._busy.pop(outcome, None)
        if error is None:
            self._idle.append(actor)
            error = told.result()
        elif is_loss(error):
            error = WorkerLost(loss_of(error))
        if error is None:
            outcome.set_result(None)
        else:
            outcome.set_exception(error)

    def wind_down(self) -> None:
        """Tell the workers to stop, and give them time to save the step they are at."""
        for actor in list(self._busy.values()):
            actor.stop.remote()
        until = time.monotonic() + stopping.PATIENCE - 1.0
        while self._busy and time.monotonic() < until:
            time.sleep(0.05)

    def kill(self) -> None:
        """End every worker."""
        import ray

        for actor in (*self._busy.values(), *self._idle):
            with suppress(Exception):  # gone already
                ray.kill(actor, no_restart=True)
        self._idle = []
        self._mark.unlink(missing_ok=True)
        with suppress(Exception):
            self._queue.shutdown(force=True)

    close = kill


class _Channel:
    """What the workers tell, as a queue of the standard library."""

    def __init__(self, told: Any) -> None:
        self._told = told

    def get_nowait(self) -> Any:
        """The next word; `queue.Empty` where there is none, or nobody to ask."""
        from ray.exceptions import RayError

        try:
            return self._told.get_nowait()
        except RayError:
            raise queue.Empty from None


class _Worker:
    """Runs cells on one machine. One thread works, another takes the word to stop."""

    def __init__(self, told: Any, folder: str, mark: str, version: str) -> None:
        self._told, self._folder, self._mark, self._version = told, Path(folder), Path(mark), version
        self._stop: list[int] = stopping.seen_here()

    def run(self, job: Job) -> BaseException | None:
        """What the cell ended with."""
        import torch

        torch.set_num_threads(1)
        try:
            self._check()
            with _alone_at(Path(job.directory)):
                run_job(job, lambda key, progress: self._told.put((key, progress)))
        except BaseException as error:
            return error
        return None

    def stop(self) -> None:
        """Let the step that runs be saved, then end the cell."""
        self._stop.append(signal.SIGTERM)

    def _check(self) -> None:
        for place in (self._folder, self._mark):
            if not place.exists():
                raise InputError(
                    f"the machine {platform.node()} does not see {place}",
                    field="-o", remedy="run in a folder, and with an -o DIR, that all machines of the cluster share",
                )  # fmt: skip
        os.chdir(self._folder)  # paths of settings are taken from there
        if self._version != __version__:
            raise InputError(
                f"the machine {platform.node()} has trueline {__version__}, this one {self._version}",
                field="cluster.address", remedy="install the same version everywhere",
            )  # fmt: skip


def _alone_at(cell: Path) -> AbstractContextManager[Any]:
    """Hold the cell: a worker that was taken for lost may still write to it for a moment."""
    place = cell.parent / ".locks" / cell.name
    place.mkdir(parents=True, exist_ok=True)
    until = time.monotonic() + _HANDOVER
    while True:
        stack = ExitStack()
        try:
            stack.enter_context(held(place))
            return stack
        except RunError:
            if time.monotonic() > until:
                raise
            time.sleep(0.2)
