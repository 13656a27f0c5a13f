"""`trueline train REPORT.json`: train what a study recommends, with the settings it used, and leave the folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from statistics import median

from rich.console import Console

from trueline.commands.export import check_push, push, read_about, write_cards, write_evaluation_files
from trueline.commands.resolve import resolve
from trueline.commands.run import design_of, execute
from trueline.errors import InputError
from trueline.models.folders import is_adapter
from trueline.runs.cell import read_json, write_json
from trueline.study.design import nodes_of_stage
from trueline.study.identity import claim, identity_of
from trueline.study.record import stage_index
from trueline.tasks.registry import is_embedded
from trueline.training.pages import arms
from trueline.training.pairs import read_pairs

__all__ = ["train_recommended"]


def train_recommended(
    report_path: Path, overrides: list[str], out: Path, command: str, console: Console, *, to: str = ""
) -> None:
    """Train the report's arm on all of the study's pairs and copy it to `out/model` (and critic, reward model), with
    model cards and files for other evaluations; `to` is a repository on the hub that gets a private copy.

    It stops where the study's selected checkpoints lay (the median share of the planned steps over seeds): there is no
    held-out judge left to select with.
    """
    if to:
        check_push(to)
    report, study_directory = _read(report_path), report_path.parent
    chosen, overrides = _chosen(report, overrides, report_path)
    manifest = read_json(study_directory / "manifest.json")
    everything = [] if is_embedded(report["task"]) else ["data.everything=true"]
    name, sections, task = resolve(report["task"], [*_given(manifest), *everything, *overrides], False)
    share = _selected_share(study_directory, chosen)
    identity = identity_of(name, sections, {**task.describe(), "train": chosen})
    with claim(out, identity, command):
        seed = sections["study"].seeds[0]
        nodes = nodes_of_stage(design_of(task, sections), chosen, seed)
        console.print(
            f"training {chosen}, stopping at {100 * share:.0f}% of its planned steps, "
            "where the study's selected checkpoints lay"
        )
        cells = execute(task, sections, out, nodes, console, named=chosen, share=share)
        stage_index(out, nodes, cells)
        by_arm = {node.arm: cells[node.key] for node in nodes}
        target = by_arm[chosen]
        for source, folder in ((target, "model"), (target, "critic"), (by_arm.get("reward"), "reward_model")):
            if source is not None and (source / folder).is_dir():
                shutil.rmtree(out / folder, ignore_errors=True)
                shutil.copytree(source / folder, out / folder)
        left = out / "model"
        if is_adapter(left):
            left = _merge(left, out / "merged")
        write_json(
            out / "recommendation.json",
            {"arm": chosen, "share": share, "report": str(report_path), "verdict": report["verdict"]},
        )
        base = sections["model"].path
        write_cards(out, read_about(out, chosen, target, report, manifest, task, command, base))
        held_out = [] if everything else read_pairs(by_arm["pairs"]).selection if "pairs" in by_arm else []
        policies = (
            {chosen: out / "model", "sft": by_arm["sft"] / "model"} if "sft" in by_arm else {chosen: out / "model"}
        )
        files = write_evaluation_files(out, task, sections, policies, held_out)
        console.print(f"for other evaluations: {files[0].parent} ({len(files)} files)", markup=False)
        if to:
            console.print(f"on the hub: {push(out, to)}", markup=False)
        console.print(f"{chosen}: {left} (loads with transformers' AutoModelForCausalLM)", markup=False)


def _merge(adapter: Path, folder: Path) -> Path:
    """The adapter and its base as one model, for tools that know no peft; the adapter's own folder stays."""
    from trueline.data.chat import ChatTokenizer
    from trueline.models.adapters import load_adapter, merged

    shutil.rmtree(folder, ignore_errors=True)
    merged(load_adapter(adapter), folder)
    ChatTokenizer.load(adapter).save(folder)
    shutil.copy(adapter / "generation_config.json", folder)
    return folder


def _read(path: Path) -> dict:
    if not path.is_file():
        raise InputError("file not found", where=str(path), remedy="give the report.json of a study")
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"not JSON ({error})", where=str(path), remedy="rebuild it: trueline report DIR") from None
    for key in ("task", "verdict", "arms"):
        if key not in report:
            raise InputError("missing", where=str(path), field=key, remedy="rebuild it: trueline report DIR")
    return report


def _chosen(report: dict, overrides: list[str], path: Path) -> tuple[str, list[str]]:
    own = [item.removeprefix("arm=") for item in overrides if item.startswith("arm=")]
    rest = [item for item in overrides if not item.startswith("arm=")]
    trainable = [
        arm["name"]
        for arm in report["arms"]
        if arm["name"] == "sft" or (arm["name"] in arms() and arms()[arm["name"]].page)
    ]
    chosen = own[-1] if own else report["verdict"]["answer"]
    if chosen == "no-difference":
        chosen = report["verdict"]["cheapest"]
    if chosen not in trainable:
        why = "the study cannot tell" if chosen == "cannot-tell" else f"{chosen!r} is not an arm that is trained"
        raise InputError(
            why,
            where=str(path),
            field="verdict.answer",
            remedy=f"run more seeds, or choose: arm=NAME with one of {', '.join(trainable)}",
        )
    return chosen, rest


_DECIDED = (("study", "arms"), ("study", "trials"), ("sft_chosen", "on"))
"""What a study sets itself and a user may not."""


def _given(manifest: dict) -> list[str]:
    """The settings of the study that a user may have set, as overrides."""
    out = []
    for section, values in manifest.get("sections", {}).items():
        for key, value in values.items():
            text = (",".join(map(str, value)) or "[]") if isinstance(value, list) else str(value)
            if value != "" and (section, key) not in _DECIDED:
                out.append(f"{section}.{key}={text}")
    return out


def _selected_share(directory: Path, arm: str) -> float:
    rows = [row for row in read_json(directory / "index.json")["cells"] if row["arm"] == arm]
    shares = []
    for row in rows:
        picks = read_json(directory / "cells" / row["cell"] / "evaluation.json")["picks"]
        shares.append(picks["selected"] / picks["end"] if picks["end"] else 1.0)
    return median(shares) if shares else 1.0
