"""What is in a file of pairs: rows, format, quirks counted, bad rows named, lengths. Reads everything, keeps no row."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from trueline.data.records import FORMATS, HH_DROPPED, HH_NOTES, RowProblem, detect, read_record
from trueline.data.safe_rlhf import SAFE_NOTES
from trueline.data.sources import expand, read_rows
from trueline.errors import InputError
from trueline.types import Pair

__all__ = ["BadRow", "DataCheck", "check", "scan"]

STANDARD = (
    "kept",
    "bad_rows",
    "identical_pairs",
    "differing_prompts",
    "empty_response",
    "duplicate_pairs",
    "reversed_pairs",
    "multi_turn",
)
PERCENTILES = (0, 50, 90, 99, 100)

Paths = str | Path | Sequence[str | Path]


class BadRow(NamedTuple):
    """A row that the format does not allow, by its place and column."""

    where: str
    field: str
    reason: str


@dataclass(frozen=True)
class DataCheck:
    """`counts["kept"]` rows became pairs; `bad_rows` are not allowed by the format (the first ones are in `bad`).

    Dropped rows are counted under one name each, so rows = kept + bad_rows + the known quirks of `hh-rlhf` that drop a
    row. Kept rows may be counted under several more: `duplicate_pairs` (same prompt and sides as an earlier row),
    `reversed_pairs` (an earlier row has the sides swapped), `multi_turn` (more than one user turn), the notes of
    `hh-rlhf` and `safe-rlhf`. `lengths` are nearest-rank percentiles in characters.
    """

    rows: int
    format: str
    files: list[str]
    counts: dict[str, int]
    bad: list[BadRow]
    remedy: str
    bad_places: list[str]
    lengths: dict[str, dict[str, int]]

    def as_dict(self) -> dict[str, Any]:
        """JSON-able, for `--json`."""
        plain = asdict(self) | {"bad": [row._asdict() for row in self.bad]}
        return {key: plain[key] for key in ("rows", "format", "files", "counts", "bad", "lengths")}


def check(paths: Paths, *, format: str = "auto", limit: int = 20) -> DataCheck:
    """Reads all rows; bad rows are reported, not raised.

    Raises `InputError` for what concerns a whole file: missing, unreadable, corrupt, no rows, two formats.
    """
    return scan(paths, lambda pair: None, format=format, limit=limit)


def scan(paths: Paths, keep: Callable[[Pair], None], *, format: str = "auto", limit: int = 20) -> DataCheck:
    """`check`, handing each pair to `keep` as it is read."""
    if format not in ("auto", *FORMATS):
        raise InputError(f"unknown format {format!r}", field="data.format", remedy=f"known: auto, {', '.join(FORMATS)}")
    files = expand(paths)
    tally = _Tally(_format_of(files) if format == "auto" else format, limit, keep)
    for file in files:
        before = tally.rows
        for row in read_rows(file, on_bad=tally.unreadable):
            tally.add(row.value, row.where)
        if tally.rows == before:
            raise InputError("no rows", where=str(file), remedy="give a file with one JSON object per line")
    return tally.result([str(file) for file in files])


def _format_of(files: Sequence[Path]) -> str:
    """One format for all files, from the first row of each that shows one; else `pairs`, to name its columns."""
    found: dict[str, Path] = {}
    for file in files:
        rows = read_rows(file, on_bad=lambda error: None)
        shown = next((name for row in rows if (name := detect(row.value))), None)
        if shown:
            found.setdefault(shown, file)
    if len(found) > 1:
        (one, a), (other, b), *_ = found.items()
        reason = f"is written as {other}, but {a} as {one}"
        raise InputError(reason, where=str(b), field="data.format", remedy="read them apart, or set data.format")
    return next(iter(found), "pairs")


class _Tally:
    """Counts rows as they pass; holds digests and lengths, never rows."""

    def __init__(self, format: str, limit: int, keep: Callable[[Pair], None]) -> None:
        self.format, self.limit, self.keep = format, limit, keep
        own = {"hh-rlhf": (*HH_DROPPED, *HH_NOTES), "safe-rlhf": SAFE_NOTES}
        names = (*STANDARD, *own.get(format, ()))
        self.counts: Counter[str] = Counter(dict.fromkeys(names, 0))
        self.rows, self.bad, self.places, self.remedy = 0, [], [], ""
        self.lengths: dict[str, list[int]] = {"prompt": [], "chosen": [], "rejected": []}
        self.seen: set[bytes] = set()

    def unreadable(self, error: InputError) -> None:
        self._bad(error.where, error.field, error.reason, error.remedy)
        self.counts["unreadable"] += 1
        self.rows += 1

    def add(self, value: dict[str, Any], where: str) -> None:
        self.rows += 1
        try:
            record = read_record(value, self.format)
        except RowProblem as problem:
            self.counts[problem.name] += 1
            if self.format != "hh-rlhf" or problem.name not in HH_DROPPED:
                self._bad(where, problem.field, problem.reason, problem.remedy)
            return
        self.counts.update(["kept", *record.notes])
        self._count(record.pair)
        prompt = replace(record.pair.prompt, meta={**record.pair.prompt.meta, "where": where})
        self.keep(replace(record.pair, prompt=prompt))

    def _count(self, pair: Pair) -> None:
        prompt = pair.prompt.text
        same, swapped = _key(prompt, pair.chosen, pair.rejected), _key(prompt, pair.rejected, pair.chosen)
        self.counts["duplicate_pairs"] += same in self.seen
        self.counts["reversed_pairs"] += swapped in self.seen
        self.seen.add(same)
        self.counts["multi_turn"] += sum(m.role == "user" for m in pair.prompt.messages) > 1
        for name, text in (("prompt", prompt), ("chosen", pair.chosen), ("rejected", pair.rejected)):
            self.lengths[name].append(len(text))

    def _bad(self, where: str, field: str, reason: str, remedy: str) -> None:
        self.counts["bad_rows"] += 1
        self.remedy = self.remedy if self.bad else remedy
        self.places.append(where)
        if len(self.bad) < self.limit:
            self.bad.append(BadRow(where, field, reason))

    def result(self, files: list[str]) -> DataCheck:
        lengths = {name: _percentiles(sorted(found)) for name, found in self.lengths.items()}
        return DataCheck(self.rows, self.format, files, dict(self.counts), self.bad, self.remedy, self.places, lengths)


def _key(*texts: str) -> bytes:
    # lengths first, so that no two lists of texts join to the same bytes
    return hashlib.blake2b("\0".join([*(str(len(t)) for t in texts), *texts]).encode(), digest_size=16).digest()


def _percentiles(found: list[int]) -> dict[str, int]:
    names = {0: "min", 100: "max"}
    return {names.get(p, f"p{p}"): found[max(0, -(-p * len(found) // 100) - 1)] for p in PERCENTILES if found}
