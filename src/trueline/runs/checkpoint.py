"""Checkpoints: every stateful object in one registry, tensors in safetensors, the rest JSON, no pickle.

A checkpoint is written to a temporary folder, synced, given a manifest with the sha256 of each file, and renamed into
place; only then is the training state of older ones removed, except for the one before: where the newest turns out to
be damaged, a run resumes from that. A reader takes the newest one whose digests hold.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from trueline.errors import RunError
from trueline.runs.durable import explained, sync

__all__ = [
    "Found",
    "ModuleState",
    "OptimizerState",
    "Stateful",
    "collect",
    "latest_step",
    "newest",
    "put",
    "read_policy",
    "restore",
    "retain",
    "save",
    "steps",
]

State = tuple[Mapping[str, Tensor], Mapping[str, Any]]
FORMAT = 2
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
        return {name: whole_tensor(tensor.detach()) for name, tensor in self.module.state_dict().items()}, {}

    def load(self, state: State) -> None:
        put(self.module, state[0])


class OptimizerState:
    """An optimiser's moments; its settings come from the config, not from the checkpoint."""

    def __init__(self, optimizer: Any) -> None:
        self.optimizer = optimizer

    def state(self) -> State:
        held = self.optimizer.state_dict()["state"]
        return {f"{i}.{name}": whole_tensor(tensor) for i, slot in held.items() for name, tensor in slot.items()}, {}

    def load(self, state: State) -> None:
        held: dict[int, dict[str, Tensor]] = {}
        for key, tensor in state[0].items():
            index, name = key.split(".", 1)
            held.setdefault(int(index), {})[name] = tensor.clone()
        self.optimizer.load_state_dict({"state": held, "param_groups": self.optimizer.state_dict()["param_groups"]})


def whole_tensor(tensor: Tensor) -> Tensor:
    """A tensor that lies in parts among processes put together (every process must ask); others are themselves."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


@torch.no_grad()
def put(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Load whole tensors into a module, into this process's parts where it lies in parts."""
    own = module.state_dict()
    if not any(hasattr(tensor, "to_local") for tensor in own.values()):
        module.load_state_dict(dict(tensors))
        return
    from torch.distributed.tensor import DTensor, distribute_tensor

    if set(own) != set(tensors):
        raise RuntimeError(f"the checkpoint holds other tensors: {sorted(set(own) ^ set(tensors))[:4]}")
    for name, target in own.items():
        value = tensors[name].to(target.device, target.dtype)
        if isinstance(target, DTensor):
            part = distribute_tensor(value, target.device_mesh, target.placements, src_data_rank=None)
            target.to_local().copy_(part.to_local())
        else:
            target.copy_(value)


def collect(registry: Mapping[str, Stateful]) -> None:
    """What `save` asks of every object, asked by a process that does not write: parts are put together by all."""
    for item in registry.values():
        item.state()


