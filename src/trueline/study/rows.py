"""Experiments as rows: an arm under settings of its own, in a world of its own, trained and measured at every seed.

Ablations, the shift, the map and the findings are lists of rows. Nodes are content: what two rows have in common (SFT,
pairs, a reward model, a whole arm) is one node, and one cell in the run directory, whoever asked for it first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from trueline.config import digest, to_plain
from trueline.errors import InputError
from trueline.runs.cell import read_json, write_json
from trueline.study.design import Builder, Design, Node, Variant
from trueline.study.matrix import ArmRuns, read_cell

__all__ = ["Plan", "Row", "plan_rows", "read_rows", "with_changes", "write_rows"]

INDEX = "rows.json"
SCHEMA = 1


@dataclass(frozen=True)
class Row:
    """One row of an experiment.

    `changes` maps a section to the values that it has here (`{"ppo": {"kl_coef": 0.0}, "world": {"shift": 0.5}}`).
    `base` names the arm whose last policy stands for SFT ("sft": SFT itself): what arms start from, and what DPO and
    the KL penalty refer to. `probe` adds what is measured before training.
    """

    name: str
    arm: str
    changes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    base: str = "sft"
    probe: bool = False


@dataclass(frozen=True)
class Plan:
    """The nodes of all rows, each once, and by (row, seed) the keys of the nodes that matter: "arm", "select",
    "evaluate", "reward", "pairs" and "probe" where the row has them."""

    nodes: tuple[Node, ...]
    keys: Mapping[tuple[str, int], Mapping[str, str]]


def with_changes(section: Any, values: Mapping[str, Any], name: str) -> Any:
    """The section with other values, checked like a user's; what was set by the user stays set."""
    unknown = [key for key in values if key not in type(section).model_fields]
    if unknown:
        raise InputError("no such setting", where="settings", field=f"{name}.{unknown[0]}", remedy="see --help")
    given = {key: getattr(section, key) for key in section.model_fields_set}
    return type(section)(**(given | dict(values)))


def plan_rows(design: Design, rows: Sequence[Row], seeds: Sequence[int]) -> Plan:
    """Every row at every seed. Raises InputError for two rows of one name, or an arm that does not exist."""
    names = [row.name for row in rows]
    for row in rows:
        for arm in (row.arm, row.base):
            if arm not in design.arms:
                known = ", ".join(design.arms)
                raise InputError(f"unknown arm {arm!r}", where="settings", field=row.name, remedy=f"arms: {known}")
        if names.count(row.name) > 1:
            raise InputError("two rows of this name", where="settings", field=row.name, remedy="name each once")
    merged = _Merge()
    keys: dict[tuple[str, int], Mapping[str, str]] = {}
    for row in rows:
        changed = replace(
            design,
            sections={
                name: with_changes(section, row.changes[name], name) if name in row.changes else section
                for name, section in design.sections.items()
            },
        )
        for seed in seeds:
            keys[row.name, seed] = merged.add(*_nodes_of(changed, row, seed))
    return Plan(tuple(merged.nodes.values()), keys)


def _nodes_of(design: Design, row: Row, seed: int) -> tuple[list[Node], dict[str, str]]:
    """The nodes of one row at one seed, each after what it needs, and the keys of those that matter."""
    # The first half of `both` is DPO's own run where that stayed within half the cap: as in a study, DPO stands beside.
    arms = ("dpo", "dpo+ppo") if row.arm == "dpo+ppo" and row.base == "sft" else (row.arm,)
    variant = Variant("row", row.name, True, design.sections["world"], arms)
    builder = Builder(design, variant, variant, seed)
    first = arms if row.base == "sft" else (row.base,)
    nodes = list(builder.stages(first, reward=builder.needs_reward((*first, row.arm)), probe=row.probe))
    if row.base != "sft":
        builder.based_on(row.base)
        nodes += builder.arm(row.arm)
    nodes += builder.measured("sft")
    nodes += [builder.selection(arm) for arm in arms if arm != row.arm]
    if row.arm != "sft":
        nodes += builder.measured(row.arm)
    found = {"select": f"select-{row.arm}", "evaluate": f"evaluate-{row.arm}", "arm": row.arm, "sft": "evaluate-sft"}
    made = {node.key for node in nodes}
    keys = {name: f"{stem}/row/{seed}" for name, stem in found.items()}
    keys |= {name: f"{name}/row/{seed}" for name in ("reward", "pairs", "probe")}
    return nodes, {name: key for name, key in keys.items() if key in made}


class _Merge:
    """Nodes by content: method, settings, world, seed and the content of what they come from."""

    def __init__(self) -> None:
        self.nodes: dict[str, Node] = {}
        self._by_content: dict[str, str] = {}

    def add(self, nodes: Iterable[Node], wanted: Mapping[str, str]) -> dict[str, str]:
        """Take the nodes in; the keys under which `wanted` are to be found."""
        renamed: dict[str, str] = {}
        twins: dict[str, str] = {}
        for node in nodes:
            if node.key in renamed:
                continue
            inputs = {name: renamed[key] for name, key in node.inputs.items()}
            content = digest(_content(node) | {"inputs": inputs})
            key = self._by_content.setdefault(content, f"{node.arm}/{content}/{node.seed}")
            renamed[node.key] = key
            self.nodes.setdefault(key, replace(node, key=key, inputs=inputs, twin=""))
            if node.twin:
                twins[key] = node.twin
        for key, twin in twins.items():  # a twin may stand further down
            self.nodes[key] = replace(self.nodes[key], twin=renamed[twin])
        return {name: renamed[key] for name, key in wanted.items()}


def _content(node: Node) -> dict[str, Any]:
    plain = to_plain({"config": node.config, "world": node.world, **node.sections})
    own = {name: getattr(node, name) for name in ("page", "method", "arm", "seed", "share")}
    return own | plain | {"charged": list(node.charged)}


def write_rows(directory: Path, plan: Plan, cells: Mapping[str, Path], facts: Mapping[str, Any]) -> None:
    """`rows.json`: which cells belong to which row and seed."""
    rows = [
        {"row": name, "seed": seed, "cells": {what: cells[key].name for what, key in keys.items()}}
        for (name, seed), keys in plan.keys.items()
    ]
    write_json(directory / INDEX, {"schema": SCHEMA, **facts, "rows": rows})


def read_rows(directory: Path) -> dict[str, ArmRuns]:
    """The finished rows of a run directory by name, each with its cells in the order of seeds."""
    found: dict[str, list] = {}
    for entry in read_json(directory / INDEX)["rows"]:
        address = entry["cells"]["evaluate"]
        found.setdefault(entry["row"], []).append(read_cell(directory / "cells", entry["row"], entry["seed"], address))
    return {name: ArmRuns(name, tuple(cells)) for name, cells in found.items()}
