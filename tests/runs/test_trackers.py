"""Trackers get the metrics of our own logs; none asks to log in, and one that fails ends nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests.program import ENVIRONMENT

from trueline.errors import InputError
from trueline.runs import trackers
from trueline.runs.trackers import NAMES, Trackers, check_trackers

# Each in a process of its own: the libraries keep threads, services and settings for the life of a process.
LOG = """
import sys
from pathlib import Path
from trueline.runs.trackers import Trackers

told = []
found = Trackers(sys.argv[1:2], Path(sys.argv[2]), "dpo, seed 0", {"beta": 0.1}, told.append)
for step in (1, 2, 3):
    found.log({"loss": 1.0 / step, "bad": float("nan"), "text": "x", "spent/flops": 10 * step}, step)
found.close()
assert not told, told
"""
READ = """
import json, sys
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
found = EventAccumulator(sys.argv[1]); found.Reload()
print(json.dumps({tag: [[e.step, e.value] for e in found.Scalars(tag)] for tag in found.Tags()["scalars"]}))
"""


def run(code: str, *arguments: str) -> str:
    bare = {k: v for k, v in ENVIRONMENT.items() if not k.startswith(("WANDB_", "TRACKIO_"))}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=120, env=bare,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_tensorboard_holds_the_curves(tmp_path) -> None:
    assert run(LOG, "tensorboard", str(tmp_path)) == ""
    curves = json.loads(run(READ, str(tmp_path / "trackers" / "tensorboard" / "dpo, seed 0")))
    assert set(curves) == {"loss", "spent/flops"}
    assert curves["loss"] == [[1, 1.0], [2, 0.5], [3, pytest.approx(1 / 3)]]


def test_wandb_writes_an_offline_run_and_asks_nothing(tmp_path) -> None:
    assert run(LOG, "wandb", str(tmp_path)) == ""
    (folder,) = (tmp_path / "trackers" / "wandb").glob("offline-run-*")
    data = next(folder.glob("*.wandb")).read_bytes()
    assert b"dpo, seed 0" in data and b"loss" in data and b"spent/flops" in data


def test_trackio_holds_the_curves(tmp_path) -> None:
    import sqlite3

    assert run(LOG, "trackio", str(tmp_path)) == ""
    with sqlite3.connect(tmp_path / "trackers" / "trackio" / "trueline.db") as base:
        rows = base.execute("select step, metrics from metrics order by step").fetchall()
    assert [(step, json.loads(metrics)["loss"]) for step, metrics in rows] == [
        (1, 1.0),
        (2, 0.5),
        (3, pytest.approx(1 / 3)),
    ]


class _Broken:
    def __init__(self, folder: Path, run: str, settings: dict) -> None:
        if settings.get("fails") == "open":
            raise OSError("no space left")

    def log(self, metrics: dict, step: int) -> None:
        raise ConnectionError("the server is away")

    def close(self) -> None:
        raise AssertionError("it was left out")


@pytest.mark.parametrize(("when", "told"), [("open", "OSError: no space left"), ("log", "ConnectionError: the server")])
def test_a_tracker_that_fails_is_told_once_and_left_out(monkeypatch, tmp_path, when, told) -> None:
    monkeypatch.setitem(trackers._KINDS, "wandb", _Broken)
    heard: list[str] = []
    found = Trackers(["wandb"], tmp_path, "run", {"fails": when}, heard.append)
    for step in (1, 2):
        found.log({"loss": 1.0}, step)
    found.close()
    assert len(heard) == 1 and told in heard[0] and heard[0].startswith("wandb was left out")


def test_a_tracker_that_is_not_installed_is_told_before_anything_runs(monkeypatch) -> None:
    check_trackers(NAMES)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="tensorboard is not installed"):
        check_trackers(["tensorboard"])
