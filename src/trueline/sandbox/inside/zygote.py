"""The clean interpreter of a worker. It confines itself, then forks one process for each run, watches it and reports.

It is the fork-parent of candidates, so it never sees an expected value.
"""

from __future__ import annotations

import fcntl
import gc
import os
import random
import select
import signal
import socket
import sys
import time
import traceback
from typing import Any

from . import candidate, checker, confine
from .channel import Frames, send_frame

__all__ = ["main"]

_MODES = {
    "calls": candidate.run_calls,
    "script": candidate.run_script,
    "serve": candidate.serve,
    "check": checker.run_check,
}
_PIPE = 1 << 16


def main(sock: socket.socket) -> None:
    """Serve requests from the judge until it hangs up."""
    frames = Frames(sock)
    setup = _receive(frames)
    for name in setup["preload"]:
        __import__(name)
    os.environ.clear()
    sys.argv[:] = [""]
    sys.path[:] = setup["paths"]
    send_frame(sock, _confine(setup))
    confined = setup["seccomp"]
    gc.collect()
    gc.freeze()
    while (request := _receive(frames)) is not None:
        files, frames.files = frames.files, []
        try:
            answer = [_run(job, sock, files, confined) for job in request[:1]]
            for job in request[1:]:
                if answer[-1]["limit"]:
                    break
                answer.append(_run(job, sock, files, confined))
        except OSError as error:
            answer = [{"broken": str(error)}]
        for handle in files:
            os.close(handle)
        send_frame(sock, answer)


def _receive(frames: Frames) -> Any:
    while (message := frames.next()) is None:
        if not frames.read():
            return None
    return message


def _confine(setup: dict[str, Any]) -> dict[str, Any]:
    """Give up the rights of the whole worker; seccomp comes at each fork, where nothing more needs to be forked."""
    done = {"identity": confine.drop_identity(setup["readable"]), "landlock": 0}
    if setup["landlock"]:
        done["landlock"] = confine.landlock(setup["readable"], setup["listings"])
    if setup["seccomp"]:
        confine.prepare()
    os.chdir("/")
    return done


def _run(job: dict[str, Any], control: socket.socket, files: list[int], confined: bool) -> dict[str, Any]:
    """Fork, run, watch, reap: one run. Raises OSError where the machinery fails."""
    stdin = os.memfd_create("stdin", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    pipes = [os.pipe() for _ in range(3)]  # result, stdout, stderr
    try:
        with os.fdopen(os.dup(stdin), "wb") as file:
            file.write(job.get("stdin", "").encode("utf-8", "surrogateescape"))
        os.lseek(stdin, 0, os.SEEK_SET)
        fcntl.fcntl(stdin, 1033, 0x8 | 0x4 | 0x2)  # F_ADD_SEALS: no write, no growth, no shrinking
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            _child(job, [stdin, pipes[1][1], pipes[2][1], pipes[0][1], *files], parent, confined)
        for _, end in pipes:
            os.close(end)
        return _watch(pid, job, [end for end, _ in pipes], control)
    finally:
        os.close(stdin)
        for reader, _ in pipes:
            os.close(reader)


def _child(job: dict[str, Any], handles: list[int], parent: int, confined: bool) -> None:
    """In the forked process: never returns."""
    try:
        confine.die_with_parent(parent)
        os.setsid()
        high = [fcntl.fcntl(handle, fcntl.F_DUPFD, 100) for handle in handles]
        for number, handle in enumerate(high):
            os.dup2(handle, number)
        os.closerange(len(high), 1 << 16)
        for number in (signal.SIGINT, signal.SIGPIPE):
            signal.signal(number, signal.SIG_DFL)
        random.seed(0)
        rounds = len(job.get("calls", ())) + 1
        confine.limit_resources(int(job["cpu_seconds"] * rounds) + 2, job["memory_bytes"])
        if confined:
            confine.seccomp()
        _MODES[job["mode"]](job)
    except BaseException:
        os.write(2, traceback.format_exc(limit=-3).encode("utf-8", "backslashreplace")[-2000:])
        os._exit(70)
    os._exit(0)


class _Stream:
    """What a run wrote to one pipe, up to a cap."""

    def __init__(self, fd: int, cap: int) -> None:
        os.set_blocking(fd, False)
        self.fd, self.cap, self.data, self.lines, self.open = fd, cap, bytearray(), 0, True

    def read(self) -> int:
        """Bytes read now; 0 where there is nothing."""
        try:
            data = os.read(self.fd, _PIPE)
        except BlockingIOError:
            return 0
        self.open = bool(data)
        self.lines += data.count(b"\n")
        self.data += data[: max(0, self.cap + 1 - len(self.data))]
        return len(data)


def _watch(pid: int, job: dict[str, Any], ends: list[int], control: socket.socket) -> dict[str, Any]:
    """Read the run's output, hold its limits, kill and reap it. Time limits start anew with each reported call."""
    cap = job["output_bytes"]
    streams = {end: _Stream(end, size) for end, size in zip(ends, (cap * 2, cap, cap), strict=True)}
    result = streams[ends[0]]
    clock, handle = (~pid << 3) | 2, os.pidfd_open(pid)
    poller = select.poll()
    for end in ends:
        poller.register(end, select.POLLIN)
    poller.register(handle, select.POLLIN)
    poller.register(control.fileno(), 0)  # hang-up only
    start = since = time.monotonic()
    spent, seen, rounds, limit = 0.0, 0, len(job.get("calls", ())) + 1, ""
    while not limit:
        cpu, now = time.clock_gettime(clock), time.monotonic()
        if seen < min(result.lines, rounds):
            seen, spent, since = min(result.lines, rounds), cpu, now
        cpu_left, wall_left = job["cpu_seconds"] - (cpu - spent), job["wall_seconds"] - (now - since)
        if cpu_left <= 0 or wall_left <= 0:
            limit = "cpu" if cpu_left <= 0 else "wall"
            break
        events = poller.poll(max(1, int(1000 * min(cpu_left, wall_left)) + 1))
        ready = {fd for fd, _ in events}
        if control.fileno() in ready:
            limit = "judge"
        for fd in ready & streams.keys():
            streams[fd].read()
            if len(streams[fd].data) > streams[fd].cap:
                limit = "output"
            if not streams[fd].open:
                poller.unregister(fd)
        if handle in ready:
            break
    status, usage = _reap(pid, handle)
    for stream in streams.values():
        while stream.open and len(stream.data) <= stream.cap and stream.read():
            pass
        if not limit and len(stream.data) > stream.cap:
            limit = "output"
    if limit == "judge":
        os._exit(0)
    lines, out, err = (stream.data for stream in streams.values())
    return {
        "limit": limit,
        "status": status,
        "lines": lines.decode("ascii", "replace").split("\n")[:-1],
        "stdout": out[:cap].decode("utf-8", "backslashreplace"),
        "stderr": err[-2000:].decode("utf-8", "backslashreplace"),
        "cpu": usage.ru_utime + usage.ru_stime,
        "memory": usage.ru_maxrss * 1024,
        "wall": time.monotonic() - start,
    }


def _reap(pid: int, handle: int) -> tuple[int, Any]:
    """Kill whatever is left of a run and wait for it; nothing of it survives (it cannot have forked)."""
    signal.pidfd_send_signal(handle, signal.SIGKILL) if not _gone(handle) else None
    try:
        os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass
    _, status, usage = os.wait4(pid, 0)
    os.close(handle)
    return os.waitstatus_to_exitcode(status), usage


def _gone(handle: int) -> bool:
    return bool(select.select([handle], [], [], 0)[0])
