"""Measure and sample checkpoints: Hugging Face folders, trained here or elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from trueline.data.chat import ChatTokenizer
from trueline.errors import InputError
from trueline.evaluation.measure import EVALUATION_SEED, Instruments, Sampler, measure, metrics_of
from trueline.models.checkpoints import load_decoder
from trueline.models.decoder import Decoder
from trueline.models.scoring import Sampling, forbidden_mask
from trueline.rollout.native import NativeEngine
from trueline.runs.cell import write_json
from trueline.seeds import uniforms
from trueline.tasks.task import Task
from trueline.types import Prompt

__all__ = ["evaluate_folders", "sample_folder"]


def evaluate_folders(
    task: Task, sections: Mapping[str, Any], folders: Mapping[str, Path], out: Path | None, console: Console | None
) -> list[dict[str, Any]]:
    """Gold, KL to the folder named `sft`, length and structure of each folder on the task's test prompts.

    Differences to sft are paired by prompt and carry the standard error over prompts; one checkpoint an arm says
    nothing about training seeds.
    """
    if "sft" not in folders:
        raise InputError(
            "no checkpoint is named sft",
            where="command line",
            field="NAME=FOLDER",
            remedy="trueline evaluate dialogue sft=FOLDER dpo=FOLDER: KL is measured to sft",
        )
    if task.learned_gold:
        raise InputError(
            f"{task.name} has no embedded judge",
            where="command line",
            field="TASK",
            remedy="run `trueline study`, which trains a judge on a split of its own",
        )
    loaded = {name: _load(folder) for name, folder in folders.items()}
    sft, tokenizer = loaded["sft"]
    for name, (_, other) in loaded.items():
        if other.fingerprint != tokenizer.fingerprint:
            raise InputError(
                "its tokenizer is not that of sft",
                where=str(folders[name]),
                field=name,
                remedy="KL and paired figures need one tokenizer",
            )
    sampler = _sampler(tokenizer, sections["model"].max_prompt_tokens, sections["model"].max_new_tokens)
    prompts = task.prompts("test")[: sections["evaluate"].test_prompts or None]
    instruments = Instruments(lambda asked, texts, rollout: [task.judge(p, t) for p, t in zip(asked, texts)], sft)
    rows, golds = [], {}
    for name, (policy, _) in loaded.items():
        found = measure(policy, prompts, sampler, instruments, samples=sections["evaluate"].samples, stream="test")
        greedy = measure(policy, prompts, sampler, instruments, samples=1, stream="test", greedy=True)
        golds[name] = np.array(found.gold).mean(1)
        metrics = metrics_of(found, "test/sampled") | metrics_of(greedy, "test/greedy")
        rows.append({"name": name, "folder": str(folders[name]), "metrics": metrics})
    for row in rows:
        difference = golds[row["name"]] - golds["sft"]
        row["gold_minus_sft"] = float(difference.mean())
        row["standard_error"] = float(difference.std(ddof=1) / np.sqrt(len(difference)))
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / "evaluation.json", {"task": task.name, "prompts": len(prompts), "checkpoints": rows})
    if console is not None:
        _show(console, rows)
    return rows


def sample_folder(folder: Path, text: str, *, n: int, seed: int, max_new_tokens: int, greedy: bool) -> list[str]:
    """`n` responses of the checkpoint in `folder` (or of a run's cell) to one user turn."""
    policy, tokenizer = _load(folder)
    ids = tokenizer.encode_prompt(Prompt.ask(text))
    room = policy.config.max_positions - len(ids)
    if room < 1:
        raise InputError(
            f"the prompt is {len(ids)} tokens, the context {policy.config.max_positions}",
            where="command line",
            field="prompt",
            remedy="shorten it",
        )
    limit = min(room, max_new_tokens)
    engine = NativeEngine(pad_id=tokenizer.pad_id, end_id=tokenizer.end_id)
    engine.load_weights(policy, 0)
    count = 1 if greedy else n
    draws = None if greedy else uniforms(seed, "sample", 0, range(count), limit)
    rollout = engine.generate(
        [ids] * count, draws, max_new_tokens=limit, sampling=Sampling(forbidden=_forbidden(tokenizer))
    )
    return [tokenizer.decode(response) for response in rollout.responses()]


def _load(folder: Path) -> tuple[Decoder, ChatTokenizer]:
    inner = folder / "model" if (folder / "model" / "config.json").is_file() else folder
    if not inner.is_dir():
        raise InputError("no such folder", where=str(folder), remedy="give a Hugging Face folder or a cell of a run")
    return load_decoder(inner), ChatTokenizer.load(inner)


def _forbidden(tokenizer: ChatTokenizer) -> torch.Tensor:
    return forbidden_mask(tokenizer.vocab_size, tokenizer.forbidden_ids)


def _sampler(tokenizer: ChatTokenizer, max_prompt: int, max_new: int) -> Sampler:
    return Sampler(
        lambda prompt: tokenizer.encode_prompt(prompt)[-max_prompt:],
        tokenizer.decode,
        Sampling(forbidden=_forbidden(tokenizer)),
        tokenizer.pad_id,
        tokenizer.end_id,
        max_new,
        EVALUATION_SEED,
    )


def _show(console: Console, rows: list[dict[str, Any]]) -> None:
    table = Table(
        title="Test prompts, temperature 1; differences are paired by prompt", title_justify="left", show_edge=False
    )
    for name in ("checkpoint", "gold", "minus sft", "± 1.96 se", "greedy", "KL to sft", "length"):
        table.add_column(name, justify="left" if name == "checkpoint" else "right")
    for row in rows:
        m = row["metrics"]
        table.add_row(
            row["name"],
            f"{m['test/sampled/gold']:.3f}",
            f"{row['gold_minus_sft']:+.3f}",
            f"{1.96 * row['standard_error']:.3f}",
            f"{m['test/greedy/gold']:.3f}",
            f"{m['test/sampled/kl']:.3f}",
            f"{m['test/sampled/length']:.1f}",
        )
    console.print(table)
