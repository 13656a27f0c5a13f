"""Rows of tables: CSV and TSV with a header, Parquet."""

from __future__ import annotations

import csv
import gzip
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trueline.errors import InputError

__all__ = ["TABLES", "TEXT_TABLES", "read_csv", "read_parquet"]

TEXT_TABLES = (".csv", ".csv.gz", ".tsv", ".tsv.gz")
TABLES = (*TEXT_TABLES, ".parquet")
CELL_LIMIT = 64 * 2**20  # bytes, as of a line elsewhere
BATCH = 1024  # rows of Parquet in memory at a time

_TURNS = re.compile(r'\s*\[\s*\{\s*"(?:role|content|from|value)"')
_PYTHON_TURNS = re.compile(r"\s*\[\s*\{\s*'(?:role|content|from|value)'")


def read_csv(path: Path) -> Iterator[tuple[int, dict[str, Any] | InputError]]:
    """The line that each record begins on, with its columns as texts; a list of turns written as JSON is read as one.

    A record that cannot be used comes as the error. Raises `InputError` for what spoils the file: its encoding, its
    header, a quote that is never closed.
    """
    csv.field_size_limit(CELL_LIMIT)
    delimiter = "\t" if ".tsv" in path.name.lower() else ","
    reader = csv.reader(_text_lines(path), delimiter=delimiter, strict=True)
    header: list[str] = []
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            remedy = 'put texts with quotes, commas or line breaks in "..." and write " as ""'
            raise InputError(f"broken table: {error}", where=f"{path}:{line}", remedy=remedy) from None
        if cells is None:
            return
        if not any(cell.strip() for cell in cells):
            continue
        if not header:
            header = _header(cells, path, line)
        elif len(cells) != len(header):
            reason = f"{len(cells)} cells, but the header has {len(header)}"
            yield line, InputError(reason, where=f"{path}:{line}", remedy="write one cell for each column")
        else:
            yield line, _cells(header, cells, path, line)


def read_parquet(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows with their number, counted from 1; columns have the types of the file."""
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError:
        raise InputError(
            "reading Parquet needs pyarrow",
            where=str(path),
            remedy="pip install 'trueline[data]', or save it as .jsonl",
        ) from None
    try:
        with parquet.ParquetFile(path) as table:
            number = 0
            for batch in table.iter_batches(batch_size=BATCH):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except (pyarrow.ArrowException, OSError) as error:
        reason = f"corrupt Parquet ({str(error).splitlines()[0][:120]})"
        raise InputError(reason, where=str(path), remedy="fetch or write the file again") from None


def _text_lines(path: Path) -> Iterator[str]:
    number = 0
    try:
        with (gzip.open if path.name.lower().endswith(".gz") else open)(path, "rb") as stream:
            for number, raw in enumerate(stream, 1):
                if number == 1 and raw.startswith((b"\xff\xfe", b"\xfe\xff")):
                    raise InputError("UTF-16, not UTF-8", where=f"{path}:1", remedy="save it as UTF-8")
                if b"\0" in raw:
                    raise InputError("holds a NUL character", where=f"{path}:{number}", remedy="remove the character")
                text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
                yield text
    except UnicodeDecodeError as error:
        reason = f"not UTF-8 at byte {error.start} of the line (0x{error.object[error.start]:02x})"
        raise InputError(reason, where=f"{path}:{number}", remedy="save the file as UTF-8") from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        reason = f"corrupt gzip after line {number} ({error})"
        raise InputError(reason, where=str(path), remedy="fetch the file again") from None
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror or error})", where=str(path)) from None


def _header(cells: list[str], path: Path, line: int) -> list[str]:
    names = [cell.strip() for cell in cells]
    where = f"{path}:{line}"
    if repeated := next((name for name in names if name and names.count(name) > 1), None):
        raise InputError(f"the column {repeated!r} is there twice", where=where, remedy="rename or remove one")
    if len(names) == 1:
        other = "tabs" if "\t" in names[0] else "semicolons" if ";" in names[0] else ""
        reason = f"one column, {names[0][:40]!r}" + (f": the cells seem to be divided by {other}" if other else "")
        raise InputError(reason, where=where, remedy="divide cells by commas (.csv) or tabs (.tsv), a header first")
    return [name or f"column {number}" for number, name in enumerate(names, 1)]  # a table's unnamed index


def _cells(header: list[str], cells: list[str], path: Path, line: int) -> dict[str, Any] | InputError:
    row: dict[str, Any] = {}
    for name, cell in zip(header, cells):
        if _PYTHON_TURNS.match(cell):
            return InputError(
                "a list as Python prints it, not JSON",
                where=f"{path}:{line}",
                field=name,
                remedy="write the table as .jsonl or .parquet (in pandas: to_json(..., orient='records', lines=True))",
            )
        row[name] = cell
        if _TURNS.match(cell):
            try:
                row[name] = json.loads(cell)
            except ValueError as error:
                return InputError(f"broken JSON in the cell: {error}", where=f"{path}:{line}", field=name)
    return row
