"""`trueline bench sandbox`: programs that the sandbox judges a second on this machine, beside plain subprocesses."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from trueline.sandbox import AssertTest, CallTest, Pool, Program, StdioTest

__all__ = ["bench_sandbox", "sandbox_record"]

_ROUNDS = 5

_HONEST = "def f(xs):\n    total = 0\n    for x in xs:\n        total += x * x\n    return total\n"
_CASES = ([1, 2], 5), ([], 0), ([3, 1, 2, 5], 39)
_CALLS = tuple(CallTest("f", [xs], total) for xs, total in _CASES)
_ASSERTS = "\n".join(f"assert f({xs}) == {total}" for xs, total in _CASES) + "\n"
_SUM = "print(sum(int(x) ** 2 for x in input().split()))\n"
_RUNS = tuple(StdioTest(" ".join(map(str, xs)) + "\n", f"{total}\n") for xs, total in _CASES)
_WRONG = _HONEST.replace("x * x", "x")
_RAISES = _HONEST.replace("x * x", "y")
_SYNTAX = _HONEST.replace("return", "retrun")
_OUTCOMES = ["pass ", "fail wrong", "fail runtime", "fail syntax"]

# name -> (what it is, programs, their verdicts in turn)
_KINDS: dict[str, tuple[str, list[Program], list[str]]] = {
    "calls": (
        "3 calls: right, wrong, raising, no Python in turn",
        [Program(source, _CALLS) for source in (_HONEST, _WRONG, _RAISES, _SYNTAX)],
        _OUTCOMES,
    ),
    "calls, honest": ("3 calls, all right", [Program(_HONEST, _CALLS)], _OUTCOMES[:1]),
    "stdio": ("3 runs of a script", [Program(_SUM, _RUNS)], _OUTCOMES[:1]),
    "asserts": (
        "a script of 3 asserts in a process of its own",
        [Program(_HONEST, (AssertTest(_ASSERTS),))],
        ["pass "],
    ),
}


def bench_sandbox(console: Console, as_json: bool, count: int = 300) -> dict[str, Any]:
    """Measure the sandbox on this machine: seconds to start, and for each kind of program how many are judged a second
    on one worker and on all cores. The peer is a plain interpreter for each honest program: no wall, no limit.

    A table is printed unless `as_json`. Raises InputError where no strong tier works, and RuntimeError where a verdict
    is not the known one: a speed without it means nothing.
    """
    cores = len(os.sched_getaffinity(0))
    tier, start, first = _start()
    kinds = {
        name: _row(text, count, cores, partial(_judge, programs, outcomes))
        for name, (text, programs, outcomes) in _KINDS.items()
    }
    peer = _peer("python -I FILE for each honest program, no sandbox", max(8, count // 10), cores)
    ratios = {key: kinds["calls, honest"][key] / peer[key] for key in ("per_second_1", "per_second_all")}
    rounds = _in_turn(count)
    found = {
        "tier": tier, "cores": cores, "programs": count, "start_seconds": start, "first_verdict_seconds": first,
        "kinds": kinds, "subprocess": peer, "times_subprocess": ratios, "rounds": rounds,
    }  # fmt: skip
    if not as_json:
        _show(console, found)
    return found


def sandbox_record(found: dict[str, Any]) -> dict[str, Any]:
    """The figures of `bench_sandbox` as the record of a comparison: seconds are those of one program on one worker."""
    from trueline.benchmarks.comparison import spread, today
    from trueline.benchmarks.machine import describe
    from trueline.study.identity import versions

    seconds = {side: [pair[side] for pair in found["rounds"]] for side in ("ours", "peer")}
    ratios = [pair["peer"] / pair["ours"] for pair in found["rounds"]]
    about = {
        "ours": {"what": f"sandbox, tier {found['tier']}", **found["kinds"]["calls, honest"]},
        "peer": dict(found["subprocess"]),
    }
    sides = {
        side: row | {"seconds": spread(seconds[side]) | {"all": seconds[side]}, "cpu_seconds": row["cpu_ms"] / 1000}
        for side, row in about.items()
    }
    return {
        "name": "sandbox", "against": "subprocess", **sides, "ratio": spread(ratios) | {"all": ratios},
        "equal": {"what": "every verdict is the known one", "agrees": True}, "rounds": len(ratios),
        "work": {"programs": found["programs"], "start_seconds": found["start_seconds"], "kinds": found["kinds"]},
        "machine": describe("cpu", 1), "versions": {"ours": versions(), "peer": {"python": platform.python_version()}},
        "date": today(),
    }  # fmt: skip


def _in_turn(count: int) -> list[dict[str, float]]:
    """Seconds of one honest program in the sandbox and in a plain interpreter on one worker, in turn."""
    programs, outcomes = _KINDS["calls, honest"][1:]
    plain = max(8, count // 10)
    rounds = []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "program.py")
        file.write_text(_HONEST + _ASSERTS, encoding="utf-8")
        for _ in range(_ROUNDS):
            ours = _judge(programs, outcomes, 1, count) / count
            rounds.append({"ours": ours, "peer": _plain(file, 1, plain) / plain})
    return rounds


def _row(text: str, count: int, cores: int, work: Callable[[int, int], float]) -> dict[str, Any]:
    """Programs a second of `work(workers, count) -> seconds`, and processor milliseconds of one in all processes that
    it took; what a start takes, with no program, is taken off those."""
    before = _used()
    work(1, 0)
    between = _used()
    one = work(1, count)
    cpu = _used() - between - (between - before)
    many = work(cores, count) if cores > 1 else one
    found = {"per_second_1": count / one, "per_second_all": count / many, "cpu_ms": 1000 * max(0.0, cpu) / count}
    return {"what": text} | found


def _start() -> tuple[str, float, float]:
    """The tier, seconds until a pool is there with its self-test done, and until it has given its first verdict."""
    begun = time.perf_counter()
    with Pool(1) as pool:
        ready = time.perf_counter() - begun
        list(pool.judge([Program(_HONEST, _CALLS)]))
        return pool.tier, ready, time.perf_counter() - begun


def _judge(programs: Sequence[Program], outcomes: Sequence[str], workers: int, count: int) -> float:
    """Judge `count` programs on warm workers; seconds without the start."""
    work = [programs[n % len(programs)] for n in range(count)]
    with Pool(workers) as pool:
        list(pool.judge(list(programs) * workers))
        begun = time.perf_counter()
        verdicts = [f"{verdict.outcome} {verdict.error}" for verdict in pool.judge(work)]
        seconds = time.perf_counter() - begun
        incidents = pool.incidents
    if verdicts != [outcomes[n % len(outcomes)] for n in range(count)] or incidents:
        raise RuntimeError(f"the sandbox misjudged a program of the benchmark: {sorted(set(verdicts))}, {incidents}")
    return seconds


def _used() -> float:
    """Processor seconds of this process and of its children that have ended."""
    spent = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in spent)


def _peer(text: str, count: int, cores: int) -> dict[str, Any]:
    """The honest program with its asserts as a file, by an interpreter of its own each time: exit code 0 is a pass."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "program.py")
        file.write_text(_HONEST + _ASSERTS, encoding="utf-8")
        return _row(text, count, cores, partial(_plain, file))


