"""What the reliability tests run in processes of their own: they are killed, their disk fails, their power is cut."""

from __future__ import annotations

from collections.abc import Mapping
from multiprocessing import get_context
from pathlib import Path
from typing import Any

__all__ = ["STEPS", "TRAINERS", "start", "train"]

TRAINERS = ("sft", "reward", "dpo", "dpo-iter", "ppo", "rloo")
"""Every trainer whose run must survive a kill."""

STEPS = 8


def start(function: Any, *arguments: Any) -> Any:
    """A process that runs `function`, forked from a server in which everything is imported and nothing has run."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["tests.reliability.ready"])
    process = context.Process(target=function, args=arguments)
    process.start()
    return process


def train(
    method: str,
    directory: str,
    base: str,
    cells: Mapping[str, str],
    settings: Mapping[str, Any],
    steps: int = STEPS,
) -> None:
    """Run one page to its end (at most `steps` steps), going on with what the directory holds."""
    import torch
    from tests.conftest import TinyWorld
    from tests.reliability.ready import TASK

    torch.set_num_threads(1)
    world = TinyWorld(TASK, Path(base), {name: Path(cell) for name, cell in cells.items()})
    world.run(method, Path(directory), settings, max_steps=steps, snapshots=4)
