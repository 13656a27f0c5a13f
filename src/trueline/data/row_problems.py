"""What a reader of rows gives back, a pair or what is wrong with the row, and the check that columns are there."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trueline.types import Pair

__all__ = ["Record", "RowProblem", "need_columns"]

_NAMES = {str: "a text", list: "a list of messages", bool: "true or false", int: "0 or 1"}


class RowProblem(Exception):
    """Why a row gives no pair: `name` is what it is counted as, `field` the column; `reason`, `remedy` for the user."""

    def __init__(self, name: str, field: str, reason: str, remedy: str = "") -> None:
        super().__init__(reason)
        self.name, self.field, self.reason, self.remedy = name, field, reason, remedy


@dataclass(frozen=True)
class Record:
    """A pair and the names of the quirks it was kept with."""

    pair: Pair
    notes: tuple[str, ...] = ()


def need_columns(row: Mapping[str, Any], columns: Sequence[str], kinds: tuple[type, ...]) -> None:
    """Raise RowProblem for the first column that is missing or of another type; true and false are no numbers here."""
    for column in columns:
        if column not in row:
            near = difflib.get_close_matches(column, [key for key in row if key not in columns], 1)
            remedy = f"rename {near[0]!r}" if near else f"columns here: {', '.join(map(repr, row))[:120] or 'none'}"
            raise RowProblem("missing_field", column, "missing", remedy)
        if type(row[column]) not in kinds:
            got = "null" if row[column] is None else type(row[column]).__name__
            raise RowProblem("wrong_type", column, f"expected {' or '.join(_NAMES[k] for k in kinds)}, got {got}")