def _plain(file: Path, workers: int, count: int) -> float:
    def run(_: int) -> int:
        return subprocess.run([sys.executable, "-I", str(file)], capture_output=True, timeout=60).returncode

    with ThreadPoolExecutor(workers) as threads:
        begun = time.perf_counter()
        codes = list(threads.map(run, range(count)))
        seconds = time.perf_counter() - begun
    if any(codes):
        raise RuntimeError("the honest program of the benchmark fails in a plain interpreter")
    return seconds


def _show(console: Console, found: dict[str, Any]) -> None:
    console.print(
        f"tier {found['tier']}; start with self-test {found['start_seconds']:.2f} s, "
        f"first verdict after {found['first_verdict_seconds']:.2f} s"
    )
    table = Table(title=f"{found['programs']} programs of each kind")
    for name in ("", "programs/s, 1 worker", f"programs/s, {found['cores']} cores", "CPU ms a program", "what"):
        table.add_column(name, justify="left" if name in ("", "what") else "right")
    for name, row in [*found["kinds"].items(), ("subprocess", found["subprocess"])]:
        table.add_row(
            name, f"{row['per_second_1']:.0f}", f"{row['per_second_all']:.0f}", f"{row['cpu_ms']:.1f}", row["what"]
        )
    console.print(table)
    one, many = found["times_subprocess"].values()
    console.print(
        f"honest calls against plain subprocesses: {one:.1f} times as many on 1 worker, {many:.1f} on all cores"
    )
