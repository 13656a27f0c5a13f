"""One raw row to one `Problem`: which format it is in, the generic format, and what every problem must have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from trueline.data import code_benchmarks as benchmarks
from trueline.data.code_fields import Row, an_object, column, known, python_name, seconds, task_id, texts, tolerance
from trueline.data.code_formats import Problem, ProblemRecord
from trueline.data.formats.rows import RowProblem
from trueline.types import AssertTest, CallTest, StdioTest, Test

__all__ = ["PROBLEM_FORMATS", "detect_problem", "read_problem"]


def detect_problem(row: Row) -> str | None:
    """The format that this row is written in, or None if it fits none."""
    for name, columns in _MARKS.items():
        if any(set(group) <= set(row) for group in columns):
            return name
    return None


def read_problem(row: Row, format: str, where: str = "") -> ProblemRecord:
    """The row as a problem. Raises `RowProblem`, which knows its field, reason and remedy."""
    notes: list[str] = []
    found = _READERS[format](row, notes)
    if not found["task_id"].strip():
        raise RowProblem("empty_id", "task_id", "is empty")
    if not found["prompt"].strip():
        raise RowProblem("empty_prompt", "prompt", "is empty")
    if not found["tests"]:
        raise RowProblem("no_tests", "tests", "there is no hidden test", "leave the problem out: nothing can judge it")
    return ProblemRecord(Problem(**found, where=where, format=format), tuple(notes))


# --- generic -------------------------------------------------------------------------------------------------------

_COLUMNS = (
    "task_id", "prompt", "entry", "tests", "public_tests", "solutions", "incorrect", "prelude", "tier", "starter",
    "continues", "time_limit",
)  # fmt: skip


def _generic(row: Row, notes: list[str]) -> dict[str, Any]:
    known(row, _COLUMNS, "")
    entry = column(row, "entry", str, default="")
    starter, continues = column(row, "starter", str, default=""), column(row, "continues", bool, default=False)
    if continues and not starter:
        raise RowProblem("no_starter", "continues", "there is no starter to continue", "give starter")
    return {
        "task_id": task_id(row), "prompt": column(row, "prompt", str),
        "entry": python_name(entry, "entry") if entry else "",
        "tests": _tests(row, "tests", entry), "public_tests": _tests(row, "public_tests", entry),
        "solutions": tuple(texts(row, "solutions", required=False)),
        "incorrect": tuple(texts(row, "incorrect", required=False)), "prelude": column(row, "prelude", str, default=""),
        "tier": column(row, "tier", str, default=""), "starter": starter, "continues": continues,
        "time_limit": seconds(row.get("time_limit"), "time_limit"),
    }  # fmt: skip


def _tests(row: Row, name: str, entry: str) -> tuple[Test, ...]:
    return tuple(_test(item, f"{name}[{i}]", entry) for i, item in enumerate(column(row, name, list, default=[])))


def _test(item: Any, field: str, entry: str) -> Test:
    """A text or {"code"}: statements. {"stdin", "expected"}: a run. {"args", "expected", "function"}: a call."""
    if isinstance(item, str):
        return AssertTest(item)
    test = an_object(item, field)
    kind = next((key for key in ("code", "stdin", "args") if key in test), None)
    if kind is None:
        raise RowProblem("unknown_test", field, "neither code, nor stdin, nor args", "see docs/code.md for the forms")
    try:
        if kind == "code":
            known(test, ("code",), field)
            return AssertTest(column(test, "code", str))
        if "expected" not in test:
            raise RowProblem("missing_field", "expected", "missing")
        if kind == "stdin":
            known(test, ("stdin", "expected", "tolerance"), field)
            return StdioTest(column(test, "stdin", str), column(test, "expected", str), tolerance(test, "tolerance"))
        known(test, ("function", "args", "expected", "tolerance", "as_json"), field)
        function = python_name(column(test, "function", str, default=entry), "function")
        as_json = column(test, "as_json", bool, default=True)
        return CallTest(function, column(test, "args", list), test["expected"], tolerance(test, "tolerance"), as_json)
    except RowProblem as problem:
        inner = problem.field if problem.field.startswith(field) else f"{field}.{problem.field}"
        raise RowProblem(problem.name, inner, problem.reason, problem.remedy) from None


_Reader = Callable[[Row, list[str]], dict[str, Any]]
_READERS: dict[str, _Reader] = {
    "humaneval": benchmarks.humaneval, "mbpp": benchmarks.mbpp, "apps": benchmarks.apps,
    "codecontests": benchmarks.codecontests,
    "codecontests-files": benchmarks.codecontests_files, "codejam": benchmarks.codejam, "verl": benchmarks.verl,
    "problems": _generic,
}  # fmt: skip
PROBLEM_FORMATS = tuple(_READERS)
# Columns that only that format has: the first format of which one group is there.
_MARKS: dict[str, tuple[tuple[str, ...], ...]] = {
    "humaneval": (("entry_point", "test"),),
    "mbpp": (("test_list",),),
    "apps": (("input_output", "question"),),
    "codecontests": (("private_tests",), ("generated_tests",), ("public_tests", "description")),
    "codecontests-files": (("statement_md", "tests"),),
    "codejam": (("statement", "tests"),),
    "verl": (("reward_model", "prompt"),),
    "problems": (("prompt", "tests"),),
}
