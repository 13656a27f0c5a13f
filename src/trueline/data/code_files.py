"""Files of problems and of samples into memory, or one error that names every bad row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from trueline.data.code_fields import kind_of
from trueline.data.code_formats import Problem
from trueline.data.code_rows import PROBLEM_FORMATS, detect_problem, read_problem
from trueline.data.formats.rows import RowProblem
from trueline.data.sources import Row, expand, read_rows
from trueline.errors import InputError

__all__ = ["LoadedProblems", "LoadedSamples", "Sample", "load_problems", "load_samples", "match_samples"]

NAMED_ROWS = 20
OnBadRow = Literal["error", "drop"]
Paths = str | Path | Sequence[str | Path]


@dataclass(frozen=True)
class Sample:
    """One text that a model wrote for a problem; `index` counts a problem's samples from 0 in file order.

    `kind`: a completion goes on where the problem's starter ends, a solution is a whole program, a response is what a
    chat model says, code somewhere in it.
    """

    task_id: str
    index: int
    text: str
    kind: Literal["completion", "solution", "response"]
    where: str = ""


@dataclass(frozen=True)
class LoadedProblems:
    """Problems in file order, how often each quirk was met, and the rows that were dropped with their reason."""

    problems: list[Problem]
    formats: tuple[str, ...]
    rows: int
    notes: Mapping[str, int] = field(default_factory=dict)
    dropped: tuple[InputError, ...] = ()


@dataclass(frozen=True)
class LoadedSamples:
    """Samples in file order, and the rows that were dropped with their reason."""

    samples: list[Sample]
    rows: int
    dropped: tuple[InputError, ...] = ()


def load_problems(paths: Paths, *, format: str = "auto", on_bad_row: OnBadRow = "error") -> LoadedProblems:
    """Every row of the files, each in the format given or in the one that its columns show.

    Raises one `InputError` that begins with the first bad row and lists the places of the others, unless bad rows are
    to be dropped; also for two problems of one task id, and where no problem is left.
    """
    if format not in ("auto", *PROBLEM_FORMATS):
        known = ", ".join(("auto", *PROBLEM_FORMATS))
        raise InputError(f"unknown format {format!r}", field="data.format", remedy=f"known: {known}")
    problems: dict[str, Problem] = {}
    notes: Counter[str] = Counter()

    def take(row: Row) -> None:
        name = detect_problem(row.value) if format == "auto" else format
        if name is None:
            columns = ", ".join(map(repr, row.value))[:120] or "none"
            raise RowProblem("unknown_format", "", f"no known format of problems has the columns {columns}")
        record = read_problem(row.value, name, row.where)
        first = problems.setdefault(record.problem.task_id, record.problem)
        if first is not record.problem:
            reason = f"the task id {first.task_id!r} is taken by {first.where}"
            raise RowProblem("repeated_id", "task_id", reason, "give each problem its own")
        notes.update(record.notes)

    rows, bad = _read(paths, take, on_bad_row)
    if not problems:
        raise InputError(f"no usable problem in {rows} rows", where=", ".join(map(str, expand(paths)))[:200])
    formats = tuple(dict.fromkeys(problem.format for problem in problems.values()))
    return LoadedProblems(list(problems.values()), formats, rows, dict(notes), tuple(bad))


def load_samples(paths: Paths, *, on_bad_row: OnBadRow = "error") -> LoadedSamples:
    """Rows of `task_id` and one of completion, solution, response (a text) or their plurals (a list of texts).

    `generation` and `generations`, as several harnesses write, are read as responses. An empty text is a sample, and
    fails. Other columns are left alone. Raises as `load_problems` does.
    """
    samples: list[Sample] = []
    seen: Counter[str] = Counter()

    def take(row: Row) -> None:
        for sample in _samples(row):
            samples.append(replace(sample, index=seen[sample.task_id]))
            seen[sample.task_id] += 1

    rows, bad = _read(paths, take, on_bad_row)
    if not samples:
        raise InputError(f"no usable sample in {rows} rows", where=", ".join(map(str, expand(paths)))[:200])
    return LoadedSamples(samples, rows, tuple(bad))


def match_samples(problems: Sequence[Problem], samples: Sequence[Sample]) -> list[Problem]:
    """The problem of each sample, in their order. MBPP's "Mbpp/2" and "MBPP/2" mean task 2.

    Raises `InputError` for a sample whose problem is not among them. Problems without samples are the caller's affair.
    """
    by_id = {problem.task_id: problem for problem in problems}
    for problem in problems:
        if problem.format == "mbpp":
            for prefix in ("Mbpp", "MBPP", "mbpp"):
                by_id.setdefault(f"{prefix}/{problem.task_id}", problem)
    for sample in samples:
        if sample.task_id not in by_id:
            known = ", ".join(problem.task_id for problem in problems[:3])
            raise InputError(
                f"no problem has the task id {sample.task_id[:60]!r}",
                where=sample.where, field="task_id", remedy=f"problems are {known}, ...",
            )  # fmt: skip
    return [by_id[sample.task_id] for sample in samples]


# --- rows ----------------------------------------------------------------------------------------------------------

_TEXTS: dict[str, Literal["completion", "solution", "response"]] = {
    "completion": "completion", "completions": "completion", "solution": "solution", "solutions": "solution",
    "response": "response", "responses": "response", "generation": "response", "generations": "response",
}  # fmt: skip


def _samples(row: Row) -> Iterator[Sample]:
    named = [name for name in _TEXTS if name in row.value]
    if len(named) != 1:
        reason = "no text of a sample" if not named else f"several texts: {', '.join(named)}"
        raise RowProblem(
            "no_text", named[0] if named else "completion", reason, "give completion, solution or response"
        )
    name, value = named[0], row.value[named[0]]
    task_id = row.value.get("task_id")
    if isinstance(task_id, bool) or not isinstance(task_id, str | int) or not str(task_id).strip():
        raise RowProblem("missing_field", "task_id", "missing, or neither a text nor a whole number")
    texts = value if isinstance(value, list) else [value]
    if not texts:
        raise RowProblem("no_text", name, "the list is empty")
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            where = f"{name}[{i}]" if isinstance(value, list) else name
            raise RowProblem("wrong_type", where, f"expected a text, got {kind_of(text)}")
    for text in texts:
        yield Sample(str(task_id), 0, text, _TEXTS[name], row.where)


def _read(paths: Paths, take: Callable[[Row], None], on_bad_row: OnBadRow) -> tuple[int, list[InputError]]:
    """Hands over every row; returns how many there were and what was wrong with the bad ones."""
    if on_bad_row not in ("error", "drop"):
        raise InputError(f"unknown choice {on_bad_row!r}", field="data.on_bad_row", remedy="known: error, drop")
    rows, unread, bad = 0, 0, []

    def broken(error: InputError) -> None:
        nonlocal unread
        unread += 1
        bad.append(error)

    for path in expand(paths):
        for row in read_rows(path, broken):
            rows += 1
            try:
                take(row)
            except RowProblem as problem:
                bad.append(InputError(problem.reason, where=row.where, field=problem.field, remedy=problem.remedy))
    if bad and on_bad_row == "error":
        raise _all_bad(bad)
    return rows + unread, bad


def _all_bad(bad: Sequence[InputError]) -> InputError:
    first, others = bad[0], [error.where for error in bad[1:]]
    listed = "; ".join(others[:NAMED_ROWS]) + ("; ..." if len(others) > NAMED_ROWS else "")
    more = f" ({len(others)} more bad rows: {listed})" if others else ""
    remedy = "; ".join(filter(None, [first.remedy, "mend the rows or set data.on_bad_row=drop"]))
    return InputError(first.reason + more, where=first.where, field=first.field, remedy=remedy)
