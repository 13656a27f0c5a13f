"""Checkpoints: every stateful object in one registry, tensors in safetensors, the rest JSON, no pickle.

A checkpoint is written to a temporary folder, synced, given a manifest with the sha256 of each file, and renamed into
place; only then is the training state of older ones removed, except for the one before: where the newest turns out to
be damaged, a run resumes from that. A reader takes the newest one whose digests hold.

Where weights lie in parts among processes each writes its own (`runs/parts.py`), and the first one the manifest. Any
number of processes, one included, goes on from either layout. What is called here is called by all of them.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from trueline.distributed.world import World, current
from trueline.errors import RunError
from trueline.runs import parts
from trueline.runs.durable import explained, sync, sync_tree

__all__ = [
    "Found",
    "ModuleState",
    "OptimizerState",
    "Stateful",
    "latest_step",
    "newest",
    "put",
    "put_policy",
    "read_policy",
    "restore",
    "retain",
    "save",
    "steps",
]

State = tuple[Mapping[str, Tensor], Mapping[str, Any]]
WHOLE, IN_PARTS = 2, 3  # formats
POLICY, REST, PLAIN, MANIFEST = "policy", "state", "state.json", "MANIFEST.json"
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

    def places(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Of the tensors of those names the ones that lie in parts: they are filled in place."""
        own = self.module.state_dict()
        return {name: own[name] for name in names if name in own and hasattr(own[name], "to_local")}

    def load(self, state: State) -> None:
        put(self.module, state[0])


class OptimizerState:
    """An optimiser's moments; its settings come from the config, not from the checkpoint."""

    def __init__(self, optimizer: Any) -> None:
        self.optimizer = optimizer

    def state(self) -> State:
        held = self.optimizer.state_dict()["state"]
        return {f"{i}.{name}": tensor for i, slot in held.items() for name, tensor in slot.items()}, {}

    def places(self, names: Iterable[str]) -> dict[str, Tensor]:
        """For each name of moments of a parameter in parts a tensor that lies as it does; none for counts of steps."""
        parameters, made = self.optimizer.param_groups[0]["params"], {}
        for name in names:
            index, what = name.split(".", 1)
            if what != "step" and hasattr(parameters[int(index)], "to_local"):
                made[name] = torch.empty_like(parameters[int(index)], requires_grad=False)
        return made

    def load(self, state: State) -> None:
        held: dict[int, dict[str, Tensor]] = {}
        for key, tensor in state[0].items():
            index, name = key.split(".", 1)
            held.setdefault(int(index), {})[name] = tensor
        self.optimizer.load_state_dict({"state": held, "param_groups": self.optimizer.state_dict()["param_groups"]})


