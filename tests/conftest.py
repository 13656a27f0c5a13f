"""Fixtures that several parts share: a tiny world whose stages are trained once, by the pages themselves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that train come first: the many short ones then fill the time until the last long one is over."""
    long = {item.path for item in items if item.get_closest_marker("integration")}
    items.sort(key=lambda item: item.path not in long)


@dataclass
class TinyWorld:
    """A world, its base folder, and the cells of the stages that others start from. `lengths` are the limits of prompts
    and responses, in tokens."""

    task: Any
    base: Path
    cells: dict[str, Path] = field(default_factory=dict)
    lengths: tuple[int, int] = (24, 40)

    def stage(self, method: str, directory: Path, *, seed: int = 0, inputs: Mapping[str, Path] | None = None,
              report: Any = None, task: Any = None, charged: tuple[str, ...] = (),
              lengths: tuple[int, int] | None = None, rollout: Mapping[str, Any] | None = None,
              checkpoints: tuple[Path, Path] | None = None, **limits: Any) -> Any:  # fmt: skip
        """A stage in `directory` with every earlier cell as an input; `limits` are those of `training.stage.Limits`."""
        from trueline.data.chat import ChatTokenizer
        from trueline.rollout.settings import RolloutSettings
        from trueline.runs.cell import Cell
        from trueline.training.stage import Limits, Stage

        cell = Cell(directory)
        cell.open({"method": method, "seed": seed})
        if checkpoints is not None:
            cell.checkpoints, cell.stopped = checkpoints
        given = {"shape": self.base / "shape.json", **self.cells} | dict(inputs or {})
        limits = {"micro_tokens": 1536, "snapshots": 2} | limits
        return Stage(
            method, seed, task or self.task, cell, ChatTokenizer.load(self.base / "tokenizer"),
            Limits(*(lengths or self.lengths), **limits), inputs=given, charged=charged,
            report=report or (lambda progress: None), rollout=RolloutSettings(**(rollout or {})),
        )  # fmt: skip

    def run(self, method: str, directory: Path, settings: Mapping[str, Any] | None = None, **more: Any) -> Path:
        """Train one page with `settings` over its own defaults; returns the cell."""
        from trueline.training.pages import page

        stage = self.stage(method, directory, **more)
        page(method).train(page(method).Config(**(settings or {})), stage)
        return directory


@pytest.fixture(scope="session")
def tiny_world(tmp_path_factory: pytest.TempPathFactory) -> TinyWorld:
    """SFT (taught well enough to answer in sentences), pairs and reward model of the dialogue world at seed 0."""
    import torch

    from trueline.study.execute import prepare_base
    from trueline.study.settings import Model
    from trueline.tasks.dialogue import Config, Dialogue

    torch.set_num_threads(1)
    directory = tmp_path_factory.mktemp("tiny-world")
    task = Dialogue(Config(demonstrations=800, pairs=120))
    world = TinyWorld(task, prepare_base(directory, task, {"model": Model()}))
    fast = {"batch_size": 32, "learning_rate": 1e-2}
    world.cells["sft"] = world.run("sft", directory / "sft", {"epochs": 3.0, **fast})
    world.cells["pairs"] = world.run("pairs", directory / "pairs")
    world.cells["reward"] = world.run(
        "reward", directory / "reward", {"epochs": 4.0, "batch_size": 32, "learning_rate": 3e-3}
    )
    return world


@pytest.fixture(scope="session")
def tiny_code(tmp_path_factory: pytest.TempPathFactory) -> TinyWorld:
    """SFT (taught well enough that some of its programs pass) and pairs of the code world at seed 0."""
    import torch

    from trueline.study.execute import prepare_base
    from trueline.study.settings import Model
    from trueline.tasks.code import Code
    from trueline.tasks.code_world import Dials
    from trueline.tasks.execution import Execution

    torch.set_num_threads(1)
    directory = tmp_path_factory.mktemp("tiny-code")
    task, lengths = Code(Dials(demonstrations=1600, pairs=20, samples_per_prompt=3), Execution()), (52, 64)
    model = Model(max_prompt_tokens=lengths[0], max_new_tokens=lengths[1])
    world = TinyWorld(task, prepare_base(directory, task, {"model": model}), lengths=lengths)
    world.cells["sft"] = world.run("sft", directory / "sft", {"epochs": 2.0, "batch_size": 32, "learning_rate": 1e-2})
    world.cells["pairs"] = world.run("pairs", directory / "pairs")
    return world
