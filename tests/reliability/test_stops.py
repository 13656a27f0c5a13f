"""SIGTERM while a method trains: the running step is ended and saved, and the run goes on to the same end."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from tests.reliability.child import TRAINERS, start, train
from tests.reliability.figures import record
from tests.training.small import contents, rows, small

from trueline.runs import checkpoint, stopping

MOMENTS = (1, 2, 3)  # the row of the log after which the signal comes


@pytest.mark.integration
@pytest.mark.parametrize("method", TRAINERS)
def test_a_stop_is_saved_within_seconds_and_changes_nothing(method, tiny_world, tmp_path) -> None:
    cells = {name: str(cell) for name, cell in tiny_world.cells.items() if name != method}
    settings = small(method) | ({"steps": 8} if "steps" in small(method) else {})
    run = (method, str(tmp_path / "whole"), str(tiny_world.base), cells, settings)
    whole = start(train, *run)
    whole.join(60)
    assert whole.exitcode == 0
    saved, slowest = 0, 0.0
    for moment in MOMENTS:
        directory = tmp_path / f"stopped{moment}"
        process = start(_train_until_told, *(method, str(directory), *run[2:]))
        _wait_for_row(directory, moment, process)
        began = time.monotonic()
        os.kill(process.pid, signal.SIGTERM)
        process.join(30)
        slowest = max(slowest, time.monotonic() - began)
        assert process.exitcode == 143
        step = checkpoint.newest(directory / "checkpoints", directory / "stopped").step
        assert step >= moment and [row["step"] for row in rows(directory)] == list(range(1, step + 1))
        saved += 1
        again = start(train, *(method, str(directory), *run[2:]))
        again.join(60)
        assert again.exitcode == 0
        assert contents(directory) == contents(tmp_path / "whole")
    assert saved == len(MOMENTS) and slowest < stopping.PATIENCE
    record("H16", method, stops=saved, saved=saved, slowest_seconds=round(slowest, 2))


def _wait_for_row(directory: Path, count: int, process) -> None:
    log, end = directory / "metrics.jsonl", time.monotonic() + 60
    while not log.exists() or log.read_bytes().count(b"\n") < count:
        assert process.is_alive() and time.monotonic() < end
        time.sleep(0.001)


def _train_until_told(method: str, directory: str, base: str, cells: dict[str, str], settings: dict) -> None:
    """As a worker of a study does: leave with 143 where a stop was saved."""
    stopping.in_worker()
    try:
        with stopping.saves_itself():
            _slowed()
            train(method, directory, base, cells, settings)
    except stopping.Stopped:
        os._exit(143)


def _slowed() -> None:
    """A moment between steps: the signal is to come while the run is at work, and these runs are short."""
    from trueline.training.stage import Stage

    may_step = Stage.may_step

    def slow(self, step, total):
        time.sleep(0.1)
        return may_step(self, step, total)

    Stage.may_step = slow
