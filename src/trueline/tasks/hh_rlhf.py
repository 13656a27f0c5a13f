"""The task `hh-rlhf`: the files' dialogues, each prompt of the subset that its file is, and one dial.

`world.coverage` says which subsets' comparisons the learners get. With the helpful one alone, tested on both, it is
the comparison of arXiv 2404.10719, table 12.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any, Literal

from pydantic import Field

from trueline.config import Section
from trueline.errors import InputError
from trueline.tasks.preferences import Preferences

__all__ = ["SUBSETS", "TASKS", "WORLDS", "Config", "subset_of"]

SUBSETS = ("helpful", "harmless")

_PLACE = re.compile(r"(:\d+)+$")  # FILE:LINE or FILE:LINE:COLUMN


class Config(Section):
    """`world.*`: the one dial of HH-RLHF."""

    coverage: tuple[Literal[SUBSETS], ...] = Field(
        SUBSETS, min_length=1, description="the subsets whose comparisons the learners get; SFT and tests see all"
    )


def subset_of(where: str) -> str:
    """The subset of the row at "FILE:LINE": "helpful", "harmless", or "" where the names do not tell.

    Looked for in the file's name (`harmless-base.test.jsonl.gz`), then in its folder's (`harmless-base/test.jsonl.gz`).
    The first of the two that names a subset decides; one that names both tells nothing.
    """
    path = PurePath(_PLACE.sub("", where))
    for name in (path.name, path.parent.name):
        named = [subset for subset in SUBSETS if subset in name.lower()]
        if named:
            return named[0] if len(named) == 1 else ""
    return ""


def _make(sections: Mapping[str, Any]) -> Preferences:
    world = sections.get("world") or Config()
    task = Preferences("hh-rlhf", sections["data"], "hh-rlhf", kind_of=subset_of)
    partial = set(world.coverage) != set(SUBSETS)
    if partial or "coverage" in world.model_fields_set:
        _check(task, world)
    # Whole coverage leaves nothing out, rows of no known subset neither.
    return task.restricted(world.coverage) if partial else task


def _check(task: Preferences, world: Config) -> None:
    missing = [subset for subset in world.coverage if subset not in task.kinds]
    if missing:
        there = ", ".join(kind or "one that no name tells" for kind in task.kinds)
        raise InputError(
            f"the files have no {missing[0]} subset (they have: {there})",
            where=", ".join(task.check.files[:3]),
            field="world.coverage",
            remedy="add its file to data.path, or leave the dial out; a subset is told by the name of its file "
            "or folder (helpful-base/..., harmless-base.jsonl)",
        )


TASKS = {"hh-rlhf": _make}
WORLDS = {"hh-rlhf": Config}
