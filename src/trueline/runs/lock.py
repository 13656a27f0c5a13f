"""One process per run directory: the second one is refused while the first is alive."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trueline.errors import RunError

__all__ = ["held"]

_NAME = ".lock"
_ours: set[Path] = set()


@contextmanager
def held(directory: Path) -> Iterator[None]:
    """Hold the directory's lock; RunError where another process holds it.

    The kernel gives the lock back when its holder is gone, however it went: no stale lock is left to delete. A file
    system without locks is told by the pid and the boot written in the file instead.
    """
    place = directory.resolve()
    if place in _ours:  # a command within a command of this process
        yield
        return
    handle = os.open(directory / _NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        _take(handle, directory)
        os.ftruncate(handle, 0)
        os.pwrite(handle, json.dumps(_me()).encode(), 0)
        _ours.add(place)
        try:
            yield
        finally:
            _ours.discard(place)
            os.ftruncate(handle, 0)
    finally:
        os.close(handle)


def _take(handle: int, directory: Path) -> None:
    try:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        raise _refusal(directory, _holder(handle)) from None
    except (ImportError, OSError):  # no such locks here
        holder = _holder(handle)
        if holder and _alive(holder):
            raise _refusal(directory, holder) from None


def _refusal(directory: Path, holder: dict[str, Any]) -> RunError:
    who = f"process {holder['pid']} on {holder['host']}" if holder else "another process"
    return RunError(
        f"{directory}: {who} is at work here; wait for it, stop it, or use another -o DIR (nothing was touched)"
    )


def _me() -> dict[str, Any]:
    return {"pid": os.getpid(), "host": platform.node(), "boot": _boot()}


def _boot() -> str:
    """Which start of the machine this is: a pid means nothing after the next."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _holder(handle: int) -> dict[str, Any]:
    try:
        found = json.loads(os.pread(handle, 4096, 0))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) and {"pid", "host"} <= set(found) else {}


def _alive(holder: dict[str, Any]) -> bool:
    if holder.get("host") != platform.node():
        return True  # cannot be known from here
    if holder.get("boot") != _boot():
        return False
    try:
        os.kill(int(holder["pid"]), 0)
    except ProcessLookupError:
        return False
    except (PermissionError, ValueError):
        return True
    return int(holder["pid"]) != os.getpid()
