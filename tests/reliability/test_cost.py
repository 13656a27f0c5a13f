"""What safety costs: checkpoints as a share of a run, and the sandbox. Measured, and asserted nowhere in a test of a
change: a busy machine is no fault."""

from __future__ import annotations

import time

import pytest
from rich.console import Console
from tests.reliability.figures import record
from tests.training.small import small

from trueline.commands.bench import bench_sandbox
from trueline.training.stage import Stage

pytestmark = pytest.mark.nightly


def test_checkpoints_of_a_run_at_the_default_interval(tiny_world, tmp_path, monkeypatch) -> None:
    """Eight checkpoints in sixty PPO steps of 128 responses."""
    spent, save = [0.0], Stage._save

    def timed(self, folder, done):
        began = time.perf_counter()
        save(self, folder, done)
        spent[0] += time.perf_counter() - began

    monkeypatch.setattr(Stage, "_save", timed)
    settings = small("ppo") | {"steps": 60, "batch_size": 128, "minibatches": 4}
    began = time.perf_counter()
    tiny_world.run("ppo", tmp_path / "ppo", settings, snapshots=8)
    whole = time.perf_counter() - began
    record("H18", "checkpoints", checkpoint_share=round(spent[0] / whole, 4), seconds=round(whole, 2))
    assert 0 < spent[0] < whole


def test_programs() -> None:
    found = bench_sandbox(Console(quiet=True), True, 200)["kinds"]["calls, honest"]
    record(
        "H18", "sandbox", programs_a_second=round(found["per_second_all"], 1),
        seconds_a_program=round(1 / found["per_second_1"], 4),
    )  # fmt: skip
    assert found["per_second_all"] > 0
