"""`trueline bench statistics`: thousands of simulated studies with known truth through the study's own statistics."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from trueline.runs.cell import write_json
from trueline.study.simulation import EFFECTS, REGIMES, power_record, simulate, studied_json

__all__ = ["bench_statistics"]

SEEDS = (3, 5)
POWER = (("seeds differ most", 0.5), ("both", 0.4), ("prompts differ most", 0.4))


def bench_statistics(console: Console, out: Path | None, studies: int, command: str) -> dict[str, Any]:
    """Every regime, truth and number of seeds, `studies` of each: printed, written to `out`, returned."""
    began = time.perf_counter()
    rows = [
        studied_json(simulate(regime, truth, seeds, studies))
        for seeds in SEEDS
        for regime in REGIMES
        for truth in EFFECTS
    ]
    power = [
        power_record(next(r for r in REGIMES if r.name == name), pilot, max(200, studies // 5), effect=effect)
        for name, effect in POWER
        for pilot in SEEDS
    ]
    record = {
        "name": "statistics", "studies": studies * len(rows), "rows": rows, "power": power,
        "seconds": round(time.perf_counter() - began, 1), "command": command,
    }  # fmt: skip
    console.print(_table(rows))
    for row in power:
        console.print(
            f"{row['regime']}, pilot of {row['pilot_seeds']}: {row['seeds']} seeds are said to part a difference of "
            f"{row['effect']} with {row['said']:.0%}; they do in {row['reached']:.0%} of {row['studies']}",
            markup=False,
        )
    console.print(f"{record['studies']:,} studies, {record['seconds']:.0f} s", markup=False)
    if out is not None:
        write_json(out, record)
    return record


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table("regime", "truth", "seeds", "coverage of 95%", "false positives (Holm)", "uncorrected", "power")
    for row in rows:
        coverage, false = row["coverage_ci95"], row["false_positives_ci95"]
        table.add_row(
            row["regime"], row["truth"], str(row["seeds"]),
            f"{row['coverage']:.3f} [{coverage[0]:.3f}, {coverage[1]:.3f}]",
            f"{row['false_positives']:.3f} [{false[0]:.3f}, {false[1]:.3f}]",
            f"{row['uncorrected']:.3f}", "" if row["power"] is None else f"{row['power']:.2f}",
        )  # fmt: skip
    return table
