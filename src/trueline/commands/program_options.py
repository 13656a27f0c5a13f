"""How `judge` and `data audit` run programs, as typed on the command line, and what they refuse before they do."""

from __future__ import annotations

import ast
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from trueline.data.code_formats import Problem
from trueline.errors import InputError
from trueline.rewards.verifier import candidate, public_tests
from trueline.sandbox import Limits, Pool, Program, Test
from trueline.sandbox.runs import steps_of

__all__ = ["ProgramOptions", "check_tests", "options_from", "refuse_input_as_output"]

_LEAST_MEMORY = 64  # MiB; below it the interpreter itself has no room


@dataclass(frozen=True)
class ProgramOptions:
    """How programs are run. `prelude` is trusted code that runs before every one; `patience` multiplies the time
    limits that problems have of their own."""

    limits: Limits
    prelude: str = ""
    patience: float = 1.0
    workers: int = 1
    tier: str = "auto"
    unsafe: bool = False

    def pool(self) -> Pool:
        """Its workers. Raises InputError where no strong tier works."""
        return Pool(self.workers, self.limits, self.tier, self.unsafe)

    def program(self, problem: Problem, source: str, tests: Sequence[Test]) -> Program:
        """The source as the sandbox takes it."""
        return candidate(
            problem, source, tests=tests, limits=self.limits, prelude=self.prelude, patience=self.patience
        )  # fmt: skip


def options_from(
    *, cpu_seconds: float, wall_seconds: float | None, memory_mb: int, prelude: Path | None, patience: float,
    workers: int | None, tier: str, unsafe: bool,
) -> ProgramOptions:  # fmt: skip
    """The options as typed. The wall limit is three times the processor's where none is given, the workers the cores.

    Raises `InputError` for a limit that nothing could keep, and for a prelude that cannot be read or is no Python.
    """
    wall = 3 * cpu_seconds if wall_seconds is None else wall_seconds
    for name, value in (("--cpu-seconds", cpu_seconds), ("--wall-seconds", wall), ("--patience", patience)):
        if not 0 < value < 1e6:
            raise InputError(f"{value} is no positive number", field=name, remedy="for example 2")
    if wall < cpu_seconds:
        reason = f"{wall} s is less than the {cpu_seconds} s of processor time"
        raise InputError(reason, field="--wall-seconds", remedy="take three to ten times as much")
    if memory_mb < _LEAST_MEMORY:
        raise InputError(
            f"{memory_mb} MiB hold no interpreter", field="--memory-mb", remedy=f"at least {_LEAST_MEMORY}"
        )
    if workers is not None and workers < 1:
        raise InputError(f"{workers} workers cannot judge anything", field="--workers", remedy="take at least 1")
    limits = Limits(cpu_seconds, wall, memory_mb << 20)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return ProgramOptions(limits, _prelude(prelude), patience, cores if workers is None else workers, tier, unsafe)


def check_tests(problems: Iterable[Problem], options: ProgramOptions) -> None:
    """Raises `InputError` for the first problem with a test that the sandbox cannot take."""
    for problem in {problem.task_id: problem for problem in problems}.values():
        for field, tests in (("tests", problem.tests), ("public_tests", public_tests(problem))):
            try:
                if tests:
                    steps_of(options.program(problem, "", tests), options.limits)
            except InputError as error:
                reason = f"problem {problem.task_id}: {error.reason}"
                raise InputError(reason, where=problem.where, field=field, remedy="mend or leave it out") from None


def refuse_input_as_output(out: Path, inputs: Iterable[Path]) -> None:
    """Raises `InputError` where a file that is read would be written."""
    if out.is_dir():
        raise InputError("is a directory", where=str(out), field="-o", remedy="give a file")
    if any(out.exists() and out.samefile(path) for path in inputs):
        raise InputError("is a file that is read", where=str(out), field="-o", remedy="give another one")


def _prelude(path: Path | None) -> str:
    if path is None:
        return ""
    try:
        text = path.read_text(encoding="utf-8")
        ast.parse(text)
    except SyntaxError as error:
        raise InputError(f"no Python: {error.msg}", where=f"{path}:{error.lineno}", field="--prelude") from None
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", where=str(path), field="--prelude") from None
    except ValueError as error:
        raise InputError(f"no Python: {error}", where=str(path), field="--prelude") from None
    return text
