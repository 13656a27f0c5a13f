"""The clean interpreter of a worker. It confines itself, then forks one process for each run, watches it and reports.

It is the fork-parent of candidates, so it never sees an expected value.
"""

from __future__ import annotations

import _sitebuiltins
import builtins
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
from .wire import decode

__all__ = ["main"]

_MODES = {
    "calls": candidate.run_calls,
    "script": candidate.run_script,
    "serve": candidate.serve,
    "check": checker.run_check,
}
_PIPE = 1 << 16
_ENDS = 5  # the descriptors below it are a run's: stdin, stdout, stderr, result, the link to the other side
_REHEARSALS = 20  # the interpreter settles how it runs a function after some calls
_REHEARSAL = {
    "source": "def f(xs):\n    total = 0\n    for x in xs:\n        total += x * 2\n    return [total, len(xs)]\n",
    "prelude": "",
    "calls": [("f", [[1, 2, 3]]), ("f", ["text"]), ("g", [])],
    "stop": False,
}
_BRIEF = 0.01  # seconds in which most runs end: until then nobody looks into their pipes


def main(sock: socket.socket) -> None:
    """Serve requests from the judge until it hangs up."""
    frames = Frames(sock)
    setup = _receive(frames)
    for name in setup["preload"]:
        __import__(name)
    for name in ("exit", "quit"):  # as in an interpreter that loads `site`
        setattr(builtins, name, _sitebuiltins.Quitter(name, "Ctrl-D (i.e. EOF)"))
    os.environ.clear()
    sys.argv[:] = [""]
    sys.path[:] = setup["paths"]
    sock = _high(sock)
    frames = Frames(sock)
    send_frame(sock, _confine(setup))
    confined = setup["seccomp"]
    _settle()
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


def _high(sock: socket.socket) -> socket.socket:
    """The socket on a high descriptor; the low ones are taken, so that a run's ends need no second move."""
    moved = socket.socket(fileno=fcntl.fcntl(sock.fileno(), fcntl.F_DUPFD_CLOEXEC, 16))
    sock.detach()
    reader, writer = os.pipe()
    os.close(writer)
    for number in {0, *range(3, _ENDS)} - {reader}:  # 2 takes the worker's own last words
        os.dup2(reader, number, inheritable=False)
    return moved


def _settle() -> None:
    """What every run would do first is done once, before any of them is forked."""
    for number in (signal.SIGINT, signal.SIGPIPE):
        signal.signal(number, signal.SIG_DFL)
    _rehearse()
    random.seed(0)
    gc.collect()
    gc.freeze()


def _rehearse() -> None:
    """Run a text of our own as a run would be: what an interpreter prepares at the first use of a path is then there in
    every process that is forked, and need not be made, nor its memory copied, in each."""
    reader, writer = os.pipe()
    os.dup2(writer, 3, inheritable=False)
    for _ in range(_REHEARSALS):
        candidate.run_calls(_REHEARSAL)
        os.read(reader, _PIPE)
    sys.modules.pop("candidate")
    os.dup2(reader, 3, inheritable=False)
    os.close(reader)
    os.close(writer)


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
    confine.prepare(setup["seccomp"])
    os.chdir("/")
    return done


