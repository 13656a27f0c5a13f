"""Columns of a row of problems or samples, read strictly: `RowProblem` says field, reason and remedy."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from trueline.data.formats.rows import RowProblem

__all__ = [
    "Row",
    "an_object",
    "column",
    "kind_of",
    "known",
    "nested",
    "python_name",
    "seconds",
    "task_id",
    "texts",
    "tolerance",
    "unix",
]

Row = Mapping[str, Any]
_KINDS = {str: "a text", list: "a list", dict: "an object", int: "a whole number", bool: "true or false"}


def column(row: Row, name: str, *kinds: type, default: Any = None) -> Any:
    """A column of one of these types; `default` where it is absent or null, if one is given."""
    value = row.get(name)
    if value is None and default is not None:
        return default
    if name not in row:
        near = difflib.get_close_matches(name, list(row), 1)
        remedy = f"rename {near[0]!r}" if near else f"columns here: {', '.join(map(repr, row))[:120] or 'none'}"
        raise RowProblem("missing_field", name, "missing", remedy)
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        raise RowProblem("wrong_type", name, f"expected {' or '.join(_KINDS[k] for k in kinds)}, got {kind_of(value)}")
    return value


def kind_of(value: Any) -> str:
    return "null" if value is None else type(value).__name__


def task_id(row: Row, name: str = "task_id") -> str:
    return str(column(row, name, str, int))


def texts(row: Row, name: str, *, required: bool = True) -> list[str]:
    value = column(row, name, list, default=None if required else [])
    for i, item in enumerate(value):
        if not isinstance(item, str):
            raise RowProblem("wrong_type", f"{name}[{i}]", f"expected a text, got {kind_of(item)}")
    return value


def nested(row: Row, name: str, kind: type, default: Any = None) -> Any:
    """A column that the published file holds as JSON in a text, and others as the value itself; "" is no value."""
    value = row.get(name)
    if isinstance(value, str):
        if not value.strip() and default is not None:
            return default
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise RowProblem("broken_json", name, f"the text is no JSON ({str(error)[:80]})") from None
    return column({**row, name: value}, name, kind, default=default)


def unix(text: str, notes: list[str]) -> str:
    if "\r\n" in text:
        notes.append("crlf")
    return text.replace("\r\n", "\n")


def python_name(text: str, field: str) -> str:
    if not all(part.isidentifier() for part in text.split(".")):
        raise RowProblem("wrong_name", field, f"{text[:40]!r} is no name of Python")
    return text


def seconds(value: Any, field: str) -> float | None:
    """A positive number of seconds, CodeContests' {"seconds": ..., "nanos": ...}, or null."""
    if isinstance(value, dict):
        parts = [value.get("seconds", 0), value.get("nanos", 0)]
        value = parts[0] + parts[1] / 1e9 if all(isinstance(part, int) for part in parts) else parts
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
        raise RowProblem("wrong_type", field, "expected a positive number of seconds")
    return float(value)


def tolerance(row: Row, field: str) -> float:
    value = row.get(field)
    if value is None:
        return 0.0
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise RowProblem("wrong_type", field, f"expected a number of at least 0, got {kind_of(value)}")
    return float(value)


def an_object(value: Any, field: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise RowProblem("wrong_type", field, f"expected an object, got {kind_of(value)}")
    return value


def known(row: Row, columns: Sequence[str], field: str) -> None:
    for name in row:
        if name not in columns:
            near = difflib.get_close_matches(name, columns, 1)
            remedy = f"did you mean {near[0]}?" if near else f"known: {', '.join(columns)}"
            raise RowProblem("unknown_field", ".".join(filter(None, [field, name])), "unknown column", remedy)
