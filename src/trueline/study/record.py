"""The run record of a study: manifest and index, written before the first cell runs and completed after the last."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

from trueline.config import to_plain
from trueline.runs.cell import read_json, write_json
from trueline.study.design import Node, Variant
from trueline.study.gates import closest_gates
from trueline.study.identity import SCHEMA, Identity, versions
from trueline.study.probes import probe_row

__all__ = [
    "chosen_settings",
    "complete",
    "manifest_of",
    "manifest_of_checkpoints",
    "stage_index",
]


def complete(directory: Path, manifest: Mapping[str, Any], nodes: Sequence[Node], cells: Mapping[str, Path]) -> None:
    """Write the full manifest and the index of cells."""
    rows = []
    for node in nodes:
        rows.append(
            {
                "arm": node.arm,
                "seed": node.seed,
                "variant": node.variant,
                "cell": cells[node.key].name,
                "method": node.page,
            }
        )
        if node.page == "evaluate":
            rows[-1]["arm"] = node.measures
            rows[-1]["trained"] = cells[node.inputs["arm"]].name
        else:
            rows[-1]["arm"] = f"stage:{node.arm}"
    write_json(directory / "index.json", {"cells": rows}, durable=True)
    write_json(directory / "manifest.json", manifest, durable=True)


def chosen_settings(path: Path, task: str, tuning: Mapping[str, Any], command: str) -> None:
    """What tuning chose as a config file of its own, so that a later run needs no trials."""
    lines = [f"# Chosen by: {command}", f"task: {task}", "study: {trials: 0}"]
    for row in tuning["arms"]:
        settings = row["trials"][row["chosen"]]["settings"]
        lines.append(f"{row['section']}: {{{', '.join(f'{key}: {_yaml(value)}' for key, value in settings.items())}}}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _yaml(value: float) -> str:
    """YAML 1.1 reads 1e-05 as a word: the mantissa needs its point."""
    text = f"{value!r}"
    return text.replace("e", ".0e") if "e" in text and "." not in text else text


def stage_index(directory: Path, nodes: Sequence[Node], cells: Mapping[str, Path]) -> None:
    """The index of a run of single stages."""
    rows = [
        {"arm": n.arm, "seed": n.seed, "variant": n.variant, "cell": cells[n.key].name, "method": n.page} for n in nodes
    ]
    write_json(directory / "index.json", {"cells": rows})


def manifest_of(
    task: Any,
    sections: Mapping[str, Any],
    identity: Identity,
    command: str,
    variants: Sequence[Variant],
    nodes: Sequence[Node],
    cells: Mapping[str, Path],
) -> dict[str, Any]:
    """Everything the report says besides the figures."""
    study, model = sections["study"], sections["model"]
    by_arm = {
        node.arm: node
        for node in nodes
        if (not node.measures and node.variant == variants[0].name) or node.arm == "sft"
    }
    parameters = _parameters(cells, nodes)
    gold = {"kind": _gold_kind(task), "accuracy": None, "accuracy_ci95": None}
    judge = next((node for node in nodes if node.arm == "judge-gold"), None)
    if sections["evaluate"].judge_url:
        gold |= {"kind": "given"} | _agreement(nodes, cells) | _judge_cost(cells.values())
    elif judge is not None:
        gold |= _accuracy(cells[judge.key])
    pairs = next(node for node in nodes if node.arm == "pairs" and node.variant == variants[0].name)
    count = read_json(cells[pairs.key] / "done.json")["pairs"]
    base = (
        "a model given by its folder" if model.path else f"a {parameters / 1e6:.2f}M-parameter model made from nothing"
    )
    return {
        "schema": SCHEMA,
        "identity": identity.digest,
        "task": task.name,
        "world": f"{task.place}, {base}, {count:,} pairs, {variants[0].label}",
        "model": {"parameters": parameters, "size": model.size, "path": model.path},
        "seeds": list(study.seeds),
        "arms": list(study.arms),
        "variants": [{"name": v.name, "label": v.label, "primary": v.primary, "arms": list(v.arms)} for v in variants],
        "metric": "test/sampled/gold",
        "margin": _margin(task, study),
        "gold": gold,
        "budget": {"rule": study.budget_rule, "cap": study.budget or None},
        "command": command,
        "own_data_command": f"trueline study {'problems' if task.verified else 'pairs'} data.path=YOUR.jsonl",
        "threats": task.threats(),
        "settings": {arm: to_plain({"c": n.config})["c"] for arm, n in by_arm.items() if n.config is not None},
        "fingerprints": {node.key: cells[node.key].name for node in nodes if not node.measures},
        "versions": versions(),
        "objectives": {
            arm: (cells[n.key] / "objective.txt").read_text(encoding="utf-8").strip() for arm, n in by_arm.items()
        },
        "data": dict(task.describe()),
        "sections": to_plain(sections),
        "judges": _judges(nodes, cells),
        "sandbox": _sandbox(cells.values()),
        "pairs": _program_pairs(nodes, cells),
        "probes": _probes(nodes, cells),
        "gates": closest_gates(cells.values()),
    }


def _probes(nodes: Sequence[Node], cells: Mapping[str, Path]) -> dict[str, list[dict[str, Any]]]:
    """What was measured before training, of each variant and seed."""
    found: dict[str, list[dict[str, Any]]] = {}
    for node in nodes:
        if node.arm == "probe":
            row = probe_row(read_json(cells[node.key] / "probe.json"))
            found.setdefault(node.variant, []).append({"seed": node.seed} | row)
    return found


def _program_pairs(nodes: Sequence[Node], cells: Mapping[str, Path]) -> dict[str, list[dict[str, Any]]]:
    """How many pairs of programs each variant has and how far apart they are, seed by seed; nothing of other pairs."""
    found: dict[str, list[dict[str, Any]]] = {}
    for node in nodes:
        done = read_json(cells[node.key] / "done.json") if node.arm == "pairs" else {}
        if "edit_distance" in done:
            row = {name: done[name] for name in ("pairs", "prompts", "edit_distance")}
            found.setdefault(node.variant, []).append({"seed": node.seed} | row)
    return found


def _sandbox(cells: Iterable[Path]) -> dict[str, Any]:
    """Which tiers judged, what broke, and how many programs were run; empty where none was."""
    found = [read_json(cell / "machinery.json") for cell in set(cells) if (cell / "machinery.json").exists()]
    if not found:
        return {}
    return {
        "tiers": sorted({row["tier"] for row in found}),
        "incidents": sorted(line for row in found for line in row["incidents"]),
        "executions": sum(row["executions"] for row in found),
    }


def _margin(task: Any, study: Any) -> Any:
    """In standard deviations of SFT's gold, or absolute where gold is the share of problems solved."""
    return {"absolute": study.margin_pass} if task.verified else study.margin


