"""The published reference solutions, judged: each passes each time, also on a busy machine, and a changed one fails."""

from __future__ import annotations

import contextlib
import itertools
import resource
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from trueline.data.code_files import load_problems
from trueline.data.code_formats import Problem
from trueline.rewards.verifier import public_tests
from trueline.sandbox import Limits, Pool, Program, Verdict

from .mutants import mutants

DATA = Path(__file__).resolve().parents[2] / ".." / "shared" / "data"
FILES = {  # name -> (file, reference solutions in it)
    "humaneval": ("humaneval/HumanEval.jsonl.gz", 164),
    "mbpp": ("mbpp/mbpp.jsonl", 974),
    "codecontests": ("codecontests/codecontests_clusters0-6.jsonl", 181),
    "codejam": ("codejam/codejam_kickstart_2020_2021.jsonl", 65),
}
SECONDS = {"codejam": 60.0}  # processor time of a test where the source names none; 8 otherwise
SLOW = {"623_d_birthday_6300": 40.0}  # takes about 11
MUTANTS = 30  # tried at most for each program; equivalent ones exist
EVERY = 40
names = pytest.mark.parametrize("name", FILES)


def references(name: str) -> list[tuple[Problem, str]]:
    """Problems with each of their reference solutions."""
    path = DATA / FILES[name][0]
    if not path.is_file():
        pytest.skip(f"{path.name} is not beside the checkout")
    return [(problem, text) for problem in load_problems(path).problems for text in problem.solutions]


def program(problem: Problem, source: str, mutant: bool = False) -> Program:
    """All that is known to judge it by, with time to spare; a mutant that never ends shall not take all of it."""
    tests = problem.tests + tuple(test for test in public_tests(problem) if test not in problem.tests)
    cpu = SLOW.get(problem.task_id, 4 * max(problem.time_limit or 0.0, SECONDS.get(problem.format, 8.0) / 4))
    cpu = cpu / 4 if mutant else cpu
    return Program(source, tests, problem.prelude, problem.entry, Limits(cpu, 10 * cpu, 1 << 30), mutant)


def assert_all_pass(pool: Pool, found: Sequence[tuple[Problem, str]]) -> None:
    verdicts = list(pool.judge(program(problem, source) for problem, source in found))
    failed = [(p.task_id, shown(verdict)) for (p, _), verdict in zip(found, verdicts) if verdict.outcome != "pass"]
    assert failed == [] and len(verdicts) == len(found) and pool.incidents == []


def shown(verdict: Verdict) -> str:
    return f"{verdict.outcome} {verdict.error} at {verdict.first_failing}: {verdict.detail[:100]}"


def assert_a_mutant_of_each_fails(pool: Pool, found: Sequence[tuple[Problem, str]]) -> int:
    """A mutant counts where a test fails on it; one that runs out of time shows nothing. Mutants that were judged."""
    left, judged = [(problem, mutants(source)) for problem, source in found], 0
    for _ in range(MUTANTS):
        tried = [(problem, changed, next(changed, None)) for problem, changed in left]
        spent = [problem.task_id for problem, _, source in tried if source is None]
        assert spent == [], "no mutant fails"
        programs = (program(problem, source, mutant=True) for problem, _, source in tried)
        verdicts = list(pool.judge(programs))
        judged += len(verdicts)
        left = [
            (problem, changed) for (problem, changed, _), verdict in zip(tried, verdicts) if verdict.outcome != "fail"
        ]
        if not left:
            return judged
    raise AssertionError(f"{MUTANTS} mutants of each of these do not fail: {[problem.task_id for problem, _ in left]}")


@contextlib.contextmanager
def busy_loops(count: int) -> Iterator[None]:
    limit = lambda: resource.setrlimit(resource.RLIMIT_CPU, (1800, 1800))  # noqa: E731
    command = [sys.executable, "-S", "-c", "while True: pass"]
    loops = [subprocess.Popen(command, preexec_fn=limit) for _ in range(count)]
    try:
        yield
        assert all(loop.poll() is None for loop in loops)
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


@pytest.fixture(scope="module")
def two(pool) -> Iterator[Pool]:
    with Pool(2, tier=pool.tier) as pair:
        yield pair


@names
def test_some_references_pass_and_a_mutant_of_each_fails(two, name) -> None:
    found = list(itertools.islice(references(name), 0, None, EVERY))
    assert_all_pass(two, found)
    assert_a_mutant_of_each_fails(two, found)


@pytest.mark.nightly
@pytest.mark.timeout(3600)
@names
def test_every_reference_passes_three_times(two, name) -> None:
    found = references(name)
    assert len(found) == FILES[name][1]
    for _ in range(3):
        assert_all_pass(two, found)


@pytest.mark.nightly
@pytest.mark.timeout(3600)
@names
def test_every_reference_passes_on_a_busy_machine(two, name) -> None:
    found = references(name)
    with busy_loops(8):
        assert_all_pass(two, found)


@pytest.mark.nightly
@pytest.mark.timeout(3600)
@names
def test_a_mutant_of_every_reference_fails(two, name) -> None:
    assert assert_a_mutant_of_each_fails(two, references(name)) >= FILES[name][1]
