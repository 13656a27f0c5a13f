"""What a reader makes of a row: a pair, or what is wrong with the row; and the checks that columns are there."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from trueline.types import Pair, Prompt

__all__ = ["Answer", "Format", "Record", "RowProblem", "need_columns", "need_number", "pair_of"]

_NAMES = {
    str: "a text", list: "a list of messages", bool: "true or false", int: "0 or 1", dict: "one message",
    float: "a number",
}  # fmt: skip


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


@dataclass(frozen=True)
class Answer:
    """One scored response, of formats whose rows hold one each: pairs are made when all of its prompt are known."""

    prompt: Prompt
    response: str
    score: float


@dataclass(frozen=True)
class Format:
    """How one family of files is written.

    `matches` knows its rows by their columns. `read` makes pairs of one row, `answer` (of formats with one response in
    a row) an `Answer`; both raise `RowProblem`. `mapping` says for a first row which column plays which role.
    `dropped` are known quirks that drop a row and are counted, `notes` those that it is kept with. `flags` and
    `numbers` are columns to convert where a file holds text alone (CSV).
    """

    name: str
    matches: Callable[[Mapping[str, Any]], bool]
    mapping: Callable[[Mapping[str, Any]], dict[str, str]]
    read: Callable[[Mapping[str, Any]], Sequence[Record]] | None = None
    answer: Callable[[Mapping[str, Any]], Answer] | None = None
    dropped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    numbers: tuple[str, ...] = field(default=())


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


def need_number(row: Mapping[str, Any], column: str, low: float, high: float, name: str = "") -> float:
    """The column as a number within [low, high]; `name` is what the place is called where it is no column."""
    need_columns(row, (column,), (int, float))
    if not low <= row[column] <= high:  # NaN is refused too
        raise RowProblem(
            "wrong_label", name or column, f"expected a number from {low:g} to {high:g}, got {row[column]}"
        )
    return float(row[column])


def pair_of(
    prompt: Prompt, chosen: str, rejected: str, fields: tuple[str, str], meta: Mapping[str, Any] | None = None
) -> Pair:
    """The pair, whose sides must hold text and differ; `fields` are the columns of chosen and rejected."""
    for text, name in zip((chosen, rejected), fields):
        if not text.strip():
            raise RowProblem("empty_responses", name, "the response is empty")
    if chosen == rejected:
        raise RowProblem(
            "identical_pairs", fields[1], "equals chosen" if fields[0] == "chosen" else f"equals {fields[0]}"
        )
    return Pair(prompt, chosen, rejected, meta or {})
