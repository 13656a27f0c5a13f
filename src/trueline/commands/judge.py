"""`trueline judge PROBLEMS SAMPLES -o OUT.jsonl`: any file of samples against any file of problems, in the sandbox."""

from __future__ import annotations

import hashlib
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from trueline.commands.judge_summary import show, summarise
from trueline.commands.judged_rows import JudgedRow, RowFile
from trueline.commands.program_options import ProgramOptions, check_tests, refuse_input_as_output
from trueline.commands.progress import bar
from trueline.data.code_files import OnBadRow, Sample, load_problems, load_samples, match_samples
from trueline.data.code_formats import Problem
from trueline.data.code_prompts import program_of, stop_completion
from trueline.data.sources import expand
from trueline.errors import InputError
from trueline.rewards.verifier import public_tests
from trueline.sandbox import Pool, Program, Verdict

__all__ = ["judge_files"]


def judge_files(
    problems: str, samples: str, out: Path, options: ProgramOptions, *, console: Console, format: str = "auto",
    on_bad_row: OnBadRow = "error", stop: bool = False, cluster: bool = False, submit: int = 10,
) -> dict[str, Any]:  # fmt: skip
    """Judge the samples that have no verdict in `out` yet, write rows as verdicts come, print and return the summary.

    Raises `InputError` for anything wrong with the inputs, before a worker is started.
    """
    if submit < 1:
        raise InputError(f"{submit} submissions cannot pass", field="--submit", remedy="take at least 1")
    files = {"problems": expand(problems), "samples": expand(samples)}
    refuse_input_as_output(out, [path for found in files.values() for path in found])
    asked = load_problems(problems, format=format, on_bad_row=on_bad_row)
    given = load_samples(samples, on_bad_row=on_bad_row)
    work = _Work(given.samples, match_samples(asked.problems, given.samples), options, stop)
    check_tests(work.problems, options)
    identity = {
        **{name: _digest(found) for name, found in files.items()},
        "limits": asdict(options.limits), "patience": options.patience,
        "prelude": hashlib.sha256(options.prelude.encode()).hexdigest(), "format": format, "on_bad_row": on_bad_row,
        "stop": stop, "cluster": cluster, "python": ".".join(map(str, sys.version_info[:2])),
    }  # fmt: skip
    rows = RowFile(out, identity, given.samples, cluster=cluster)
    facts = _fill(rows, work, options, console)
    summary = summarise(rows.rows, work.problems, submit=submit, cluster=cluster) | facts | {
        "problems_without_samples": len({p.task_id for p in asked.problems} - {p.task_id for p in work.problems}),
        "dropped_rows": len(asked.dropped) + len(given.dropped),
        "out": str(out),
    }  # fmt: skip
    show(console, summary)
    return summary


def _fill(rows: RowFile, work: _Work, options: ProgramOptions, console: Console) -> dict[str, Any]:
    """Judge again what the machinery failed on, then what has no row yet."""
    again = [at for at, row in enumerate(rows.rows) if row.verdict == "infrastructure"]
    fresh = range(len(rows.rows), len(work.samples))
    count, began, incidents = len(again) + len(fresh), time.perf_counter(), []
    if count:
        work.learn(rows.rows)
        with options.pool() as pool, bar(console, "judged", count) as step:
            mended = {}
            for at, row in work.judge(pool, again):
                mended[at] = row
                step()
            rows.mend(mended)
            with rows.open(pool.tier):
                for _, row in work.judge(pool, fresh):
                    rows.append(row)
                    step()
            incidents = list(pool.incidents)
    seconds = time.perf_counter() - began
    return {
        "tiers": rows.tiers, "incidents": incidents, "judged_now": count, "programs_run": work.runs,
        "seconds": seconds, "samples_per_second": count / seconds,
    }  # fmt: skip


class _Work:
    """The samples and the problem of each, and what is known of their programs: equal ones are run once."""

    def __init__(
        self, samples: Sequence[Sample], problems: Sequence[Problem], options: ProgramOptions, stop: bool
    ) -> None:
        self.samples, self.problems, self._options, self._stop = samples, problems, options, stop
        self._known: dict[tuple[str, bytes], JudgedRow | None] = {}  # None while it is under way
        self.runs = 0

    def learn(self, rows: Sequence[JudgedRow]) -> None:
        """Take over verdicts of the first samples."""
        for at, row in enumerate(rows):
            if row.verdict != "infrastructure":
                self._known[self._key(at)[0]] = row

    def judge(self, pool: Pool, places: Iterable[int]) -> Iterator[tuple[int, JudgedRow]]:
        """A place and its row for each of `places`, in their order, as soon as it is known."""
        waiting: deque[tuple[int, tuple[str, bytes]]] = deque()
        running: deque[tuple[tuple[str, bytes], Problem, int]] = deque()

        def programs() -> Iterator[Program]:
            for at in places:
                key, source = self._key(at)
                waiting.append((at, key))
                if key not in self._known:
                    self._known[key] = None
                    needed = _programs(self.problems[at], source, self._options)
                    running.append((key, self.problems[at], len(needed)))
                    self.runs += len(needed)
                    yield from needed

        verdicts: list[Verdict] = []
        for verdict in pool.judge(programs()):
            verdicts.append(verdict)
            key, problem, needed = running[0]
            if len(verdicts) == needed:
                running.popleft()
                self._known[key] = _row(problem, verdicts)
                verdicts = []
                yield from self._settled(waiting)
        yield from self._settled(waiting)

    def _settled(self, waiting: deque[tuple[int, tuple[str, bytes]]]) -> Iterator[tuple[int, JudgedRow]]:
        while waiting and (row := self._known[waiting[0][1]]) is not None:
            at, _ = waiting.popleft()
            yield at, row._replace(task_id=self.samples[at].task_id, index=self.samples[at].index)

    def _key(self, at: int) -> tuple[tuple[str, bytes], str]:
        sample, problem = self.samples[at], self.problems[at]
        if self._stop and sample.kind == "completion":
            sample = replace(sample, text=stop_completion(sample.text))
        source = program_of(problem, sample)
        return (problem.task_id, hashlib.blake2b(source.encode(), digest_size=16).digest()), source


def _programs(problem: Problem, source: str, options: ProgramOptions) -> list[Program]:
    """The hidden tests; then the public ones in a program of their own, so that they cannot touch the verdict, unless
    they are the first of the hidden ones."""
    tests = [problem.tests]
    public = public_tests(problem)
    if repr(public) != repr(problem.tests[: len(public)]):  # True equals 1 where tests are compared
        tests.append(public)
    return [options.program(problem, source, some) for some in tests]


def _row(problem: Problem, verdicts: Sequence[Verdict]) -> JudgedRow:
    """Of the verdicts on `_programs`; nothing is said where the machinery failed on one of them."""
    hidden, shown = verdicts[0], len(problem.public_tests)
    if any(verdict.outcome == "infrastructure" for verdict in verdicts):
        return JudgedRow("", 0, "infrastructure")
    public = all(verdicts[1].passed if len(verdicts) > 1 else hidden.passed[:shown]) if shown else None
    cluster = hashlib.blake2b(repr(hidden.outputs).encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
    return JudgedRow("", 0, hidden.outcome, hidden.error, hidden.first_failing, public, cluster)


# --- inputs --------------------------------------------------------------------------------------------------------


def _digest(files: Iterable[Path]) -> str:
    found = hashlib.sha256()
    for path in files:
        with open(path, "rb") as file:
            found.update(hashlib.file_digest(file, "sha256").digest())
    return found.hexdigest()
