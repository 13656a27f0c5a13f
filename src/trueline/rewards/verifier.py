"""Rewards by execution: programs judged by tests in the sandbox, and the scales that make a reward of a verdict.

A failure of the machinery (`infrastructure`) is no verdict on a program and has no reward: it comes out as NaN, which
whoever learns or measures must leave out.
"""

from __future__ import annotations

import hashlib
import math
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from trueline.data.code_formats import Problem
from trueline.rewards.verdicts import VerdictFile
from trueline.sandbox import CallTest, Limits, Pool, Program, StdioTest, Test, Verdict
from trueline.types import Judgement

__all__ = [
    "ERRORS", "SCALES", "Verifier", "candidate", "fraction_reward", "graded_reward", "judgement", "pass_reward",
    "public_tests",
]  # fmt: skip

ERRORS = ("syntax", "runtime", "wrong", "timeout", "memory", "output")
_KEPT = 200_000  # verdicts that are remembered
_KEPT_TEXT = 64 << 20  # characters of outputs among them: a hostile program may print as much as its limit allows
_SHOWN = 160


def pass_reward(verdict: Verdict) -> float:
    """10 where every test passes, else 0 (Xu et al. 2024, arXiv 2404.10719)."""
    return 10.0 * (_judged(verdict).outcome == "pass")


def graded_reward(verdict: Verdict) -> float:
    """-1 does not compile, -0.6 fails while it runs or at a limit, -0.3 is wrong, 1 passes.

    The scale of CodeRL (Le et al. 2022, arXiv 2207.01780).
    """
    if _judged(verdict).outcome == "pass":
        return 1.0
    return {"syntax": -1.0, "wrong": -0.3}.get(verdict.error, -0.6)


def fraction_reward(verdict: Verdict) -> float:
    """The share of the tests that pass; those after a resource limit count as failed."""
    return sum(_judged(verdict).passed) / len(verdict.passed)


SCALES: Mapping[str, Callable[[Verdict], float]] = {
    "pass": pass_reward,
    "graded": graded_reward,
    "fraction": fraction_reward,
}


def _judged(verdict: Verdict) -> Verdict:
    if verdict.outcome == "infrastructure":
        raise ValueError("verdict: the machinery failed; that is no reward")
    return verdict


def candidate(
    problem: Problem, source: str, *, tests: Sequence[Test], limits: Limits, prelude: str = "", patience: float = 1.0
) -> Program:
    """The source as the sandbox takes it. `prelude` is the user's, before the problem's own.

    A problem's time limit, `patience` times, takes the place of a smaller processor limit; the wall limit grows alike.
    """
    wanted = (problem.time_limit or 0.0) * patience
    if wanted > limits.cpu_seconds:
        wall = round(limits.wall_seconds * wanted / limits.cpu_seconds, 3)
        limits = replace(limits, cpu_seconds=wanted, wall_seconds=wall)
    before = "\n".join(part for part in (prelude, problem.prelude) if part)
    return Program(source, tuple(tests), before, problem.entry, limits)


def public_tests(problem: Problem) -> tuple[Test, ...]:
    """The public tests as they can be run: MBPP shows its first assert without the set-up code that it needs."""
    shown = problem.public_tests
    return problem.tests[: len(shown)] if problem.format == "mbpp" else shown


