"""Pairs into memory, or one error that names every bad row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from trueline.data.check import Columns, DataCheck, Paths, scan
from trueline.errors import InputError
from trueline.types import Pair

__all__ = ["LoadedPairs", "load_pairs"]

NAMED_LINES = 20


@dataclass(frozen=True)
class LoadedPairs:
    """The pairs in file order, and the check of all rows that were read."""

    pairs: list[Pair]
    check: DataCheck


def load_pairs(
    paths: Paths,
    *,
    format: str = "auto",
    columns: Columns = (),
    on_bad_row: Literal["error", "drop"] = "error",
    limit: int | None = None,
) -> LoadedPairs:
    """All files are read and checked whole, then the first `limit` pairs are taken.

    Raises one `InputError` that begins with the first bad row and lists the lines of the others, unless bad rows are to
    be dropped; and where no pair is left.
    """
    if on_bad_row not in ("error", "drop"):
        raise InputError(f"unknown choice {on_bad_row!r}", field="data.on_bad_row", remedy="known: error, drop")
    pairs: list[Pair] = []
    check = scan(paths, pairs.append, format=format, columns=columns)
    if check.bad_places and on_bad_row == "error":
        raise _bad_rows(check)
    if not pairs:
        dropped = ", ".join(f"{name} {n}" for name, n in check.counts.items() if n)
        raise InputError(f"no usable row of {check.rows} ({dropped})", where=", ".join(check.files[:3]))
    return LoadedPairs(pairs[:limit], check)


def _bad_rows(check: DataCheck) -> InputError:
    first, others = check.bad[0], check.bad_places[1:]
    more = f" ({len(others)} more bad rows: {_places(others)})" if others else ""
    remedy = "; ".join(filter(None, [check.remedy, "mend the rows or set data.on_bad_row=drop"]))
    return InputError(first.reason + more, where=first.where, field=first.field, remedy=remedy)


def _places(places: Sequence[str]) -> str:
    """ "a.jsonl lines 3, 7; b.jsonl lines 1, 2", at most `NAMED_LINES` of them."""
    split = [_file_and_line(place) for place in places[:NAMED_LINES]]
    parts = [f"{file} lines {', '.join(line for _, line in group)}" for file, group in groupby(split, lambda p: p[0])]
    return "; ".join(parts) + (", ..." if len(places) > NAMED_LINES else "")


def _file_and_line(place: str) -> tuple[str, str]:
    parts = place.split(":")  # FILE:LINE or FILE:LINE:COLUMN; the file's own name may hold colons
    numbers = 2 if len(parts) > 2 and parts[-1].isdigit() and parts[-2].isdigit() else 1
    return ":".join(parts[:-numbers]), parts[-numbers]
