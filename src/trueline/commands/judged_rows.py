"""The file that `trueline judge` writes: a row a sample in input order, and how a file that is there is gone on with.

Beside OUT.jsonl stands OUT.jsonl.state.json: what the rows were judged from and by, and on which tiers.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from trueline.data.code_files import Sample
from trueline.errors import InputError, RunError
from trueline.evaluation.passk import ERRORS, VERDICTS
from trueline.runs.cell import read_json, write_json

__all__ = ["JudgedRow", "RowFile"]

_SCHEMA = 1


class JudgedRow(NamedTuple):
    """One sample's verdict; `first_failing` is an index into the problem's hidden tests.

    `public`: whether it passes the public tests, None where there are none. `cluster` is equal for samples that behave
    alike, and is written only where clusters are asked for.
    """

    task_id: str
    index: int
    verdict: str
    error: str = ""
    first_failing: int | None = None
    public: bool | None = None
    cluster: str | None = None


class RowFile:
    """The rows that are there already (`rows`), and the place where the next one goes.

    `identity` is what decides verdicts. Raises `InputError` where the file there was made from something else, holds
    rows that are not those of `samples` in order, or cannot be written. A half-written last line is dropped.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any], samples: Sequence[Sample], *, cluster: bool) -> None:
        self.path, self._state = path, path.with_name(path.name + ".state.json")
        self._identity, self._samples = json.loads(json.dumps(identity)), samples
        self._columns = JudgedRow._fields if cluster else JudgedRow._fields[:-1]
        self._file: TextIO | None = None
        self.rows: list[JudgedRow] = []
        self.tiers: list[str] = []
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists() and path.stat().st_size:
                self._go_on()
        except OSError as error:
            raise InputError(
                f"cannot be written ({error.strerror})", where=str(path), remedy="choose another -o"
            ) from None

    @contextmanager
    def open(self, tier: str) -> Iterator[None]:
        """Make ready for `append`; rows that follow were judged on this tier."""
        self.tiers += [] if tier in self.tiers else [tier]
        write_json(self._state, {"schema": _SCHEMA, "identity": self._identity, "tiers": self.tiers})
        with open(self.path, "a", encoding="utf-8", buffering=1) as self._file:  # a line at a time reaches the file
            yield

    def append(self, row: JudgedRow) -> None:
        """Write the next row, at once."""
        self._file.write(self._line(row))
        self.rows.append(row)

    def mend(self, rows: Mapping[int, JudgedRow]) -> None:
        """Put these rows in the place of those that are there, all or none. Only before `open`."""
        if not rows:
            return
        self.rows = [rows.get(at, row) for at, row in enumerate(self.rows)]
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
        temporary.write_text("".join(map(self._line, self.rows)), encoding="utf-8")
        os.replace(temporary, self.path)

    def _line(self, row: JudgedRow) -> str:
        return json.dumps(dict(zip(self._columns, row))) + "\n"

    # --- what is there ---------------------------------------------------------------------------------------------

    def _go_on(self) -> None:
        if not self._state.is_file():
            raise self._foreign(f"is there already, without {self._state.name} beside it")
        try:
            state = read_json(self._state)
        except RunError:
            state = None
        if not isinstance(state, dict) or state.get("schema") != _SCHEMA or "identity" not in state:
            raise self._foreign(f"{self._state.name} beside it cannot be read")
        found = state["identity"]
        changed = [name for name, value in self._identity.items() if found.get(name) != value]
        if changed:
            raise self._foreign(f"holds verdicts from other inputs or settings: {', '.join(changed)}")
        self.tiers = list(state["tiers"])
        whole = 0
        with open(self.path, "rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    break
                self.rows.append(self._row(line, number))
                whole += len(line)
        os.truncate(self.path, whole)

    def _row(self, line: bytes, number: int) -> JudgedRow:
        where = f"{self.path}:{number}"
        try:
            value = json.loads(line)
        except ValueError:
            raise self._foreign("no row of verdicts", where) from None
        if not isinstance(value, dict) or tuple(value) != self._columns:
            raise self._foreign(f"a row must have the columns {', '.join(self._columns)}", where)
        row = JudgedRow(**value)
        judged = row.verdict in ("fail", "limit")
        if row.verdict not in VERDICTS or (row.error not in ERRORS if judged else row.error != ""):
            raise self._foreign(f"verdict {row.verdict!r} with error {row.error!r}", where)
        if number > len(self._samples):
            raise self._foreign(f"more rows than the {len(self._samples)} samples", where)
        sample = self._samples[number - 1]
        if (row.task_id, row.index) != (sample.task_id, sample.index):
            reason = (
                f"sample {row.index} of {row.task_id!r}, where {sample.where} has {sample.index} of {sample.task_id!r}"
            )
            raise self._foreign(reason, where)
        return row._replace(task_id=sample.task_id)  # one text in memory, not two

    def _foreign(self, reason: str, where: str = "") -> InputError:
        return InputError(
            reason, where=where or str(self.path), remedy=f"choose another -o, or delete it and {self._state}"
        )
