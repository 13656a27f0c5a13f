"""What is in a file of pairs: rows, format, quirks counted, bad rows named, lengths. Reads everything, keeps no row."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from trueline.data.formats import FORMATS, detect, not_preferences
from trueline.data.formats.labelled import pairs_of_answers
from trueline.data.formats.rows import Answer, Record, RowProblem
from trueline.data.sources import Row, expand, read_rows
from trueline.errors import InputError
from trueline.types import Pair

__all__ = ["BadRow", "Columns", "DataCheck", "Paths", "check", "read_columns", "scan"]

STANDARD = (
    "kept",
    "bad_rows",
    "identical_pairs",
    "differing_prompts",
    "empty_responses",
    "duplicates",
    "reversed_pairs",
    "multi_turn",
)
PERCENTILES = (0, 50, 90, 99, 100)

Paths = str | Path | Sequence[str | Path]
Columns = str | Sequence[str]


class BadRow(NamedTuple):
    """A row that the format does not allow, by its place and column."""

    where: str
    field: str
    reason: str


@dataclass(frozen=True)
class DataCheck:
    """`counts["kept"]` pairs were made; `bad_rows` are not allowed by the format (the first ones are in `bad`).

    `mapping` says which column plays which role. Dropped rows are counted under one name each, so where a row is one
    pair, rows = kept + bad_rows + the known quirks of the format that drop a row. (Where a row is one labelled answer,
    or has several pairs, `kept` counts pairs all the same.) Pairs may be counted under several names more: `duplicates`
    (same prompt and sides as an earlier pair), `reversed_pairs` (an earlier pair has the sides swapped), `multi_turn`
    (more than one user turn), the notes of a format. `lengths` are nearest-rank percentiles in characters.
    """

    rows: int
    format: str
    mapping: dict[str, str]
    files: list[str]
    counts: dict[str, int]
    bad: list[BadRow]
    remedy: str
    bad_places: list[str]
    lengths: dict[str, dict[str, int]]

    def as_dict(self) -> dict[str, Any]:
        """JSON-able, for `--json`."""
        plain = asdict(self) | {"bad": [row._asdict() for row in self.bad]}
        return {key: plain[key] for key in ("rows", "format", "mapping", "files", "counts", "bad", "lengths")}


def check(paths: Paths, *, format: str = "auto", columns: Columns = (), limit: int = 20) -> DataCheck:
    """Reads all rows; bad rows are reported, not raised.

    Raises `InputError` for what concerns a whole file: missing, unreadable, corrupt, no rows, two formats, or rows of a
    known kind that are no comparisons.
    """
    return scan(paths, lambda pair: None, format=format, columns=columns, limit=limit)


def scan(
    paths: Paths,
    keep: Callable[[Pair], None],
    *,
    format: str = "auto",
    columns: Columns = (),
    limit: int = 20,
    on_drop: Callable[[BadRow, str], None] | None = None,
) -> DataCheck:
    """`check`, handing each pair to `keep` as it is read (labelled answers: when their file ends).

    `columns` renames before anything is looked at: "prompt=question" says that the column `question` is the prompt.
    `on_drop` is told of every row that gives no pair, with the name it is counted under.
    """
    if format not in ("auto", *FORMATS):
        raise InputError(f"unknown format {format!r}", field="data.format", remedy=f"known: auto, {', '.join(FORMATS)}")
    renamed = read_columns(columns)
    files = expand(paths)
    name, mapping = _format_of(files, format, renamed)
    tally = _Tally(name, limit, keep, on_drop)
    for file in files:
        before = tally.rows
        for row in read_rows(file, on_bad=tally.unreadable):
            tally.add(row, renamed)
        tally.finish_file()
        if tally.rows == before:
            raise InputError("no rows", where=str(file), remedy="give a file with one JSON object per line")
    return tally.result([str(file) for file in files], mapping)


def read_columns(columns: Columns) -> dict[str, str]:
    """Role -> column, of "role=column" texts."""
    found: dict[str, str] = {}
    for item in [columns] if isinstance(columns, str) else columns:
        role, sign, column = (part.strip() for part in item.partition("="))
        if not (role and sign and column) or role in found:
            raise InputError(
                f"{item!r} is not role=column, or names a role twice",
                field="data.columns",
                remedy="for example data.columns=prompt=question,chosen=good,rejected=bad",
            )
        found[role] = column
    return found


def _format_of(files: Sequence[Path], format: str, renamed: Mapping[str, str]) -> tuple[str, dict[str, str]]:
    """One format for all files, from the first row of each that shows one; else `pairs`, to name its columns."""
    found: dict[str, tuple[Path, dict[str, str]]] = {}
    for file in files:
        for row in read_rows(file, on_bad=lambda error: None):
            value = _rename(row.value, renamed)
            name = detect(value) if format == "auto" else format
            if format == "auto" and (known := not_preferences(value)):
                raise InputError(known, where=row.where, remedy=NOT_PAIRS)
            if name and FORMATS[name].matches(value):
                found.setdefault(name, (file, _mapping(name, value, renamed)))
                break
    if len(found) > 1:
        (one, (a, _)), (other, (b, _)), *_ = found.items()
        reason = f"is written as {other}, but {a} as {one}"
        raise InputError(reason, where=str(b), field="data.format", remedy="read them apart, or set data.format")
    default = "pairs" if format == "auto" else format
    name = next(iter(found), default)
    return name, found[name][1] if found else {}


NOT_PAIRS = "a preference file has two responses to compare; for problems with tests: trueline study problems"


def _mapping(name: str, value: Mapping[str, Any], renamed: Mapping[str, str]) -> dict[str, str]:
    try:
        mapping = FORMATS[name].mapping(value)
    except (
        RowProblem,
        TypeError,
        KeyError,
        IndexError,
        AttributeError,
    ):  # a first row that the format's reader will refuse
        return {}
    return {role: renamed.get(column, column) for role, column in mapping.items()}


def _rename(value: Mapping[str, Any], renamed: Mapping[str, str]) -> dict[str, Any]:
    if not renamed:
        return dict(value)
    left = {name: item for name, item in value.items() if name not in renamed.values()}
    return left | {role: value[column] for role, column in renamed.items() if column in value}


class _Tally:
    """Counts rows as they pass; holds digests and lengths, and rows only where several make a pair."""

    def __init__(
        self, format: str, limit: int, keep: Callable[[Pair], None], on_drop: Callable[[BadRow, str], None] | None
    ) -> None:
        self.format, self.limit, self.keep = FORMATS[format], limit, keep
        self.on_drop = on_drop or (lambda row, name: None)
        names = (*STANDARD, *self.format.dropped, *self.format.notes)
        self.counts: Counter[str] = Counter(dict.fromkeys(names, 0))
        self.rows, self.bad, self.places, self.remedy = 0, [], [], ""
        self.lengths: dict[str, list[int]] = {"prompt": [], "chosen": [], "rejected": []}
        self.seen: set[bytes] = set()
        self.held: dict[str, list[tuple[Answer, str]]] = {}

    def unreadable(self, error: InputError) -> None:
        self._bad(BadRow(error.where, error.field, error.reason), error.remedy, "unreadable")
        self.rows += 1

    def add(self, row: Row, renamed: Mapping[str, str]) -> None:
        self.rows += 1
        try:
            value = self._typed(_rename(row.value, renamed), row)
            if self.format.answer:
                answer = self.format.answer(value)
                self.held.setdefault(answer.prompt.text, []).append((answer, row.where))
                return
            records = self.format.read(value)
        except RowProblem as problem:
            column = renamed.get(problem.field, problem.field)
            bad = BadRow(row.where, column, problem.reason)
            if problem.name in self.format.dropped:
                self.counts[problem.name] += 1
                self.on_drop(bad, problem.name)
            else:
                self._bad(bad, problem.remedy, problem.name)
            return
        self._take(records, row.where)

    def _typed(self, value: dict[str, Any], row: Row) -> dict[str, Any]:
        """In a file of texts alone, the columns that the format knows as flags and numbers."""
        if not row.texts_only:
            return value
        for name in self.format.flags:
            if isinstance(value.get(name), str):
                value[name] = FLAGS.get(value[name].strip().lower(), value[name])
        for name in self.format.numbers:
            if isinstance(value.get(name), str):
                value[name] = _number(value[name])
        return value

    def finish_file(self) -> None:
        """Pairs of the labelled answers: a prompt is whole when its file ends."""
        for group in self.held.values():
            answers = [answer for answer, _ in group]
            pairs, counts = pairs_of_answers(answers)
            self.counts.update(counts)
            for chosen, rejected in pairs:
                pair = Pair(answers[chosen].prompt, answers[chosen].response, answers[rejected].response)
                self._take([Record(pair)], group[chosen][1])
            used = {index for pair in pairs for index in pair}
            for index, (_, where) in enumerate(group):
                if index not in used:
                    self.on_drop(BadRow(where, "", "no answer of the other label to its prompt"), "unpaired_labels")
        self.held.clear()

    def _take(self, records: Iterable[Record], where: str) -> None:
        for record in records:
            self.counts.update(["kept", *record.notes])
            self._count(record.pair)
            prompt = replace(record.pair.prompt, meta={**record.pair.prompt.meta, "where": where})
            self.keep(replace(record.pair, prompt=prompt))

    def _count(self, pair: Pair) -> None:
        prompt = pair.prompt.text
        same, swapped = _key(prompt, pair.chosen, pair.rejected), _key(prompt, pair.rejected, pair.chosen)
        self.counts["duplicates"] += same in self.seen
        self.counts["reversed_pairs"] += swapped in self.seen
        self.seen.add(same)
        self.counts["multi_turn"] += sum(m.role == "user" for m in pair.prompt.messages) > 1
        for name, text in (("prompt", prompt), ("chosen", pair.chosen), ("rejected", pair.rejected)):
            self.lengths[name].append(len(text))

    def _bad(self, row: BadRow, remedy: str, name: str) -> None:
        self.counts.update(["bad_rows", name])
        self.remedy = self.remedy if self.bad else remedy
        self.places.append(row.where)
        if len(self.bad) < self.limit:
            self.bad.append(row)
        self.on_drop(row, name)

    def result(self, files: list[str], mapping: dict[str, str]) -> DataCheck:
        lengths = {name: _percentiles(sorted(found)) for name, found in self.lengths.items()}
        return DataCheck(
            self.rows, self.format.name, mapping, files, dict(self.counts), self.bad, self.remedy, self.places, lengths
        )


FLAGS = {"true": True, "false": False, "1": True, "0": False, "yes": True, "no": False}


def _number(text: str) -> int | float | str:
    try:
        value = float(text)
    except ValueError:
        return text
    return int(value) if value.is_integer() else value


def _key(*texts: str) -> bytes:
    # lengths first, so that no two lists of texts join to the same bytes
    return hashlib.blake2b("\0".join([*(str(len(t)) for t in texts), *texts]).encode(), digest_size=16).digest()


def _percentiles(found: list[int]) -> dict[str, int]:
    names = {0: "min", 100: "max"}
    return {names.get(p, f"p{p}"): found[max(0, -(-p * len(found) // 100) - 1)] for p in PERCENTILES if found}
