"""What `trueline train` leaves beside the weights: model cards, files for other evaluations, a copy on the hub."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trueline.data.chat import ChatTokenizer
from trueline.errors import InputError
from trueline.runs.cell import read_json
from trueline.tasks.task import Task
from trueline.types import Pair, Prompt

__all__ = ["check_push", "model_card", "push", "read_about", "write_cards", "write_evaluation_files"]

_DATA = ("pairs", "prompts", "problems", "format", "mapping", "rows", "world")
_PROMPTS = 805
"""As many as AlpacaEval has."""
_KINDS = {
    "model": "the policy",
    "merged": "the policy, its adapter merged into its base",
    "critic": "the critic that PPO trained with it: a one-label token classifier, the value before each token",
    "reward_model": "the reward model that scored its samples: a one-label sequence classifier, read at the last token",
}


def write_cards(out: Path, about: Mapping[str, Any]) -> None:
    """A `README.md` in every folder that a model was left in."""
    for name in _KINDS:
        if (out / name).is_dir():
            (out / name / "README.md").write_text(model_card(name, about), encoding="utf-8")


def model_card(kind: str, about: Mapping[str, Any]) -> str:
    """The card of one folder, in the hub's form.

    `about` has `arm`, `objective`, `report` (the study's report.json), `data` (what the task says of its files, the
    fingerprint of the policy), `base` (what training started from), `command`, `versions`, `parameters`, `adapter`.
    """
    report, arm = about["report"], about["arm"]
    head = {
        "library_name": "peft" if kind == "model" and about.get("adapter") else "transformers",
        "pipeline_tag": {"reward_model": "text-classification", "critic": "token-classification"}.get(
            kind, "text-generation"
        ),
        "tags": ["trueline", arm, "alignment"],
        **({"base_model": about["base"]} if about["base"] and "/" in about["base"] else {}),
    }
    verdict = report["verdict"]
    lines = ["---", *_yaml(head), "---", "", f"# {arm}: {_KINDS[kind]}", ""]
    lines += [
        f"Trained by trueline {about['versions'].get('trueline', '')} on {report['task']}: {report['world']}.",
        "",
    ]
    lines += ["## Method", "", f"`{about['objective']}`", ""]
    lines += [
        f"- started from: {about['base'] or 'a model made from nothing'}",
        f"- parameters: {about['parameters']:,}",
    ]
    lines += [f"- {name}: {value}" for name, value in about["data"].items()] + [""]
    lines += ["## What the study found", "", verdict["text"], ""]
    lines += _results(report, verdict)
    lines += ["", "These are figures of the study's own runs; this model was trained again on all of its pairs.", ""]
    lines += ["## Limits", "", *[f"- {threat}" for threat in report["threats"]], ""]
    lines += ["## Again", "", "```", about["command"], "```", ""]
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    return "\n".join([*lines, f"Versions: {versions}.", ""])


def _results(report: Mapping[str, Any], verdict: Mapping[str, Any]) -> list[str]:
    """The arms of the study, and how they compare, with 95% intervals over seeds and prompts."""
    metric = verdict["metric"]
    rows = [f"| arm | {metric} | 95% interval | seeds that collapsed |", "|---|---|---|---|"]
    for arm in report["arms"]:
        figure = arm["metrics"].get(metric)
        if figure:
            low, high = figure.get("ci95") or (None, None)
            interval = "one seed" if low is None else f"{low:+.3f} to {high:+.3f}"
            rows.append(f"| {arm['name']} | {figure['mean']:+.3f} | {interval} | {sum(arm['collapsed']) or ''} |")
    rows += ["", "| comparison | difference | 95% interval | Holm p |", "|---|---|---|---|"]
    for row in report["comparisons"]:
        if row.get("family") == "declared":
            low, high = row["ci95"]
            interval = "no interval" if low is None else f"{low:+.3f} to {high:+.3f}"
            p = "" if row["p_adjusted"] is None else f"{row['p_adjusted']:.3f}"
            rows.append(f"| {row['a']} - {row['b']} | {row['difference']:+.3f} | {interval} | {p} |")
    return rows


def _yaml(head: Mapping[str, Any]) -> list[str]:
    import yaml

    return yaml.safe_dump(dict(head), sort_keys=False, allow_unicode=True).splitlines()


# --- files for other evaluations ---------------------------------------------------------------------------------


def write_evaluation_files(
    out: Path, task: Task, sections: Mapping[str, Any], folders: Mapping[str, Path], held_out: Sequence[Pair]
) -> list[Path]:
    """`out/evaluation/`: greedy answers of each of `folders` (name -> model) to the test prompts in AlpacaEval's form,
    and tasks for lm-evaluation-harness: the same prompts to generate on and, with `held_out` pairs, which side is the
    likelier.

    AlpacaEval compares two of the files; lm-evaluation-harness takes the folder with `--include_path`.
    """
    folder = out / "evaluation"
    folder.mkdir(parents=True, exist_ok=True)
    prompts = task.prompts("test")[:_PROMPTS]
    left = []
    for name, model in folders.items():
        answers = _greedy(model, prompts, sections)
        rows = [
            {"instruction": _instruction(p), "output": text, "generator": name, "dataset": task.name}
            for p, text in zip(prompts, answers)
        ]
        left.append(folder / f"alpaca_eval_{name}.json")
        left[-1].write_text(json.dumps(rows, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    tokenizer = ChatTokenizer.load(next(iter(folders.values())))
    left += _harness(folder, task.name, tokenizer, prompts, held_out, sections["model"].max_new_tokens)
    return left


def _instruction(prompt: Prompt) -> str:
    """AlpacaEval has one text for what was asked."""
    turns = prompt.messages
    return turns[0].content if len(turns) == 1 else prompt.text


def _greedy(folder: Path, prompts: Sequence[Prompt], sections: Mapping[str, Any]) -> list[str]:
    from trueline.evaluation.measure import EVALUATION_SEED, Sampler, sample_texts
    from trueline.models.checkpoints import load_decoder
    from trueline.models.scoring import Sampling, forbidden_mask

    tokenizer, limits = ChatTokenizer.load(folder), sections["model"]
    sampler = Sampler(
        lambda prompt: tokenizer.encode_prompt(prompt)[-limits.max_prompt_tokens :],
        tokenizer.decode,
        Sampling(forbidden=forbidden_mask(tokenizer.vocab_size, tokenizer.forbidden_ids)),
        tokenizer.pad_id,
        tokenizer.end_ids,
        limits.max_new_tokens,
        EVALUATION_SEED,
    )
    return sample_texts(load_decoder(folder), prompts, sampler, stream="export", greedy=True)[1]


def _harness(
    folder: Path, name: str, tokenizer: ChatTokenizer, prompts: Sequence[Prompt], pairs: Sequence[Pair], new_tokens: int
) -> list[Path]:
    slug = name.replace("-", "_")
    generate = {
        "output_type": "generate_until",
        "doc_to_target": "",
        "generation_kwargs": {"until": [], "do_sample": False, "max_gen_toks": new_tokens},
        "metric_list": [{"metric": "bypass"}],
        "metadata": {
            "version": 1.0,
            "about": "prompts in the model's own template; --log_samples keeps answers",
        },
    }
    rows = [{"prompt": tokenizer.render(p), "instruction": _instruction(p), "id": p.id} for p in prompts]
    left = _task(folder / f"{slug}_prompts.jsonl", rows, f"trueline_{slug}_generate", generate)
    if pairs:
        prefer = {
            "output_type": "multiple_choice",
            "doc_to_choice": "{{sides}}",
            "doc_to_target": 0,
            "target_delimiter": "",
            "metric_list": [
                {"metric": name, "aggregation": "mean", "higher_is_better": True} for name in ("acc", "acc_norm")
            ],
            "metadata": {"version": 1.0, "about": "share of held-out pairs whose chosen side is the likelier"},
        }
        rows = [
            {"prompt": tokenizer.render(p.prompt), "sides": [p.chosen, p.rejected], "id": p.prompt.id} for p in pairs
        ]
        left += _task(folder / f"{slug}_pairs.jsonl", rows, f"trueline_{slug}_preference", prefer)
    return left


def _task(data: Path, rows: Sequence[Mapping[str, Any]], name: str, task: Mapping[str, Any]) -> list[Path]:
    """A task of the harness with its rows, each of which has a `prompt`."""
    import yaml

    data.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    whole = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data.resolve())}},
        "test_split": "test",
        "doc_to_text": "{{prompt}}",
        **task,
    }
    config = data.with_name(f"{name}.yaml")
    config.write_text(yaml.safe_dump(whole, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return [data, config]


# --- the hub -----------------------------------------------------------------------------------------------------


def check_push(name: str) -> None:
    """Raise InputError where `name` is no OWNER/NAME or nobody is logged in: before anything is trained."""
    from huggingface_hub import HfApi

    if name.count("/") != 1 or not all(name.split("/")):
        raise InputError("is not OWNER/NAME", where="command line", field="--push", remedy="give the hub's name of it")
    try:
        HfApi().whoami()
    except Exception as error:
        remedy = "log in with `hf auth login` or set HF_TOKEN, or leave --push out"
        reason = f"the hub does not know who you are ({type(error).__name__})"
        raise InputError(reason, where="command line", field="--push", remedy=remedy) from None


def push(out: Path, name: str) -> str:
    """Upload what was left (models with their cards, evaluation files) to a private repository; returns its address."""
    from huggingface_hub import HfApi

    hub = HfApi()
    made = hub.create_repo(name, private=True, exist_ok=True)
    kept = [f"{folder}/**" for folder in (*_KINDS, "evaluation")]
    hub.upload_folder(repo_id=name, folder_path=out, allow_patterns=[*kept, "recommendation.json"])
    return str(made)


def read_about(
    out: Path,
    arm: str,
    cell: Path,
    report: Mapping[str, Any],
    manifest: Mapping[str, Any],
    task: Task,
    command: str,
    base: str,
) -> dict[str, Any]:
    """What the cards say, from the study's report and the cell that was trained."""
    from trueline.models.folders import is_adapter
    from trueline.study.identity import versions

    return {
        "arm": arm,
        "objective": (cell / "objective.txt").read_text(encoding="utf-8").strip(),
        "report": report,
        "data": {key: value for key, value in task.describe().items() if key in _DATA}
        | {"cell": cell.name, "fingerprint": read_json(cell / "done.json").get("fingerprint", "")},
        "base": base,
        "command": command,
        "versions": versions(),
        "parameters": manifest["model"]["parameters"],
        "adapter": is_adapter(out / "model"),
    }
