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

__all__ = ["Plan", "Row", "plan_rows", "read_probes", "read_rows", "with_changes", "write_rows"]

INDEX = "rows.json"
SCHEMA = 1


@dataclass(frozen=True)
class Row:
    """One row of an experiment.

    `changes` maps a section to the values that it has here (`{"ppo": {"kl_coef": 0.0}, "world": {"shift": 0.5}}`).
    `base` names the arm whose last policy stands for SFT ("sft": SFT itself): what arms start from, and what DPO and
    the KL penalty refer to. The base is trained as the row is changed, or, where `base_changes` are given, with those
    in their place; pairs, reward model and the KL that is reported stay those of the row's own SFT. `probe` adds what
    is measured before training.
    """

    name: str
    arm: str
    changes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    base: str = "sft"
    base_changes: Mapping[str, Mapping[str, Any]] | None = None
    probe: bool = False

    @property
    def based(self) -> bool:
        """Whether something else than the row's own SFT stands for SFT."""
        return self.base != "sft" or self.base_changes is not None


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
        below = None if row.base_changes is None else _changed(design, row.base_changes)
        for seed in seeds:
            keys[row.name, seed] = merged.add(*_nodes_of(_changed(design, row.changes), below, row, seed))
    return Plan(tuple(merged.nodes.values()), keys)


def _changed(design: Design, changes: Mapping[str, Mapping[str, Any]]) -> Design:
    sections = {
        name: with_changes(section, changes[name], name) if name in changes else section
        for name, section in design.sections.items()
    }
    return replace(design, sections=sections)


def _nodes_of(design: Design, below: Design | None, row: Row, seed: int) -> tuple[list[Node], dict[str, str]]:
    """The nodes of one row at one seed, each after what it needs, and the keys of those that matter. `below` is what
    the base is made from, where that is not `design`."""
    # The first half of `both` is DPO's own run where that stayed within half the cap: as in a study, DPO stands beside.
    arms = ("dpo", "dpo+ppo") if row.arm == "dpo+ppo" and not row.based else (row.arm,)
    variant = Variant("row", row.name, True, design.sections["world"], arms)
    builder = Builder(design, variant, variant, seed)
    first = (row.base,) if row.base != "sft" and below is None else () if row.based else arms
    nodes = list(builder.stages(first, reward=builder.needs_reward((*first, row.arm)), probe=row.probe))
    if below is not None:
        started, builder.sft = _base(below, row.base, seed)
        nodes = started + nodes
    elif row.based:
        builder.based_on(row.base)
    if row.based:
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


def _base(design: Design, arm: str, seed: int) -> tuple[list[Node], str]:
    """The nodes of a base that is trained under settings of its own, and the key of its policy. Their keys are told
    apart from the row's; what is the same run is found out by content."""
    variant = Variant("base", arm, True, design.sections["world"], (arm,))
    builder = Builder(design, variant, variant, seed)
    wanted = {node.key: node for node in builder.stages((arm,), reward=builder.needs_reward((arm,)))}
    start = builder.origin if arm == "sft" else next(key for key, node in wanted.items() if node.arm == arm)
    needed: list[str] = []

    def visit(key: str) -> None:
        for before in wanted[key].inputs.values():
            visit(before)
        if key not in needed:
            needed.append(key)

    visit(start)
    nodes = [
        replace(wanted[key], key=f"base:{key}", inputs={n: f"base:{k}" for n, k in wanted[key].inputs.items()})
        for key in needed
    ]
    return nodes, f"base:{start}"


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
    own = {name: getattr(node, name) for name in ("page", "method", "arm", "seed", "share", "cap")}
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


def read_probes(directory: Path) -> dict[tuple[str, int], Any]:
    """(row, seed) -> what was measured before its training, for the rows that have a probe."""
    rows = read_json(directory / INDEX)["rows"]
    named = {(entry["row"], entry["seed"]): entry["cells"].get("probe") for entry in rows}
    return {
        at: read_json(directory / "cells" / address / "probe.json")
        for at, address in named.items()
        if address is not None
    }
