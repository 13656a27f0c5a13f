"""One cell: what a worker needs to run it, and running it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from trueline import __version__
from trueline.config import Section
from trueline.data.chat import ChatTokenizer
from trueline.distributed.cluster import connect
from trueline.distributed.world import current
from trueline.errors import NumericsError
from trueline.models.adapters import LoraSettings
from trueline.models.decoder import Precision
from trueline.runs import stopping
from trueline.runs.cell import Cell, write_json
from trueline.runs.trackers import Trackers
from trueline.study.design import Node
from trueline.tasks.execution import judged_elsewhere, share_verdicts
from trueline.tasks.registry import make_task
from trueline.training.elsewhere import ClusterJudges
from trueline.training.pages import page
from trueline.training.stage import Limits, Progress, Stage

__all__ = ["Job", "device_of", "run_job", "saves_itself"]


@dataclass(frozen=True)
class Job:
    """Everything a worker needs to run one cell; it travels between processes."""

    node: Node
    directory: str
    base: str
    task: str
    sections: Mapping[str, Any]
    inputs: Mapping[str, str]
    budget: float | None
    max_steps: int | None
    stop_share: float
    precision: Precision
    identity: Mapping[str, Any]


def _lora_of(model: Section) -> LoraSettings | None:
    """The adapters that `model.*` asks for."""
    if not model.lora_rank:
        return None
    targets = model.lora_targets[0] if model.lora_targets == ("all-linear",) else model.lora_targets
    return LoraSettings(model.lora_rank, model.lora_alpha, targets, model.quantize)


def device_of(wanted: str) -> str:
    """cuda where there is a GPU and it is not kept off; cpu."""
    import torch

    return "cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu"


def run_job(job: Job, report: Callable[[str, Progress], None], scratch: str = "") -> None:
    """Run one cell; progress goes to `report`.

    A process that does not lead writes what it would write to `scratch`, and reads the leader's checkpoints.
    """
    cluster = job.sections["cluster"]
    if not (cluster.samplers or cluster.scorers or cluster.judges):
        return _run(job, report, scratch)
    with connect(cluster), ExitStack() as stack:
        if cluster.judges:
            stack.enter_context(judged_elsewhere(partial(ClusterJudges, cluster)))
        _run(job, report, scratch)


def _run(job: Job, report: Callable[[str, Progress], None], scratch: str) -> None:
    import torch

    cluster = job.sections["cluster"]
    node, world = job.node, current()
    cell = Cell(Path(job.directory))
    share_verdicts(cell.directory.parent)
    if world.leads:
        cell.open({**job.identity, "version": __version__})
    world.meet()
    if not world.leads:
        checkpoints, stopped = cell.checkpoints, cell.stopped
        cell = Cell(Path(scratch))
        cell.checkpoints, cell.stopped = checkpoints, stopped
    model, train = job.sections["model"], job.sections["train"]
    limits = Limits(
        model.max_prompt_tokens,
        model.max_new_tokens,
        train.micro_tokens,
        job.precision,
        job.budget,
        job.sections["budget_rule"],
        job.max_steps,
        train.snapshots,
        job.stop_share,
        _lora_of(model),
        train.gradient_checkpointing,
    )
    inputs = {name: Path(path) for name, path in job.inputs.items()} | {"shape": Path(job.base) / "shape.json"}
    if model.path:
        inputs["model"] = Path(model.path)
    device = device_of(train.device)

    def tell(text: str) -> None:
        report(node.key, Progress(cell.directory.name, node.method, 0, 0, note=text))

    named = f"{cell.directory.name}, {node.arm}, seed {node.seed}"
    folder, settings = cell.directory.parent.parent, job.identity["config"] or {}
    stage = Stage(
        node.method,
        node.seed,
        make_task(job.task, job.sections),
        cell,
        ChatTokenizer.load(Path(job.base) / "tokenizer"),
        limits,
        inputs=inputs,
        report=lambda progress: report(node.key, progress),
        charged=node.charged,
        trackers=Trackers(train.report_to, folder, named, settings, tell) if train.report_to and world.leads else None,
        device=world.device if world.size > 1 else torch.device(device),
        rollout=job.sections["rollout"],
        cluster=cluster,
    )
    config = node.config if isinstance(node.config, Section) else page(node.page).Config(**(node.config or {}))
    before = stage.task.machinery()
    try:
        with stopping.saves_itself() if saves_itself(node.page) else nullcontext():
            page(node.page).train(config, stage)
    except NumericsError as error:
        cell.log("incidents", {"what": str(error), "rows": list(error.rows)})
        raise
    if before:
        write_json(cell / "machinery.json", _since(before, stage.task.machinery()))


def saves_itself(method: str) -> bool:
    """Whether a page takes optimiser steps, and so comes to their ends; what is not saved on the way is made anew."""
    return "learning_rate" in page(method).Config.model_fields


def _since(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """What this cell saw of the sandbox that the process's cells share."""
    return {
        "tier": now["tier"],
        "incidents": list(now["incidents"][len(before["incidents"]) :]),
        "executions": now["executions"] - before["executions"],
    }
