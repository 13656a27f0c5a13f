"""Runs the rows of an experiment in a run directory and reads them back: what ablate, shift, map and findings share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from trueline.commands.run import design_of, execute
from trueline.experiments.rows import Row, plan_rows, read_rows, write_rows
from trueline.study.identity import claim, identity_of, versions
from trueline.study.matrix import ArmRuns
from trueline.tasks.task import Task

__all__ = ["run_rows", "seeds_or"]


def seeds_or(sections: Mapping[str, Any], count: int) -> dict[str, Any]:
    """The sections with seeds 0 to count - 1 where the user named none."""
    study = sections["study"]
    if "seeds" in study.model_fields_set:
        return dict(sections)
    return dict(sections) | {"study": study.model_copy(update={"seeds": tuple(range(count))})}


def run_rows(
    kind: str,
    rows: Sequence[Row],
    task: Task,
    sections: Mapping[str, Any],
    directory: Path,
    command: str,
    console: Console,
) -> dict[str, ArmRuns]:
    """Train and measure every row at every seed of `study.seeds`, in a directory that belongs to this experiment.

    The directory is like a study's: `cells/`, `manifest.json`, and `rows.json` in the place of `index.json`. Cells that
    a neighbouring run directory has finished are taken over.
    """
    seeds = sections["study"].seeds
    task.demonstrations(seeds[0])  # raises where a file has nothing to imitate
    asked = [[r.name, r.arm, r.changes, r.base, *([r.base_changes] if r.base_changes else [])] for r in rows]
    described = task.describe() | {"experiment": kind, "rows": asked}
    with claim(directory, identity_of(task.name, sections, described), command):
        plan = plan_rows(design_of(task, sections), rows, seeds)
        cells = execute(task, sections, directory, list(plan.nodes), console, named=None)
        facts = {"kind": kind, "task": task.name, "seeds": list(seeds), "command": command, "versions": versions()}
        write_rows(directory, plan, cells, facts)
        return read_rows(directory)
