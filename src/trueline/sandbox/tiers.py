"""Which tiers work on this machine: each is tried with programs of known verdict, and with attacks on canaries."""

from __future__ import annotations

import os
import secrets
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass

from ..errors import InputError
from .program import CallTest, Limits, Program, SandboxError
from .runs import judge_step, steps_of
from .worker import TIERS, Tier, Worker

__all__ = ["Control", "TierReport", "choose", "self_test"]

_REMEDY = (
    "install bubblewrap, or use a kernel with Landlock (5.13) and seccomp, or a container that permits them; "
    "unsafe=True runs the programs without a sandbox"
)
# What a candidate tries, as a function that returns what it got; anything but "refused" is an escape.
_ATTACK = """
import ctypes, os, socket
def attempt(action):
    try:
        return repr(action())
    except (OSError, MemoryError):
        return "refused"
def read(path):
    return attempt(lambda: open(path).read())
def write(path):
    return attempt(lambda: open(path, "w").write("x"))
def connect(_):
    return attempt(lambda: socket.socket())
def spawn(_):
    return attempt(lambda: os.fork() or os._exit(0))
def kill(pid):
    return attempt(lambda: os.kill(pid, 0))
def environment(_):
    return attempt(lambda: dict(os.environ)) if os.environ else "refused"
def honest(x):
    return x + 1
"""


@dataclass(frozen=True)
class Control:
    """One check of the self-test: what was tried, and whether it went as it must."""

    name: str
    held: bool
    seen: str


@dataclass(frozen=True)
class TierReport:
    """The self-test of every tier: `reasons[name]` is "" where it works, else why not; `best` is the first strong one
    that works, or None; `controls[name]` are its checks."""

    best: str | None
    reasons: dict[str, str]
    controls: dict[str, tuple[Control, ...]]

    @property
    def available(self) -> tuple[str, ...]:
        """Names of the tiers that work."""
        return tuple(name for name, reason in self.reasons.items() if not reason)


def self_test() -> TierReport:
    """Try all tiers now: an honest program passes, a wrong one fails, and no attack on a canary succeeds."""
    reasons, controls = {}, {}
    for tier in TIERS:
        reasons[tier.name], controls[tier.name] = _try(tier)
    best = next((tier.name for tier in TIERS if tier.strong and not reasons[tier.name]), None)
    return TierReport(best, reasons, controls)


def choose(name: str, unsafe: bool) -> tuple[Tier, tuple[Control, ...]]:
    """The tier to use, tried just now, and its controls. Raises InputError where it does not work or is too weak."""
    known = {tier.name: tier for tier in TIERS}
    if name not in known and name not in ("auto", "strong"):
        raise InputError(f"no tier is called {name!r}", field="tier", remedy=f"choose from auto, {', '.join(known)}")
    wanted = [tier for tier in TIERS if tier.strong] if name not in known else [known[name]]
    if name == "auto" and unsafe:
        wanted.append(known["unsafe"])
    reasons = []
    for tier in wanted:
        if not tier.strong and not unsafe:
            raise InputError(f"the tier {name} does not contain programs", field="tier", remedy="or give unsafe=True")
        reason, controls = _try(tier)
        if not reason:
            return tier, controls
        reasons.append(f"{tier.name}: {reason}")
    raise InputError(f"no sandbox holds here ({'; '.join(reasons)})", field="tier", remedy=_REMEDY)


def _try(tier: Tier) -> tuple[str, tuple[Control, ...]]:
    """Why a tier does not work ("" where it does), and its controls."""
    if not sys.platform.startswith("linux"):
        return "needs Linux (use a container or WSL 2)", ()
    try:
        worker = Worker(tier)
    except SandboxError as error:
        return str(error), ()
    try:
        controls = tuple(_controls(worker, tier))
    except (OSError, ValueError, SandboxError) as error:
        return str(error), ()
    finally:
        worker.close()
    return "; ".join(f"{c.name}: {c.seen}" for c in controls if not c.held), controls


def _controls(worker: Worker, tier: Tier) -> Iterator[Control]:
    token = secrets.token_hex(16)
    with tempfile.TemporaryDirectory() as folder:
        canary = os.path.join(folder, "canary")
        with open(canary, "w") as file:
            file.write(token)
        os.chmod(folder, 0o755)
        tests = [CallTest("honest", [41], 42), CallTest("honest", [41], 41)]
        if tier.strong:
            own = os.getpid()
            tries = {"read": canary, "write": canary, "connect": 0, "spawn": 0, "kill": own, "environment": 0}
            tests += [CallTest(name, [value], "refused") for name, value in tries.items()]
            tests += [CallTest("read", [f"/proc/{pid}/environ"], "refused") for pid in ("self", "1", str(own))]
        results = _run(worker, Program(_ATTACK, tuple(tests)))
        names = ["positive", "negative", *(test.function for test in tests[2:])]
        for name, result in zip(names, results, strict=True):
            held = result.passed != (name == "negative")
            yield Control(name, held, "" if held else f"{result.error} {result.detail}".replace(token, "<canary>"))
        with open(canary) as file:
            yield Control("canary", file.read() == token, "changed")


def _run(worker: Worker, program: Program):
    (step,) = steps_of(program, Limits())
    worker.send(step.request)
    while (answer := worker.receive()) is None:
        pass
    return judge_step(step, answer, None)