def _gold_kind(task: Any) -> str:
    return "tests" if task.verified else "learned" if task.learned_gold else "embedded"


def _judge_cost(cells: Iterable[Path]) -> dict[str, Any]:
    """What an endpoint was asked for over all evaluations."""
    found: dict[str, Any] = {}
    for cell in sorted(set(cells)):
        file = cell / "evaluation.json"
        judge = read_json(file).get("judge", {}) if file.exists() else {}
        for name, value in judge.items():
            found[name] = found.get(name, 0) + value if isinstance(value, int) else value
    return {"judge": found} if found else {}


def _judges(nodes: Sequence[Node], cells: Mapping[str, Path]) -> list[list[Any]]:
    """What each learned judge says of itself, by a label for the reader."""
    found = {}
    for node in nodes:
        if node.arm == "reward" or node.arm.startswith("judge-"):
            name = "reward model" if node.arm == "reward" else f"{node.arm.removeprefix('judge-')} judge"
            where = f"{name}, {node.variant}" if node.arm == "reward" else name
            found.setdefault(cells[node.key], [f"{where}, seed {node.seed}", read_json(cells[node.key] / "done.json")])
    return list(found.values())


def manifest_of_checkpoints(
    task: Any,
    sections: Mapping[str, Any],
    identity: Identity,
    command: str,
    folders: Mapping[str, Sequence[Path]],
    nodes: Sequence[Node],
    cells: Mapping[str, Path],
    notes: Sequence[str],
) -> dict[str, Any]:
    """As `manifest_of`, of checkpoints that were trained elsewhere: what they cost is not known."""
    arms = list(dict.fromkeys(node.measures for node in nodes if node.page == "evaluate"))
    seeds = sorted({node.seed for node in nodes})
    judge = next((node for node in nodes if node.arm == "judge-gold"), None)
    gold = {"kind": _gold_kind(task), "accuracy": None, "accuracy_ci95": None}
    if "judge" in folders or sections["evaluate"].judge_url:
        gold |= {"kind": "given"} | _agreement(nodes, cells) | _judge_cost(cells.values())
    elif judge is not None:
        gold |= _accuracy(cells[judge.key])
    threats = [
        "How these checkpoints were trained, tuned and selected is not known here: a difference between two of them is "
        "one between two models, not between two methods.",
        *([] if len(seeds) > 1 else ["There is one checkpoint of each arm: intervals are over prompts alone."]),
        *notes,
        *task.threats(),
    ]
    variant = nodes[0].variant
    return {
        "schema": SCHEMA,
        "identity": identity.digest,
        "task": task.name,
        "world": f"{task.place}, checkpoints trained elsewhere",
        "model": {"path": sections["model"].path},
        "seeds": seeds,
        "arms": arms,
        "variants": [{"name": variant, "label": "checkpoints as given", "primary": True, "arms": arms}],
        "metric": "test/sampled/gold",
        "margin": _margin(task, sections["study"]),
        "gold": gold,
        "budget": {"rule": "unknown"},
        "command": command,
        "own_data_command": "trueline evaluate pairs data.path=YOUR.jsonl sft=FOLDER dpo=FOLDER ppo=FOLDER",
        "threats": threats,
        "versions": versions(),
        "data": {name: ", ".join(map(str, given)) for name, given in folders.items()},
        "sections": to_plain(sections),
        "judges": _judges(nodes, cells),
        "sandbox": _sandbox(cells.values()),
    }


