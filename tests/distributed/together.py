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

__all__ = ["join_all", "run_together", "start_all", "together"]


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
    return start_all(size, _training, method, str(directory), base, dict(cells), dict(settings), more)


def start_all(size: int, function: Any, *arguments: Any) -> list[Any]:
    """Processes that have met and call `function`."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
    return [start(_process, rank, size, port, function, *arguments) for rank in range(size)]


def join_all(processes: list[Any], seconds: float = 120) -> list[int]:
    """Their exit codes."""
    for process in processes:
        process.join(seconds)
    return [process.exitcode for process in processes]


def _process(rank: int, size: int, port: int, function: Any, *arguments: Any) -> None:
    import torch

    from trueline.distributed.world import together

    os.environ |= {
        "RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    torch.set_num_threads(1)
    with together():
        function(*arguments)


def _training(method, directory, base, cells, settings, more) -> None:
    from tests.conftest import TinyWorld
    from tests.reliability.ready import TASK

    from trueline.distributed.world import current
    from trueline.training import preflight
    from trueline.training.pages import page
    from trueline.training.stage import Stage

    world, more = current(), dict(more)
    if more.pop("double", True):
        placed = Stage.placed
        Stage.placed = lambda self, model, rows=None: placed(self, model.double(), rows)
        preflight.fingerprint = _in_single
    stop_at = more.pop("die_at", None)
    real = Path(directory)
    held = TinyWorld(TASK, Path(base), {name: Path(cell) for name, cell in cells.items()})
    with tempfile.TemporaryDirectory() as scratch:
        limits = {"max_steps": more.pop("max_steps", 4), **more}
        if not world.leads:  # as study.job does it: what it writes goes nowhere, checkpoints are the leader's
            limits["checkpoints"] = (real / "checkpoints", real / "stopped")
        stage = held.stage(method, real if world.leads else Path(scratch) / "cell", **limits)
        world.meet()
        if stop_at is not None:
            _dying(stage, *stop_at)
        page(method).train(page(method).Config(**settings), stage)
        world.meet()


def _in_single(model) -> str:
    """The fingerprint that SFT's single-precision weights had when they were saved."""
    from trueline.models.fingerprints import fingerprint_tensors

    return fingerprint_tensors({name: full(p.detach()).float() for name, p in model.named_parameters()})


def _dying(stage, rank: int, step: int) -> None:
    end_step = type(stage).end_step

    def dying(self, at, total, metrics, policy):
        end_step(self, at, total, metrics, policy)
        if at + 1 == step and self.world.rank == rank:
            os._exit(9)

    type(stage).end_step = dying
