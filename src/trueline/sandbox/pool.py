"""Many programs, a few workers, verdicts in order."""

from __future__ import annotations

import contextlib
import selectors
import time
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

from ..errors import InputError
from .crew import Crew, Work
from .program import Limits, Program, SandboxError, Verdict
from .runs import judge_step, steps_of, stopped, verdict_of
from .tiers import choose

__all__ = ["Pool"]

_FAILURES = 6  # incidents in a row after which it is the sandbox that is broken
_AHEAD = 1000  # verdicts that may wait for an earlier one


class Pool:
    """Judges programs on `workers` processes of one tier.

    `tier` is "auto" (the strongest that passes its self-test here) or the name of one; a weak one needs `unsafe=True`.
    `incidents` has a line for each worker that hung or died: it cost one program a second try, and was replaced.
    Raises InputError where no strong tier works on this machine, with the reasons.
    """

    def __init__(
        self, workers: int = 2, limits: Limits | None = None, tier: str = "auto", unsafe: bool = False
    ) -> None:
        if workers < 1:
            raise InputError(f"{workers} workers cannot judge anything", field="workers", remedy="take at least 1")
        self.limits, self.incidents = limits or Limits(), []
        self._tier, self.controls = choose(tier, unsafe)
        self._crews = [Crew(self._tier) for _ in range(workers)]
        self._judging = False

    @property
    def tier(self) -> str:
        """The name of the tier, for reports."""
        return self._tier.name

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers that are alive."""
        return [worker.pid for crew in self._crews for worker in crew.workers.values()]

    def judge(self, programs: Iterable[Program]) -> Iterator[Verdict]:
        """A verdict per program, in their order; programs are taken from the iterable as places become free.

        Raises SandboxError when workers break again and again, and RuntimeError when a judgement is under way already.
        """
        if self._judging:
            raise RuntimeError("this pool is judging already; end that iteration first")
        self._judging = True
        try:
            with selectors.DefaultSelector() as selector:
                yield from _Round(self, programs, selector).verdicts()
        finally:
            self._judging = False
            for crew in self._crews:
                if crew.work is not None:
                    crew.dismiss()

    def close(self) -> None:
        """End all workers."""
        for crew in self._crews:
            crew.dismiss()

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


class _Round:
    """One call of `judge`: what waits, what runs, what is done."""

    def __init__(self, pool: Pool, programs: Iterable[Program], selector: selectors.BaseSelector) -> None:
        self.pool, self.selector = pool, selector
        self.source, self.more = enumerate(programs), True
        self.again: deque[Work] = deque()
        self.done: dict[int, Verdict] = {}
        self.failures = 0

    def verdicts(self) -> Iterator[Verdict]:
        wanted = 0
        while True:
            self.fill()
            while wanted in self.done:
                yield self.done.pop(wanted)
                wanted += 1
            if any(crew.work for crew in self.pool._crews):
                self.wait()
            elif not self.again and not self.more:
                return

    def fill(self) -> None:
        """Give each free crew a program."""
        for crew in self.pool._crews:
            while crew.work is None and (work := self.next_work()) is not None:
                self.guard(crew, work, lambda crew=crew, work=work: crew.begin(work, self.selector))

    def next_work(self) -> Work | None:
        if self.again:
            return self.again.popleft()
        if not self.more or len(self.done) >= _AHEAD:
            return None
        index, program = next(self.source, (None, None))
        if program is None:
            self.more = False
            return None
        return Work(index, program, steps_of(program, program.limits or self.pool.limits), started=time.monotonic())

    def wait(self) -> None:
        """Wait for answers, until the first deadline."""
        busy = [crew for crew in self.pool._crews if crew.work is not None]
        patience = min(crew.work.deadline for crew in busy) - time.monotonic()
        for key, _ in self.selector.select(max(0.0, patience)):
            crew, role = key.data
            if crew.work is not None:
                self.guard(crew, crew.work, lambda crew=crew, role=role: self.advance(crew, role))
        for crew in busy:
            if crew.work is not None and time.monotonic() > crew.work.deadline:
                self.broken(crew, crew.work, f"no answer within {crew.work.step.seconds:.0f} s")

    def advance(self, crew: Crew, role: str) -> None:
        """Take an answer; judge the step when it is complete, then begin the next or settle the verdict."""
        work = crew.work
        if not crew.take(role, self.selector):
            return
        work.results += judge_step(work.step, work.answers["candidate"], work.answers.get("checker"))
        work.at += 1
        if work.program.stop_at_failure and not all(result.passed for result in work.results):
            work.results, work.at = stopped(work.results, len(work.program.tests)), len(work.steps)
        if work.at < len(work.steps):
            crew.begin(work, self.selector)
            return
        self.done[work.index] = verdict_of(work.results, time.monotonic() - work.started)
        crew.work, self.failures = None, 0

    def guard(self, crew: Crew, work: Work, action: Any) -> None:
        try:
            action()
        except (OSError, ValueError, SandboxError) as error:
            self.broken(crew, work, str(error) or type(error).__name__)

    def broken(self, crew: Crew, work: Work, reason: str) -> None:
        """Replace the crew's workers; the program gets one more try, then an `infrastructure` verdict."""
        pids = [worker.pid for worker in crew.workers.values()]
        with contextlib.suppress(OSError):
            crew.dismiss(self.selector)
        crew.work = None
        self.pool.incidents.append(f"program {work.index}: worker {', '.join(map(str, pids)) or '-'}: {reason}")
        self.failures += 1
        if self.failures >= _FAILURES:
            raise SandboxError(f"{self.failures} sandbox workers broke in a row; the last: {reason}")
        if work.attempt == 0:
            work.restart()
            self.again.append(work)
        else:
            self.done[work.index] = Verdict("infrastructure", detail=reason, seconds=time.monotonic() - work.started)
