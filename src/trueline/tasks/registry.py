"""The tasks, discovered: every module of this package with a `TASKS` mapping of names to makers."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import trueline.tasks
from trueline.config import Section
from trueline.errors import InputError
from trueline.tasks.task import Task

__all__ = ["NoWorld", "is_embedded", "make_task", "task_names", "world_type"]


class NoWorld(Section):
    """A task without dials of its own."""


@cache
def _declared(attribute: str) -> dict[str, Any]:
    """The mappings of that name in the modules of this package, put together."""
    found: dict[str, Any] = {}
    for info in pkgutil.iter_modules(trueline.tasks.__path__):
        if info.name != "registry":
            found.update(getattr(importlib.import_module(f"trueline.tasks.{info.name}"), attribute, {}))
    return found


def _makers() -> dict[str, Callable[[Mapping[str, Any]], Task]]:
    return _declared("TASKS")


def world_type(name: str) -> type[Section]:
    """The `world` section of a task: what its module says in `WORLDS`, or no dials."""
    return _declared("WORLDS").get(name, NoWorld)


def is_embedded(name: str) -> bool:
    """Whether the package makes the task's texts itself; other tasks read files (`data.path`)."""
    return name in _declared("EMBEDDED")


def task_names() -> list[str]:
    """The names that a command accepts as TASK."""
    return sorted(_makers())


def make_task(name: str, sections: Mapping[str, Any], *, where: str = "command line") -> Task:
    """The task of that name from its sections of the config (`world`, `data`); `where` the name was given."""
    makers = _makers()
    if name not in makers:
        close = difflib.get_close_matches(name, makers, 1)
        remedy = f"did you mean {close[0]}? " if close else ""
        raise InputError(
            f"unknown task {name!r}",
            where=where,
            field="TASK" if where == "command line" else "task",
            remedy=f"{remedy}tasks: {', '.join(sorted(makers))}, or a .yaml or .toml file",
        )
    return makers[name](sections)