def save(folder: Path, step: int, registry: Mapping[str, Stateful]) -> Path:
    """Write the checkpoint of `step` and drop the training state (not the policy) of all but it and the one before.

    Raises RunError, with the older checkpoints as they were, where it cannot be written.
    """
    policy, tensors, plain = {}, {}, {}
    for name, item in registry.items():
        held, values = item.state()
        for key, tensor in held.items():
            (policy if name == "policy" else tensors)[f"{name}/{key}"] = tensor.detach().cpu().contiguous().clone()
        plain[name] = values
    target, temporary = folder / f"step-{step:08d}", folder / f".tmp-step-{step:08d}"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        _write(temporary, step, policy, tensors, plain)
        if target.exists():  # damaged, or the run was begun again from before
            shutil.rmtree(target)
        os.replace(temporary, target)
        sync(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        needed = sum(t.nbytes for t in (*policy.values(), *tensors.values()))
        raise explained(_as_os_error(error), target, needed) from error
    retain(folder, step)
    return target


def retain(folder: Path, step: int) -> None:
    """Drop the training state (not the policy) of all checkpoints up to `step` but it and the one before.

    A save does so; a run that goes on does it again, for it may have been killed between the two.
    """
    for older in [s for s in steps(folder) if s <= step][:-KEPT]:
        with suppress(OSError):  # the next save tries again
            (folder / f"step-{older:08d}" / "state.safetensors").unlink(missing_ok=True)


def _write(folder: Path, step: int, policy: Mapping, tensors: Mapping, plain: Mapping) -> None:
    folder.mkdir(parents=True)
    sync(folder.parent.parent)  # the entry of `checkpoints/` itself
    save_file(policy, folder / "policy.safetensors")
    save_file(tensors, folder / "state.safetensors")
    (folder / "state.json").write_text(json.dumps(plain))
    files = {path.name: _sha256(path) for path in sorted(folder.iterdir())}
    manifest = {"format": FORMAT, "step": step, "files": files}
    manifest["seal"] = _seal(manifest)
    (folder / "MANIFEST.json").write_text(json.dumps(manifest, indent=1))
    for path in folder.iterdir():
        sync(path)
    sync(folder)


def _as_os_error(error: OSError | SafetensorError) -> OSError:
    """The tensors' library tells of a full disk in words of its own."""
    if isinstance(error, OSError):
        return error
    number = re.search(r"os error (\d+)", str(error))
    return OSError(int(number[1]), os.strerror(int(number[1]))) if number else OSError(str(error))


def steps(folder: Path) -> list[int]:
    """The steps that have a checkpoint, ascending."""
    return sorted(int(path.name.removeprefix("step-")) for path in folder.glob("step-" + 8 * "[0-9]"))


@dataclass(frozen=True)
class Found:
    """What a run goes on from: a checkpoint's folder and step (None where there is none), and those that are damaged
    and newer, in words."""

    folder: Path | None
    step: int
    damaged: tuple[str, ...]


def newest(*folders: Path) -> Found:
    """The newest checkpoint in any of the folders that is whole and can be resumed from.

    Raises RunError where one was written in another format: to leave it out would begin anew without a word.
    """
    damaged = []
    for step, folder in sorted(((step, place) for place in folders for step in steps(place)), reverse=True):
        path = folder / f"step-{step:08d}"
        damage = _damage(folder, step)
        if damage:
            damaged.append(f"{path}: {damage}")
        elif (path / "state.safetensors").is_file():
            return Found(folder, step, tuple(damaged))
    return Found(None, 0, tuple(damaged))


def latest_step(folder: Path) -> int | None:
    """The newest step of one folder whose checkpoint is whole and can be resumed from; None where there is none."""
    found = newest(folder)
    return None if found.folder is None else found.step


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
    if not isinstance(manifest, dict):
        return "the manifest is no object"
    written = manifest.get("format")
    if manifest.get("seal") != _seal(manifest) and written != 1:  # the first format had none
        return "the manifest is damaged"
    if written != FORMAT:
        raise RunError(
            f"{path}: a checkpoint of format {written}; this version reads {FORMAT}: go on with the version that wrote "
            "it, or start in a fresh directory"
        )
    if manifest.get("step") != step or set(manifest.get("files", ())) != FILES:
        return "the manifest is not this step's"
    for name, expected in manifest["files"].items():
        if name == "state.safetensors" and not (path / name).exists():
            continue  # dropped when a newer checkpoint was complete
        found = _sha256(path / name) if (path / name).exists() else "nothing"
        if found != expected:
            return f"{name} is damaged (expected {expected[:12]}, found {found[:12]})"
    return ""


def _seal(manifest: Mapping[str, Any]) -> str:
    """Of all that a manifest says: a flipped bit in it is no other format and no other file."""
    said = json.dumps({key: value for key, value in manifest.items() if key != "seal"}, sort_keys=True)
    return hashlib.sha256(said.encode()).hexdigest()


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
