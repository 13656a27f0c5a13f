"""The task `safe-rlhf`: files in the SafeRLHF format, one preference made of two labels, and filters by safety flags.

The rule and the filters are those of arXiv 2404.10719, section 4.3 (`data.safety`); `world.filter` leaves out of the
learners' comparisons those with two unsafe sides, those with two safe sides, or both kinds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from trueline.config import Section
from trueline.data.safety import Filter, is_kept, sorts_of
from trueline.errors import InputError
from trueline.tasks.preferences import Preferences
from trueline.tasks.task import OF_PAIRS

__all__ = ["TASKS", "WORLDS", "Config"]


class Config(Section):
    """`world.*`: the one dial of SafeRLHF files."""

    filter: Filter = Field(
        "none",
        description="comparisons that the learners do not get, by the safety flags of their two sides",
        json_schema_extra=OF_PAIRS,
    )


def _make(sections: Mapping[str, Any]) -> Preferences:
    world = sections.get("world") or Config()
    task = Preferences("safe-rlhf", sections["data"], "safe-rlhf")
    if world.filter == "none":
        return task
    filtered = task.filtered(lambda pair: is_kept(pair, world.filter))
    if not filtered.pairs(0, _no_samples).training:
        there = ", ".join(f"{name} {count}" for name, count in sorts_of(task.pairs(0, _no_samples).training).items())
        raise InputError(
            f"no pair is left (the learners' part has: {there})",
            where=", ".join(task.check.files[:3]),
            field="world.filter",
            remedy="leave fewer pairs out",
        )
    return filtered


def _no_samples(prompts, n, purpose):
    raise AssertionError("comparisons from files are not sampled")


TASKS = {"safe-rlhf": _make}
WORLDS = {"safe-rlhf": Config}
