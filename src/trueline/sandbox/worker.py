"""The judge's handle of one worker: start it, send it a request, take its answer, end it."""

from __future__ import annotations

import contextlib
import functools
import importlib.resources
import json
import os
import select
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from dataclasses import dataclass
from typing import Any

from .bubblewrap import ENVIRONMENT, bubblewrap_command
from .inside.channel import Frames, send_frame
from .program import SandboxError

__all__ = ["TIERS", "Tier", "Worker"]

START_SECONDS = 20.0
PRELOAD = """
array bisect calendar cmath collections collections.abc contextlib copy dataclasses datetime decimal enum fractions
functools hashlib heapq io itertools json math numbers operator queue random re statistics string struct textwrap
threading time types typing unicodedata zlib
""".split()
_ORDER = ("syscalls", "confine", "channel", "wire", "candidate", "checker", "zygote")
# Reads {module: source} from the socket on descriptor 0, so that no file of the project is visible inside.
_BOOT = """
import json, socket, sys, types
sock = socket.socket(fileno=0)
size = int.from_bytes(sock.recv(4, socket.MSG_WAITALL), "big")
data = sock.recv(size, socket.MSG_WAITALL)
package = types.ModuleType("inside"); package.__path__ = []; sys.modules["inside"] = package
for name, source in json.loads(data):
    module = types.ModuleType("inside." + name); module.__package__ = "inside"
    sys.modules[module.__name__] = module; setattr(package, name, module)
    exec(compile(source, "<inside." + name + ">", "exec"), module.__dict__)
package.zygote.main(sock)
"""


@dataclass(frozen=True)
class Tier:
    """A strength of confinement: which of the three walls stand. Resource limits hold in each."""

    name: str
    bubblewrap: bool
    landlock: bool
    seccomp: bool

    @property
    def strong(self) -> bool:
        """A filter of system calls, and a file system that hides everything."""
        return self.seccomp and (self.bubblewrap or self.landlock)


TIERS = (
    Tier("bubblewrap+landlock+seccomp", True, True, True),
    Tier("bubblewrap+seccomp", True, False, True),
    Tier("landlock+seccomp", False, True, True),
    Tier("unsafe", False, False, False),
)


class Worker:
    """A clean interpreter, started by exec with an empty environment, that forks a process per run."""

    def __init__(self, tier: Tier) -> None:
        """Raises SandboxError where it does not start or cannot confine itself."""
        self.tier, self._inner = tier, 0
        ours, theirs = socket.socketpair()
        self.socket, self._errors = ours, tempfile.TemporaryFile()
        try:
            self._process = self._launch(theirs)
        except OSError as error:
            self._errors.close()
            ours.close()
            raise SandboxError(f"sandbox worker: {error}") from None
        finally:
            theirs.close()
        self._frames = Frames(ours)
        try:
            send_frame(ours, _modules())
            send_frame(ours, _setup(tier))
            self.report = self._first_answer()
        except (OSError, ValueError) as error:
            raise SandboxError(f"sandbox worker ({tier.name}) does not start: {self._complaint() or error}") from None

    def _launch(self, theirs: socket.socket) -> subprocess.Popen:
        command = [os.path.realpath(sys.executable), "-s", "-S", "-P", "-B", "-X", "utf8", "-c", _BOOT]
        options = {"stdin": theirs, "stdout": subprocess.DEVNULL, "stderr": self._errors, "start_new_session": True}
        if not self.tier.bubblewrap:
            return subprocess.Popen(command, env=ENVIRONMENT, cwd="/", **options)
        reader, writer = os.pipe()
        try:
            command = bubblewrap_command(writer) + command
            process = subprocess.Popen(command, env={}, cwd="/", pass_fds=[writer], **options)
        finally:
            os.close(writer)
        try:
            self._inner = _child_pid(reader)
        finally:
            os.close(reader)
        return process

    def _first_answer(self) -> dict[str, Any]:
        deadline = time.monotonic() + START_SECONDS
        while (answer := self._frames.next()) is None:
            self.socket.settimeout(max(0.01, deadline - time.monotonic()))
            if not self._frames.read():
                raise OSError("it ended at once")
        self.socket.settimeout(START_SECONDS)
        return answer

    def _complaint(self) -> str:
        """The last line that the worker wrote; ends it."""
        self._end()
        self._errors.seek(0)
        lines = self._errors.read().decode("utf-8", "replace").strip().splitlines()
        self._errors.close()
        return lines[-1] if lines else ""

    @property
    def pid(self) -> int:
        """Process id of the interpreter, also behind bubblewrap."""
        return self._inner or self._process.pid

    def send(self, request: list[dict[str, Any]], files: list[int] | None = None) -> None:
        """Start the runs of a request. Raises OSError where the worker is gone or does not listen."""
        send_frame(self.socket, request, files)

    def receive(self) -> list[dict[str, Any]] | None:
        """The answer if it is complete, else None; call it when the socket is readable. Raises OSError at the end."""
        if not self._frames.read():
            raise OSError("the worker ended")
        return self._frames.next()

    def close(self) -> None:
        """End the worker and whatever it runs; returns when both are gone."""
        self._end()
        self._errors.close()

    def _end(self) -> None:
        """Kill the interpreter, and with it its run; then bubblewrap, which ends by itself once it has reaped it."""
        self.socket.close()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if self._process.poll() is None:
                os.kill(self.pid, signal.SIGKILL)
        try:
            self._process.wait(START_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _child_pid(reader: int) -> int:
    """The process id that bubblewrap reports; 0 where it ends or stays silent, and then the worker will not answer."""
    data, deadline = b"", time.monotonic() + START_SECONDS / 4
    while select.select([reader], [], [], max(0.0, deadline - time.monotonic()))[0] and (more := os.read(reader, 4096)):
        data += more
        with contextlib.suppress(ValueError, KeyError):
            return int(json.loads(data)["child-pid"])
    return 0


@functools.cache
def _modules() -> list[list[str]]:
    """Names and sources of what runs inside."""
    folder = importlib.resources.files(__package__) / "inside"
    return [[name, (folder / f"{name}.py").read_text(encoding="utf-8")] for name in _ORDER]


def _setup(tier: Tier) -> dict[str, Any]:
    """Where the standard library lies: the one part of the file system that a candidate reads. Installed packages lie
    inside it and are left out: a data set with its answers may be among them."""
    library = os.path.realpath(sysconfig.get_path("stdlib"))
    dynamic = os.path.realpath(sysconfig.get_config_var("DESTSHARED") or os.path.join(library, "lib-dynload"))
    entries = {entry.path for entry in os.scandir(library) if not entry.name.endswith("-packages")}
    return {
        "preload": PRELOAD,
        "paths": [library, dynamic],
        "readable": sorted({*entries, dynamic}),
        "listings": [library],
        "landlock": tier.landlock,
        "seccomp": tier.seccomp,
    }
