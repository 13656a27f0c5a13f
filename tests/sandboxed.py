"""What tests of real runs share: the reason to skip where no sandbox works, and a way to kill workers at work."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from trueline.commands.program_options import ProgramOptions
from trueline.errors import InputError
from trueline.sandbox import Limits, Pool

QUICK = Limits(cpu_seconds=0.5, wall_seconds=2.0, memory_bytes=256 << 20)


@functools.cache
def _reason() -> str:
    try:
        Pool(1).close()
    except InputError as error:
        return str(error)
    return ""


def need_sandbox() -> None:
    """Skip the test where no strong tier works."""
    if _reason():
        pytest.skip(_reason())


def quick(**more: object) -> ProgramOptions:
    """One worker with short limits; skips where there is no sandbox."""
    need_sandbox()
    return ProgramOptions(**{"limits": QUICK} | more)


@contextlib.contextmanager
def killed_twice(pool: Pool) -> Iterator[None]:
    """Kills the pool's workers whenever a run is under way, until two more have died."""
    stop, before = threading.Event(), len(pool.incidents)

    def hunt() -> None:
        while not stop.is_set() and len(pool.incidents) < before + 2:
            with contextlib.suppress(ProcessLookupError, RuntimeError):  # replaced while we look
                for pid in filter(_has_children, pool.pids):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)

    thread = threading.Thread(target=hunt)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _has_children(pid: int) -> bool:
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = path.read_text().rsplit(")", 1)[1].split()
            if int(fields[1]) == pid and fields[0] != "Z":
                return True
    return False
