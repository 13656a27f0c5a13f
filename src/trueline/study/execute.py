"""Runs the nodes of a study: cells in worker processes, each on one core, every finished cell kept and reused."""

from __future__ import annotations

import os
import queue
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from trueline.config import digest, to_plain
from trueline.data.chat import ChatTokenizer
from trueline.distributed.cluster import connect, room
from trueline.distributed.world import alone, current, losses_told
from trueline.errors import InputError, RunError
from trueline.models.checkpoints import read_config, shape_from
from trueline.models.precision import choose_precision
from trueline.rollout.settings import RolloutSettings
from trueline.rollout.vllm_launch import LEAST_CONTEXT, served
from trueline.runs import stopping
from trueline.runs.cell import append_row, read_json, write_json
from trueline.runs.store import neighbours, take_over
from trueline.study.cluster_crew import ClusterCrew, WorkerLost
from trueline.study.crew import Crew
from trueline.study.design import Node
from trueline.study.identity import sampling_of
from trueline.study.job import Job, device_of, run_job, saves_itself
from trueline.study.origins import folder_digest, origins, origins_of
from trueline.tasks.task import Task
from trueline.training.stage import Progress

__all__ = ["Executor", "prepare_base"]

_BASE_VERSION = 4
_MOST_DEATHS = 3


def prepare_base(directory: Path, task: Task, sections: Mapping[str, Any]) -> Path:
    """The tokenizer and the model's shape, made once per run directory: `cells/base-<hash>/`.

    With `model.path` the tokenizer is that folder's; otherwise one is trained on the task's own text.
    """
    from trueline.models.tiny import sized

    model = sections["model"]
    source = Path(model.path) if model.path else None
    described = {
        "version": _BASE_VERSION,
        "task": task.name,
        "texts": "" if source else digest(task.texts()),  # what a tokenizer would be trained on
        "model": model.model_dump(mode="json"),
        "origin": folder_digest(source) if source else "",
    }
    folder = directory / "cells" / f"base-{digest(described)}"
    if (folder / "shape.json").exists():
        return folder  # complete: the shape is written last, after the prompts were checked
    folder.mkdir(parents=True, exist_ok=True)
    if source is not None:
        shape = read_config(source)
        tokenizer = ChatTokenizer.load(source, template=model.chat_template)
    else:
        tokenizer = ChatTokenizer.train(task.texts(), vocab_size=model.vocab_size)
        shape = sized(
            model.size,
            vocab_size=tokenizer.vocab_size,
            max_positions=model.max_prompt_tokens + model.max_new_tokens,
            pad_id=tokenizer.pad_id,
            end_id=tokenizer.end_id,
            width=model.width,
        )
    if task.strict_prompts:
        _check_prompts(task, tokenizer, model.max_prompt_tokens)
    tokenizer.save(folder / "tokenizer")
    write_json(folder / "shape.json", asdict(shape))
    return folder


def _check_prompts(task: Task, tokenizer: ChatTokenizer, limit: int) -> None:
    """Raise InputError for prompts that do not fit, naming the first row and the length that would do."""
    lengths = [
        (len(tokenizer.encode_prompt(p)), p) for split in ("train", "selection", "test") for p in task.prompts(split)
    ]
    long = [(length, prompt) for length, prompt in lengths if length > limit]
    if long:
        length, prompt = long[0]
        raise InputError(
            f"the prompt is {length} tokens, {limit} fit "
            f"({len(long)} such prompts, the longest {max(n for n, _ in long)})",
            where=str(prompt.meta.get("where") or f"{task.place}, {prompt.meta.get('task_id', prompt.id)}"),
            field="prompt",
            remedy=f"set model.max_prompt_tokens={max(n for n, _ in long)}, "
            "or data.long_prompts=cut to lose their oldest part",
        )


def _blank_model(base: Path) -> Path:
    """A folder with the shape of an embedded model, for a server to start from: its weights are replaced at once."""
    from trueline.models.checkpoints import save_model
    from trueline.models.tiny import make_decoder

    folder = base / "served"
    if not (folder / "model.safetensors").is_file():
        save_model(make_decoder(shape_from(read_json(base / "shape.json")), 0), folder)
        ChatTokenizer.load(base / "tokenizer").save(folder)
    return folder


