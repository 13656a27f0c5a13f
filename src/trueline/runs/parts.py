"""Tensors that lie in parts among processes, on the disk: torch's distributed checkpoint (DCP), in safetensors.

Each process writes the rows that it holds to a file of its own, whose header says where they belong. Any number of
processes reads them again, each the rows that it needs. No pickle.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trueline.distributed.sharding import part
from trueline.distributed.world import World, losses_told
from trueline.errors import RunError

__all__ = ["layout", "load", "write"]


def write(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors, each process its parts of them; what lies whole in all is written by one. All must call this.

    Raises OSError in every process where one of them cannot write.
    """
    if not tensors:
        return
    from torch.distributed.checkpoint import HuggingFaceStorageWriter, save
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        with losses_told():
            save(_apart(tensors), storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True))
    except CheckpointException as error:  # no Exception: it would pass through every handler
        raise _plain(error) from None


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same, of tied tensors all but the first copied: a file holds no tensor under two names."""
    seen: set[int] = set()
    made = {}
    for name, tensor in tensors.items():
        place = part(tensor).untyped_storage().data_ptr()
        made[name] = tensor.clone() if place in seen else tensor
        seen.add(place)
    return made


def layout(folder: Path) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """The size and type of every tensor in a folder, by its name; empty where it holds none."""
    if not any(folder.glob("*.safetensors")):
        return {}
    from torch.distributed.checkpoint import HuggingFaceStorageReader

    found: Mapping[str, Any] = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    return {name: (held.size, held.properties.dtype) for name, held in found.items()}


def load(folder: Path, into: Mapping[str, Tensor], world: World) -> None:
    """Fill tensors in place, whether they lie in parts or not; all processes of `world` must call this."""
    if not into:
        return
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.api import CheckpointException

    reader = dcp.HuggingFaceStorageReader(str(folder))
    try:
        with losses_told(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")  # said where one process asked for it
            dcp.load(dict(into), storage_reader=reader, no_dist=world.size == 1)
    except CheckpointException as error:
        raise RunError(f"{folder}: cannot be read ({_plain(error)})") from None


def _plain(error: BaseException) -> OSError:
    """What the first process that failed met, as an error of the disk."""
    causes = [failure[0] for failure in error.failures.values()]
    found = next((cause for cause in causes if isinstance(cause, OSError)), None)
    return found if found is not None else OSError(str(causes[0] if causes else error))