@torch.no_grad()
def put(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Load whole tensors into a module, into this process's parts where it lies in parts. Tensors in parts are the
    module's own, of its `places`, and filled already."""
    own = module.state_dict()
    if not any(hasattr(tensor, "to_local") for tensor in own.values()):
        module.load_state_dict(dict(tensors))
        return
    from torch.distributed.tensor import DTensor, distribute_tensor

    if set(own) != set(tensors):
        raise RuntimeError(f"the checkpoint holds other tensors: {sorted(set(own) ^ set(tensors))[:4]}")
    for name, target in own.items():
        value = tensors[name]
        if isinstance(value, DTensor):
            continue
        value = value.to(target.device, target.dtype)
        if isinstance(target, DTensor):
            part = distribute_tensor(value, target.device_mesh, target.placements, src_data_rank=None)
            target.to_local().copy_(part.to_local())
        else:
            target.copy_(value)


def save(folder: Path, step: int, registry: Mapping[str, Stateful]) -> Path:
    """Write the checkpoint of `step` and drop the training state (not the policy) of all but it and the one before.

    Raises RunError, with the older checkpoints as they were, where it cannot be written.
    """
    policy, tensors, plain = {}, {}, {}
    for name, item in registry.items():
        held, values = item.state()
        for key, tensor in held.items():
            (policy if name == "policy" else tensors)[f"{name}/{key}"] = tensor.detach()
        plain[name] = values
    world = current()
    target, temporary = folder / f"step-{step:08d}", folder / f".tmp-step-{step:08d}"
    try:
        _led(world, lambda: _begin(temporary, in_parts=world.size > 1))
        for name, held in ((POLICY, policy), (REST, tensors)):
            if world.size > 1:
                parts.write(temporary / name, held)
            else:
                copies = {key: tensor.cpu().contiguous().clone() for key, tensor in held.items()}
                save_file(copies, temporary / f"{name}.safetensors")
        digests = _digests(temporary, world)
        _led(world, lambda: _finish(temporary, target, step, plain, digests))
    except (OSError, SafetensorError) as error:
        if world.leads:
            shutil.rmtree(temporary, ignore_errors=True)
        needed = sum(t.nbytes for t in (*policy.values(), *tensors.values()))
        raise explained(_as_os_error(error), target, needed) from error
    if world.leads:
        retain(folder, step)
    return target


def _led(world: World, act: Callable[[], None]) -> None:
    """What the first process does; where it fails, all do."""
    failure = None
    if world.leads:
        try:
            act()
        except OSError as error:
            failure = error
    failure = world.from_leader(failure)
    if failure is not None:
        raise failure


def _begin(folder: Path, *, in_parts: bool) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name in (POLICY, REST) if in_parts else ():
        (folder / name).mkdir()
    sync(folder.parent.parent)  # the entry of `checkpoints/` itself


def _finish(folder: Path, target: Path, step: int, plain: Mapping[str, Any], digests: Mapping[str, str]) -> None:
    """Seal a folder whose tensors are there, and put it in its place."""
    (folder / PLAIN).write_text(json.dumps(plain))
    manifest: dict[str, Any] = {
        "format": IN_PARTS if (folder / POLICY).is_dir() else WHOLE,
        "step": step,
        "files": dict(digests) | {PLAIN: _sha256(folder / PLAIN)},
    }
    manifest["seal"] = _seal(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1))
    sync_tree(folder)
    if target.exists():  # damaged, or the run was begun again from before
        shutil.rmtree(target)
    os.replace(folder, target)
    sync(target.parent)


def retain(folder: Path, step: int) -> None:
    """Drop the training state (not the policy) of all checkpoints up to `step` but it and the one before.

    A save does so; a run that goes on does it again, for it may have been killed between the two.
    """
    for older in [s for s in steps(folder) if s <= step][:-KEPT]:
        with suppress(OSError):  # the next save tries again
            for path in _rest(folder / f"step-{older:08d}"):
                path.unlink(missing_ok=True)


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
    damaged, world = [], current()
    listed = [(step, place) for place in folders for step in steps(place)] if world.leads else []
    for step, folder in sorted(world.from_leader(listed), reverse=True):
        path = folder / f"step-{step:08d}"
        damage, dropped = _look(path, step)
        if damage:
            damaged.append(f"{path}: {damage}")
        elif not dropped:
            return Found(folder, step, tuple(damaged))
    return Found(None, 0, tuple(damaged))


def latest_step(folder: Path) -> int | None:
    """The newest step of one folder whose checkpoint is whole and can be resumed from; None where there is none."""
    found = newest(folder)
    return None if found.folder is None else found.step


def restore(folder: Path, step: int, registry: Mapping[str, Stateful]) -> None:
    """Load the checkpoint of `step` into every object of the registry."""
    path = folder / f"step-{step:08d}"
    damage, dropped = _look(path, step)
    if damage:
        raise RunError(f"{path}: {damage}; delete this folder to resume from the one before")
    if dropped:
        raise RunError(f"{path}: its training state was dropped; resume from a newer step, or read the policy alone")
    plain = json.loads((path / PLAIN).read_text())
    if set(plain) != set(registry):
        raise RunError(f"{path}: holds {sorted(plain)}, this run needs {sorted(registry)}; start a fresh directory")
    tensors = _tensors(path, POLICY, registry) | _tensors(path, REST, registry)
    for name, item in registry.items():
        held = {key.removeprefix(f"{name}/"): t for key, t in tensors.items() if key.startswith(f"{name}/")}
        item.load((held, plain[name]))


def read_policy(folder: Path, step: int) -> dict[str, Tensor]:
    """The policy's tensors at `step`, whole. Raises RunError where the checkpoint is damaged."""
    return _policy(folder, step, {})


def put_policy(folder: Path, step: int, module: nn.Module) -> None:
    """Load the policy at `step` into a module that may lie in parts. Raises RunError as `read_policy` does."""
    put(module, _policy(folder, step, {POLICY: ModuleState(module)}))


