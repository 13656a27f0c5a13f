"""Designs of studies without a task: the settings as they come, on the dialogue world or on comparisons from files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trueline.commands.resolve import section_types
from trueline.study.design import Design
from trueline.training.pages import arms

ARMS = tuple(arms())


def design(task: str = "dialogue", **changes: Mapping[str, Any]) -> Design:
    """The sections' own defaults with some changed, for a task of that name."""
    sections = {name: kind(**changes.get(name, {})) for name, kind in section_types(task).items()}
    files = task not in ("dialogue", "code")
    return Design(sections, arms(), learned_gold=files, signatures=not files)
