"""The two ways to run: a whole study, or one stage with what it needs."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from rich.console import Console

from trueline.commands.screen import Screen, show_arms
from trueline.distributed.started import is_leader, processes
from trueline.errors import InputError
from trueline.models import kernels
from trueline.runs.cell import read_json
from trueline.study.design import Design, Node, nodes_of_stage, nodes_of_study, nodes_of_trials, variants
from trueline.study.execute import Executor
from trueline.study.identity import Identity, claim, identity_of
from trueline.study.record import chosen_settings, complete, manifest_of, stage_index
from trueline.study.report import build
from trueline.study.tuning import best_of, draw, read_trials, record_of
from trueline.tasks.task import Task
from trueline.training.pages import arms

__all__ = ["design_of", "execute", "run_stage", "run_study"]


def design_of(task: Task, sections: Mapping[str, Any]) -> Design:
    """What the nodes of a run are made from."""
    return Design(sections, arms(), learned_gold=task.learned_gold, signatures=not task.learned_gold)


def run_study(
    task: Task, sections: Mapping[str, Any], directory: Path, command: str, *, console: Console
) -> dict[str, Any]:
    """Run every cell that is not there yet, judge, write the report, show the last screen; returns report.json."""
    task.demonstrations(sections["study"].seeds[0])  # raises where a file has nothing to imitate
    identity = identity_of(task.name, sections, task.describe())
    with _held(directory, identity, command, sections):
        worlds = variants(sections["study"], sections["world"])
        began = time.perf_counter()
        design, tuning = _tune(task, design_of(task, sections), directory, console)
        nodes = nodes_of_study(design)
        cells = execute(task, sections, directory, nodes, console, named=None)
        if not is_leader():
            return {}
        manifest = manifest_of(task, design.sections, identity, command, worlds, nodes, cells)
        complete(directory, manifest | {"tuning": tuning}, nodes, cells)
        if tuning:
            chosen_settings(directory / "chosen.yaml", task.name, tuning, command)
        report = build(directory)
        console.print()
        show_arms(console, report)
        console.print()
        console.print(report["verdict"]["text"], markup=False)
        console.print(f"\n{time.perf_counter() - began:.0f} s. Report: {directory / 'report.html'}", markup=False)
        console.print(f"The same on your own data: {report['own_data_command']}", markup=False)
        console.print(f"Train what it recommends:  trueline train {directory / 'report.json'} -o DIR", markup=False)
        return report


@contextmanager
def _held(directory: Path, identity: Identity, command: str, sections: Mapping[str, Any]) -> Iterator[None]:
    """The directory, claimed for this run; among several processes by the one that leads, once all want the same."""
    if processes() == 1:
        with claim(directory, identity, command):
            yield
        return
    import torch

    from trueline.distributed.world import together

    if sections["model"].lora_rank:
        raise InputError(
            "adapters are trained in one process", where="settings", field="model.lora_rank",
            remedy="leave it out, or start one process",
        )  # fmt: skip
    with together("cuda" if sections["train"].device != "cpu" and torch.cuda.is_available() else "cpu") as world:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // world.size))
        wanted = world.everyone((identity.digest, str(directory)))
        if len(set(wanted)) > 1:
            raise InputError(
                f"the {world.size} processes do not run the same: {len(set(wanted))} kinds of settings or directories",
                where="settings", remedy="start every process with the same command on the same files",
            )  # fmt: skip
        with claim(directory, identity, command) if world.leads else nullcontext():
            world.meet()
            yield
            world.meet()


def _tune(task: Task, design: Design, directory: Path, console: Console) -> tuple[Design, dict[str, Any]]:
    """The design with the settings that the trials chose, and the record of all trials.

    `dpo+ppo` comes second: it inherits DPO's choice and spends its trials on PPO.
    """
    study, tune = design.sections["study"], design.sections["tune"]
    tuned = [arm for arm in study.arms if design.arms[arm].section]
    if not study.trials or not tuned:
        return design, {}
    ranges = {arm: getattr(tune, design.arms[arm].section) for arm in tuned}
    trials = []
    for group in ([arm for arm in tuned if arm != "dpo+ppo"], [arm for arm in tuned if arm == "dpo+ppo"]):
        if not group:
            continue
        drawn = {
            arm: draw(design.sections[design.arms[arm].section], ranges[arm], study.trials, study.tuning_seeds[0], arm)
            for arm in group
        }
        console.print(
            f"tuning {', '.join(group)}: {study.trials} random trials each on seeds "
            f"{', '.join(map(str, study.tuning_seeds))}, scored on the selection split",
            markup=False,
        )
        cells = execute(task, design.sections, directory, nodes_of_trials(design, drawn), console, named=None)
        trials += read_trials(design, drawn, cells)
        chosen = {design.arms[arm].section: best_of(trials, arm).settings for arm in group}
        for section, values in chosen.items():
            console.print(f"  chosen: {', '.join(f'{section}.{k}={v:g}' for k, v in values.items())}", markup=False)
        design = design.replaced(chosen)
    return design, record_of(design, trials, ranges)


def run_stage(
    stage: str, task: Task, sections: Mapping[str, Any], directory: Path, command: str, *, console: Console
) -> dict[str, Path]:
    """Train one stage at each seed, with the stages before it where their cells are not there yet."""
    task.demonstrations(sections["study"].seeds[0])  # raises where a file has nothing to imitate
    identity = identity_of(task.name, sections, {**task.describe(), "stage": stage})
    with _held(directory, identity, command, sections):
        nodes = [n for seed in sections["study"].seeds for n in nodes_of_stage(design_of(task, sections), stage, seed)]
        cells = execute(task, sections, directory, nodes, console, named=stage)
        if not is_leader():
            return cells
        stage_index(directory, nodes, cells)
        for node in nodes:
            if node.arm == stage:
                done = read_json(cells[node.key] / "done.json")
                console.print(
                    f"seed {node.seed}: {done['steps']} steps, {done['flops']:.3g} FLOP, {cells[node.key]}",
                    markup=False,
                )
        return cells


def execute(
    task: Task,
    sections: Mapping[str, Any],
    directory: Path,
    nodes: list[Node],
    console: Console,
    *,
    named: str | None,
    share: float = 1.0,
    adopted: Mapping[str, Path] | None = None,
) -> dict[str, Path]:
    """Say the plan, run the nodes with a live screen, return the cell of each. `share` of the named stage's steps;
    `adopted` are finished cells by key that the nodes build on."""
    screens: list[Screen] = []
    executor = Executor(directory, task, sections, lambda key, progress: screens[0].report(key, progress))
    executor.adopt(adopted or {})
    workers = executor.workers()
    seeds = sorted({node.seed for node in nodes})
    arms = list(dict.fromkeys(n.arm for n in nodes if n.page not in ("select", "evaluate")))
    console.print(f"{task.description}; nothing is downloaded", markup=False)
    if kernels.library() is None:  # built here once, before any worker asks for them
        console.print("no compiled kernels (no C compiler, or TRUELINE_KERNELS=0): plain torch, same numbers, slower")
    if task.verified:  # opens the sandbox: where none holds, that is said before anything is trained
        console.print(f"programs run in the sandbox, tier {task.machinery()['tier']}", markup=False)
    screen = Screen(console, nodes, workers)
    console.print(
        f"seeds {', '.join(map(str, seeds))}; {len(nodes)} cells on {workers} workers: {', '.join(arms)}", markup=False
    )
    if sections["model"].size == "tiny" and not sections["model"].path and sections["train"].max_steps == 0:
        console.print(f"expected: about {screen.expected_minutes():.0f} minutes on a laptop's cores", markup=False)
    with screen:
        screens.append(screen)
        return executor.run(nodes, named=named, share=share)
