"""What a run directory is for: claimed by one run with its settings and inputs, refused to every other."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from trueline import __version__
from trueline.config import digest, to_plain
from trueline.errors import InputError
from trueline.runs.cell import append_row, read_json, write_json
from trueline.runs.durable import drop_unfinished, sync
from trueline.runs.lock import held
from trueline.study.origins import origins, origins_of

__all__ = ["SCHEMA", "Identity", "claim", "identity_of", "sampling_of", "versions"]

SCHEMA = 1
_IDENTITY = "identity.json"
UNIMPORTANT = ("workers", "device", "micro_tokens", "report_to")
"""Settings of `train` that cannot change a result."""


@dataclass(frozen=True)
class Identity:
    """What a directory may hold one of: a task with its settings (without what cannot change a result), what was made
    of them, and the content of every file and model that is read."""

    task: str
    sections: Mapping[str, Any]
    described: Mapping[str, Any]
    inputs: Mapping[str, str]

    @property
    def digest(self) -> str:
        """Without the places of the files: a file that was moved is the same."""
        return digest(
            {"task": self.task, "sections": self.sections, "described": self.described, "inputs": origins(self.inputs)}
        )

    def written(self) -> dict[str, Any]:
        """As `claim` keeps it, so that a later run can say what is different."""
        plain = {"task": self.task, "sections": self.sections, "described": self.described, "inputs": self.inputs}
        return json.loads(json.dumps(plain))


def identity_of(task: str, sections: Mapping[str, Any], described: Mapping[str, Any]) -> Identity:
    """The identity of a run."""
    plain = to_plain(sections)
    plain["train"] = {k: v for k, v in plain["train"].items() if k not in UNIMPORTANT}
    for elsewhere in ("rollout", "cluster"):
        plain.pop(elsewhere, None)
    plain |= sampling_of(sections)
    return Identity(task, plain, to_plain({"d": dict(described)})["d"], origins_of(sections))


def sampling_of(sections: Mapping[str, Any]) -> dict[str, Any]:
    """The part of an identity that is about who samples and scores; empty where this process does both.

    Where a server stands is no part of it.
    """
    rollout = sections.get("rollout")
    if rollout is None or (rollout.engine == "native" and rollout.importance == "off" and not rollout.reward_url):
        return {}
    named = {name: getattr(rollout, name) for name in ("engine", "importance", "importance_cap")}
    return {"rollout": named | {"served_rewards": bool(rollout.reward_url)}}


@contextmanager
def claim(directory: Path, identity: Identity, what: str) -> Iterator[None]:
    """Hold the directory for this run alone.

    Raises InputError where it holds another run, naming what is different, or something else altogether; RunError
    where another process is at work in it.
    """
    path = directory / "manifest.json"
    known = path.exists()
    if known:
        _check_same(directory, identity)
    else:
        _check_free(directory)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = ExitStack()
        lock.enter_context(held(directory))
    except OSError as error:
        raise InputError(
            f"cannot be written to ({error.strerror})", where=str(directory), field="-o", remedy="use another -o DIR"
        ) from None
    with lock:
        if known:
            _note_other_versions(directory)
            drop_unfinished(directory)
            drop_unfinished(directory / "cells")
        else:
            (directory / "cells").mkdir(exist_ok=True)
            write_json(directory / _IDENTITY, identity.written() | {"versions": versions()}, durable=True)
            write_json(path, {"schema": SCHEMA, "identity": identity.digest, "command": what}, durable=True)
            sync(directory.resolve().parent)
        yield


def _check_free(directory: Path) -> None:
    if directory.exists() and not directory.is_dir():
        raise InputError("is a file, not a directory", where=str(directory), field="-o", remedy="use another -o DIR")
    ours = ("cells", _IDENTITY)
    if directory.is_dir() and any(e.name not in ours and not e.name.startswith(".") for e in directory.iterdir()):
        raise InputError(
            "is not empty and holds no run of ours", where=str(directory), field="-o", remedy="use a new -o DIR"
        )


def _check_same(directory: Path, identity: Identity) -> None:
    held_run = read_json(directory / "manifest.json")
    if held_run.get("identity") == identity.digest:
        return
    file = directory / _IDENTITY
    changes = _differences(_without_versions(read_json(file)), identity.written()) if file.exists() else []
    shown = "; ".join(changes[:6]) + (f"; and {len(changes) - 6} more" if len(changes) > 6 else "")
    raise InputError(
        f"holds another run ({held_run.get('command', 'unknown')})" + (f": {shown}" if shown else ""),
        where=str(directory),
        field="-o",
        remedy="use another -o DIR, or the command and the files that made it to resume it",
    )


def _note_other_versions(directory: Path) -> None:
    """A run that goes on elsewhere is the same run; its bits need not be, and that is written down."""
    file = directory / _IDENTITY
    before = read_json(file).get("versions", {}) if file.exists() else {}
    changes = [f"{k} {before[k]}, now {v}" for k, v in versions().items() if k in before and before[k] != v]
    if changes:
        append_row(directory / "incidents.jsonl", {"what": "went on with other versions", "changes": changes})


def _differences(held_run: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Settings and inputs that are not the same, old and new."""
    before, after = _flat(held_run), _flat(now)
    return [
        f"{key.removeprefix('sections.')} was {_short(before.get(key))}, is {_short(after.get(key))}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    ]


def _without_versions(written: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in written.items() if key != "versions"}


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {prefix: value}
    return {
        k: v for name, item in value.items() for k, v in _flat(item, f"{prefix}.{name}" if prefix else name).items()
    }


def _short(value: Any) -> str:
    text = "absent" if value is None else json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def versions() -> dict[str, str]:
    """Of what the bits of a result may depend on: packages, the processor's instructions, our kernels, threads."""
    import torch

    from trueline.models import kernels

    names = ("torch", "transformers", "tokenizers", "numpy", "scipy")
    found = {"trueline": __version__, "python": platform.python_version(), "machine": platform.machine()}
    found |= {name: metadata.version(name) for name in names}
    instructions, compiled = torch.backends.cpu.get_cpu_capability(), kernels.library() is not None
    return found | {
        "instructions": instructions,
        "kernels": "compiled" if compiled else "torch",
        "threads": "1 a worker",
    }
