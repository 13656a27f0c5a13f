"""The gates of all runs of a study (`training/gates.py`), each where it came closest to failing."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from trueline.runs.cell import read_json

__all__ = ["allowed", "closest_gates", "measured"]


def closest_gates(cells: Iterable[Path]) -> list[dict[str, Any]]:
    """One row for each gate: its words, the figure that came closest to failing, how many runs asked and failed it."""
    found: dict[str, dict[str, Any]] = {}
    for cell in sorted(set(cells)):
        file = cell / "gates.json"
        for gate in read_json(file)["gates"] if file.exists() else ():
            row = found.setdefault(gate["name"], gate | {"runs": 0, "failed": 0})
            if _distance(gate) > _distance(row):
                row |= {key: gate[key] for key in ("measured", "low", "high", "passed", "distance")}
            row["runs"] += 1
            row["failed"] += not gate["passed"]
    return list(found.values())


def _distance(gate: Mapping[str, Any]) -> float:
    """How near to failing the run found it; a figure that was not finite is the farthest beyond."""
    return math.inf if gate["distance"] is None else gate["distance"]


def measured(gate: Mapping[str, Any]) -> str:
    """The figure in a table."""
    value = gate["measured"]
    return "not finite" if value is None else f"{value:.6g}" if gate["low"] is not None else f"{value:.2g}"


def allowed(gate: Mapping[str, Any]) -> str:
    """Where it must lie, in a table."""
    low, high = gate["low"], gate["high"]
    if low is not None and high is not None:
        return f"{(low + high) / 2:.5g} ± {(high - low) / 2:.2g}"
    if low is not None:
        return f"≥ {low:.2g}"
    return "any" if high is None else f"≤ {high:.2g}"
