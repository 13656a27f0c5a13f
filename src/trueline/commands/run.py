"""The two ways to run: a whole study, or one stage with what it needs."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from trueline.commands.screen import Screen, show_arms
from trueline.runs.cell import read_json
from trueline.study.design import nodes_of_stage, nodes_of_study, variants
from trueline.study.execute import Executor
from trueline.study.record import claim, complete, identity_of, manifest_of, stage_index
from trueline.study.report import build
from trueline.tasks.task import Task

__all__ = ["execute", "run_stage", "run_study"]


def run_study(
    task: Task, sections: Mapping[str, Any], directory: Path, command: str, *, console: Console
) -> dict[str, Any]:
    """Run every cell that is not there yet, judge, write the report, show the last screen; returns report.json."""
    identity = identity_of(task.name, sections, task.describe())
    claim(directory, identity, command)
    worlds = variants(sections["study"], sections["world"])
    signatures = not task.learned_gold
    nodes = nodes_of_study(sections, learned_gold=task.learned_gold, signatures=signatures)
    began = time.perf_counter()
    cells = execute(task, sections, directory, nodes, console, named=None)
    manifest = manifest_of(task, sections, identity, command, worlds, nodes, cells)
    complete(directory, manifest, nodes, cells)
    report = build(directory)
    console.print()
    show_arms(console, report)
    console.print()
    console.print(report["verdict"]["text"], markup=False)
    console.print(f"\n{time.perf_counter() - began:.0f} s. Report: {directory / 'report.html'}", markup=False)
    console.print(f"The same on your own data: {report['own_data_command']}", markup=False)
    console.print(f"Train what it recommends:  trueline train {directory / 'report.json'} -o DIR", markup=False)
    return report


def run_stage(
    stage: str, task: Task, sections: Mapping[str, Any], directory: Path, command: str, *, console: Console
) -> dict[str, Path]:
    """Train one stage at each seed, with the stages before it where their cells are not there yet."""
    identity = identity_of(task.name, sections, {**task.describe(), "stage": stage})
    claim(directory, identity, command)
    nodes = [
        n
        for seed in sections["study"].seeds
        for n in nodes_of_stage(sections, stage, seed, learned_gold=task.learned_gold)
    ]
    cells = execute(task, sections, directory, nodes, console, named=stage)
    stage_index(directory, nodes, cells)
    for node in nodes:
        if node.arm == stage:
            done = read_json(cells[node.key] / "done.json")
            console.print(
                f"seed {node.seed}: {done['steps']} steps, {done['flops']:.3g} FLOP, {cells[node.key]}", markup=False
            )
    return cells


def execute(
    task: Task,
    sections: Mapping[str, Any],
    directory: Path,
    nodes: list,
    console: Console,
    *,
    named: str | None,
    share: float = 1.0,
) -> dict[str, Path]:
    """Say the plan, run the nodes with a live screen, return the cell of each. `share` of the named stage's steps."""
    screens: list[Screen] = []
    executor = Executor(directory, task, sections, lambda key, progress: screens[0].report(key, progress))
    workers = executor.workers()
    seeds = sorted({node.seed for node in nodes})
    arms = list(dict.fromkeys(n.arm for n in nodes if n.page != "evaluate"))
    console.print(f"{task.description}; nothing is downloaded", markup=False)
    screen = Screen(console, nodes, workers)
    console.print(
        f"seeds {', '.join(map(str, seeds))}; {len(nodes)} cells on {workers} workers: {', '.join(arms)}", markup=False
    )
    if sections["model"].size == "tiny" and not sections["model"].path and sections["train"].max_steps == 0:
        console.print(f"expected: about {screen.expected_minutes():.0f} minutes on a laptop's cores", markup=False)
    with screen:
        screens.append(screen)
        return executor.run(nodes, named=named, share=share)
