"""The run record of a study: manifest and index, written before the first cell runs and completed after the last."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import metadata
from math import prod
from pathlib import Path
from typing import Any

from trueline import __version__
from trueline.config import digest, to_plain
from trueline.errors import InputError
from trueline.runs.cell import read_json, write_json
from trueline.runs.durable import drop_unfinished, sync
from trueline.runs.lock import held
from trueline.study.design import Node, Variant
from trueline.study.gates import closest_gates
from trueline.study.origins import origins, origins_of
from trueline.study.probes import probe_row

__all__ = [
    "Identity",
    "chosen_settings",
    "claim",
    "complete",
    "identity_of",
    "manifest_of",
    "manifest_of_checkpoints",
    "stage_index",
    "versions",
]

SCHEMA = 1
_IDENTITY = "identity.json"
UNIMPORTANT = ("workers", "device", "micro_tokens", "report_to")
"""Settings of `train` that cannot change a result."""


@dataclass(frozen=True)
class Identity:
    """What a directory may hold one of: a task with its settings (without what cannot change a result), what was made
    of them, and the content of every file and model that is read."""

    task: str
    sections: Mapping[str, Any]
    described: Mapping[str, Any]
    inputs: Mapping[str, str]

    @property
    def digest(self) -> str:
        """Without the places of the files: a file that was moved is the same."""
        return digest(
            {"task": self.task, "sections": self.sections, "described": self.described, "inputs": origins(self.inputs)}
        )

    def written(self) -> dict[str, Any]:
        """As `claim` keeps it, so that a later run can say what is different."""
        plain = {"task": self.task, "sections": self.sections, "described": self.described, "inputs": self.inputs}
        return json.loads(json.dumps(plain))


def identity_of(task: str, sections: Mapping[str, Any], described: Mapping[str, Any]) -> Identity:
    """The identity of a run."""
    plain = to_plain(sections)
    plain["train"] = {k: v for k, v in plain["train"].items() if k not in UNIMPORTANT}
    return Identity(task, plain, to_plain({"d": dict(described)})["d"], origins_of(sections))


@contextmanager
def claim(directory: Path, identity: Identity, what: str) -> Iterator[None]:
    """Hold the directory for this run alone.

    Raises InputError where it holds another run, naming what is different, or something else altogether; RunError
    where another process is at work in it.
    """
    path = directory / "manifest.json"
    known = path.exists()
    if known:
        _check_same(directory, identity)
    else:
        _check_free(directory)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = ExitStack()
        lock.enter_context(held(directory))
    except OSError as error:
        raise InputError(
            f"cannot be written to ({error.strerror})", where=str(directory), field="-o", remedy="use another -o DIR"
        ) from None
    with lock:
        if known:
            _note_other_versions(directory)
            drop_unfinished(directory)
            drop_unfinished(directory / "cells")
        else:
            (directory / "cells").mkdir(exist_ok=True)
            write_json(directory / _IDENTITY, identity.written() | {"versions": versions()}, durable=True)
            write_json(path, {"schema": SCHEMA, "identity": identity.digest, "command": what}, durable=True)
            sync(directory.resolve().parent)
        yield


def _check_free(directory: Path) -> None:
    if directory.exists() and not directory.is_dir():
        raise InputError("is a file, not a directory", where=str(directory), field="-o", remedy="use another -o DIR")
    ours = ("cells", _IDENTITY)
    if directory.is_dir() and any(e.name not in ours and not e.name.startswith(".") for e in directory.iterdir()):
        raise InputError(
            "is not empty and holds no run of ours", where=str(directory), field="-o", remedy="use a new -o DIR"
        )


def _check_same(directory: Path, identity: Identity) -> None:
    held_run = read_json(directory / "manifest.json")
    if held_run.get("identity") == identity.digest:
        return
    file = directory / _IDENTITY
    changes = _differences(_without_versions(read_json(file)), identity.written()) if file.exists() else []
    shown = "; ".join(changes[:6]) + (f"; and {len(changes) - 6} more" if len(changes) > 6 else "")
    raise InputError(
        f"holds another run ({held_run.get('command', 'unknown')})" + (f": {shown}" if shown else ""),
        where=str(directory),
        field="-o",
        remedy="use another -o DIR, or the command and the files that made it to resume it",
    )


def _note_other_versions(directory: Path) -> None:
    """A run that goes on elsewhere is the same run; its bits need not be, and that is written down."""
    file = directory / _IDENTITY
    before = read_json(file).get("versions", {}) if file.exists() else {}
    changes = [f"{k} {before[k]}, now {v}" for k, v in versions().items() if k in before and before[k] != v]
    if changes:
        row = {"what": "went on with other versions", "changes": changes}
        with open(directory / "incidents.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def _differences(held_run: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Settings and inputs that are not the same, old and new."""
    before, after = _flat(held_run), _flat(now)
    return [
        f"{key.removeprefix('sections.')} was {_short(before.get(key))}, is {_short(after.get(key))}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    ]


def _without_versions(written: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in written.items() if key != "versions"}


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {prefix: value}
    return {
        k: v for name, item in value.items() for k, v in _flat(item, f"{prefix}.{name}" if prefix else name).items()
    }


def _short(value: Any) -> str:
    text = "absent" if value is None else json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


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


def versions() -> dict[str, str]:
    """Of what the bits of a result may depend on: packages, the processor's instructions, our kernels, threads."""
    import torch

    from trueline.models import kernels

    names = ("torch", "transformers", "tokenizers", "numpy", "scipy")
    found = {"trueline": __version__, "python": platform.python_version(), "machine": platform.machine()}
    found |= {name: metadata.version(name) for name in names}
    instructions, compiled = torch.backends.cpu.get_cpu_capability(), kernels.library() is not None
    return found | {
        "instructions": instructions,
        "kernels": "compiled" if compiled else "torch",
        "threads": "1 a worker",
    }


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
