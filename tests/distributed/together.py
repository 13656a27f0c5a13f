"""Runs of a page by several processes, as torchrun starts them, in double precision."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.reliability.child import start

from trueline.distributed.sharding import full

__all__ = ["join_all", "run_together", "together"]


def run_together(size: int, method: str, directory: Path, world: Any, settings: Mapping[str, Any], **more: Any) -> None:
    """Train one page with `size` processes; AssertionError where one of them fails."""
    cells = {name: str(cell) for name, cell in world.cells.items() if name != method}
    assert join_all(together(size, method, directory, str(world.base), cells, settings, **more)) == [0] * size


def together(
    size: int,
    method: str,
    directory: Path,
    base: str,
    cells: Mapping[str, str],
    settings: Mapping[str, Any],
    **more: Any,
) -> list[Any]:
    """The processes, started."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
    arguments = (method, str(directory), base, dict(cells), dict(settings), more)
    return [start(_process, rank, size, port, *arguments) for rank in range(size)]


def join_all(processes: list[Any], seconds: float = 120) -> list[int]:
    """Their exit codes."""
    for process in processes:
        process.join(seconds)
    return [process.exitcode for process in processes]


def _process(rank, size, port, method, directory, base, cells, settings, more) -> None:
    import torch
    from tests.conftest import TinyWorld
    from tests.reliability.ready import TASK

    from trueline.distributed.world import join, leave
    from trueline.training import preflight
    from trueline.training.pages import page
    from trueline.training.stage import Stage

    os.environ |= {
        "RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    torch.set_num_threads(1)
    world, more = join(), dict(more)
    if more.pop("double", True):
        placed = Stage.placed
        Stage.placed = lambda self, model: placed(self, model.double())
        preflight.fingerprint = _in_single
    stop_at = more.pop("die_at", None)
    real = Path(directory)
    held = TinyWorld(TASK, Path(base), {name: Path(cell) for name, cell in cells.items()})
    with tempfile.TemporaryDirectory() as scratch:
        stage = held.stage(
            method, real if world.leads else Path(scratch) / "cell", max_steps=more.pop("max_steps", 4), **more
        )
        if not world.leads:
            stage.cell.checkpoints, stage.cell.stopped = real / "checkpoints", real / "stopped"
            stage = _again(stage)
        world.meet()
        if stop_at is not None:
            _dying(stage, *stop_at)
        page(method).train(page(method).Config(**settings), stage)
        world.meet()
    leave()


def _in_single(model) -> str:
    """The fingerprint that SFT's single-precision weights had when they were saved."""
    from trueline.models.fingerprints import fingerprint_tensors

    return fingerprint_tensors({name: full(p.detach()).float() for name, p in model.named_parameters()})


def _again(stage):
    """The stage made anew: it looks for checkpoints when it is made."""
    from dataclasses import replace

    return replace(stage)


def _dying(stage, rank: int, step: int) -> None:
    end_step = type(stage).end_step

    def dying(self, at, total, metrics, policy):
        end_step(self, at, total, metrics, policy)
        if at + 1 == step and self.world.rank == rank:
            os._exit(9)

    type(stage).end_step = dying
