"""Orderly stops: SIGTERM and SIGINT end a run at a place that it can go on from.

The program's own process raises `Stopped` where it stands and tells its workers. A worker that trains goes on to the
end of its step and saves there; any other work is left at once. A second signal ends everything at once.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["PATIENCE", "Stopped", "end_of_step", "in_program", "in_worker", "requested", "saves_itself", "seen_here"]

PATIENCE = 10.0
"""Seconds between a stop and the end: workers that have not saved by then are killed, and resume from before."""

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_seen: list[int] = []
_saving = 0


class Stopped(BaseException):
    """A signal asked for the end. `number` is the signal's; the exit code is 128 more."""

    def __init__(self, number: int = signal.SIGTERM) -> None:
        super().__init__(number)
        self.number = number

    @property
    def exit_code(self) -> int:
        """What a shell expects of a program that a signal ended."""
        return 128 + self.number


def in_program(at_once: Callable[[], None]) -> None:
    """Handle the signals of the program's own process; `at_once` is called where a second one comes."""

    def handle(number: int, frame: Any) -> None:
        if _seen:
            at_once()
            os._exit(128 + number)
        _seen.append(number)
        if _saving:
            return  # the step that runs is saved at its end
        print("\ntrueline: stopping; running steps are saved first (again: leave at once)", file=sys.stderr, flush=True)
        raise Stopped(number)

    for number in _SIGNALS:
        signal.signal(number, handle)


def in_worker() -> None:
    """Handle the signals of a worker: an interrupt is the program's to answer, and comes here as SIGTERM."""

    def handle(number: int, frame: Any) -> None:
        _seen.append(number)
        if not _saving:
            raise Stopped(number)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, handle)


def seen_here() -> list[int]:
    """The signals that this process was asked to stop with; who cannot send it one appends to them."""
    return _seen


def requested() -> bool:
    """Whether a stop was asked for in this process."""
    return bool(_seen)


def end_of_step(save: Callable[[], None], *, asked: bool = False) -> None:
    """Where a stop was asked for (of this process, or `asked` of another one that computes with it): save, raise it."""
    if _seen or asked:
        save()
        raise Stopped(_seen[0] if _seen else signal.SIGTERM)


@contextmanager
def saves_itself() -> Iterator[None]:
    """What runs in here calls `end_of_step` by itself: a stop waits for that."""
    global _saving
    if _seen:
        raise Stopped(_seen[0])
    _saving += 1
    try:
        yield
    finally:
        _saving -= 1
