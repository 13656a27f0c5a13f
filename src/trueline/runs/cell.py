"""One cell of a run directory: a stage or arm at one seed, addressed by the hash of its resolved config and inputs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from trueline.errors import RunError
from trueline.runs.durable import drop_unfinished, explained, replace_text, sync, sync_tree

__all__ = ["Cell", "append_row", "read_json", "read_jsonl", "write_json", "write_jsonl"]


class Cell:
    """`cells/<hash>/`: config.json, metrics.jsonl, timings.jsonl, samples.jsonl, checkpoints/, model/, done.json.

    Metrics hold no clock and no memory figure, so that two equal runs have equal files; those go to timings.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.checkpoints = directory / "checkpoints"
        self.stopped = directory / "stopped"
        """Where a run that was asked to stop saves itself: its checkpoint is none of the method's."""

    def __truediv__(self, name: str) -> Path:
        return self.directory / name

    def open(self, config: Mapping[str, Any]) -> None:
        """Create the directory with its config, or check that it is this config's."""
        path = self.directory / "config.json"
        if path.exists():
            if read_json(path) != json.loads(json.dumps(config)):
                raise RunError(f"{path}: holds another configuration; delete the folder or use another -o DIR")
            for folder in (self.directory, *(entry for entry in self.directory.iterdir() if entry.is_dir())):
                drop_unfinished(folder)
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        write_json(path, config, durable=True)
        sync(self.directory.parent)

    @property
    def done(self) -> dict[str, Any] | None:
        """What `finish` wrote; None while the cell is not complete."""
        path = self.directory / "done.json"
        return read_json(path) if path.exists() else None

    def finish(self, **facts: Any) -> None:
        """Mark the cell as complete: everything in it is on the disk before that is said."""
        try:
            sync_tree(self.directory)
        except OSError as error:
            raise explained(error, self.directory, 0) from error
        write_json(self.directory / "done.json", facts, durable=True)

    def drop_stopped(self) -> None:
        """Remove what a stop saved, where a later checkpoint is there."""
        shutil.rmtree(self.stopped, ignore_errors=True)

    def sync_logs(self) -> None:
        """Bring the rows so far, and what else stands beside them, to the disk: a checkpoint is not to outlive them."""
        try:
            for path in self.directory.iterdir():
                if path.is_file():
                    sync(path)
            sync(self.directory)
        except OSError as error:
            raise explained(error, self.directory, 0) from error

    def log(self, name: str, row: Mapping[str, Any]) -> None:
        """Append one row to `<name>.jsonl`."""
        append_row(self.directory / f"{name}.jsonl", row)

    def rewind(self, step: int) -> None:
        """Drop the rows after `step` (and a half-written last line): a resumed run writes them again."""
        for name in ("metrics", "timings", "samples"):
            path = self.directory / f"{name}.jsonl"
            if path.exists():
                rows = [row for row in read_jsonl(path) if row.get("step", 0) <= step]
                write_jsonl(path, rows, durable=True)


def read_json(path: Path) -> Any:
    """A JSON file; a RunError that names it where it cannot be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: cannot be read ({error}); run again with --resume") from None


def write_json(path: Path, value: Any, *, durable: bool = False) -> None:
    """Write a JSON file whole or not at all; `durable`: it is on the disk when this returns."""
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    replace_text(path, text, durable=durable)


def append_row(path: Path, row: Mapping[str, Any]) -> None:
    """Append one row to a JSONL file; RunError where the disk does not take it."""
    line = json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write(line)
    except OSError as error:
        raise explained(error, path, len(line)) from error


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a JSONL file; a last line that was cut off by a crash is left out, within a character too."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            try:
                yield json.loads(line)
            except ValueError as error:
                raise RunError(f"{path}:{number}: not JSON ({error}); delete this folder to run it again") from None


def write_jsonl(path: Path, rows: Any, *, durable: bool = False) -> None:
    """Write a JSONL file whole or not at all; `durable`: it is on the disk when this returns."""
    replace_text(
        path, "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows), durable=durable
    )
