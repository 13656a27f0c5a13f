"""`trueline evaluate TASK sft=FOLDER dpo=FOLDER ...`: checkpoints trained anywhere, judged as a study is."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from trueline.commands.checkpoints import JUDGES, check_checkpoint
from trueline.commands.run import design_of, execute
from trueline.commands.screen import show_arms, show_over_prompts
from trueline.data.chat import ChatTokenizer
from trueline.errors import InputError
from trueline.runs.cell import Cell, read_json, write_json
from trueline.runs.costs import write_costs
from trueline.runs.meter import Cost
from trueline.study.design import nodes_of_checkpoints
from trueline.study.identity import claim, identity_of
from trueline.study.origins import folder_digest
from trueline.study.record import complete, manifest_of_checkpoints
from trueline.study.report import build
from trueline.tasks.registry import is_embedded
from trueline.tasks.task import PairSources, Task
from trueline.types import Pair

__all__ = ["evaluate_folders", "limits_of"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9+_-]{0,63}")

_SCALE_SAMPLES = 256


def evaluate_folders(
    task: Task, sections: Mapping[str, Any], folders: Mapping[str, list[Path]], directory: Path, command: str,
    *, console: Console,
) -> dict[str, Any]:  # fmt: skip
    """Measure each folder on the task's test prompts with one sampler, and write the report of a study.

    Several folders of one arm are training seeds of it; one folder stands for all seeds. KL is measured to `sft`.
    Every folder is checked before a model is loaded.
    """
    found = {name: [_inner(folder) for folder in given] for name, given in folders.items()}
    _check_names(found)
    for name, given in found.items():
        for folder in given:
            check_checkpoint(name, folder, sections)
    pairs = _given_pairs(task, sections["data"])
    digests = {name: [folder_digest(folder) for folder in given] for name, given in found.items()}
    sections = dict(sections) | {"model": sections["model"].model_copy(update={"path": str(found["sft"][0])})}
    identity = identity_of(task.name, sections, {**task.describe(), "checkpoints": digests})
    with claim(directory, identity, command):
        keys, adopted = _adopt(directory, found, digests)
        shared = _shared(task, sections, directory, found, digests, adopted)
        if pairs:
            adopted["given-pairs"], shared["pairs"] = _pairs_cell(directory, pairs), "given-pairs"
        nodes = nodes_of_checkpoints(design_of(task, sections), keys, shared)
        cells = execute(task, sections, directory, nodes, console, named=None, adopted=adopted)
        notes = _refusals(nodes, cells)
        manifest = manifest_of_checkpoints(task, sections, identity, command, found, nodes, cells, notes)
        complete(directory, manifest, nodes, cells)
        report = build(directory)
        console.print()
        show_arms(console, report)
        show_over_prompts(console, report)
        for note in notes:
            console.print(f"note: {note}", markup=False)
        console.print(f"\n{report['verdict']['text']}\nReport: {directory / 'report.html'}", markup=False)
        return report


def limits_of(target: str, given: Sequence[str]) -> list[str]:
    """What makes the settings those of a given model (its lengths, not the small models' of file tasks), before they
    are resolved; nothing for the embedded world, whose texts are short."""
    first = next((item.partition("=")[2].split(",")[0] for item in given if item.startswith("sft=")), "")
    if not first or is_embedded(target) or not _inner(Path(first)).is_dir():
        return []
    return [f"model.path={_inner(Path(first))}"]


def _inner(folder: Path) -> Path:
    """The model's folder of a run's cell, or the folder itself."""
    for name in ("model", "reward_model"):
        if any((folder / name / file).is_file() for file in ("config.json", "adapter_config.json")):
            return folder / name
    return folder


def _check_names(found: Mapping[str, list[Path]]) -> None:
    counts = {name: len(given) for name, given in found.items() if name not in JUDGES}
    most = max(counts.values(), default=0)
    wrong = ""
    if odd := [name for name in found if not _NAME.fullmatch(name)]:
        wrong = f"{odd[0][:80]!r} is no name", "letters, digits, + and -, 64 at most: dpo=FOLDER"
    elif "sft" not in found:
        wrong = "no checkpoint is named sft", "trueline evaluate TASK sft=FOLDER dpo=FOLDER: KL is measured to sft"
    elif len(counts) < 2:
        wrong = "sft alone has nothing to be compared with", "add another one: dpo=FOLDER"
    elif "best-of-n" in counts:
        wrong = "best-of-n is no checkpoint but a way to sample one", "leave it out, or name its folder otherwise"
    elif uneven := [name for name, count in counts.items() if count not in (1, most)]:
        wrong = (
            f"{uneven[0]} has {counts[uneven[0]]} folders, another arm {most}",
            "give one each, or one for all seeds",
        )
    elif many := [name for name in JUDGES if len(found.get(name, [0])) != 1]:
        wrong = f"{many[0]} has several folders", "give one"
    if wrong:
        raise InputError(wrong[0], where="command line", field="NAME=FOLDER", remedy=wrong[1])


def _adopt(
    directory: Path, found: Mapping[str, list[Path]], digests: Mapping[str, list[str]]
) -> tuple[dict[str, list[str]], dict[str, Path]]:
    """Cells that stand for the folders, and their keys: for each arm one per training seed."""
    arms = {name: given for name, given in found.items() if name not in JUDGES}
    most = max(map(len, arms.values()))
    keys: dict[str, list[str]] = {}
    adopted: dict[str, Path] = {}
    for name in sorted(arms, key=lambda arm: arm != "sft"):
        keys[name] = []
        for seed in range(most):
            place = min(seed, len(arms[name]) - 1)
            key = f"given-{name}/{place if name == 'sft' else seed}"
            adopted[key] = _stand_in(directory, arms[name][place], digests[name][place], "model")
            keys[name].append(key)
    return keys, adopted


def _stand_in(directory: Path, folder: Path, digest: str, kind: str) -> Path:
    """A cell whose `model/` (or `reward_model/`) is the given folder's own files; nothing is copied."""
    cell = Cell(directory / "cells" / f"given-{digest}")
    cell.open({"method": "given", "weights": digest, "kind": kind})
    inner = cell.directory / kind
    inner.mkdir(exist_ok=True)
    for path in folder.iterdir():
        link = inner / path.name
        if path.is_file() and not link.exists():
            link.symlink_to(path.resolve())
    write_costs(cell.directory, {"own": Cost()})
    cell.finish(method="given")
    return cell.directory


def _shared(
    task: Task, sections: Mapping[str, Any], directory: Path, found, digests, adopted: dict[str, Path]
) -> dict[str, str]:
    """Models that were handed in: inputs that all checkpoints have."""
    shared = {}
    for name, role in (("reward", "reward"), ("judge", "gold")):
        if name in found:
            cell = _stand_in(directory, found[name][0], digests[name][0], "reward_model")
            if not (cell / "reward_model" / "calibration.json").exists():
                scale = _scale(task, sections["model"], found["sft"][0], cell / "reward_model")
                write_json(cell / "reward_model" / "calibration.json", scale)
            adopted[f"given-{name}"], shared[role] = cell, f"given-{name}"
    return shared


def _scale(task: Task, limits: Any, sft: Path, folder: Path) -> dict[str, float]:
    """Mean and standard deviation of a reward model's scores on SFT samples, read with its own tokenizer."""
    from trueline.data.batches import Tokenized, collate
    from trueline.evaluation.measure import EVALUATION_SEED, Sampler, sample_texts
    from trueline.models.checkpoints import load_decoder, load_scalar
    from trueline.models.scoring import Sampling, forbidden_mask
    from trueline.rewards.learned import LearnedReward

    own, reader = ChatTokenizer.load(sft), ChatTokenizer.load(folder)
    sampler = Sampler(
        lambda prompt: own.encode_prompt(prompt)[-limits.max_prompt_tokens :],
        own.decode,
        Sampling(forbidden=forbidden_mask(own.vocab_size, own.forbidden_ids)),
        own.pad_id,
        own.end_ids,
        limits.max_new_tokens,
        EVALUATION_SEED,
    )
    prompts = task.prompts("selection")[:_SCALE_SAMPLES]
    _, texts = sample_texts(load_decoder(sft), prompts, sampler, stream="scale")
    model = load_scalar(folder, bias=False)
    alike = reader.fingerprint == own.fingerprint  # then its prompts are the study's, otherwise as long as it can read
    items = []
    for prompt, response in zip(prompts, map(reader.encode_response, texts)):
        limit = limits.max_prompt_tokens if alike else max(1, model.config.max_positions - len(response))
        items.append(Tokenized(tuple(reader.encode_prompt(prompt)[-limit:]), tuple(response)))
    batch = collate(items, reader.pad_id)
    scores = LearnedReward(model).scores(batch.tokens, batch.lengths)
    return {"mean": float(scores.mean()), "std": float(scores.std()), "samples": len(prompts)}


def _given_pairs(task: Task, data: Any) -> list[Pair]:
    """Where a task has no comparisons of its own, those of the file on the task's prompts: a structure is one for a
    kind of prompt, which the task knows and a file does not."""
    if not data.path or not is_embedded(task.name):
        return []
    from trueline.data.loading import load_pairs

    loaded = load_pairs(
        data.path, format=data.format, columns=data.columns, on_bad_row=data.on_bad_row, limit=data.limit or None
    )
    known = {p.id: p for split in ("train", "selection", "test") for p in task.prompts(split)}
    pairs = [replace(p, prompt=known[p.prompt.id]) for p in loaded.pairs if p.prompt.id in known]
    if not pairs:
        raise InputError(
            f"none of its {len(loaded.pairs)} prompts is one of {task.name}'s",
            where=str(data.path),
            field="data.path",
            remedy="give comparisons of this task's prompts, or leave data.path out",
        )
    return pairs


def _pairs_cell(directory: Path, pairs: list[Pair]) -> Path:
    from trueline.training.pairs import write_pairs

    rows = hashlib.sha256("".join(p.prompt.id + p.chosen + p.rejected for p in pairs).encode()).hexdigest()[:16]
    cell = Cell(directory / "cells" / f"given-pairs-{rows}")
    cell.open({"method": "given", "pairs": rows})
    write_pairs(cell.directory, PairSources(pairs))
    cell.finish(method="given")
    return cell.directory


def _refusals(nodes: list, cells: Mapping[str, Path]) -> list[str]:
    """What could not be measured of a checkpoint, and why."""
    found = {}
    for node in nodes:
        if node.page == "evaluate":
            reason = read_json(cells[node.key] / "evaluation.json").get("refused")
            if reason:
                found[node.measures] = f"{node.measures}: {reason}; its texts are judged as they are"
    return list(found.values())
