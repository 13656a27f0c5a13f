"""Checkpoints: every stateful object in one registry, tensors in safetensors, the rest JSON, no pickle.

A checkpoint is written to a temporary folder, synced, given a manifest with the sha256 of each file, and renamed into
place; only then is the training state of older ones removed, except for the one before: where the newest turns out to
be damaged, a run resumes from that. A reader takes the newest one whose digests hold.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from trueline.errors import RunError

__all__ = ["ModuleState", "OptimizerState", "Stateful", "latest_step", "read_policy", "restore", "save", "steps"]

State = tuple[Mapping[str, Tensor], Mapping[str, Any]]
FORMAT = 1
FILES = {"policy.safetensors", "state.safetensors", "state.json"}
KEPT = 2  # checkpoints that can be resumed from; of older ones the policy alone stays


class Stateful(Protocol):
    """What a checkpoint can hold."""

    def state(self) -> State: ...

    def load(self, state: State) -> None: ...


class ModuleState:
    """A module's parameters and buffers."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def state(self) -> State:
        return {name: tensor.detach() for name, tensor in self.module.state_dict().items()}, {}

    def load(self, state: State) -> None:
        self.module.load_state_dict(dict(state[0]))


class OptimizerState:
    """An optimiser's moments; its settings come from the config, not from the checkpoint."""

    def __init__(self, optimizer: Any) -> None:
        self.optimizer = optimizer

    def state(self) -> State:
        held = self.optimizer.state_dict()["state"]
        return {f"{index}.{name}": tensor for index, slot in held.items() for name, tensor in slot.items()}, {}

    def load(self, state: State) -> None:
        held: dict[int, dict[str, Tensor]] = {}
        for key, tensor in state[0].items():
            index, name = key.split(".", 1)
            held.setdefault(int(index), {})[name] = tensor.clone()
        self.optimizer.load_state_dict({"state": held, "param_groups": self.optimizer.state_dict()["param_groups"]})


def save(folder: Path, step: int, registry: Mapping[str, Stateful]) -> Path:
    """Write the checkpoint of `step` and drop the training state (not the policy) of all but it and the one before."""
    target = folder / f"step-{step:08d}"
    temporary = folder / f".tmp-step-{step:08d}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    policy, tensors, plain = {}, {}, {}
    for name, item in registry.items():
        held, values = item.state()
        for key, tensor in held.items():
            (policy if name == "policy" else tensors)[f"{name}/{key}"] = tensor.detach().cpu().contiguous().clone()
        plain[name] = values
    save_file(policy, temporary / "policy.safetensors")
    save_file(tensors, temporary / "state.safetensors")
    (temporary / "state.json").write_text(json.dumps(plain))
    files = {path.name: _sha256(path) for path in sorted(temporary.iterdir())}
    manifest = {"format": FORMAT, "step": step, "files": files}
    (temporary / "MANIFEST.json").write_text(json.dumps(manifest, indent=1))
    for path in temporary.iterdir():
        _sync(path)
    _sync(temporary)
    shutil.rmtree(target, ignore_errors=True)
    os.replace(temporary, target)
    _sync(folder)
    for older in [s for s in steps(folder) if s <= step][:-KEPT]:
        (folder / f"step-{older:08d}" / "state.safetensors").unlink(missing_ok=True)
    return target


def steps(folder: Path) -> list[int]:
    """The steps that have a checkpoint, ascending."""
    return sorted(int(path.name.removeprefix("step-")) for path in folder.glob("step-" + 8 * "[0-9]"))


def latest_step(folder: Path) -> int | None:
    """The newest step whose checkpoint is whole and can be resumed from; None where there is none."""
    for step in reversed(steps(folder)):
        if (folder / f"step-{step:08d}" / "state.safetensors").is_file() and not _damage(folder, step):
            return step
    return None


def restore(folder: Path, step: int, registry: Mapping[str, Stateful]) -> None:
    """Load the checkpoint of `step` into every object of the registry."""
    path = folder / f"step-{step:08d}"
    damage = _damage(folder, step)
    if damage:
        raise RunError(f"{path}: {damage}; delete this folder to resume from the one before")
    if not (path / "state.safetensors").is_file():
        raise RunError(f"{path}: its training state was dropped; resume from a newer step, or read the policy alone")
    tensors = load_file(path / "policy.safetensors") | load_file(path / "state.safetensors")
    plain = json.loads((path / "state.json").read_text())
    if set(plain) != set(registry):
        raise RunError(f"{path}: holds {sorted(plain)}, this run needs {sorted(registry)}; start a fresh directory")
    for name, item in registry.items():
        held = {key.removeprefix(f"{name}/"): t for key, t in tensors.items() if key.startswith(f"{name}/")}
        item.load((held, plain[name]))


def read_policy(folder: Path, step: int) -> dict[str, Tensor]:
    """The policy's tensors at `step`. Raises RunError where the checkpoint is damaged."""
    damage = _damage(folder, step)
    if damage:
        raise RunError(f"{folder / f'step-{step:08d}'}: {damage}; use another step")
    tensors = load_file(folder / f"step-{step:08d}" / "policy.safetensors")
    return {name.removeprefix("policy/"): tensor for name, tensor in tensors.items()}


def _damage(folder: Path, step: int) -> str:
    path = folder / f"step-{step:08d}"
    try:
        manifest = json.loads((path / "MANIFEST.json").read_text())
    except (OSError, ValueError) as error:
        return f"no readable manifest ({error})"
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        return f"the manifest is not of format {FORMAT}, which this version reads"
    if manifest.get("step") != step or set(manifest.get("files", ())) != FILES:
        return "the manifest is not this step's"
    for name, expected in manifest["files"].items():
        if name == "state.safetensors" and not (path / name).exists():
            continue  # dropped when a newer checkpoint was complete
        found = _sha256(path / name) if (path / name).exists() else "nothing"
        if found != expected:
            return f"{name} is damaged (expected {expected[:12]}, found {found[:12]})"
    return ""


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
