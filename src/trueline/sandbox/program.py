"""The nouns: tests, programs, limits, verdicts. All frozen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from ..errors import TruelineError

__all__ = [
    "AssertTest",
    "CallTest",
    "Error",
    "Limits",
    "Outcome",
    "Program",
    "SandboxError",
    "StdioTest",
    "Test",
    "Verdict",
]

Outcome = Literal["pass", "fail", "limit", "infrastructure"]
Error = Literal["", "syntax", "runtime", "wrong", "timeout", "memory", "output"]


class SandboxError(TruelineError):
    """The sandbox itself cannot do its work (exit code 1). Never a verdict on a program."""


@dataclass(frozen=True)
class CallTest:
    """Call `function` (of the program, or of its class `Solution`) with plain arguments; it must return `expected`.

    Types count: True is not 1, 1 is not 1.0, a tuple is not a list. With `tolerance` > 0 numbers are numbers, and x is
    accepted where |x - e| <= tolerance * max(1, |e|). `as_json` compares what JSON can hold: a tuple counts as a list,
    a key of a dictionary as its text.
    """

    function: str
    args: list
    expected: Any
    tolerance: float = 0.0
    as_json: bool = False


@dataclass(frozen=True)
class StdioTest:
    """Run the program as a script on `stdin`; its output must have the tokens of `expected` (split at white space).

    With `tolerance` > 0 two tokens that are both decimal numbers may differ as in `CallTest`.
    """

    stdin: str
    expected: str
    tolerance: float = 0.0


@dataclass(frozen=True)
class AssertTest:
    """A script of assertions (the style of HumanEval and MBPP) that runs in a process of its own and calls the
    candidate in another. Where it defines `check` and the program names its `entry`, it ends with `check(entry)`."""

    code: str


Test = CallTest | StdioTest | AssertTest


@dataclass(frozen=True)
class Program:
    """A candidate and its tests. `prelude` is trusted code (imports, helpers of the prompt): it runs before the source,
    and before each assert script, whose use of its names then does not reach the candidate. `entry` is the function
    that assert scripts call, also where it has the name of a builtin."""

    source: str
    tests: tuple[Test, ...]
    prelude: str = ""
    entry: str = ""


@dataclass(frozen=True)
class Limits:
    """Processor and wall seconds of one test, address space of one process, bytes of output of one run."""

    cpu_seconds: float = 2.0
    wall_seconds: float = 6.0
    memory_bytes: int = 512 << 20
    output_bytes: int = 64 << 10


@dataclass(frozen=True)
class Verdict:
    """What became of a program. `limit` is a fail by a resource limit; `infrastructure` says nothing about the program
    and is never a reward. `passed` has a flag per test; `outputs` has what each test saw, for clustering: the text
    that a script wrote, the value of a call as canonical typed JSON text, None where there is none."""

    outcome: Outcome
    error: Error = ""
    first_failing: int | None = None
    outputs: tuple[str | None, ...] = ()
    passed: tuple[bool, ...] = ()
    detail: str = ""
    seconds: float = 0.0
