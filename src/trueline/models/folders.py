"""The files of a Hugging Face model folder: JSON objects and safetensors, and what to say of a folder without them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from trueline.errors import InputError

__all__ = [
    "PEFT",
    "StoredRows",
    "check_folder",
    "check_size",
    "check_weights",
    "is_adapter",
    "read_end_ids",
    "read_object",
]

PEFT = "base_model.model."
"""What peft puts before the name of every tensor of an adapter."""
_PACKED = 8
"""Numbers that one stored number may hold where weights are quantised."""
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")
MERGE = (
    'merge it first: python -c "from peft import AutoPeftModelForCausalLM as M; '
    "M.from_pretrained('{folder}').merge_and_unload().save_pretrained('{folder}-merged')\" "
    "and copy the tokenizer's files there"
)
CONVERT = (
    'pickled weights are never read; convert them where you trust them: python -c "from transformers import '
    "AutoModelForCausalLM as M; M.from_pretrained('{folder}').save_pretrained('{folder}-safetensors')\" "
    "and copy the tokenizer's files there"
)


def check_folder(folder: Path) -> None:
    """Raise `InputError` where `folder` holds no model of its own: absent, an adapter, a trainer's directory, empty."""
    if not folder.is_dir():
        raise InputError("no such folder", where=str(folder), remedy="give a Hugging Face model folder")
    if is_adapter(folder):
        base = read_object(folder / "adapter_config.json").get("base_model_name_or_path")
        reason = f"a PEFT adapter of {base!r} without the model's own weights"
        raise InputError(reason, where=str(folder), remedy=MERGE.format(folder=folder))
    if not (folder / "config.json").is_file():
        inner = sorted(path.parent.name for path in folder.glob("*/config.json"))
        remedy = (
            f"give one of the folders in it: {', '.join(inner[-3:])}" if inner else "give a Hugging Face model folder"
        )
        raise InputError("no config.json in this folder", where=str(folder), remedy=remedy)


def is_adapter(folder: Path) -> bool:
    """Whether the folder holds a PEFT adapter and no weights of a whole model."""
    whole = any((folder / name).is_file() for name in ("model.safetensors", "model.safetensors.index.json"))
    return (folder / "adapter_config.json").is_file() and not whole


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; an `InputError` where it is none."""
    try:
        value = json.loads(path.read_bytes())
    except ValueError as error:
        raise InputError(f"not JSON ({error})", where=str(path), remedy="copy or save the file again") from None
    if not isinstance(value, dict):
        raise InputError("not a JSON object", where=str(path), remedy="copy or save the file again")
    return value


def read_end_ids(folder: Path, config: dict[str, Any]) -> int | tuple[int, ...] | None:
    """`eos_token_id` of `generation_config.json`, as in transformers, else that of the model's configuration."""
    path = folder / "generation_config.json"
    found = read_object(path).get("eos_token_id") if path.is_file() else None
    found = config.get("eos_token_id") if found is None else found
    if not isinstance(found, list):
        return found
    return tuple(found) if len(found) > 1 else next(iter(found), None)


def check_weights(folder: Path) -> dict[str, list[int]]:
    """The shape of every tensor by its name, without the prefix that peft puts before an adapter's; no tensor is read.

    `InputError` where a file is missing or damaged.
    """
    shapes: dict[str, list[int]] = {}
    for name in _weight_files(folder):
        with _opened(folder, name) as file:
            shapes.update((key.removeprefix(PEFT), file.get_slice(key).get_shape()) for key in file.keys())
    return shapes


def check_size(folder: Path, config: dict[str, Any]) -> None:
    """InputError where the configuration asks for more than the weights can hold: nothing is allocated on its word."""
    rows, width = config.get("vocab_size"), config.get("hidden_size")
    if not (isinstance(rows, int) and isinstance(width, int)):
        return
    stored = sum(prod(shape) for shape in check_weights(folder).values())
    if rows * width > _PACKED * stored:
        raise InputError(
            f"an embedding of {rows:,} x {width:,}, where the weights hold {stored:,} numbers in all",
            where=str(folder / "config.json"),
            field="vocab_size, hidden_size",
            remedy="use the configuration that belongs to these weights",
        )


class StoredRows:
    """The tensors of a folder, of which rows are read as they are asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files = {}
        self.shapes: dict[str, list[int]] = {}
        for name in _weight_files(folder):
            with _opened(folder, name) as file:
                for key in file.keys():
                    self._files[key], self.shapes[key] = name, file.get_slice(key).get_shape()

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Rows `start` to `stop` of a tensor, or all of it."""
        with _opened(self._folder, self._files[name]) as file:
            return file.get_tensor(name) if stop is None else file.get_slice(name)[start:stop]


def _weight_files(folder: Path) -> list[str]:
    index = folder / "model.safetensors.index.json"
    names = ["adapter_model.safetensors" if is_adapter(folder) else "model.safetensors"]
    if index.is_file():
        weight_map = read_object(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise InputError("missing", where=str(index), field="weight_map", remedy="save the model again")
        names = sorted(set(map(str, weight_map.values())))
    for name in names:
        # A name, not a path: an index cannot point elsewhere. The file itself may be a link, as in the hub's cache.
        if Path(name).name != name or not (folder / name).is_file():
            raise _no_weights(folder, name)
    return names


@contextmanager
def _opened(folder: Path, name: str) -> Iterator[Any]:
    try:
        with safe_open(folder / name, framework="pt") as file:
            yield file
    except SafetensorError as error:
        remedy = "copy or save the file again"
        raise InputError(f"damaged weights ({error})", where=str(folder / name), remedy=remedy) from None


def _no_weights(folder: Path, name: str) -> InputError:
    trainers = {"training_args.bin", "optimizer.pt", "scheduler.pt", "scaler.pt"}
    pickled = sorted({path.name for pattern in PICKLED for path in folder.glob(pattern)} - trainers)
    reason, remedy = "no safetensors weights", "save the model there: model.save_pretrained(folder)"
    if pickled:
        reason, remedy = f"no safetensors weights, only {', '.join(pickled[:2])}", CONVERT.format(folder=folder)
    return InputError(reason, where=str(folder), field=name, remedy=remedy)
