"""What a run reads from outside, by content: a file or a model that was changed meanwhile is another input."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

__all__ = ["folder_digest", "origins", "origins_of"]

_READ = (".json", ".jinja", ".safetensors")


def origins_of(sections: Mapping[str, Any]) -> dict[str, str]:
    """The digest of each file and model folder that the settings name, by setting and place."""
    from trueline.data.sources import expand

    data, found = sections["data"], {}
    for field in ("path", "test_path"):
        if given := getattr(data, field):
            found |= {f"data.{field}: {path}": _file_digest(path) for path in expand(given)}
    for name, section in (("model.path", sections.get("model")), ("reward.path", sections.get("reward"))):
        if section is not None and section.path:
            found[f"{name}: {section.path}"] = folder_digest(Path(section.path))
    return found


def origins(found: Mapping[str, str]) -> dict[str, list[str]]:
    """The digests by setting alone: a file that was moved is the same input."""
    by_setting: dict[str, list[str]] = {}
    for place, value in found.items():
        by_setting.setdefault(place.partition(":")[0], []).append(value)
    return {setting: sorted(values) for setting, values in by_setting.items()}


def folder_digest(folder: Path) -> str:
    """Of everything that is read of a model's folder: configuration, tokenizer and weights."""
    whole = hashlib.sha256()
    for path in sorted(folder.glob("*")):
        if path.is_file() and path.suffix in _READ:
            whole.update(path.name.encode() + bytes.fromhex(_file_digest(path)))
    return whole.hexdigest()[:16]


def _file_digest(path: Path) -> str:
    seen = os.stat(path)
    return _digest(str(path), seen.st_size, seen.st_mtime_ns)


@cache
def _digest(path: str, size: int, changed: int) -> str:
    """Once per file of this process: size and time of change tell whether it is still that file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
