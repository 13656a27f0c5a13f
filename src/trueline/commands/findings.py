"""`trueline findings`: the paper's eight findings on the embedded worlds, each with effect, interval and a word."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from trueline.commands.experiment import run_rows, seeds_or
from trueline.commands.resolve import resolve
from trueline.errors import InputError
from trueline.experiments.findings import GROUPS, findings_of, rows_of
from trueline.experiments.findings_page import finding_json, findings_page, markdown, tally
from trueline.runs.cell import write_json
from trueline.runs.store import HOLDER
from trueline.study.document import interval_text, save

__all__ = ["findings"]

SEEDS = 5


def findings(overrides: Sequence[str], seeds: str, directory: Path, command: str, console: Console) -> dict[str, Any]:
    """Run the rows of every group in a directory of its own below `directory`; writes findings.json, findings.html and
    findings.md there and returns the first. `overrides` hold for every task."""
    began = time.perf_counter()
    resolved = {}
    for group in GROUPS:  # everything that is wrong with the input is told before anything runs
        items = [*group.settings, *overrides, *([f"study.seeds={seeds}"] if seeds else [])]
        _, sections, task = resolve(group.task, items, False)
        sections = seeds_or(sections, SEEDS)
        if len(sections["study"].seeds) < 2:
            raise InputError("an interval needs two seeds", where="command line", field="--seeds", remedy="give five")
        resolved[group.name] = (task, sections)
    directory.mkdir(parents=True, exist_ok=True)
    write_json(directory / HOLDER, {"command": command, "runs": [group.name for group in GROUPS]})
    runs, used = {}, {}
    for group in GROUPS:
        task, sections = resolved[group.name]
        console.print(f"\n{group.name}", markup=False)
        rows = rows_of(group, sections, verified=task.verified)  # the cap says how many samples the rows draw
        free = sections | {"study": sections["study"].model_copy(update={"budget": 0.0})} if group.free else sections
        runs[group.name] = run_rows("findings", rows, task, free, directory / group.name, command, console)
        used[group.name] = sections
    found = findings_of(runs, used)
    record = {
        "findings": [finding_json(f) for f in found],
        "tally": tally(found),
        "seconds": round(time.perf_counter() - began, 1),
        "command": command,
    }
    write_json(directory / "findings.json", record)
    (directory / "findings.md").write_text(markdown(found), encoding="utf-8")
    threats = resolved["dialogue"][0].threats()
    save(findings_page(found, threats[0], command), directory / "findings.html")
    for f in found:
        console.print(f"{f.id}: {f.outcome}, {interval_text(f.effect, 3)} {f.unit}", markup=False)
    console.print(f"\n{record['tally']}. {record['seconds']:.0f} s. Page: {directory / 'findings.html'}", markup=False)
    return record
