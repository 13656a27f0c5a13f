"""Supervised fine-tuning: maximise log pi(response | prompt) on demonstrations, or on the chosen sides of pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from trueline.algorithms.masking import masked_sum
from trueline.algorithms.sft import sft_loss
from trueline.config import Section
from trueline.data.batches import TokenBatch, Tokenized, collate, micro_batches
from trueline.data.safety import safe_sides
from trueline.errors import InputError
from trueline.models.decoder import Decoder
from trueline.models.scoring import response_logprobs
from trueline.runs.checkpoint import ModuleState, OptimizerState
from trueline.seeds import permutation, uniforms
from trueline.training.pairs import read_pairs
from trueline.training.policies import save_policy, start_policy
from trueline.training.preflight import data_gates, end_gate, logprob_gate
from trueline.training.stage import Stage, batch_on
from trueline.training.step import Schedule, learning_rate_at, make_optimizer, optimize
from trueline.types import Pair

__all__ = ["SEARCH", "Config", "epoch_rows", "train"]

_END_SAMPLES = 32
# Log ranges of a random search at 1 to 8 billion parameters.
SEARCH: Mapping[str, tuple[float, float]] = {"learning_rate": (1e-7, 1e-4), "epochs": (0.5, 3.0)}


class Config(Section):
    """`sft.*`"""

    epochs: float = Field(3.0, gt=0, description="passes over the demonstrations")
    batch_size: int = Field(64, ge=1, description="demonstrations per optimiser step")
    learning_rate: float = Field(1e-5, gt=0, description="peak learning rate")
    schedule: Schedule = Field("cosine", description="what the learning rate does after the warm-up")
    warmup_steps: int = Field(10, ge=0, description="steps of linear warm-up")
    max_grad_norm: float = Field(1.0, ge=0, description="gradient norm clip; 0 is off")
    weight_decay: float = Field(0.0, ge=0, description="AdamW's decoupled weight decay")
    prompt_loss: bool = Field(False, description="learn the prompt's tokens too (a model that starts from nothing)")
    on: Literal["demonstrations", "chosen", "sides", "safe"] = Field("demonstrations", description="what is imitated")


def objective(config: Config) -> str:
    """The effective objective in one line."""
    what = {
        "demonstrations": "demonstrations",
        "chosen": "the chosen sides of the pairs",
        "sides": "both sides of the pairs",
        "safe": "the sides of the pairs that are flagged safe",
    }[config.on]
    return (
        f"SFT: minimise -log pi(response | prompt){' and -log pi(prompt)' if config.prompt_loss else ''}, "
        f"mean over tokens, on {what}; "
        f"{config.epochs:g} epochs, batch {config.batch_size}, lr {config.learning_rate:g} {config.schedule}"
    )


def train(config: Config, stage: Stage) -> None:
    """Train and save `model/`. Fresh on demonstrations; otherwise it needs `inputs["sft"]` and `inputs["pairs"]`."""
    # 1. Data: ids once, for all epochs.
    rows = _rows(config, stage)
    if not rows:
        raise InputError("no demonstrations to train on", where="sft", remedy="check the data file")
    items = [stage.tokenize(prompt, response) for prompt, response in rows]
    # 2. The policy and its optimiser.
    policy = start_policy(stage, fresh=config.on == "demonstrations")
    optimizer = make_optimizer(policy, config.learning_rate, weight_decay=config.weight_decay)
    total = stage.total_steps(max(1, round(config.epochs * len(items) / config.batch_size)))
    step = stage.begin({"policy": ModuleState(policy), "optimizer": OptimizerState(optimizer)}, objective(config))
    if step == 0:
        data_gates(stage, items)
        logprob_gate(stage, policy, items)
    # 3. The loop.
    while stage.may_step(step, total):
        picked = epoch_rows(stage.seed, "sft/order", step, config.batch_size, len(items))
        batch = [items[i] for i in picked]
        learning_rate = learning_rate_at(
            step, peak=config.learning_rate, total=total, warmup=config.warmup_steps, schedule=config.schedule
        )
        metrics = _step(config, stage, policy, optimizer, batch, learning_rate)
        stage.end_step(step, total, metrics, policy)
        step += 1
    # 4. What it leaves.
    save_policy(stage, policy)
    end_gate(stage, _ended(stage, policy), least=0.05, hard=False)
    stage.finish(steps=step)


def epoch_rows(seed: int, purpose: str, step: int, batch_size: int, count: int) -> list[int]:
    """The rows of step number `step` when epochs of shuffled rows are laid end to end: a function of the step alone."""
    picked: list[int] = []
    position = step * batch_size
    while len(picked) < batch_size:
        epoch, offset = divmod(position + len(picked), count)
        order = permutation(seed, purpose, epoch, count)
        picked += order[offset : offset + batch_size - len(picked)].tolist()
    return picked


def _ended(stage: Stage, policy: Decoder) -> float:
    """The share of samples to held-out prompts that end by themselves. Measurement: nothing of it is booked."""
    ids = [stage.prompt_ids(p) for p in stage.task.prompts("selection")[:_END_SAMPLES]]
    limit = stage.limits.max_new_tokens
    draws = uniforms(stage.seed, "sft/ends", 0, range(len(ids)), limit)
    rollout = stage.engine(policy).generate(ids, draws, max_new_tokens=limit, sampling=stage.sampling)
    return float(rollout.ended.float().mean())


def _rows(config: Config, stage: Stage) -> Sequence[tuple]:
    if config.on == "demonstrations":
        return [(d.prompt, d.response) for d in stage.task.demonstrations(stage.seed)]
    pairs = read_pairs(stage.inputs["pairs"]).training
    if config.on == "chosen":
        return [(p.prompt, p.chosen) for p in pairs]
    if config.on == "safe":
        return _safe_rows(pairs)
    kept = pairs[: len(pairs) - len(pairs) // 10]  # the last tenth calibrates what counts as unlikely
    return [(p.prompt, side) for p in kept for side in (p.chosen, p.rejected)]


def _safe_rows(pairs: Sequence[Pair]) -> Sequence[tuple]:
    """The responses that annotators flagged safe, either side: "SFT (Safe)" of arXiv 2404.10719, section 4.3."""
    rows = [(p.prompt, getattr(p, side)) for p in pairs for side in safe_sides(p)]
    if not rows:
        raise InputError(
            "no side of any pair is flagged safe",
            where="pairs",
            field="sft.on",
            remedy="use pairs with safety flags (safe-dialogue, safe-rlhf), or sft.on=chosen",
        )
    return rows


def _step(config: Config, stage: Stage, policy: Decoder, optimizer, items: list[Tokenized], learning_rate: float):
    batch = batch_on(collate(items, stage.tokenizer.pad_id), stage)
    mask = batch.response_mask
    if config.prompt_loss:
        index = torch.arange(batch.tokens.shape[1], device=mask.device)
        mask = (index >= 1) & (index < batch.lengths[:, None])
        mask &= ~stage.forbidden()[batch.tokens]  # role marks are written by the template, not learnt
    count = int(mask.sum())

    def loss_of(rows: Tensor) -> Tensor:
        width = int(batch.lengths[rows].max())
        logprobs, _ = response_logprobs(policy, batch.tokens[rows, :width], mask[rows, :width], stage.sampling)
        return masked_sum(sft_loss(logprobs), mask[rows, :width]) / count

    result = optimize(
        policy,
        optimizer,
        _groups(batch, stage),
        loss_of,
        learning_rate=learning_rate,
        max_grad_norm=config.max_grad_norm,
        what=f"sft seed {stage.seed}",
        room=stage.room,
        name_of=lambda row: items[row].name,
    )
    stage.meter.train(policy.parameter_count, batch.total_tokens)
    return {"loss": result.loss, "grad_norm": result.grad_norm, "learning_rate": learning_rate, "tokens": count}


def _groups(batch: TokenBatch, stage: Stage) -> list[Tensor]:
    groups = micro_batches(batch.lengths.tolist(), stage.limits.micro_tokens)
    return [torch.from_numpy(group).to(stage.device) for group in groups]
