"""SIGKILL anywhere, then the same command: the run ends as if nothing had happened, to the bit."""

from __future__ import annotations

import random
import shutil
import time
from pathlib import Path

import pytest
from tests.reliability.child import STEPS, TRAINERS, start, train
from tests.reliability.figures import record
from tests.training.small import contents, rows, small

KILLS = {"sft": 6, "reward": 7, "dpo": 8, "dpo-iter": 11, "ppo": 10, "rloo": 9}
MOST = 160  # nightly, of each trainer: 960 in all, and 40 of whole studies


def _run(method: str, directory: Path, world) -> object:
    cells = {name: str(cell) for name, cell in world.cells.items() if name != method}
    return start(train, method, str(directory), str(world.base), cells, _settings(method))


def _settings(method: str) -> dict:
    return small(method) | ({"steps": STEPS} if "steps" in small(method) else {})


def _whole(method: str, directory: Path, world) -> float:
    began = time.perf_counter()
    process = _run(method, directory, world)
    process.join(60)
    assert process.exitcode == 0
    return time.perf_counter() - began


@pytest.mark.integration
@pytest.mark.parametrize("method", TRAINERS)
def test_killed_at_random_points_and_again_while_resuming(method, tiny_world, tmp_path) -> None:
    _kill_and_compare(method, tiny_world, tmp_path, KILLS[method], seed=1)


@pytest.mark.nightly
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("method", TRAINERS)
def test_killed_at_many_random_points(method, tiny_world, tmp_path) -> None:
    _kill_and_compare(method, tiny_world, tmp_path, MOST, seed=2)


def _kill_and_compare(method: str, world, tmp_path: Path, kills: int, seed: int) -> None:
    """Kill runs of `method` until `kills` of them hit; every one must end like the run that was left alone.

    A run is killed three times before it may end. Each step's rows must be there once: no prompt is lost, none
    is used twice, and what was paid (labels, reward calls, prompts) is in `cost.json`, which is compared too.
    """
    reference = tmp_path / "whole"
    _whole(method, reference, world)  # the first one waits for the server too
    seconds = _whole(method, tmp_path / "timed", world)
    wanted, once = contents(reference), [row["step"] for row in rows(reference)]
    assert once == sorted(set(once)) and len(once) >= 4
    draw, hit, resumed = random.Random(f"{method} {seed}"), 0, 0
    while hit < kills:
        directory = tmp_path / "killed"
        shutil.rmtree(directory, ignore_errors=True)
        for _ in range(3):
            process = _run(method, directory, world)
            if draw.random() < 0.5:  # half of them where there is something to go on from
                _wait_for_a_checkpoint(directory, process)
            time.sleep(draw.uniform(0.0, seconds))
            process.kill()
            process.join(60)
            struck = process.exitcode != 0
            hit, resumed = hit + struck, resumed + (struck and any(directory.glob("checkpoints/step-*")))
        _whole(method, directory, world)
        assert contents(directory) == wanted
        assert [row["step"] for row in rows(directory)] == once
    record("H1", f"{method}-{kills}", kills=hit, resumed_from_a_checkpoint=resumed, different=0, unresumable=0)
    record("H3", f"{method}-{kills}", kills=hit, steps_lost=0, steps_twice=0)
    assert resumed  # not all were killed before their first checkpoint


def _wait_for_a_checkpoint(directory: Path, process) -> None:
    while process.is_alive() and not any(directory.glob("checkpoints/step-*")):
        time.sleep(0.002)


@pytest.mark.integration
def test_the_comparison_sees_a_run_that_lost_its_optimiser(tiny_world, tmp_path) -> None:
    """Positive control: where a checkpoint holds less, the end is another one."""
    wanted = tmp_path / "whole"
    _whole("dpo", wanted, tiny_world)
    cells = {name: str(cell) for name, cell in tiny_world.cells.items()}
    process = start(_forgetful, str(tmp_path / "lost"), str(tiny_world.base), cells)
    process.join(60)
    assert process.exitcode == 0
    assert contents(tmp_path / "lost") != contents(wanted)


def _forgetful(directory: str, base: str, cells: dict[str, str]) -> None:
    """A run that stops halfway and goes on without its optimiser's moments."""
    from trueline.runs.checkpoint import OptimizerState
    from trueline.training import stage

    save = stage.Stage._save

    def stop(self, folder, done):
        save(self, folder, done)
        raise KeyboardInterrupt

    stage.Stage._save = stop
    try:
        train("dpo", directory, base, cells, small("dpo"))
    except KeyboardInterrupt:
        stage.Stage._save = save
    OptimizerState.load = lambda self, state: None
    train("dpo", directory, base, cells, small("dpo"))
