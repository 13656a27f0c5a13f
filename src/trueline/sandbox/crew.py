"""One place of the pool: the workers that judge one program at a time, and how far it has come."""

from __future__ import annotations

import contextlib
import selectors
import socket
import time
from dataclasses import dataclass, field
from typing import Any

from .program import Program
from .runs import Result, Step
from .worker import Tier, Worker

__all__ = ["Crew", "Work"]


@dataclass
class Work:
    """A program on its way: its steps, their results so far, and how often it was begun."""

    index: int
    program: Program
    steps: list[Step]
    attempt: int = 0
    results: list[Result] = field(default_factory=list)
    at: int = 0
    started: float = 0.0
    deadline: float = 0.0
    answers: dict[str, Any] = field(default_factory=dict)

    @property
    def step(self) -> Step:
        return self.steps[self.at]

    def restart(self) -> None:
        """From the first step, on another worker."""
        self.attempt, self.at, self.results = self.attempt + 1, 0, []


class Crew:
    """A candidate's worker and, once assertions need it, a checker's: never one for both."""

    def __init__(self, tier: Tier) -> None:
        self.tier, self.work, self.workers = tier, None, {}

    def worker(self, role: str) -> Worker:
        """The worker of a role, started where it is not there yet. Raises SandboxError."""
        if role not in self.workers:
            self.workers[role] = Worker(self.tier)
        return self.workers[role]

    def begin(self, work: Work, selector: selectors.BaseSelector) -> None:
        """Start the present step of a program. Raises OSError or SandboxError where a worker is broken."""
        self.work, step = work, work.step
        roles = {"candidate": step.request} | ({"checker": step.checker} if step.checker else {})
        ends = socket.socketpair() if step.checker else ()
        try:
            for (role, request), end in zip(roles.items(), ends or (None,)):
                worker = self.worker(role)
                worker.send(request, [end.fileno()] if end else None)
                selector.register(worker.socket, selectors.EVENT_READ, (self, role))
        finally:
            for end in ends:
                end.close()
        work.answers, work.deadline = {}, time.monotonic() + step.seconds

    def take(self, role: str, selector: selectors.BaseSelector) -> bool:
        """Take what a worker sent; True when the step's answers are complete. Raises OSError where it is gone."""
        worker = self.workers[role]
        answer = worker.receive()
        if answer is not None:
            selector.unregister(worker.socket)
            self.work.answers[role] = answer
        return len(self.work.answers) == (2 if self.work.step.checker else 1)

    def dismiss(self, selector: selectors.BaseSelector | None = None) -> None:
        """End the workers and what they run. New ones are started when they are needed."""
        for worker in self.workers.values():
            if selector is not None:
                with contextlib.suppress(KeyError, ValueError):
                    selector.unregister(worker.socket)
            worker.close()
        self.workers, self.work = {}, None
