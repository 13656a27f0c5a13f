"""The nouns: programs, limits, verdicts, and the tests of `types`. All frozen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..errors import TruelineError
from ..types import AssertTest, CallTest, StdioTest, Test

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
class Limits:
    """Processor and wall seconds of one test, address space of one process, bytes of output of one run."""

    cpu_seconds: float = 2.0
    wall_seconds: float = 6.0
    memory_bytes: int = 512 << 20
    output_bytes: int = 64 << 10


@dataclass(frozen=True)
class Program:
    """A candidate and its tests. `prelude` is trusted code (imports, helpers of the prompt): it runs before the source,
    and before each assert script, whose use of its names then does not reach the candidate. `entry` is the function
    that assert scripts call, also where it has the name of a builtin. `limits` are those of the pool where
    there are none here. With `stop_at_failure` the tests after the first that fails count as failed and are not run
    (calls share a process: those after a wrong value may have run)."""

    source: str
    tests: tuple[Test, ...]
    prelude: str = ""
    entry: str = ""
    limits: Limits | None = None
    stop_at_failure: bool = False


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
