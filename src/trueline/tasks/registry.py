"""The tasks, discovered: every module of this package with a `TASKS` mapping of names to makers."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import trueline.tasks
from trueline.errors import InputError
from trueline.tasks.task import Task

__all__ = ["make_task", "task_names"]


@cache
def _makers() -> dict[str, Callable[[Mapping[str, Any]], Task]]:
    found: dict[str, Callable[[Mapping[str, Any]], Task]] = {}
    for info in pkgutil.iter_modules(trueline.tasks.__path__):
        if info.name != "registry":
            found.update(getattr(importlib.import_module(f"trueline.tasks.{info.name}"), "TASKS", {}))
    return found


def task_names() -> list[str]:
    """The names that a command accepts as TASK."""
    return sorted(_makers())


def make_task(name: str, sections: Mapping[str, Any]) -> Task:
    """The task of that name from its sections of the config (`world`, `data`)."""
    makers = _makers()
    if name not in makers:
        close = difflib.get_close_matches(name, makers, 1)
        remedy = f"did you mean {close[0]}? " if close else ""
        raise InputError(
            f"unknown task {name!r}", where="command line", field="TASK",
            remedy=f"{remedy}tasks: {', '.join(sorted(makers))}, or a .yaml or .toml file",
        )  # fmt: skip
    return makers[name](sections)
