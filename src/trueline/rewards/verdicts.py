"""Verdicts that the processes of one run share: a program that one of them has run is not run by another.

A file that cannot be read or written costs time, never a verdict: whoever asks runs the program then.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Mapping
from dataclasses import astuple
from pathlib import Path

from trueline.sandbox import Verdict

__all__ = ["VerdictFile"]

_AT_ONCE = 500  # keys of one query; SQLite's own limit is higher everywhere
_PATIENCE = 10.0  # seconds to wait for another process's writing


class VerdictFile:
    """Verdicts by the digest of their program, in a SQLite file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._connection: sqlite3.Connection | None = None
        try:
            self._connection = sqlite3.connect(path, timeout=_PATIENCE, isolation_level=None)
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.execute("PRAGMA synchronous=OFF")
            self._connection.execute("CREATE TABLE IF NOT EXISTS verdicts_1 (program BLOB PRIMARY KEY, verdict TEXT)")
        except sqlite3.Error:
            self.close()

    def find(self, programs: Iterable[bytes]) -> dict[bytes, Verdict]:
        """The verdicts that are known of these digests."""
        wanted, found = list(programs), {}
        for start in range(0, len(wanted) if self._connection else 0, _AT_ONCE):
            part = wanted[start : start + _AT_ONCE]
            marks = ",".join("?" * len(part))
            try:
                rows = self._connection.execute(f"SELECT * FROM verdicts_1 WHERE program IN ({marks})", part).fetchall()
                found |= {digest: _verdict(text) for digest, text in rows}
            except (sqlite3.Error, ValueError, TypeError):
                return found
        return found

    def keep(self, verdicts: Mapping[bytes, Verdict]) -> None:
        """Add verdicts; one that another process has added meanwhile stays as it is."""
        if not self._connection or not verdicts:
            return
        rows = [(digest, json.dumps(astuple(verdict))) for digest, verdict in verdicts.items()]
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            self._connection.executemany("INSERT OR IGNORE INTO verdicts_1 VALUES (?, ?)", rows)
            self._connection.execute("COMMIT")
        except sqlite3.Error:
            self.close()

    def close(self) -> None:
        """Let go of the file; from here on nothing is known."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _verdict(text: str) -> Verdict:
    outcome, error, first_failing, outputs, passed, detail, seconds = json.loads(text)
    return Verdict(outcome, error, first_failing, tuple(outputs), tuple(passed), detail, seconds)
