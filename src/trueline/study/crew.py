"""The worker processes of a study: one cell at a time each, and gone when the program is."""

from __future__ import annotations

import os
import queue
import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any

from trueline.runs import stopping
from trueline.study.job import Job, run_job

__all__ = ["Crew"]


class Crew:
    """The worker processes, and the channel on which they tell their progress."""

    def __init__(self, count: int) -> None:
        context = get_context("spawn")
        self.channel = context.Queue()
        self._pool = ProcessPoolExecutor(
            count, mp_context=context, initializer=_start_worker, initargs=(self.channel, os.getpid())
        )

    def submit(self, job: Job) -> Future | None:
        """The job's future; None where a worker has died meanwhile."""
        try:
            with _interrupts_held():
                return self._pool.submit(_work, job)
        except BrokenProcessPool:
            return None

    def wind_down(self) -> None:
        """Tell the workers to stop, and give them time to save the step they are at."""
        processes = list((self._pool._processes or {}).values())
        self._pool.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.terminate()
        end = time.monotonic() + stopping.PATIENCE - 1.0
        while time.monotonic() < end and any(process.is_alive() for process in processes):
            time.sleep(0.02)
            try:  # a worker that waits for its words to be read cannot end
                while True:
                    self.channel.get_nowait()
            except queue.Empty:
                pass

    def kill(self) -> None:
        """Kill the workers and wait for the thread that manages them.

        Left alone, that thread closes its pipe while the interpreter's own exit still writes to it, now and then: a
        traceback after the last word. With its processes gone it ends at once.
        """
        manager = self._pool._executor_manager_thread
        for process in list((self._pool._processes or {}).values()):
            process.kill()
        self._pool.shutdown(wait=False, cancel_futures=True)
        if manager is not None:
            manager.join(timeout=10)

    def close(self) -> None:
        """End the workers, whose work is done."""
        self._pool.shutdown()
        self.channel.close()
        self.channel.cancel_join_thread()


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """A worker that is started in here never sees Ctrl-C, from its first instruction on: the mask is inherited. The
    parent gets one that came meanwhile when it leaves."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    held = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)


def _work(job: Job) -> None:
    run_job(job, lambda key, progress: _CHANNEL.put((key, progress)))


_CHANNEL: Any = None


def _start_worker(channel: Any, parent: int) -> None:
    global _CHANNEL
    _CHANNEL = channel
    stopping.in_worker()
    _die_with(parent)
    import torch

    torch.set_num_threads(1)


def _die_with(parent: int) -> None:
    """No worker outlives a parent that was killed: it would go on computing for nobody."""
    if not sys.platform.startswith("linux"):
        return
    import ctypes

    pr_set_pdeathsig = 1
    ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
