"""Makes `RELIABILITY.json`: every headline figure H1 to H19, measured by the tests that hold it, with its command.

`python -m tests.reliability.collect` runs what a change is tested with; `--nightly` the long versions; `--only H1 H2`
measures these and keeps what is known of the others. A figure that falls short is written down as such.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["FIGURES", "Figure", "main"]

ROOT = Path(__file__).resolve().parents[2]
TABLE = ROOT / "RELIABILITY.json"


@dataclass(frozen=True)
class Ran:
    """What a pytest run said: how many tests passed, failed and were skipped, seconds, and what tests wrote down."""

    passed: int
    failed: int
    skipped: int
    seconds: float
    parts: tuple[Mapping[str, Any], ...]

    def total(self, name: str) -> float:
        """A number of the parts, added up."""
        return sum(part[name] for part in self.parts if name in part)

    def largest(self, name: str) -> float:
        """The largest of a number of the parts."""
        return max((part[name] for part in self.parts if name in part), default=0)


@dataclass(frozen=True)
class Figure:
    """A headline figure: `tests` are pytest's arguments, of a night where that is longer; `measured` puts it in words,
    `holds` says whether the target is met, given that no test failed."""

    target: str
    tests: tuple[str, ...]
    measured: Callable[[Ran], str]
    holds: Callable[[Ran], bool] = lambda ran: True
    night: tuple[str, ...] = ()


def _count(ran: Ran, what: str) -> str:
    return f"{ran.passed} tests of {what} pass, {ran.failed} fail" + (f", {ran.skipped} skipped" if ran.skipped else "")


def _kills(ran: Ran) -> str:
    return (
        f"{ran.total('kills')} kills, {ran.total('resumed_from_a_checkpoint')} of them past a checkpoint: "
        f"{ran.total('different')} runs end differently, {ran.total('unresumable')} cannot go on; "
        f"{len({p['part'].rpartition('-')[0] for p in ran.parts})} trainers"
    )


def _save(ran: Ran) -> str:
    part = next(p for p in ran.parts if p["part"] == "save")
    count = part["killed"]["operations"]
    return (
        f"K = {count} operations: killed {count} of {count}, disk full {part['full']['operations']} of {count}, "
        f"other errors {sum(part[n]['operations'] for n in ('input/output_error', 'interrupted', 'read-only'))}; "
        f"{part['power_cut']['states']} states after power cuts, a complete checkpoint in each"
    )


KILLS = ("tests/reliability/test_kills.py",)
FIGURES: dict[str, Figure] = {
    "H1": Figure(
        "50 kills (1,000 nightly) over all trainers: 0 unresumable, 0 different, to the bit", KILLS, _kills,
        lambda ran: ran.total("kills") >= 50 and ran.total("different") == 0,
    ),
    "H2": Figure(
        "every operation of a save: killed, disk full, unsynced writes dropped: K of K",
        ("tests/reliability/test_disk.py",), _save,
    ),
    "H3": Figure(
        "over H1: 0 prompts lost, 0 used twice, 0 rewards paid twice", KILLS,
        lambda ran: f"{ran.total('kills')} kills: {ran.total('steps_lost')} steps lost, {ran.total('steps_twice')} "
        "twice; prompts, labels and reward calls that are booked equal the uninterrupted run's",
        lambda ran: ran.total("kills") >= 50,
    ),
    "H4": Figure(
        "100 or more cheating programs: 0 false passes",
        ("tests/sandbox/test_corpus.py",), lambda ran: _count(ran, "corpus, 600 or more pairs of attack and task each"),
    ),
    "H5": Figure(
        "every reference solution passes 3 times, also under fourfold load: 0 false fails",
        ("tests/sandbox/test_references.py",), lambda ran: _count(ran, "references"),
    ),
    "H6": Figure(
        "40 or more attacks contained, 0 canaries seen, 0 survivors, controls pass; the tier is stated",
        ("tests/sandbox/test_corpus.py", "tests/sandbox/test_tiers.py", "tests/sandbox/test_filter.py"),
        lambda ran: _count(ran, "containment (150 or more attacks on each strong tier of this machine)"),
    ),
    "H7": Figure(
        "60 or more malformed inputs: each refused with file and line before a model loads, 0 tracebacks",
        ("tests/data_reading/test_malformed_rows.py", "tests/test_commands.py", "-k",
         "malformed or bad or refused or told or Malformed or rows"),
        lambda ran: _count(ran, "malformed input"), lambda ran: ran.passed >= 60,
    ),
    "H8": Figure(
        "every worker and service fault: recovered, or a typed error within 30 s; 0 hangs",
        ("tests/reliability/test_workers.py", "tests/sandbox/test_broken.py", "tests/sandbox/test_pool.py",
         "tests/rewards/test_endpoint.py"),
        lambda ran: _count(ran, "faults of workers, sandbox and services"),
    ),
    "H9": Figure(
        "100 steps of every trainer twice: equal to the bit", ("tests/reliability/test_determinism.py",),
        lambda ran: f"{len(ran.parts)} trainers x {ran.largest('steps')} steps x 2 runs: {ran.total('different')} "
        "differ",
        lambda ran: len(ran.parts) >= 5 and ran.total("different") == 0,
    ),
    "H10": Figure(
        "rollout against trainer: 1e-5 a token, decode = prefill, first ratio within 1e-6",
        ("tests/rollout", "tests/models/test_scoring.py", "tests/training/test_gates.py",
         "tests/reliability/test_determinism.py"),
        lambda ran: f"largest gap of a token {ran.largest('gap'):.2g} over {ran.total('steps'):.0f} steps of PPO and "
        "RLOO; " + _count(ran, "rollouts, scoring and the first-ratio gate (1e-6)"),
        lambda ran: 0 < ran.largest("gap") <= 1e-5,
    ),
    "H11": Figure(
        "against TRL: losses 1e-5, gradient norms 1e-4 over 50 steps; PPO's parts 1e-10 against float64",
        ("tests/training/test_golden_trajectories.py", "tests/training/test_ppo_by_hand.py",
         "tests/training/test_ppo_beside_trl.py", "tests/algorithms/test_golden_vectors.py"),
        lambda ran: _count(ran, "recorded TRL trajectories and vectors"),
    ),
    "H12": Figure(
        "30 or more invariances, 200 examples each (5,000 nightly): 0 failures",
        ("tests/reliability/test_invariances.py",),
        lambda ran: f"{ran.largest('properties'):.0f} properties x {ran.largest('examples'):.0f} examples, "
        f"{ran.failed} failures",
        lambda ran: ran.largest("properties") >= 30,
    ),
    "H13": Figure(
        "60 or more public bugs put into our code, all caught; 85 % of 400 sampled faults seen",
        ("tests/museum",),
        lambda ran: f"{ran.total('caught'):.0f} of {ran.total('bugs'):.0f} public bugs caught; of "
        f"{ran.total('sampled'):.0f} sampled faults {ran.total('seen'):.0f} seen",
        lambda ran: ran.total("bugs") >= 60 and ran.total("caught") == ran.total("bugs")
        and ran.total("sampled") >= 400 and ran.total("seen") >= 0.85 * ran.total("sampled"),
        night=("tests/museum",),
    ),
    "H14": Figure(
        "25 or more payloads in every field of a report: 0 active nodes, no request",
        ("tests/reliability/test_outputs.py", "-k", "active"),
        lambda ran: f"{ran.total('payloads'):.0f} payloads, {ran.total('active'):.0f} active nodes; default-src 'none'",
        lambda ran: ran.total("payloads") >= 25,
    ),
    "H15": Figure(
        "10 malicious checkpoints of 10 refused unread; no pickle, eval or foreign code in the package",
        ("tests/reliability/test_unsafe_files.py",),
        lambda ran: f"{ran.total('refused'):.0f} of {ran.total('attacks'):.0f} malicious models refused; "
        f"{ran.passed} tests pass, {ran.failed} fail",
        lambda ran: ran.total("attacks") >= 10,
    ),
    "H16": Figure(
        "a stop in every phase is saved within 10 s: 20 of 20",
        ("tests/reliability/test_stops.py", "tests/test_commands.py", "-k", "stop or signal"),
        lambda ran: f"{ran.total('saved'):.0f} of {ran.total('stops'):.0f} stops, the slowest took "
        f"{ran.largest('slowest_seconds')} s",
        lambda ran: ran.total("stops") >= 20 and ran.total("saved") == ran.total("stops"),
        night=("nightly",),
    ),
    "H17": Figure(
        "0 secrets of the environment in any output", ("tests/reliability/test_outputs.py", "-k", "secret"),
        lambda ran: f"{ran.total('secrets'):.0f} secrets, {ran.total('commands'):.0f} commands: "
        f"{ran.total('hits'):.0f} hits",
        lambda ran: ran.total("commands") > 0 and ran.total("hits") == 0,
    ),
    "H18": Figure(
        "checkpoints cost 5 % of a run at most; a program 0.15 s, 15 programs a second and more on 2 cores",
        ("tests/reliability/test_cost.py",),
        lambda ran: f"checkpoints {100 * ran.largest('checkpoint_share'):.1f} % of the run; sandbox "
        f"{ran.largest('programs_a_second'):.0f} programs a second, {ran.largest('seconds_a_program'):.3f} s each",
        lambda ran: ran.largest("checkpoint_share") <= 0.05 and ran.largest("programs_a_second") >= 15
        and 0 < ran.largest("seconds_a_program") <= 0.15,
        night=("tests/reliability/test_cost.py",),
    ),
    "H19": Figure(
        "the tests of a change take 10 minutes at most; 20 repeats without a flake",
        ("tests",),
        lambda ran: f"{ran.passed} tests pass, {ran.failed} fail, {ran.skipped} skipped, in {ran.seconds / 60:.1f} "
        "minutes; 1 of the 20 repeats",
        lambda ran: False,  # one run is not twenty
    ),
}  # fmt: skip


def _run(arguments: tuple[str, ...], *, night: bool) -> Ran:
    marks = "nightly or not nightly" if night else "not nightly"
    with tempfile.TemporaryDirectory(prefix="figures-") as name:
        folder = Path(name)
        environment = os.environ | {"TRUELINE_FIGURES": name, "OMP_NUM_THREADS": "1"}
        if night:
            environment["TRUELINE_EXAMPLES"] = "5000"
        report = folder / "junit.xml"
        spread = "loadfile" if arguments == ("tests",) else "load"  # as `make test` does
        command = [sys.executable, "-m", "pytest", "-q", "-n", "2", "--dist", spread, "-m", marks, "-W", "error",
                   f"--junitxml={report}", *arguments]  # fmt: skip
        began = time.perf_counter()
        subprocess.run(command, cwd=ROOT, env=environment, stdout=sys.stderr)
        seconds = time.perf_counter() - began
        suite = next(ElementTree.parse(report).getroot().iter("testsuite"))
        bad = int(suite.get("failures", 0)) + int(suite.get("errors", 0))
        skipped = int(suite.get("skipped", 0))
        parts = tuple(json.loads(path.read_text()) for path in sorted(folder.glob("H*.json")))
        return Ran(int(suite.get("tests", 0)) - bad - skipped, bad, skipped, seconds, parts)


def _row(name: str, figure: Figure, ran: Ran, *, night: bool) -> dict[str, Any]:
    mine = Ran(ran.passed, ran.failed, ran.skipped, ran.seconds, tuple(p for p in ran.parts if p["figure"] == name))
    try:
        measured, holds = figure.measured(mine), mine.failed == 0 and mine.passed > 0 and figure.holds(mine)
    except (StopIteration, KeyError):
        measured, holds = f"nothing was measured: {_count(mine, 'this figure')}", False
    command = f"python -m tests.reliability.collect --only {name}{' --nightly' if night else ''}"
    day = datetime.datetime.now(datetime.UTC).date().isoformat()
    return {"id": name, "target": figure.target, "measured": measured, "passed": bool(holds), "command": command,
            "tests": " ".join(figure.tests), "date": day}  # fmt: skip


def main() -> None:
    """Measure, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=FIGURES, metavar="H1", help="measure these alone")
    parser.add_argument("--nightly", action="store_true", help="the long versions")
    given = parser.parse_args()
    rows = {row["id"]: row for row in json.loads(TABLE.read_text())["figures"]} if TABLE.exists() else {}
    ran: dict[tuple[str, ...], Ran] = {}
    for name in given.only or FIGURES:
        figure = FIGURES[name]
        night = given.nightly or bool(figure.night)
        if figure.tests not in ran:
            ran[figure.tests] = _run(figure.tests, night=night)
        rows[name] = _row(name, figure, ran[figure.tests], night=night)
        print(f"{name}: {'holds' if rows[name]['passed'] else 'SHORT'}: {rows[name]['measured']}", flush=True)
        figures = [rows[known] for known in FIGURES if known in rows]
        TABLE.write_text(json.dumps({"figures": figures}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
