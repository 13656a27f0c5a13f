"""How a side of a comparison talks to the one that measures: lines of JSON, one answer for one order.

Standard library alone, so that it runs in any peer's environment. The side keeps the real standard output for its
answers; whatever libraries print goes to standard error.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

__all__ = ["Wire", "resident_mb"]


class Wire:
    """`say(ready=True)` once, then `order` (blocks until the next round is asked for) and `answer` in turn."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        sys.stdout = sys.stderr
        self.folder = Path(sys.argv[1])
        self.work: dict[str, Any] = json.loads((self.folder / "work.json").read_text())
        self._wall = self._cpu = self._rested = self._waited = 0.0
        self._spent: tuple[float, float] | None = None

    def say(self, **message: Any) -> None:
        """One line to the other end."""
        print(json.dumps(message), file=self._out, flush=True)

    def order(self) -> None:
        """Wait until a round is asked for and start its clock. The end of the input ends this process."""
        self._rested = time.process_time()
        if not sys.stdin.readline():
            self._out.close()
            os._exit(0)  # libraries' threads must not hold the process
        self._spent = None
        self._wall, self._cpu = time.perf_counter(), time.process_time()
        self._waited = self._cpu - self._rested

    def stop(self) -> None:
        """The round's work is done: stop its clock. What follows before `answer` describes the result."""
        _finish_device_work()
        self._spent = time.perf_counter() - self._wall, time.process_time() - self._cpu

    def answer(self, **result: Any) -> None:
        """The round is over: its seconds, processor seconds, those burnt while waiting for it, the process's peak
        memory in MB (on a GPU, the device's beside it), and `result`."""
        if self._spent is None:
            self.stop()
        wall, cpu = self._spent
        self.say(seconds=wall, cpu=cpu, waited_cpu=self._waited, **resident_mb(), **result)


def resident_mb() -> dict[str, float]:
    """`peak_mb` and `resident_mb` of this process, and `device_peak_mb` where it used a GPU.

    On Linux the peak is VmHWM: getrusage's is inherited from the process that started this one.
    """
    found = {
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 1024)
    }
    try:
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        found = {
            "peak_mb": int(status["VmHWM"].split()[0]) / 1024,
            "resident_mb": int(status["VmRSS"].split()[0]) / 1024,
        }
    except (OSError, KeyError):
        pass
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        found["device_peak_mb"] = torch.cuda.max_memory_allocated() / 2**20
    return found


def _finish_device_work() -> None:
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()