class Executor:
    """Runs nodes in dependency order and knows the cell of each. `report` gets Progress objects as they come."""

    def __init__(
        self, directory: Path, task: Task, sections: Mapping[str, Any], report: Callable[[str, Progress], None]
    ):
        self.directory, self.task, self.sections, self.report = directory, task, sections, report
        world = current()
        made = str(prepare_base(directory, task, sections)) if world.leads else None
        self.base = Path(world.from_leader(made))
        # what one process made is not what several make, to the bit
        self.stores = neighbours(directory) if world.size == 1 else []
        self.cells: dict[str, Path] = {}
        self.named: str | None = None
        self.share_of_steps = 1.0
        self._servers, self._address, self._cluster = ExitStack(), None, ""
        self._lost: dict[str, int] = {}
        train, shape = sections["train"], shape_from(read_json(self.base / "shape.json"))
        self.precision = choose_precision(train.precision, shape, device_of(train.device))
        self.origins = origins(origins_of(sections))

    def identity(
        self, node: Node, inputs: Mapping[str, str], budget: float | None, max_steps: int | None
    ) -> dict[str, Any]:
        """What addresses a cell: method, settings, world, seed, limits and the cells it comes from."""
        model, verifier = self.sections["model"], {}
        if self.task.verified:
            limits = node.sections.get("verifier", self.sections["verifier"])
            verifier = {"verifier": limits.model_dump(mode="json")}
        return {
            "method": node.page,
            "arm": node.arm,
            "seed": node.seed,
            "task": self.task.name,
            "config": to_plain({"config": node.config})["config"],
            "world": to_plain({"world": node.world})["world"],
            "data": to_plain({"data": self.sections["data"]})["data"],
            "base": self.base.name,
            "origins": self.origins,
            "max_prompt_tokens": model.max_prompt_tokens,
            "max_new_tokens": model.max_new_tokens,
            "snapshots": node.sections.get("train", self.sections["train"]).snapshots,
            "budget": budget,
            "budget_rule": self.sections["study"].budget_rule if budget else None,
            "max_steps": max_steps,
            "inputs": dict(inputs),
            "charged": list(node.charged),
            "precision": self.precision,
            **verifier,
            **sampling_of(self.sections),
        }

    def workers(self) -> int:
        """Cells at a time: one per core, one on a GPU, one for each vLLM server."""
        wanted, servers = self.sections["train"].workers, self.sections["rollout"].servers
        if wanted or servers:
            return min(wanted or servers, servers or wanted)
        if self.sections["train"].device != "cpu":
            import torch

            if torch.cuda.is_available():
                return 1
        return max(1, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)

    def adopt(self, cells: Mapping[str, Path]) -> None:
        """Take finished cells that were made elsewhere, by key."""
        self.cells |= cells

    def run(self, nodes: Sequence[Node], *, named: str | None = None, share: float = 1.0) -> dict[str, Path]:
        """Run every node that has no finished cell; returns the cell of each.

        `train.max_steps`, and `share` of the planned steps, limit the stage `named` alone. A worker process that dies
        is replaced and its cell goes on from its checkpoint; the third death without a finished cell in between ends
        the run (RunError). A stop (`runs.stopping`) lets running steps be saved first.
        """
        self.named, self.share_of_steps = named, share
        waiting = {node.key: node for node in nodes}
        with ExitStack() as self._servers, connect(self.sections["cluster"]) as self._cluster:
            return self._run_together(waiting) if current().size > 1 else self._run_apart(waiting)

    def _run_apart(self, waiting: dict[str, Node]) -> dict[str, Path]:
        """As `run`, each cell in a worker process, here or on a cluster."""
        deaths = 0
        while waiting:
            crew = self._crew()
            try:
                finished = self._work(crew, waiting)
            except BaseException as error:
                if isinstance(error, stopping.Stopped | KeyboardInterrupt):
                    crew.wind_down()
                crew.kill()
                raise
            deaths = 1 if finished else deaths + 1
            if not waiting:
                crew.close()
                break
            crew.kill()
            self._mourn(deaths)
        return self.cells

    def _crew(self) -> Crew | ClusterCrew:
        cluster = self.sections["cluster"]
        if not (cluster.address and cluster.cells):
            return Crew(self.workers())
        places = room(cluster.cell_cpus, cluster.cell_gpus)
        if places < 1:
            raise InputError(
                f"a cell with its helpers takes {cluster.cell_cpus:g} cores and {cluster.cell_gpus:g} GPUs, "
                "the cluster has fewer",
                where="settings",
                field="cluster.cpus",
                remedy="lower it, ask for fewer samplers, scorers and judges, or start more machines",
            )
        most = self.sections["rollout"].servers or places
        return ClusterCrew(cluster, min(self.sections["train"].workers or places, most), self.directory)

    def _run_together(self, waiting: dict[str, Node]) -> dict[str, Path]:
        """As `run`, among the processes of this run: each cell by all of them, one cell after another.

        The leader says which comes next, for it alone writes. Cells that take no optimiser step are the leader's own.
        """
        world = current()
        while waiting:
            key, job = world.from_leader(self._next(waiting) if world.leads else None)
            node = waiting.pop(key)
            if job is None:
                self.cells[key] = Path(world.from_leader(str(self.cells.get(key))))
                continue
            self.cells[key] = Path(job.directory)
            self.report(key, Progress(job.directory, node.page, 0, 0, note="queued"))
            if saves_itself(node.page):
                with TemporaryDirectory(prefix="trueline-") as scratch, losses_told():
                    run_job(job, self.report, scratch)
            elif world.leads:
                with alone():
                    run_job(job, self.report)
            world.meet()
            self.report(key, Progress("", node.page, 1, 1, note="done"))
        return self.cells

    def _next(self, waiting: Mapping[str, Node]) -> tuple[str, Job | None]:
        """A node that can run, and its job; None where its cell is there."""
        for node in waiting.values():
            if self._ready(node) and not (node.twin and node.twin in waiting):
                return node.key, self._job(node)
        raise RunError(f"no node can run: {', '.join(waiting)}; this is a fault of the design")

    def _work(self, crew: Crew, waiting: dict[str, Node]) -> int:
        """Run what waits until nothing does, or a worker died; returns how many cells were finished.

        What did not come to its end is in `waiting` again.
        """
        started: dict[Future, Node] = {}
        making: set[str] = set()
        finished = 0
        while waiting or started:
            for node in [n for n in waiting.values() if self._ready(n)]:
                if node.twin and node.twin in waiting | {n.key: n for n in started.values()}:
                    continue  # the same run may be about to be finished with a larger share
                job = self._job(node)
                if job is not None and (job.directory in making or getattr(crew, "full", False)):
                    continue  # another node is that very run, or there is no room
                del waiting[node.key]
                if job is None:
                    continue
                making.add(job.directory)
                future = crew.submit(job)
                if future is None:
                    waiting |= {n.key: n for n in (node, *started.values())}
                    return finished
                started[future] = node
                self.report(node.key, Progress(job.directory, node.page, 0, 0, note="queued"))
            self._drain(crew.channel)
            if started:
                done, _ = wait(started, timeout=0.2, return_when=FIRST_COMPLETED)
                for future in done:
                    node = started[future]
                    try:
                        future.result()
                    except BrokenProcessPool:
                        waiting |= {n.key: n for n in started.values()}
                        return finished
                    except WorkerLost as loss:
                        self._lose(node, loss)
                        waiting[node.key] = node
                        del started[future]
                        making.discard(str(self.cells[node.key]))
                        continue
                    del started[future]
                    making.discard(str(self.cells[node.key]))
                    finished += 1
                    self.report(node.key, Progress("", node.page, 1, 1, note="done"))
            elif waiting and not any(self._ready(n) for n in waiting.values()):
                raise RunError(f"no node can run: {', '.join(waiting)}; this is a fault of the design")
        self._drain(crew.channel)
        return finished

    def _lose(self, node: Node, loss: WorkerLost) -> None:
        """Write down that a cell's worker was lost; raise where that does not end."""
        self._lost[node.key] = times = self._lost.get(node.key, 0) + 1
        append_row(self.directory / "incidents.jsonl", {"what": f"a worker was lost ({loss})", "cell": node.key})
        told = "its worker is lost; the cell goes on from its checkpoint on another"
        self.report(node.key, Progress("", node.page, 0, 0, warning=f"{node.arm}: {told}"))
        if times >= _MOST_DEATHS:
            raise RunError(
                f"{node.arm}, seed {node.seed}: its worker was lost {times} times ({loss}); what is finished is kept: "
                "run the same command again"
            )

    def _mourn(self, deaths: int) -> None:
        """Write down that a worker died; raise where that does not end."""
        append_row(self.directory / "incidents.jsonl", {"what": "a worker process died", "in_a_row": deaths})
        if deaths >= _MOST_DEATHS:
            raise RunError(
                f"worker processes died {deaths} times without finishing a cell, most likely for want of memory; what "
                "is finished is kept: run the same command again, with train.workers=1 or a smaller train.micro_tokens"
            )

    def _ready(self, node: Node) -> bool:
        return all(key in self.cells and self._finished(self.cells[key]) for key in node.inputs.values())

    @staticmethod
    def _finished(cell: Path) -> bool:
        return (cell / "done.json").exists()

    def _job(self, node: Node) -> Job | None:
        inputs = {name: str(self.cells[key]) for name, key in node.inputs.items()}
        budget = self._budget(node, inputs)
        train = self.sections["train"]
        limited = node.arm == self.named
        max_steps = train.max_steps if train.max_steps and limited else None
        stop_share = self.share_of_steps if limited else 1.0
        if node.twin in self.cells and max_steps is None and self._is_twin(node, budget):
            twin = self.cells[node.twin]
            self.cells[node.key] = twin
            self.report(node.key, Progress(str(twin), node.page, 1, 1, note="done"))
            return None
        identity = self.identity(node, {name: Path(path).name for name, path in inputs.items()}, budget, max_steps)
        if stop_share != 1.0:
            identity["stop_share"] = stop_share
        cell = self.directory / "cells" / digest(identity)
        self.cells[node.key] = cell
        if self._finished(cell) or take_over(cell, self.stores):
            self.report(node.key, Progress(str(cell), node.page, 1, 1, note="done"))
            return None
        sections = {
            name: self.sections[name] for name in ("data", "model", "train", "verifier") if name in self.sections
        }
        sections["rollout"] = self._rollout(node)
        sections["cluster"] = self.sections["cluster"].model_copy(update={"address": self._cluster})
        sections |= dict(node.sections) | {"world": node.world, "budget_rule": self.sections["study"].budget_rule}
        return Job(
            node,
            str(cell),
            str(self.base),
            self.task.name,
            sections,
            inputs,
            budget,
            max_steps,
            stop_share,
            self.precision,
            identity,
        )

    def _rollout(self, node: Node) -> RolloutSettings:
        """The settings of sampling; a server that is to be started is, before the first cell that runs."""
        settings = self.sections["rollout"]
        if settings.engine == "native" or not settings.command:
            return settings
        if self._address is None:
            self.report(node.key, Progress("", node.page, 0, 0, note="vLLM is being started"))
            self._address = self._servers.enter_context(self._served(settings))
            self._servers.callback(setattr, self, "_address", None)
        return settings.model_copy(update={"url": (self._address,), "command": ""})

    def _served(self, settings: RolloutSettings) -> AbstractContextManager[str]:
        model, positions = self.sections["model"], shape_from(read_json(self.base / "shape.json")).max_positions
        longest = max(model.max_prompt_tokens + model.max_new_tokens, LEAST_CONTEXT)
        options = (
            f"--max-model-len={min(positions, longest)}",
            f"--dtype={'bfloat16' if self.precision == 'bf16' else 'float32'}",
            *(("--enable-sleep-mode",) if settings.sleep else ()),
            *settings.options,
        )
        folder = Path(model.path) if model.path else _blank_model(self.base)
        log, by_group = self.directory / "vllm.log", settings.transfer == "group"
        return served(settings.command, folder, log, options, takes_group=by_group)

    def _is_twin(self, node: Node, budget: float | None) -> bool:
        """Whether the twin's finished cell is this node's run: training that stayed within this budget, or the
        selection of the same trained cell."""
        twin = self.cells[node.twin]
        if node.page == "select":
            return read_json(twin / "config.json")["inputs"]["arm"] == self.cells[node.inputs["arm"]].name
        done = read_json(twin / "done.json")
        return budget is None or (not done["stopped_by_budget"] and done["flops"] <= budget)

    def _budget(self, node: Node, inputs: Mapping[str, str]) -> float | None:
        cap = node.cap
        if not cap or not node.share:
            return None
        rule = self.sections["study"].budget_rule
        counted = {"flops": "flops", "executions": "reward_calls"}[rule]
        spent = sum(read_json(Path(inputs[name]) / "cost.json")["own"][counted] for name in node.charged)
        left = node.share * cap - spent
        if left <= 0:
            raise InputError(
                f"nothing is left for {node.arm} of {node.share:g} x {cap:.3g} {rule} "
                f"after the reward model's {spent:.3g}",
                where="settings",
                field="study.budget",
                remedy="raise it, or set 0 for no cap",
            )
        return left

    def _drain(self, channel: Any) -> None:
        while True:
            try:
                key, progress = channel.get_nowait()
            except queue.Empty:
                return
            self.report(key, progress)