def _run(job: dict[str, Any], control: socket.socket, files: list[int], confined: bool) -> dict[str, Any]:
    """Fork, run, watch, reap: one run. Raises OSError where the machinery fails."""
    stdin = os.memfd_create("stdin", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    pipes = [os.pipe() for _ in range(3)]  # result, stdout, stderr
    handles = [stdin, pipes[1][1], pipes[2][1], pipes[0][1], *files]
    try:
        if job.get("stdin"):
            _fill(stdin, job["stdin"].encode("utf-8", "surrogateescape"))
        fcntl.fcntl(stdin, 1033, 0x8 | 0x4 | 0x2)  # F_ADD_SEALS: no write, no growth, no shrinking
        job["calls"] = [(name, decode(arguments)) for name, arguments in job.get("calls", ())]
        watch = _Watch(job, [end for end, _ in pipes], control)
        parent = os.getpid()
        gc.freeze()  # the run's own collections start from nothing
        # From here until the run ends every page that this process writes is copied: so it does little but wait.
        pid = confine.fork()
        if pid == 0:
            _child(job, handles, parent, confined)
        return watch.follow(pid, [writer for _, writer in pipes])
    finally:
        os.close(stdin)
        for reader, _ in pipes:
            os.close(reader)


def _fill(handle: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(handle, left) :]
    os.lseek(handle, 0, os.SEEK_SET)


def _child(job: dict[str, Any], handles: list[int], parent: int, confined: bool) -> None:
    """In the forked process: never returns."""
    try:
        confine.die_with_parent(parent)
        os.setsid()
        for number, handle in enumerate(handles):
            os.dup2(handle, number)
        os.closerange(len(handles), 1 << 16)
        confine.limit_resources(int(job["cpu_seconds"] * (len(job["calls"]) + 1)) + 2, job["memory_bytes"])
        if confined:
            confine.seccomp()
        os.write(3, b"\n")  # the walls stand: without this first line the failure is ours
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

    def finish(self) -> None:
        """Read what is left once nobody writes any more, up to the cap."""
        while self.open and len(self.data) <= self.cap and self.read() == _PIPE:
            pass


class _Watch:
    """Reads a run's output, holds its limits, kills and reaps it. Time limits start anew with each reported call.
    Raises OSError where the run ended before its walls stood."""

    def __init__(self, job: dict[str, Any], ends: list[int], control: socket.socket) -> None:
        cap = job["output_bytes"]
        self.job, self.cap, self.control = job, cap, control.fileno()
        self.streams = {end: _Stream(end, size) for end, size in zip(ends, (cap * 2, cap, cap), strict=True)}
        self.result = self.streams[ends[0]]
        self.rounds = len(job["calls"]) + 2  # the line that says that the walls stand, and the one for the load
        self.poller = select.poll()
        self.poller.register(self.control, 0)  # hang-up only
        self.brief = 1000 * min(_BRIEF, job["cpu_seconds"], job["wall_seconds"])

    def follow(self, pid: int, writers: list[int]) -> dict[str, Any]:
        """The report of the run, once it is over."""
        start, handle = time.monotonic(), os.pidfd_open(pid)
        self.poller.register(handle, select.POLLIN)
        events = self.poller.poll(self.brief)
        for writer in writers:
            os.close(writer)
        limit = "" if events == [(handle, select.POLLIN)] else self.hold(pid, handle, start)
        status, usage = _reap(pid, handle, not limit)
        for stream in self.streams.values():
            stream.finish()
            if not limit and len(stream.data) > stream.cap:
                limit = "output"
        if limit == "judge":
            os._exit(0)
        if not self.result.data.startswith(b"\n"):
            words = [line for stream in self.streams.values() for line in bytes(stream.data).splitlines()]
            raise OSError(f"a run did not start: {words[-1].decode(errors='replace') if words else f'status {status}'}")
        return self.report(limit, status, usage, time.monotonic() - start)

    def hold(self, pid: int, handle: int, start: float) -> str:
        """Wait for the run's end, and read what it writes; the name of the limit that it met, or ""."""
        clock, job, since, spent, seen = (~pid << 3) | 2, self.job, start, 0.0, 0
        for end in self.streams:
            self.poller.register(end, select.POLLIN)
        while True:
            cpu, now = time.clock_gettime(clock), time.monotonic()
            if seen < min(self.result.lines, self.rounds):
                seen, spent, since = min(self.result.lines, self.rounds), cpu, now
            cpu_left, wall_left = job["cpu_seconds"] - (cpu - spent), job["wall_seconds"] - (now - since)
            if cpu_left <= 0 or wall_left <= 0:
                return "cpu" if cpu_left <= 0 else "wall"
            ready = {fd for fd, _ in self.poller.poll(max(1, int(1000 * min(cpu_left, wall_left)) + 1))}
            if self.control in ready:
                return "judge"
            for fd in ready & self.streams.keys():
                self.streams[fd].read()
                if len(self.streams[fd].data) > self.streams[fd].cap:
                    return "output"
                if not self.streams[fd].open:
                    self.poller.unregister(fd)
            if handle in ready:
                return ""

    def report(self, limit: str, status: int, usage: Any, wall: float) -> dict[str, Any]:
        lines, out, err = (stream.data for stream in self.streams.values())
        return {
            "limit": limit,
            "status": status,
            "lines": lines.decode("ascii", "replace").split("\n")[1:-1],
            "stdout": out[: self.cap].decode("utf-8", "backslashreplace"),
            "stderr": err[-2000:].decode("utf-8", "backslashreplace"),
            "cpu": usage.ru_utime + usage.ru_stime,
            "memory": usage.ru_maxrss * 1024,
            "wall": wall,
        }


def _reap(pid: int, handle: int, ended: bool) -> tuple[int, Any]:
    """Kill whatever is left of a run and wait for it; nothing of it survives (it cannot have forked)."""
    if not ended:
        signal.pidfd_send_signal(handle, signal.SIGKILL)
    try:
        os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass
    _, status, usage = os.wait4(pid, 0)
    os.close(handle)
    return os.waitstatus_to_exitcode(status), usage
