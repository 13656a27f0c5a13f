"""Very small runs of the training pages, and what two runs are compared by."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from trueline.runs.cell import read_json, read_jsonl
from trueline.training.pages import page, pages

# Applied to every page that has the field, so that a page that is added is run small too.
SMALL = {
    "batch_size": 16, "minibatches": 2, "learning_rate": 1e-3, "critic_learning_rate": 2e-3, "warmup_steps": 1,
    "samples_per_prompt": 2, "steps": 4, "rounds": 2, "sync_every": 2, "samples": 1, "test_prompts": 6,
    "prompts": 6, "pairs": 8, "shown": 2,
}  # fmt: skip
STEPS = 4
TRAINED = sorted(method for method, module in pages().items() if "learning_rate" in module.Config.model_fields)


def small(method: str, **changes: Any) -> dict[str, Any]:
    """Settings of a small run of that page."""
    fields = page(method).Config.model_fields
    return {key: value for key, value in SMALL.items() if key in fields} | changes


def run_small(
    world: Any, method: str, directory: Path, *, settings: Mapping[str, Any] | None = None, **more: Any
) -> Path:
    """A run of `STEPS` steps (fewer where `max_steps` says so)."""
    more = {"max_steps": STEPS} | more
    if method in ("select", "evaluate"):
        more["inputs"] = {"arm": world.cells["sft"]} | dict(more.get("inputs", {}))
    if method == "evaluate":
        picked = world.run("select", directory.with_name(f"{directory.name}-picked"), small("select"), **more)
        more["inputs"] |= {"picked": picked}
    return world.run(method, directory, small(method, **(settings or {})), **more)


def rows(cell: Path, name: str = "metrics") -> list[dict[str, Any]]:
    """The rows of a cell's log."""
    return list(read_jsonl(cell / f"{name}.jsonl"))


def cost(cell: Path) -> dict[str, Any]:
    """What the cell spent, without clock and memory."""
    own = read_json(cell / "cost.json")["own"]
    return {key: value for key, value in own.items() if key not in ("seconds", "peak_memory_bytes")}


def contents(cell: Path) -> dict[str, str]:
    """The digest of every file of a cell by its name; clocks and memory figures are left out, and what digests them."""
    found = {}
    for path in _files(cell):
        data = path.read_bytes()
        if path.name == "state.json":
            held = json.loads(data)
            del held["meter"]["seconds"]
            data = json.dumps(held).encode()
        if path.name == "cost.json":
            held = json.loads(data)
            for part in held.values():
                del part["seconds"], part["peak_memory_bytes"]
            data = json.dumps(held).encode()
        found[str(path.relative_to(cell))] = hashlib.sha256(data).hexdigest()
    return found


def _files(cell: Path) -> Iterator[Path]:
    for path in sorted(cell.rglob("*")):
        if path.is_file() and path.name not in ("timings.jsonl", "MANIFEST.json"):
            yield path
