"""Very small runs of the training pages, and what two runs are compared by."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
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
CLOCKS = ("timings.jsonl", "clock.json")
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
    return read_json(cell / "cost.json")["own"]


def contents(cell: Path) -> dict[str, str]:
    """The digest of every file of a cell by its name; clocks are left out, and nothing else."""
    return {
        str(path.relative_to(cell)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(cell.rglob("*"))
        if path.is_file() and path.name not in CLOCKS
    }
