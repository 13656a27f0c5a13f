"""What torchrun says of this process, before anything heavy is imported."""

from __future__ import annotations

import os

from trueline.errors import InputError

__all__ = ["is_leader", "processes"]


def processes() -> int:
    """How many processes were started; one where torchrun was not asked."""
    value = os.environ.get("WORLD_SIZE", "1")
    if not value.isdecimal() or int(value) < 1:
        raise InputError(f"{value!r} is no number of processes", field="WORLD_SIZE", remedy="start with torchrun")
    return int(value)


def is_leader() -> bool:
    """Whether this process writes and speaks."""
    return os.environ.get("RANK", "0") == "0"
