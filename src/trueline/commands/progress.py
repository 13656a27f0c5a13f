"""A bar with the time left, for commands that go through many rows. Quiet without a terminal."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

__all__ = ["bar", "seconds_left"]

_SURE = 0.02  # of the rows, and seconds, before anything is said about the rest
_SOON = 3.0


@contextmanager
def bar(console: Console, label: str, total: int) -> Iterator[Callable[[], None]]:
    """Hands out what is called once for each row that is done."""
    if not console.is_terminal:
        yield lambda: None
        return
    columns = TextColumn(label), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[left]}")
    began, done = time.perf_counter(), 0
    with Progress(*columns, console=console, transient=True) as shown:
        task = shown.add_task(label, total=total, left="")

        def step() -> None:
            nonlocal done
            done += 1
            left = seconds_left(done, total, time.perf_counter() - began)
            shown.update(task, completed=done, left="" if left is None else f"about {_span(left)} left")

        yield step


def seconds_left(done: int, total: int, elapsed: float) -> float | None:
    """The rest at the mean speed so far; None while too little has been seen."""
    return None if done < _SURE * total or elapsed < _SOON else elapsed * (total - done) / done


def _span(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
