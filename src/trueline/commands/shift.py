"""`trueline shift`: the paper's tables on distribution shift as rows of one run, and where ours agree with them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from trueline.commands.experiment import run_rows, seeds_or
from trueline.experiments.rows import Row
from trueline.experiments.shift import Table, tables_of
from trueline.experiments.shift_findings import findings_of
from trueline.experiments.shift_page import record_of, shift_page
from trueline.runs.cell import write_json
from trueline.study.document import save
from trueline.tasks.task import Task

__all__ = ["SEEDS", "shift"]

SEEDS = 5


def shift(task: Task, sections: Mapping[str, Any], directory: Path, command: str, console: Console) -> dict[str, Any]:
    """Train and measure every row of the tables that the task has the dials for; writes shift.json and shift.html and
    returns the former."""
    began = time.perf_counter()
    sections = seeds_or(sections, SEEDS)
    tables = tables_of(sections)
    rows = run_rows("shift", _rows_of(tables), task, sections, directory, command, console)
    findings = {table.name: findings_of(table, rows) for table in tables}
    record = {
        "task": task.name,
        "seeds": list(sections["study"].seeds),
        "metric": "test/sampled/gold",
        "tables": [record_of(table, rows, rows["SFT"], findings[table.name]) for table in tables],
        "seconds": round(time.perf_counter() - began, 1),
        "command": command,
    }
    write_json(directory / "shift.json", record)
    save(shift_page(tables, rows, findings, task.name, task.threats()[0], command), directory / "shift.html")
    for made in record["tables"]:
        console.print(f"\n{made['name']} ({made['source']}): {made['question']}", markup=False)
        for line in (*made["sentences"], made["tally"]):
            console.print(f"  {line}", markup=False)
    console.print(f"\n{record['seconds']:.0f} s. Page: {directory / 'shift.html'}", markup=False)
    return record


def _rows_of(tables: tuple[Table, ...]) -> list[Row]:
    """Each row once: tables share those of one name."""
    return list({row.name: row for table in tables for row in table.rows}.values())