class Verifier:
    """A pool of sandbox workers that is opened at the first program, and remembers what it has judged.

    A program is known by its source, prelude, entry, limits and tests. `shared` holds the verdicts of other processes,
    and gets this one's; `opened` gives another pool, of workers elsewhere. What
    broke the machinery is judged anew, and the oldest verdicts are forgotten first.
    """

    def __init__(
        self,
        workers: int = 1,
        *,
        tier: str = "auto",
        unsafe: bool = False,
        shared: VerdictFile | None = None,
        opened: Callable[[], Pool] | None = None,
    ) -> None:
        self._open = opened or (lambda: Pool(workers, tier=tier, unsafe=unsafe))
        self._pool: Pool | None = None
        self._shared = shared
        self._known: OrderedDict[bytes, Verdict] = OrderedDict()
        self._text = 0
        self.executions = 0

    @property
    def tier(self) -> str:
        """The tier that judges; opens the pool. Raises InputError where no strong one works."""
        return self._opened().tier

    @property
    def incidents(self) -> list[str]:
        """A line for each worker that hung or died since the pool was opened."""
        return [] if self._pool is None else list(self._pool.incidents)

    def verdicts(self, programs: Sequence[Program]) -> list[Verdict]:
        """A verdict per program, in their order; equal programs are run once."""
        keys = [_key(program) for program in programs]
        fresh = {key: program for key, program in zip(keys, programs) if key not in self._known}
        told = self._shared.find(fresh) if self._shared and fresh else {}
        left = {key: program for key, program in fresh.items() if key not in told}
        run = dict(zip(left, self._opened().judge(left.values()))) if left else {}
        self.executions += len(run)
        found = told | run
        out = [found[key] if key in found else self._known[key] for key in keys]
        judged = {key: verdict for key, verdict in run.items() if verdict.outcome != "infrastructure"}
        if self._shared:
            self._shared.keep(judged)
        self._remember(told | judged)
        return out

    def rewards(self, programs: Sequence[Program], scale: Callable[[Verdict], float]) -> list[float]:
        """The reward of each program; NaN where the machinery failed twice."""
        verdicts = self.verdicts(programs)
        return [math.nan if verdict.outcome == "infrastructure" else scale(verdict) for verdict in verdicts]

    def close(self) -> None:
        """End the workers; what is remembered stays."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None

    def __enter__(self) -> Verifier:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _remember(self, verdicts: Mapping[bytes, Verdict]) -> None:
        self._known.update(verdicts)
        self._text += sum(map(_characters, verdicts.values()))
        while len(self._known) > _KEPT or self._text > _KEPT_TEXT:
            _, forgotten = self._known.popitem(last=False)
            self._text -= _characters(forgotten)

    def _opened(self) -> Pool:
        if self._pool is None:
            self._pool = self._open()
        return self._pool


def judgement(verdict: Verdict, tests: Sequence[Test], public: int) -> Judgement:
    """What a verdict says as gold: 1 where all hidden tests pass, else 0; NaN where the machinery failed.

    The first `public` of `tests` are the prompt's own: the part `public` is 1 where all of those pass. The other parts
    are 1 for the error that ended it (`ERRORS`). The note names the first failing test.
    """
    if verdict.outcome == "infrastructure":
        return Judgement(math.nan, {}, f"not judged: {verdict.detail}")
    right = all(verdict.passed[public:])
    shown = all(verdict.passed[:public])
    parts = {error: float(not right and verdict.error == error) for error in ERRORS}
    return Judgement(float(right), {"public": float(shown), **parts}, _note(verdict, tests, public, right))


def _note(verdict: Verdict, tests: Sequence[Test], public: int, right: bool) -> str:
    hidden = len(tests) - public
    if right:
        return f"passes all {hidden} hidden tests"
    at = verdict.first_failing
    which = f"example {at + 1}" if at < public else f"hidden test {at - public + 1} of {hidden}"
    return f"{verdict.error} at {which}: {_call(tests[at])}{verdict.detail or 'no value'}"[: 3 * _SHOWN]


def _call(test: Test) -> str:
    if isinstance(test, CallTest):
        given = ", ".join(map(repr, test.args))
        return f"{test.function}({given})"[:_SHOWN] + f" is {test.expected!r}"[:_SHOWN] + ", "
    if isinstance(test, StdioTest):
        return f"input {test.stdin!r}"[:_SHOWN] + f" wants {test.expected!r}"[:_SHOWN] + ", "
    return ""


def _key(program: Program) -> bytes:
    parts = (program.source, program.prelude, program.entry, program.limits, program.tests)
    return hashlib.blake2b(repr(parts).encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _characters(verdict: Verdict) -> int:
    return sum(len(output) for output in verdict.outputs if output)
