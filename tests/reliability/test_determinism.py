"""The same command on the same machine: a hundred steps of every trainer, twice, equal to the last bit."""

from __future__ import annotations

import pytest
from tests.reliability.child import TRAINERS, start, train
from tests.reliability.figures import record
from tests.training.small import contents, rows, small

STEPS = 100


@pytest.mark.integration
@pytest.mark.parametrize(
    "method", [pytest.param(m, marks=pytest.mark.nightly) if m in ("dpo-iter", "rloo") else m for m in TRAINERS]
)
def test_a_hundred_steps_twice(method, tiny_world, tmp_path) -> None:
    cells = {name: str(cell) for name, cell in tiny_world.cells.items() if name != method}
    long = {"steps": STEPS, "epochs": 100.0, "rounds": 50}
    fields = small(method) | {k: v for k, v in long.items() if k in small(method) or k == "epochs"}
    if method in ("ppo", "rloo", "dpo-iter"):  # epochs are passes over a batch there
        fields.pop("epochs", None)
    runs = [
        start(train, method, str(tmp_path / name), str(tiny_world.base), cells, fields, STEPS) for name in ("a", "b")
    ]
    for run in runs:
        run.join(200)
        assert run.exitcode == 0
    steps = rows(tmp_path / "a")
    assert len(steps) == STEPS and contents(tmp_path / "a") == contents(tmp_path / "b")
    assert len({row[next(k for k in row if "loss" in k)] for row in steps}) > STEPS // 2  # the curves move
    record("H9", method, steps=STEPS, runs=2, different=0)
    if "objective/engine_gap" in steps[0]:
        record("H10", method, gap=max(row["objective/engine_gap"] for row in steps), steps=STEPS)
