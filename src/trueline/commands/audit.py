"""`trueline data audit PROBLEMS [-o KEPT.jsonl]`: does each problem's own solution pass its tests, every time?"""

from __future__ import annotations

import gzip
import itertools
import json
import os
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from trueline.commands.program_options import ProgramOptions, check_tests, refuse_input_as_output
from trueline.commands.progress import bar
from trueline.data.code_files import OnBadRow, load_problems
from trueline.data.code_formats import Problem
from trueline.data.code_rows import detect_problem, read_problem
from trueline.data.formats.rows import RowProblem
from trueline.data.sources import expand, read_rows
from trueline.errors import InputError, TruelineError
from trueline.rewards.verifier import public_tests
from trueline.sandbox import Verdict

__all__ = ["Audited", "audit_files", "refusal"]

Status = Literal["passes", "fails", "flakes", "no solution", "not judged"]
_NAMED = 20


@dataclass(frozen=True)
class Audited:
    """What became of a problem. `solution` and `test` name the first that failed, for example "2 of 3" and "hidden
    test 1 of 7"; `error` and `detail` are those of that test, the detail in the program's own words."""

    task_id: str
    where: str
    status: Status
    solutions: int
    solution: str = ""
    test: str = ""
    error: str = ""
    detail: str = ""


def audit_files(
    problems: str, out: Path | None, options: ProgramOptions, *, console: Console, format: str = "auto",
    on_bad_row: OnBadRow = "error", times: int = 3, solutions: int | None = None, need_solution: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Run every solution (the first `solutions` of each problem) `times` times on public and hidden tests; print, and
    write the rows of the fit problems to `out`. `unfit` of what is returned are those to be refused.

    A problem without a solution is fit unless one is needed. Where the machinery failed on it, nothing is known of it.
    """
    for name, value in (("--times", times), ("--solutions", solutions)):
        if value is not None and value < 1:
            raise InputError(f"{value} shows nothing", field=name, remedy="take at least 1")
    files = expand(problems)
    if out is not None:
        refuse_input_as_output(out, files)
    loaded = load_problems(problems, format=format, on_bad_row=on_bad_row)
    check_tests(loaded.problems, options)
    found, facts = _run(loaded.problems, options, times, solutions, console)
    refused = ("fails", "flakes", "not judged", *(["no solution"] if need_solution else []))
    fit = [item.task_id for item in found if item.status not in refused]
    if out is not None and fit:
        _write(out, _kept(files, loaded.problems, set(fit), format))
    report = {
        "problems": [asdict(item) for item in found],
        "counts": dict(Counter(item.status for item in found)),
        "fit": len(fit), "unfit": [item.task_id for item in found if item.status in refused], "times": times,
        "dropped_rows": len(loaded.dropped), "out": None if out is None or not fit else str(out), **facts,
    }  # fmt: skip
    for line in _lines(found, report):
        console.print(line, markup=False, emoji=False, soft_wrap=True)
    return report


def refusal(report: dict[str, Any]) -> TruelineError | None:
    """The error that the command ends with: `InputError` for problems that are not fit, unless they were left out of
    a file; a failure of our own where the machinery left any unjudged."""
    unfit = report["unfit"]
    unjudged = report["counts"].get("not judged", 0)
    if report["fit"] == 0 or (len(unfit) > unjudged and report["out"] is None):
        named = ", ".join(unfit[:_NAMED]) + (", ..." if len(unfit) > _NAMED else "")
        remedy = "mend them, or leave them out with -o KEPT.jsonl" if report["fit"] else "no problem is left"
        return InputError(f"{len(unfit)} of {len(report['problems'])} problems are not fit: {named}", remedy=remedy)
    if unjudged:
        return TruelineError(f"{unjudged} problems could not be judged: the machinery failed; run the command again")
    return None


# --- running -------------------------------------------------------------------------------------------------------


def _run(
    problems: Sequence[Problem], options: ProgramOptions, times: int, most: int | None, console: Console
) -> tuple[list[Audited], dict[str, Any]]:
    tests = [public_tests(problem) + problem.tests for problem in problems]
    programs = (
        options.program(problem, source, wanted)
        for problem, wanted in zip(problems, tests)
        for source in problem.solutions[:most]
        for _ in range(times)
    )
    found: list[Audited] = []
    with options.pool() as pool, bar(console, "audited", len(problems)) as step:
        verdicts = pool.judge(programs)
        for problem in problems:
            runs = [list(itertools.islice(verdicts, times)) for _ in problem.solutions[:most]]
            found.append(_audited(problem, runs))
            step()
        return found, {"tier": pool.tier, "incidents": list(pool.incidents)}


def _audited(problem: Problem, runs: Sequence[Sequence[Verdict]]) -> Audited:
    """Of the runs of each solution: it fails where one fails each time, flakes where the runs of one differ."""
    statuses = [_status(verdicts) for verdicts in runs]
    status = next((s for s in ("fails", "flakes", "not judged") if s in statuses), "passes" if runs else "no solution")
    if status in ("passes", "no solution"):
        return Audited(problem.task_id, problem.where, status, len(runs))
    at = statuses.index(status)
    wanted = ("infrastructure",) if status == "not judged" else ("fail", "limit")
    verdict = next(verdict for verdict in runs[at] if verdict.outcome in wanted)
    return Audited(
        problem.task_id, problem.where, status, len(runs), f"{at + 1} of {len(runs)}",
        _named(problem, verdict.first_failing), verdict.error, verdict.detail,
    )  # fmt: skip


def _status(verdicts: Sequence[Verdict]) -> Status:
    seen = {(verdict.outcome, verdict.error) for verdict in verdicts if verdict.outcome != "infrastructure"}
    if len(seen) > 1:
        return "flakes"
    if seen and ("pass", "") not in seen:
        return "fails"
    return "passes" if all(verdict.outcome == "pass" for verdict in verdicts) else "not judged"


def _named(problem: Problem, at: int | None) -> str:
    if at is None:
        return ""
    public = len(problem.public_tests)
    kind, at, count = ("public", at, public) if at < public else ("hidden", at - public, len(problem.tests))
    return f"{kind} test {at + 1} of {count}"


def _lines(found: Sequence[Audited], report: dict[str, Any]) -> Iterator[str]:
    counts = report["counts"]
    shown = ", ".join(f"{counts[name]} {name}" for name in Status.__args__ if name in counts)
    yield f"{len(found)} problems, each solution run {report['times']} times: {shown}"
    for status in ("fails", "flakes", "not judged", "no solution"):
        some = [item for item in found if item.status == status]
        yield from (f"  {_line(item)}" for item in some[:_NAMED])
        if len(some) > _NAMED:
            yield f"  ... and {len(some) - _NAMED} more: {status}"
    if report["dropped_rows"]:
        yield f"bad rows dropped: {report['dropped_rows']}"
    yield f"tier {report['tier']}; {len(report['incidents'])} incidents"
    if report["out"]:
        yield f"{report['fit']} problems kept: {report['out']}"


def _line(item: Audited) -> str:
    head = f"{item.where}: {item.task_id} {item.status}"
    if item.status == "no solution":
        return head
    what = " at ".join(filter(None, [item.error, item.test]))
    return f"{head}: solution {item.solution}: {': '.join(filter(None, [what, item.detail]))}"


# --- the rows that are kept ----------------------------------------------------------------------------------------


def _kept(files: Iterable[Path], problems: Sequence[Problem], fit: Collection[str], format: str) -> Iterator[str]:
    """The text of the rows as it stands in JSONL; the items of a JSON list are written anew."""
    places = {problem.where for problem in problems if problem.task_id in fit}
    for path in files:
        if path.name.lower().removesuffix(".gz").endswith(".json"):
            yield from _items(path, fit, format)
            continue
        with (gzip.open if path.name.lower().endswith(".gz") else open)(path, "rb") as file:
            for number, line in enumerate(file, 1):
                if f"{path}:{number}" in places:
                    yield line.decode().removeprefix("\ufeff").rstrip("\r\n") + "\n"


def _items(path: Path, fit: Collection[str], format: str) -> Iterator[str]:
    left = set(fit)  # of two rows of one task id the second was dropped
    for row in read_rows(path, on_bad=lambda error: None):
        try:
            name = detect_problem(row.value) if format == "auto" else format
            if name and (task_id := read_problem(row.value, name).problem.task_id) in left:
                left.remove(task_id)
                yield json.dumps(row.value, ensure_ascii=False) + "\n"
        except RowProblem:
            continue


def _write(out: Path, rows: Iterable[str]) -> None:
    """All or nothing."""
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "w", encoding="utf-8", newline="\n") as file:
            file.writelines(rows)
        os.replace(temporary, out)
    except OSError as error:
        raise InputError(f"cannot be written ({error.strerror})", where=str(out), remedy="choose another -o") from None
