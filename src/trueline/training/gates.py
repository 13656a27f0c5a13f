"""What must hold before and while a model is trained; measured in every run, listed in the report, and hard.

A gate compares one figure with what it must be. One that fails stops the run (NumericsError) with the remedy; a few
only tell. All are written to the cell's `gates.json`. Each stands against faults that are silent elsewhere: a wrong
reference, a pad that is read, an end that is never learnt, a score read at another token than in training.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from trueline.errors import NumericsError
from trueline.runs.cell import Cell, read_json, write_json

__all__ = ["Gate", "Gates"]


@dataclass(frozen=True)
class Gate:
    """One figure and where it must lie, ends included; `what` says in words what is compared."""

    name: str
    what: str
    measured: float
    low: float
    high: float
    hard: bool = True

    @property
    def passed(self) -> bool:
        """Whether the figure is where it must be; NaN never is."""
        return self.low <= self.measured <= self.high

    @property
    def distance(self) -> float:
        """How close to failing: the share of the way from the middle of the range to its end that is used up."""
        if not math.isfinite(self.measured):
            return math.inf
        if math.isinf(self.high) and math.isinf(self.low):
            return self.measured
        if math.isinf(self.high) or math.isinf(self.low):
            return self.low - self.measured if math.isinf(self.high) else self.measured - self.high
        return abs(self.measured - (self.low + self.high) / 2)


class Gates:
    """The gates of one cell. One that is asked again (in every step) is kept where it came closest to failing."""

    def __init__(self, cell: Cell, *, resumed: bool) -> None:
        self._file = cell / "gates.json"
        if not resumed:  # what an earlier attempt found is not this one's
            self._file.unlink(missing_ok=True)
        stored = read_json(self._file)["gates"] if self._file.exists() else []
        self._gates = {row["name"]: Gate(**_read(row)) for row in stored}

    def ask(
        self,
        name: str,
        what: str,
        measured: float,
        *,
        low: float = -math.inf,
        high: float = math.inf,
        remedy: str,
        hard: bool = True,
    ) -> None:
        """Write the gate down; raises NumericsError where a hard one fails."""
        gate = Gate(name, what, float(measured), low, high, hard)
        known = self._gates.get(name)
        if known is None or gate.distance > known.distance:
            self._gates[name] = gate
            write_json(self._file, {"gates": [_written(g) for g in self._gates.values()]})
        if hard and not gate.passed:
            raise NumericsError(f"gate {name!r}: {what} is {measured:.6g}, {_allowed(gate)}; {remedy}")


def _allowed(gate: Gate) -> str:
    if math.isinf(gate.high):
        return f"at least {gate.low:g} is needed"
    return f"at most {gate.high:g} is allowed" if math.isinf(gate.low) else f"not {(gate.low + gate.high) / 2:.6g}"


def _written(gate: Gate) -> dict[str, Any]:
    """JSON has no infinities: an open end is null."""
    row = asdict(gate) | {"passed": gate.passed, "distance": gate.distance}
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}


def _read(row: dict[str, Any]) -> dict[str, Any]:
    ends = {"low": -math.inf, "high": math.inf, "measured": math.nan}
    return {k: ends[k] if v is None else v for k, v in row.items() if k not in ("passed", "distance")}
