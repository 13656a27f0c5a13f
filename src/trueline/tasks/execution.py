"""How a code task runs programs: its settings, and one pool of sandbox workers for all tasks of a process."""

from __future__ import annotations

import atexit
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Literal

from pydantic import Field

from trueline.config import Section
from trueline.data.code_formats import Problem
from trueline.rewards.verdicts import VerdictFile
from trueline.rewards.verifier import SCALES, Verifier, candidate, judgement, public_tests
from trueline.sandbox import Limits, Pool, Program, Verdict
from trueline.seeds import permutation
from trueline.tasks.code_pairs import pairs_of_samples
from trueline.tasks.task import PairSources, Sampler
from trueline.types import Judgement, Prompt, Test

__all__ = ["Execution", "Judge", "judged_elsewhere", "sampled_pairs", "share_verdicts"]


class Execution(Section):
    """`verifier.*`: how programs are run, and what a verdict is worth."""

    reward: Literal["pass", "graded", "fraction"] = Field(
        "pass",
        description="pass: 10 where all tests pass, else 0 (the paper's); graded: -1, -0.6, -0.3, 1 (CodeRL's); "
        "fraction: the share of tests that pass",
    )
    cpu_seconds: float = Field(2.0, gt=0, description="processor time of a test")
    wall_seconds: float = Field(20.0, gt=0, description="wall-clock time of a test; give ten times the processor's")
    memory_mb: int = Field(512, ge=64, description="address space of a program")
    prelude: str = Field("", description="trusted code that runs before every program, such as imports")
    tier: str = Field("auto", description="of the sandbox; auto: the strongest that works")
    unsafe: bool = Field(False, description="permit a tier that contains nothing")

    @property
    def full_reward(self) -> float:
        """What a program that passes is paid."""
        return SCALES[self.reward](Verdict("pass", passed=(True,)))

    @property
    def limits(self) -> Limits:
        """As the sandbox takes them."""
        return Limits(self.cpu_seconds, self.wall_seconds, self.memory_mb << 20)


_FOLDER: list[Path] = []
_OPENED: list[Callable[..., Pool]] = []
_ELSEWHERE: list[Verifier] = []


def share_verdicts(folder: Path) -> None:
    """From here on this process shares verdicts with every other that was given that folder."""
    _FOLDER[:] = [folder]


@contextmanager
def judged_elsewhere(opened: Callable[..., Pool]) -> Iterator[None]:
    """In here programs are judged by the pool that `opened(tier=, unsafe=)` gives, which is closed after."""
    _shared.cache_clear()
    _OPENED[:] = [opened]
    try:
        yield
    finally:
        while _ELSEWHERE:
            _ELSEWHERE.pop().close()
        _OPENED.clear()
        _shared.cache_clear()


@cache
def _shared(tier: str, unsafe: bool) -> Verifier:
    """One worker: cells run side by side, one on each core, and wait while their programs run."""
    shared = VerdictFile(_FOLDER[0] / f".verdicts-{tier}{'-unsafe' * unsafe}.sqlite") if _FOLDER else None
    if _OPENED:
        (opened,) = _OPENED
        _ELSEWHERE.append(Verifier(shared=shared, opened=lambda: opened(tier=tier, unsafe=unsafe)))
        return _ELSEWHERE[-1]
    verifier = Verifier(1, tier=tier, unsafe=unsafe, shared=shared)
    atexit.register(verifier.close)
    return verifier


class Judge:
    """Runs responses to a code task's prompts. `problem_of` and `source_of` are the task's."""

    def __init__(
        self,
        settings: Execution,
        problem_of: Callable[[Prompt], Problem],
        source_of: Callable[[Problem, str], str] = lambda problem, response: response,
    ) -> None:
        self.settings, self.problem_of, self.source_of = settings, problem_of, source_of

    @property
    def verifier(self) -> Verifier:
        """That of the process."""
        return _shared(self.settings.tier, self.settings.unsafe)

    def rewards(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        """By the tests that learners may use: a problem's `reward_tests`, or all of its tests where it has none apart.

        NaN where the machinery failed.
        """
        return self.verifier.rewards(self._paid_programs(prompts, responses), SCALES[self.settings.reward])

    def passed(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[bool | None]:
        """Whether a response passes those tests; None where the machinery failed."""
        verdicts = self.verifier.verdicts(self._paid_programs(prompts, responses))
        return [None if v.outcome == "infrastructure" else v.outcome == "pass" for v in verdicts]

    def judgements(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[Judgement]:
        """By the tests of evaluation, and by the prompt's own beside them."""
        problems = [self.problem_of(prompt) for prompt in prompts]
        shown = [public_tests(p) for p in problems]
        tests = [public + p.tests for public, p in zip(shown, problems)]
        verdicts = self.verifier.verdicts(self._programs(problems, responses, tests))
        return [judgement(v, t, len(public)) for v, t, public in zip(verdicts, tests, shown)]

    def facts(self) -> Mapping[str, object]:
        """Tier, what broke so far, and how many programs were run, in this process."""
        verifier = self.verifier
        return {"tier": verifier.tier, "incidents": verifier.incidents, "executions": verifier.executions}

    def _paid_programs(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[Program]:
        """With the tests that learners may use."""
        problems = [self.problem_of(prompt) for prompt in prompts]
        tests = [public_tests(p) + (p.reward_tests or p.tests) for p in problems]
        return self._programs(problems, responses, tests)

    def _programs(
        self, problems: Sequence[Problem], responses: Sequence[str], tests: Sequence[tuple[Test, ...]]
    ) -> list[Program]:
        given = self.settings
        return [
            candidate(p, self.source_of(p, r), tests=t, limits=given.limits, prelude=given.prelude)
            for p, r, t in zip(problems, responses, tests)
        ]


def sampled_pairs(
    judge: Judge,
    pool: Sequence[Prompt],
    seed: int,
    sample: Sampler,
    *,
    prompts: int,
    samples: int,
    reference: Callable[[Prompt], str | None],
) -> PairSources:
    """Correct against incorrect samples of `prompts` training prompts, `samples` each (`code_pairs.pairs_of_samples`).

    The pool is gone through in a shuffled order, again where there are more prompts than it has. A response that was
    cut off counts as incorrect and is not run; nothing is known of one on which the machinery failed.
    """
    epochs = range(-(-prompts // len(pool)))
    order = [int(i) for epoch in epochs for i in permutation(seed, "code/pair-prompts", epoch, len(pool))]
    asked = [pool[i] for i in order[:prompts]]
    drawn = sample(asked, samples, "pairs")
    flat = [(prompt, s) for prompt, row in zip(asked, drawn) for s in row]
    whole = [(prompt, s.text) for prompt, s in flat if s.ended]
    known = iter(judge.passed([p for p, _ in whole], [text for _, text in whole]))
    flags = [next(known) if s.ended else False for _, s in flat]
    passed = [flags[i : i + samples] for i in range(0, len(flags), samples)]
    texts = [[s.text for s in row] for row in drawn]
    pairs = pairs_of_samples(asked, texts, passed, [reference(p) for p in asked])
    return PairSources(pairs, executions=len(whole))
