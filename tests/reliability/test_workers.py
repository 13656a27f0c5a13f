"""Worker processes that die: replaced, and the run ends as if none had; where they die always, an error in time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.program import ENVIRONMENT, trueline
from tests.reliability.figures import record
from tests.training.small import contents

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds the workers in /proc"),
]

STAGE = (
    "dpo", "dialogue", "--seeds", "0", "world.demonstrations=400", "world.pairs=120", "sft.epochs=2", "dpo.epochs=4",
    "dpo.batch_size=8",
    "sft.batch_size=32", "train.snapshots=4", "train.workers=2", "-o", "run",
)  # fmt: skip


def _started(folder: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "trueline", *STAGE]
    return subprocess.Popen(command, cwd=folder, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=-1, text=True)


def _workers(pid: int) -> list[int]:
    """The processes below that compute: those that a spawn made."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in task.read_text().split():
            try:
                if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes():
                    found.append(int(child))
            except OSError:
                pass
    return found


def _alive(pids: set[int]) -> set[int]:
    return {pid for pid in pids if Path(f"/proc/{pid}").exists()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """The cells of the run that was left alone."""
    folder = tmp_path_factory.mktemp("whole")
    ended = trueline(*STAGE, cwd=folder)
    assert ended.returncode == 0, ended.stderr
    return folder / "run" / "cells"


def test_a_worker_that_is_killed_at_work_is_replaced_and_changes_nothing(whole, tmp_path) -> None:
    process, killed = _started(tmp_path), 0
    rows = tmp_path / "run" / "cells"
    seen: set[int] = set()
    for wanted in (6, 27):  # steps that were logged: once in SFT, which has 25, once in DPO
        while sum(log.read_bytes().count(b"\n") for log in rows.glob("*/metrics.jsonl")) < wanted:
            assert process.poll() is None
            time.sleep(0.005)
        workers = _workers(process.pid)
        seen |= set(workers)
        for worker in workers:
            os.kill(worker, signal.SIGKILL)
            killed += 1
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert killed >= 2 and not _alive(seen)
    incidents = [json.loads(line) for line in (tmp_path / "run" / "incidents.jsonl").read_text().splitlines()]
    assert [row["what"] for row in incidents] == ["a worker process died"] * 2
    names = {path.name for path in whole.iterdir()}
    assert {path.name for path in rows.iterdir()} == names
    for name in names:
        assert contents(rows / name) == contents(whole / name)
    record("H8", "killed", faults=killed, recovered=killed)


def test_workers_that_always_die_end_the_run_in_time(tmp_path) -> None:
    process, began, seen = _started(tmp_path), time.monotonic(), set()
    while process.poll() is None and time.monotonic() - began < 60:
        for worker in _workers(process.pid):
            seen.add(worker)
            os.kill(worker, signal.SIGKILL)
        time.sleep(0.02)
    _, err = process.communicate(timeout=10)
    seconds = time.monotonic() - began
    assert process.returncode == 1 and seconds < 30, err
    assert "worker processes died 3 times without finishing a cell" in err and "Traceback" not in err
    assert not _alive(seen)
    record("H8", "always", faults=1, told=1, seconds=round(seconds, 1))


def test_no_worker_outlives_a_program_that_was_killed(tmp_path) -> None:
    process, workers = _started(tmp_path), []
    while not workers or not list((tmp_path / "run" / "cells").glob("*/metrics.jsonl")):
        workers = _workers(process.pid)
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.communicate(timeout=10)
    end = time.monotonic() + 5
    while _alive(set(workers)) and time.monotonic() < end:
        time.sleep(0.02)
    assert not _alive(set(workers))
    record("H8", "orphans", faults=1, recovered=1)


@pytest.mark.nightly
def test_how_many_workers_there_are_changes_nothing(whole, tmp_path) -> None:
    ended = trueline(*STAGE, "train.workers=1", cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    cells = tmp_path / "run" / "cells"
    for cell in whole.iterdir():
        assert contents(cells / cell.name) == contents(cell)
