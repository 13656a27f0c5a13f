"""Files to rows: which files a path means, and their rows one by one, each with the place it came from."""

from __future__ import annotations

import glob
import gzip
import io
import json
import os
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trueline.data.hub_files import HUB, fetch
from trueline.data.tables import TABLES, TEXT_TABLES, read_csv, read_parquet
from trueline.errors import InputError

__all__ = ["Row", "expand", "read_rows"]

SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz", *TABLES)
LINE_LIMIT = 64 * 2**20  # bytes; bounds memory on a file with no line breaks and on a gzip bomb
HUB_NAME = re.compile(r"[\w-]+/[\w-]+")
LFS_POINTER = b"version https://git-lfs"

OnBad = Callable[[InputError], None]


@dataclass(frozen=True)
class Row:
    """One object of a file; `where` is "FILE:LINE", lines counted from 1 with blank ones included (Parquet: rows).

    `texts_only` where the file has no types (CSV): flags and numbers are texts there.
    """

    value: dict[str, Any]
    where: str
    line: int
    texts_only: bool = False


def expand(path: str | Path | Sequence[str | Path]) -> list[Path]:
    """The sorted files that a path, a quoted glob, a dataset's name (`hub:...`) or a list of these means, each once.

    Raises `InputError` for anything that cannot be read as rows: missing, a directory, empty, not permitted, an unknown
    kind of file, a glob that matches nothing.
    """
    parts = [path] if isinstance(path, str | Path) else list(path)
    if not parts or any(not str(part).strip() for part in parts):
        raise InputError("no path given", field="data.path", remedy="give a file, a quoted glob or a list of files")
    found: dict[Path, Path] = {}
    for part in parts:
        if isinstance(part, str) and part.startswith(HUB):
            part = fetch(part)
        for file in _matches(os.path.expanduser(part)):
            _check_readable(file)
            found.setdefault(file.resolve(), file)
    return sorted(found.values())


def read_rows(path: Path, on_bad: OnBad | None = None) -> Iterator[Row]:
    """The file's rows in order, streamed; a byte-order mark, CRLF, blank lines and a missing last newline are accepted.

    A row that is not one JSON object in strict UTF-8 raises `InputError`; with `on_bad` it is handed there instead and
    reading goes on. What spoils the rest of the file (a corrupt gzip, an overlong line, UTF-16) always raises.
    """
    if path.name.lower().endswith(TABLES):
        yield from _table_rows(path, on_bad)
        return
    lines = _lines(path)
    is_list = path.name.lower().removesuffix(".gz").endswith(".json")
    for line, item in _list_items(path, lines, on_bad) if is_list else _objects(lines):
        try:
            row = _row(item, path, line)
        except InputError as error:
            _bad(error, on_bad)
        else:
            yield row


def _table_rows(path: Path, on_bad: OnBad | None) -> Iterator[Row]:
    is_text = path.name.lower().endswith(TEXT_TABLES)
    for line, value in read_csv(path) if is_text else read_parquet(path):
        try:
            if isinstance(value, InputError):
                raise value
            row = _row(value, path, line)
        except InputError as error:
            _bad(error, on_bad)
        else:
            yield replace(row, texts_only=is_text)


# --- files -------------------------------------------------------------------------------------------------------


def _matches(part: str | Path) -> list[Path]:
    text = str(part)
    if "\0" in text:
        raise InputError("a path cannot hold a NUL character", field="data.path")
    if os.path.lexists(text) or not glob.has_magic(text):
        return [Path(text)]
    files = [Path(name) for name in glob.glob(text, recursive=True)]
    if not files:
        raise InputError("no file matches", where=text, field="data.path", remedy="check the pattern and its folder")
    return files


