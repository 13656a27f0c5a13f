"""What a programming problem is: hidden tests judge, public ones stand in the prompt and may filter samples."""

from __future__ import annotations

from dataclasses import dataclass

from trueline.types import Test

__all__ = ["Problem", "ProblemRecord"]


@dataclass(frozen=True)
class Problem:
    """A programming problem. `solutions` pass its tests as its source claims, `incorrect` do not.

    `reward_tests` are what a learner's reward may use where they are not the tests of evaluation.

    `entry` names the function that is asked for ("" where the program reads stdin). `prelude` is trusted code (imports,
    helpers of the prompt) that runs before the program and before its assert scripts; `starter` is code that the prompt
    begins the program with, and where `continues` is true a completion is appended to it. `time_limit` is in seconds,
    None where the source has none. `where` is "FILE:LINE".
    """

    task_id: str
    prompt: str
    entry: str = ""
    tests: tuple[Test, ...] = ()
    public_tests: tuple[Test, ...] = ()
    reward_tests: tuple[Test, ...] = ()
    solutions: tuple[str, ...] = ()
    incorrect: tuple[str, ...] = ()
    prelude: str = ""
    tier: str = ""
    where: str = ""
    format: str = "problems"
    starter: str = ""
    continues: bool = False
    time_limit: float | None = None


@dataclass(frozen=True)
class ProblemRecord:
    """A problem and the names of the quirks it was read with, one entry for each time."""

    problem: Problem
    notes: tuple[str, ...] = ()
