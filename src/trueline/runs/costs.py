"""What a cell spent, on disk: counts in `cost.json`, which equal runs share; clock and memory apart in `clock.json`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trueline.runs.cell import read_json, write_json
from trueline.runs.meter import CLOCKS, Cost

__all__ = ["read_costs", "write_costs"]


def write_costs(cell: Path, costs: Mapping[str, Cost]) -> None:
    """Write costs by name (own, charged) into the cell's folder."""
    rows = {name: cost.as_dict() for name, cost in costs.items()}
    write_json(cell / "cost.json", {name: _part(row, clocks=False) for name, row in rows.items()})
    write_json(cell / "clock.json", {name: _part(row, clocks=True) for name, row in rows.items()})


def read_costs(cell: Path) -> dict[str, Cost]:
    """The costs of a cell by name."""
    clocks = read_json(cell / "clock.json")
    return {name: Cost(**row, **clocks[name]) for name, row in read_json(cell / "cost.json").items()}


def _part(row: Mapping[str, Any], *, clocks: bool) -> dict[str, Any]:
    return {name: value for name, value in row.items() if (name in CLOCKS) == clocks}