def _policy(folder: Path, step: int, registry: Mapping[str, Stateful]) -> dict[str, Tensor]:
    path = folder / f"step-{step:08d}"
    damage, _ = _look(path, step)
    if damage:
        raise RunError(f"{path}: {damage}; use another step")
    return {name.removeprefix(f"{POLICY}/"): tensor for name, tensor in _tensors(path, POLICY, registry).items()}


def _tensors(path: Path, name: str, registry: Mapping[str, Stateful]) -> dict[str, Tensor]:
    """The tensors of one half of a checkpoint. Of one in parts, those that lie in parts in the registry are filled
    there, or made to lie so; others are whole."""
    if not (path / name).is_dir():
        return load_file(path / f"{name}.safetensors")
    found = parts.layout(path / name)
    into: dict[str, Tensor] = {}
    for owner, item in registry.items():
        if isinstance(item, ModuleState | OptimizerState):
            prefix = f"{owner}/"
            held = item.places([key.removeprefix(prefix) for key in found if key.startswith(prefix)])
            into |= {prefix + key: tensor for key, tensor in held.items()}
    into |= {key: torch.empty(size, dtype=dtype) for key, (size, dtype) in found.items() if key not in into}
    parts.load(path / name, into, current())
    return into


def _rest(path: Path) -> list[Path]:
    """The files of a checkpoint's training state that are there."""
    return [*path.glob(f"{REST}.safetensors"), *path.glob(f"{REST}/*.safetensors")]


def _look(path: Path, step: int) -> tuple[str, bool]:
    """What is wrong with a checkpoint ("" where nothing is), and whether its training state was dropped.

    Raises RunError for one of another format.
    """
    world = current()
    files, dropped, damage, refusal = world.from_leader(_manifest(path, step) if world.leads else None)
    if refusal:
        raise RunError(refusal)
    found = {} if damage else _digests(path, world)
    for name, expected in files.items():
        if dropped and name.startswith(REST) and name != PLAIN:
            continue  # when a newer checkpoint was complete
        if not damage and found.get(name) != expected:
            damage = f"{name} is damaged (expected {expected[:12]}, found {found.get(name, 'nothing')[:12]})"
    return damage, dropped


def _manifest(path: Path, step: int) -> tuple[dict[str, str], bool, str, str]:
    """The digests that a manifest names, whether the training state was dropped, what is wrong, why it is refused."""
    try:
        manifest = json.loads((path / MANIFEST).read_text())
    except (OSError, ValueError) as error:
        return {}, False, f"no readable manifest ({error})", ""
    if not isinstance(manifest, dict):
        return {}, False, "the manifest is no object", ""
    written = manifest.get("format")
    if manifest.get("seal") != _seal(manifest) and written != 1:  # the first format had none
        return {}, False, "the manifest is damaged", ""
    if written not in (WHOLE, IN_PARTS):
        refusal = (
            f"{path}: a checkpoint of format {written}; this version reads {WHOLE} and {IN_PARTS}: go on with the "
            "version that wrote it, or start in a fresh directory"
        )
        return {}, False, "", refusal
    files = manifest.get("files", {})
    names = {name.split("/")[0].removesuffix(".safetensors") for name in files}
    wanted = {POLICY, REST, PLAIN}
    if manifest.get("step") != step or not (names == wanted or (written == IN_PARTS and names <= wanted)):
        return {}, False, "the manifest is not this step's", ""
    there = {str(file.relative_to(path)) for file in _rest(path)}
    states = {name for name in files if name.startswith(REST) and name != PLAIN}
    return files, not states <= there, "", ""


def _digests(path: Path, world: World) -> dict[str, str]:
    """The sha256 of every file of a checkpoint but its manifest, each process its part of them."""
    names = sorted(str(file.relative_to(path)) for file in path.rglob("*") if file.is_file() and file.name != MANIFEST)
    mine, failure = {}, None
    try:
        mine = {name: _sha256(path / name) for name in world.part(world.from_leader(names))}
    except OSError as error:
        failure = error
    found: dict[str, str] = {}
    for other, failed in world.everyone((mine, failure)):
        if failed is not None:
            raise failed
        found |= other
    return found


def _seal(manifest: Mapping[str, Any]) -> str:
    """Of all that a manifest says: a flipped bit in it is no other format and no other file."""
    said = json.dumps({key: value for key, value in manifest.items() if key != "seal"}, sort_keys=True)
    return hashlib.sha256(said.encode()).hexdigest()


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