def _parameters(cells: Mapping[str, Path], nodes: Sequence[Node]) -> int:
    """Of the policy, an adapter's base included."""
    sft = next(node for node in nodes if node.arm == "sft")
    folder = cells[sft.key] / "model"
    adapter = folder / "adapter_config.json"
    base = [Path(read_json(adapter)["base_model_name_or_path"])] if adapter.is_file() else []
    return sum(_stored(path) for part in (folder, *base) for path in part.glob("*.safetensors"))


def _stored(path: Path) -> int:
    """Numbers in a file of tensors, by its header."""
    from safetensors import safe_open

    with safe_open(path, framework="np") as file:
        return sum(prod(file.get_slice(name).get_shape()) for name in file.keys())


def _agreement(nodes: Sequence[Node], cells: Mapping[str, Path]) -> dict[str, Any]:
    """Of a judge that was handed in, with labelled comparisons that no arm sees; nothing where there are none."""
    from trueline.study.statistics import wilson

    sft = next(node for node in nodes if node.arm == "evaluate:sft")
    found = read_json(cells[sft.key] / "evaluation.json").get("agreement")
    if not found:
        return {}
    low, high = wilson(round(found["right"]), found["pairs"])
    return {"accuracy": found["right"] / found["pairs"], "accuracy_ci95": [low, high]}


def _accuracy(cell: Path) -> dict[str, Any]:
    from trueline.study.statistics import wilson

    done = read_json(cell / "done.json")
    accuracy, count = done["held_out_accuracy"], done["held_out_pairs"]
    low, high = wilson(round(accuracy * count), count)
    return {"accuracy": accuracy, "accuracy_ci95": [low, high]}
