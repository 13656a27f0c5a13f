"""Runs the corpus on one tier and prints a JSON report; a process of its own, so that it can be another user's.

`python attack.py TIER [--unsafe-cases]`: with the flag only the cases that get through where there is no sandbox.
"""

from __future__ import annotations

import ctypes
import json
import os
import secrets
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trueline.sandbox
from trueline.sandbox import AssertTest, CallTest, Limits, Pool, Program, StdioTest, Test

HERE = Path(__file__).parent
LIMITS = Limits(cpu_seconds=0.4, wall_seconds=1.2, memory_bytes=256 << 20)


@dataclass(frozen=True)
class Pair:
    """One attack on one task: what is run, and the outcomes that are right."""

    case: str
    task: str
    program: Program
    outcomes: list[str]


def tests_of(task: dict[str, Any]) -> tuple[Test, ...]:
    if "script" in task:
        return (AssertTest(task["script"]),)
    if "runs" in task:
        return tuple(StdioTest(given, wanted) for given, wanted in task["runs"])
    tolerance = task.get("tolerance", 0.0)
    return tuple(CallTest(task["function"], args, wanted, tolerance) for args, wanted in task["calls"])


def pairs(places: dict[str, str], unsafe: bool = False) -> Iterator[Pair]:
    """The corpus, with the places of the canaries filled in."""
    tasks = json.loads((HERE / "tasks.json").read_text(encoding="utf-8"))
    for folder in sorted((HERE / "corpus").iterdir()):
        case = json.loads((folder / "case.json").read_text(encoding="utf-8"))
        if unsafe and not case["unsafe"]:
            continue
        source = (folder / "program.txt").read_text(encoding="utf-8")
        for name, value in places.items():
            source = source.replace(f"@{name}@", value)
        if "expand" in case:
            text, times = case["expand"]
            source = source.replace("@BOMB@", text * times)
        for name in case["tasks"]:
            task = tasks[name]
            program = Program(source, tests_of(task), task.get("prelude", ""), task.get("entry", ""))
            yield Pair(folder.name, name, program, case["outcomes"])


def children() -> list[str]:
    """Processes whose parent is this one, orphans of its descendants included (it adopts them)."""
    found = []
    for thread in Path("/proc/self/task").iterdir():
        found += (thread / "children").read_text().split()
    return found


def main(tier: str, unsafe: bool) -> dict[str, Any]:
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # adopt orphans
    token = secrets.token_hex(16)
    os.environ["TRUELINE_CANARY"] = token
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o777)
        canary = Path(folder, "canary")
        canary.write_text(token)
        canary.chmod(0o666)
        places = {"CANARY": str(canary), "FOLDER": folder, "PARENT": str(os.getpid()), "TOKEN": "-"}
        places |= {"PACKAGE": trueline.sandbox.__file__, "SITE": sysconfig.get_path("purelib")}
        corpus = list(pairs(places, unsafe))
        with Pool(2, LIMITS, tier, unsafe=unsafe) as pool:
            verdicts = list(pool.judge(pair.program for pair in corpus))
            found = {"tier": pool.tier, "incidents": pool.incidents}
        left = sorted(os.listdir(folder))
        changed = canary.read_text() != token or left != ["canary"] or canary.stat().st_mtime < 1e9
    rows = []
    for pair, verdict in zip(corpus, verdicts, strict=True):
        right = verdict.outcome in pair.outcomes
        seen = token in repr(verdict)
        row = {"case": pair.case, "task": pair.task, "right": right, "seen": seen, "seconds": verdict.seconds}
        rows.append(row | {"outcome": verdict.outcome, "error": verdict.error, "detail": verdict.detail[:200]})
    return found | {"rows": rows, "changed": changed, "survivors": children(), "uid": os.geteuid()}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], "--unsafe-cases" in sys.argv)))
