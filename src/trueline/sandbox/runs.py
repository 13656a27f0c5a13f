"""From a program to the runs that judge it, and from their reports to a verdict. Expected values stay here."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import InputError
from .compare import as_json, same_tokens, same_value
from .inside.wire import WireError, canonical, decode, encode
from .program import AssertTest, CallTest, Error, Limits, Program, SandboxError, StdioTest, Test, Verdict

__all__ = ["Result", "Step", "judge_step", "steps_of", "stopped", "verdict_of"]

_LIMITS: dict[str, Error] = {"cpu": "timeout", "wall": "timeout", "output": "output"}
_DETAIL = 300
GRACE = 5.0  # seconds beyond a step's own limits until its worker counts as broken


@dataclass(frozen=True)
class Step:
    """Tests that one request settles: all calls of a program in one process, each script run in its own, or one assert
    script with its two processes. `checker` is the checker's request, where there is one."""

    tests: tuple[Test, ...]
    request: list[dict[str, Any]]
    checker: list[dict[str, Any]] | None
    seconds: float  # after which the worker itself must be broken


@dataclass(frozen=True)
class Result:
    """What became of one test."""

    passed: bool
    error: Error = ""
    output: str | None = None
    detail: str = ""
    seconds: float = 0.0


def steps_of(program: Program, limits: Limits) -> list[Step]:
    """The steps of a program, in the order of its tests. Raises InputError for a test of no known kind or with values
    that are not plain, and for a program without tests, which would pass by default."""
    if not program.tests:
        raise InputError("a program without tests cannot be judged", field="tests")
    steps = []
    for kind, group in itertools.groupby(program.tests, type):
        tests = tuple(group)
        if kind is AssertTest:
            steps += [_assert_step(program, test, limits) for test in tests]
        elif kind is StdioTest and program.stop_at_failure:
            steps += [_step(program, (test,), limits) for test in tests]
        elif kind is CallTest or kind is StdioTest:
            steps.append(_step(program, tests, limits))
        else:
            raise InputError(f"{kind.__name__} is not a kind of test", field="tests")
    return steps


def _base(program: Program, limits: Limits, **more: Any) -> dict[str, Any]:
    wanted = {"cpu_seconds": limits.cpu_seconds, "wall_seconds": limits.wall_seconds}
    wanted |= {"memory_bytes": limits.memory_bytes, "output_bytes": limits.output_bytes}
    return {"source": program.source, "prelude": program.prelude, **wanted, **more}


def _cap(size: int, limits: Limits) -> int:
    """A cap that long expected outputs fit in, and that tells only a power of two about them."""
    return max(limits.output_bytes, 1 << (2 * size).bit_length() if size * 2 > limits.output_bytes else 0)


def _step(program: Program, tests: tuple[Any, ...], limits: Limits) -> Step:
    patience = limits.wall_seconds * (len(tests) + 1) + GRACE
    if type(tests[0]) is StdioTest:
        cap = _cap(max(len(test.expected) for test in tests), limits)
        runs = [_base(program, limits, mode="script", stdin=test.stdin, output_bytes=cap) for test in tests]
        return Step(tests, runs, None, patience)
    try:
        calls = [[test.function, encode(list(test.args))] for test in tests]
        size = sum(len(encode(test.expected)) for test in tests)
    except WireError as error:
        raise InputError(f"arguments or expected value: {error}", field="tests") from None
    more = {"calls": calls, "stop": program.stop_at_failure, "output_bytes": _cap(size, limits)}
    run = _base(program, limits, mode="calls", **more)
    return Step(tests, [run], None, patience)


def _assert_step(program: Program, test: AssertTest, limits: Limits) -> Step:
    check = _base(
        program, limits, mode="check", code=test.code, entry=program.entry, answer_bytes=limits.output_bytes * 16
    )
    del check["source"]
    return Step((test,), [_base(program, limits, mode="serve")], [check], limits.wall_seconds * 2 + GRACE)


def judge_step(step: Step, reports: list[dict], checks: list[dict] | None) -> list[Result]:
    """A result per test of the step. Raises SandboxError where a report says that the machinery failed."""
    for report in [*reports, *(checks or ())]:
        if "broken" in report:
            raise SandboxError(report["broken"])
    if checks is not None:
        return [_judge_check(reports[0], checks[0])]
    if type(step.tests[0]) is StdioTest:
        found = [_judge_script(test, report) for test, report in zip(step.tests, reports)]
        return found + [Result(False, found[-1].error, detail="not run")] * (len(step.tests) - len(found))
    return _judge_calls(step.tests, reports[0])


