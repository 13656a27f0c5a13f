"""What a programming problem is. Hidden tests (`tests`) judge; public ones stand in the prompt and may filter samples.

Tests are plain data: nothing of them runs here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["AssertTest", "CallTest", "Problem", "ProblemRecord", "StdioTest", "Test"]


@dataclass(frozen=True)
class CallTest:
    """Call `function` with `args` and compare its value with `expected`, all plain values.

    `function` is a name of the program, or of its class `Solution`. With `tolerance` above 0, x is accepted where
    |x - e| <= tolerance * max(1, |e|). `as_json`: a tuple counts as a list, a key of a mapping as its text.
    """

    function: str
    args: list[Any]
    expected: Any
    tolerance: float = 0.0
    as_json: bool = False


@dataclass(frozen=True)
class StdioTest:
    """Run the program on `stdin` and compare the tokens it prints with those of `expected`; `tolerance` for numbers."""

    stdin: str
    expected: str
    tolerance: float = 0.0


@dataclass(frozen=True)
class AssertTest:
    """Statements that call the program's functions and raise where it is wrong.

    Where they define `check`, whoever runs them calls `check(entry)` at the end.
    """

    code: str


Test = CallTest | StdioTest | AssertTest


@dataclass(frozen=True)
class Problem:
    """A programming problem. `solutions` pass its tests as its source claims, `incorrect` do not.

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
