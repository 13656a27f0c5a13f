"""One cell of a run directory: a stage or arm at one seed, addressed by the hash of its resolved config and inputs."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from trueline.errors import RunError

__all__ = ["Cell", "read_json", "read_jsonl", "write_json", "write_jsonl"]


class Cell:
    """`cells/<hash>/`: config.json, metrics.jsonl, timings.jsonl, samples.jsonl, checkpoints/, model/, done.json.

    Metrics hold no clock and no memory figure, so that two equal runs have equal files; those go to timings.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.checkpoints = directory / "checkpoints"

    def __truediv__(self, name: str) -> Path:
        return self.directory / name

    def open(self, config: Mapping[str, Any]) -> None:
        """Create the directory with its config, or check that it is this config's."""
        self.directory.mkdir(parents=True, exist_ok=True)
        path = self.directory / "config.json"
        if path.exists() and read_json(path) != json.loads(json.dumps(config)):
            raise RunError(f"{path}: holds another configuration; delete the folder or use another -o DIR")
        write_json(path, config)

    @property
    def done(self) -> dict[str, Any] | None:
        """What `finish` wrote; None while the cell is not complete."""
        path = self.directory / "done.json"
        return read_json(path) if path.exists() else None

    def finish(self, **facts: Any) -> None:
        """Mark the cell as complete."""
        write_json(self.directory / "done.json", facts)

    def log(self, name: str, row: Mapping[str, Any]) -> None:
        """Append one row to `<name>.jsonl`."""
        with open(self.directory / f"{name}.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")

    def rewind(self, step: int) -> None:
        """Drop the rows after `step` (and a half-written last line): a resumed run writes them again."""
        for name in ("metrics", "timings", "samples"):
            path = self.directory / f"{name}.jsonl"
            if path.exists():
                write_jsonl(path, [row for row in read_jsonl(path) if row.get("step", 0) <= step])


def read_json(path: Path) -> Any:
    """A JSON file; a RunError that names it where it cannot be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: cannot be read ({error}); run again with --resume") from None


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(temporary, path)


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


def write_jsonl(path: Path, rows: Any) -> None:
    """Write a JSONL file whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    text = "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