def _lines(report: dict) -> list[list[str]]:
    """The lines of a report that are lists of text; a line that is not ends them: the candidate may write any."""
    found = []
    for text in report["lines"]:
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            break
        if type(line) is not list or not line or not all(type(part) is str for part in line):
            break
        found.append(line)
    return found


def _ended(report: dict, load: list[str] | None) -> Result:
    """Why a run reported nothing for a test: a limit, a program that does not load, or an end without a word."""
    seconds = report["wall"]
    if load and load[0] == "load" and len(load) == 3:
        error = load[1] if load[1] in ("syntax", "memory") else "runtime"
        return Result(False, error, detail=load[2][:_DETAIL], seconds=seconds)
    if report["limit"]:
        return Result(False, _LIMITS[report["limit"]], detail=f"{report['limit']} limit", seconds=seconds)
    if report["status"] in (-24, -9):  # SIGXCPU, SIGKILL: the kernel's own limits
        return Result(False, "timeout" if report["status"] == -24 else "memory", detail="killed", seconds=seconds)
    detail = report["stderr"].strip()[-_DETAIL:] or f"ended early with status {report['status']}"
    return Result(False, "runtime", detail=detail, seconds=seconds)


def _judge_calls(tests: Sequence[CallTest], report: dict) -> list[Result]:
    lines = _lines(report)
    ready = bool(lines) and lines[0] == ["loaded"]
    values = lines[1:] if ready else []
    found = [_judge_value(test, line) for test, line in zip(tests, values)]
    if len(values) > len(tests) or (ready and len(found) == len(tests) and len(report["lines"]) != len(lines)):
        return [Result(False, "runtime", detail="more reports than calls")] * len(tests)
    ended = _ended(report, lines[0] if lines else None)
    return found + [ended] * (len(tests) - len(found))


def _judge_value(test: CallTest, line: list[str]) -> Result:
    kind, text = line[0], line[1] if len(line) == 2 else ""
    if kind in ("memory", "runtime"):
        return Result(False, kind, detail=text[:_DETAIL])
    if kind != "value":
        return Result(False, "wrong", detail=text[:_DETAIL])
    try:
        value = decode(text)
        output = canonical(value)
    except WireError as error:
        return Result(False, "wrong", detail=str(error))
    try:
        left, right = (as_json(value), as_json(test.expected)) if test.as_json else (value, test.expected)
        same = same_value(left, right, test.tolerance)
    except (RecursionError, ValueError):  # str() of a huge integer key
        same = False
    return Result(same, "" if same else "wrong", output, "" if same else f"got {text[:_DETAIL]}")


def _judge_script(test: StdioTest, report: dict) -> Result:
    lines = _lines(report)
    clean = lines == [["loaded"]] and len(report["lines"]) == 1 and not report["limit"]
    left = not lines and not report["limit"] and report["status"] == 0  # by os._exit(0)
    if not (clean or left):
        return _ended(report, lines[0] if lines else None)
    same = same_tokens(report["stdout"], test.expected, test.tolerance)
    detail = "" if same else f"got {report['stdout'][:_DETAIL]!r}"
    return Result(same, "" if same else "wrong", report["stdout"], detail, report["wall"])


def _judge_check(report: dict, check: dict) -> Result:
    """Passed only where the checker, which holds the assertions, says so as its one line."""
    said = _lines(check)
    seconds = max(report["wall"], check["wall"])
    if said == [["passed"]] and check["status"] == 0 and not check["limit"]:
        return Result(True, seconds=seconds)
    lines = _lines(report)
    if report["limit"] or (lines and lines[0][0] == "load"):
        return _ended(report, lines[0] if lines else None)
    if said and len(said[0]) == 2 and said[0][0] in ("wrong", "runtime", "memory"):
        return Result(False, said[0][0], detail=said[0][1][:_DETAIL], seconds=seconds)
    return _ended(check, None)


def stopped(results: list[Result], count: int) -> list[Result]:
    """The results up to the first failure, and `count` in all: the others as failed without having been run."""
    kept = results[: 1 + next((n for n, result in enumerate(results) if not result.passed), len(results))]
    return kept + [Result(False, detail="not run")] * (count - len(kept))


def verdict_of(results: list[Result], seconds: float) -> Verdict:
    """The verdict of a program whose tests all have a result."""
    outputs, passed = tuple(r.output for r in results), tuple(r.passed for r in results)
    if all(passed):
        return Verdict("pass", "", None, outputs, passed, "", seconds)
    first = passed.index(False)
    error = results[first].error
    outcome = "limit" if error in ("timeout", "memory", "output") else "fail"
    detail = results[first].detail.encode("ascii", "backslashreplace").decode("ascii")
    detail = "".join(c if c.isprintable() else repr(c)[1:-1] for c in detail)
    return Verdict(outcome, error, first, outputs, passed, detail, seconds)