def _check_readable(file: Path) -> None:
    where = str(file)
    try:
        if file.is_dir():
            raise InputError("is a directory", where=where, remedy=f"give its files: '{file}/*.jsonl'")
        if not file.name.lower().endswith(SUFFIXES):
            file.stat()  # that it is missing is said before that its kind is unknown
            raise InputError("unknown kind of file", where=where, remedy=f"known: {', '.join(SUFFIXES)}")
        with file.open("rb") as stream:
            if not stream.read(1):
                raise InputError("the file is empty", where=where, remedy="give a file with one JSON object per line")
    except FileNotFoundError:
        remedy = f"check data.path, or write hub:{where} for a dataset on the hub" if HUB_NAME.fullmatch(where) else ""
        raise InputError("file not found", where=where, remedy=remedy or "check data.path") from None
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", where=where, remedy="check data.path") from None


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Lines with their number and without line ending; the byte-order mark of UTF-8 is taken off."""
    line = 0
    try:
        with (gzip.open if path.name.lower().endswith(".gz") else open)(path, "rb") as stream:
            while raw := stream.readline(LINE_LIMIT + 1):
                line += 1
                if len(raw) > LINE_LIMIT:
                    raise InputError(
                        f"a line longer than {LINE_LIMIT >> 20} MiB",
                        where=f"{path}:{line}",
                        remedy="write one JSON object per line",
                    )
                if line == 1:
                    raw = _start(path, raw)
                yield line, raw.rstrip(b"\r\n")
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        with path.open("rb") as stream:
            pointer = stream.read(len(LFS_POINTER)) == LFS_POINTER
        reason = "a git-lfs pointer, not the file itself" if pointer else f"corrupt gzip after line {line} ({error})"
        raise InputError(reason, where=str(path), remedy="fetch the file again") from None
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror or error})", where=str(path)) from None


def _start(path: Path, raw: bytes) -> bytes:
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise InputError("UTF-16, not UTF-8", where=f"{path}:1", remedy="save it as UTF-8")
    if raw.startswith(b"\x1f\x8b"):
        raise InputError("gzip data without the .gz suffix", where=str(path), remedy=f"rename it to {path.name}.gz")
    if raw.startswith(LFS_POINTER):
        raise InputError("a git-lfs pointer, not the file itself", where=str(path), remedy="fetch it with git lfs pull")
    return raw.removeprefix(b"\xef\xbb\xbf")


# --- rows --------------------------------------------------------------------------------------------------------


class _Refused(ValueError):
    """JSON that Python reads and the standard, or we, do not."""


def _refuse_constant(name: str) -> None:
    raise _Refused(f"{name} is not JSON")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        keys = [key for key, _ in pairs]
        raise _Refused(f"repeated key {next(key for key in keys if keys.count(key) > 1)!r}")
    return row


DECODER = json.JSONDecoder(parse_constant=_refuse_constant, object_pairs_hook=_unique)


def _objects(lines: Iterator[tuple[int, bytes]]) -> Iterator[tuple[int, Any]]:
    for line, raw in lines:
        if raw.strip():
            yield line, raw


def _list_items(path: Path, lines: Iterator[tuple[int, bytes]], on_bad: OnBad | None) -> Iterator[tuple[int, Any]]:
    """The items of a `.json` file that holds one list; broken JSON ends it, for the next item cannot be found."""
    text = io.StringIO()
    for line, raw in lines:
        text.write(_decode(raw, f"{path}:{line}") + "\n")
    body, at, line, expected = text.getvalue(), 0, 1, "["
    while True:
        start = _skip_space(body, at)
        line, at = line + body.count("\n", at, start), start
        sign = body[at : at + 1]
        if sign not in expected or not sign:
            error = InputError(
                f"broken JSON: expected {' or '.join(expected)}, found {sign or 'the end'!r}",
                where=f"{path}:{line}",
                remedy="give one list of objects, or use .jsonl",
            )
            return _bad(error, on_bad)
        if sign == "]":
            return None
        start = _skip_space(body, at + 1)
        line, at = line + body.count("\n", at, start), start
        if sign == "[" and body[at : at + 1] == "]":
            return None
        try:
            item, end = DECODER.raw_decode(body, at)
        except (ValueError, RecursionError) as error:
            return _bad(_broken(error, path, (line, at - body.rfind("\n", 0, at)), 0), on_bad)
        yield line, item
        line, at, expected = line + body.count("\n", at, end), end, ",]"


def _bad(error: InputError, on_bad: OnBad | None) -> None:
    if on_bad is None:
        raise error
    on_bad(error)


def _skip_space(body: str, at: int) -> int:
    while at < len(body) and body[at] in " \t\r\n":
        at += 1
    return at


def _row(item: Any, path: Path, line: int) -> Row:
    where = f"{path}:{line}"
    value = _parse(_decode(item, where), path, line) if isinstance(item, bytes) else item
    if not isinstance(value, dict):
        kind = {list: "a list", str: "a text", type(None): "null"}.get(type(value), "a number or truth value")
        raise InputError(f"the row is {kind}, not an object", where=where, remedy='write {"prompt": ..., ...}')
    for name, inner in value.items():
        if problem := _text_problem([name, inner]):
            raise InputError(
                problem,
                where=where,
                field=name.encode("ascii", "backslashreplace").decode(),
                remedy="remove the character",
            )
    return Row(value, where, line)


def _decode(raw: bytes, where: str) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        reason = f"not UTF-8 at byte {error.start} of the line (0x{raw[error.start]:02x})"
        raise InputError(reason, where=where, remedy="save the file as UTF-8") from None


def _parse(text: str, path: Path, line: int) -> Any:
    start = _skip_space(text, 0)
    try:
        value, end = DECODER.raw_decode(text, start)
    except (ValueError, RecursionError) as error:
        raise _broken(error, path, (line, start + 1), line - 1) from None
    rest = _skip_space(text, end)
    if rest < len(text):
        reason = (
            "two objects in one line" if text[rest] in "{[" else f"text after the object: {text[rest : rest + 20]!r}"
        )
        raise InputError(reason, where=f"{path}:{line}:{rest + 1}", remedy="write one JSON object per line")
    return value


def _broken(error: Exception, path: Path, start: tuple[int, int], lines_before: int) -> InputError:
    """`start` is the item's line and column, for the errors of JSON that do not know their own."""
    if isinstance(error, json.JSONDecodeError):
        return InputError(f"broken JSON: {error.msg}", where=f"{path}:{lines_before + error.lineno}:{error.colno}")
    where = f"{path}:{start[0]}:{start[1]}"
    if isinstance(error, RecursionError):
        return InputError("nested too deeply", where=where)
    return InputError(str(error) if isinstance(error, _Refused) else "a number too long to read", where=where)


SURROGATE = re.compile("[\ud800-\udfff]")


def _text_problem(value: Any) -> str:
    stack = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, str):
            if "\0" in item:
                return "holds a NUL character"
            if not item.isascii() and SURROGATE.search(item):
                return "holds half of a surrogate pair (\\ud800 to \\udfff), which is no text"
        elif isinstance(item, list | tuple):
            stack.extend(item)
        elif isinstance(item, dict):
            stack.extend(item.keys())
            stack.extend(item.values())
    return ""
