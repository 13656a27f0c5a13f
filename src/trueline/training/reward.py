"""The reward model: a Bradley-Terry fit to the pairs, started from SFT, calibrated on SFT samples."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from trueline.algorithms.reward_modeling import bradley_terry_loss, pairwise_accuracy
from trueline.config import Section
from trueline.data.batches import Tokenized, collate, micro_batches
from trueline.models.heads import ScalarModel, last_values, scalar_from
from trueline.rewards.learned import LearnedReward
from trueline.runs.cell import write_json
from trueline.runs.checkpoint import ModuleState, OptimizerState
from trueline.seeds import uniforms
from trueline.training.pairs import read_pairs
from trueline.training.policies import load_policy, save_reward_model
from trueline.training.sft import epoch_rows
from trueline.training.stage import Stage, batch_on
from trueline.training.step import Schedule, learning_rate_at, make_optimizer, optimize

__all__ = ["Config", "train"]

_CALIBRATION_SAMPLES = 512


class Config(Section):
    """`reward.*`"""

    epochs: float = Field(1.0, gt=0, description="passes over the pairs")
    batch_size: int = Field(64, ge=1, description="pairs per optimiser step")
    learning_rate: float = Field(1e-5, gt=0, description="peak learning rate")
    schedule: Schedule = Field("cosine", description="what the learning rate does after the warm-up")
    warmup_steps: int = Field(5, ge=0, description="steps of linear warm-up")
    max_grad_norm: float = Field(1.0, ge=0, description="gradient norm clip; 0 is off")
    weight_decay: float = Field(0.0, ge=0, description="AdamW's decoupled weight decay")
    held_out: float = Field(0.1, ge=0, lt=0.9, description="share of the pairs kept out to measure accuracy on")
    part: Literal["training", "selection", "gold"] = Field(
        "training", description="whose pairs: the learners', or a judge's own"
    )


def objective(config: Config) -> str:
    """The effective objective in one line."""
    return (
        f"reward model: minimise -log sigmoid(r(chosen) - r(rejected)), from SFT, {config.epochs:g} epochs, "
        f"batch {config.batch_size}, lr {config.learning_rate:g} {config.schedule}; standardised on SFT samples"
    )


def train(config: Config, stage: Stage) -> None:
    """Train on the pairs of `config.part` and save `reward_model/` with its calibration and held-out accuracy."""
    # 1. Pairs: the held-out ones are decided by position, which is random already.
    pairs = getattr(read_pairs(stage.inputs["pairs"]), config.part)
    items = [(stage.tokenize(p.prompt, p.chosen), stage.tokenize(p.prompt, p.rejected)) for p in pairs]
    held = round(config.held_out * len(items))
    held_out, items = items[:held], items[held:]
    # 2. The model: SFT's trunk, a scalar head at zero.
    policy = load_policy(stage, "sft")
    model = scalar_from(policy, bias=False).to(stage.device)
    optimizer = make_optimizer(model, config.learning_rate, weight_decay=config.weight_decay)
    total = stage.total_steps(max(1, round(config.epochs * len(items) / config.batch_size)))
    step = stage.begin({"model": ModuleState(model), "optimizer": OptimizerState(optimizer)}, objective(config))
    # 3. The loop.
    while stage.may_step(step, total):
        batch = [items[i] for i in epoch_rows(stage.seed, "reward/order", step, config.batch_size, len(items))]
        learning_rate = learning_rate_at(
            step, peak=config.learning_rate, total=total, warmup=config.warmup_steps, schedule=config.schedule
        )
        metrics = _step(config, stage, model, optimizer, batch, learning_rate)
        stage.end_step(step, total, metrics, None)
        step += 1
    # 4. Calibration on SFT samples, accuracy on held-out pairs; what it leaves.
    save_reward_model(stage, model)
    write_json(stage.cell / "reward_model" / "calibration.json", _calibrate(stage, policy, model))
    accuracy = _accuracy(stage, model, held_out) if held_out else None
    stage.finish(steps=step, held_out_accuracy=accuracy, held_out_pairs=len(held_out))


def _scores(model: ScalarModel, stage: Stage, items: list[Tokenized]) -> Tensor:
    batch = batch_on(collate(items, stage.tokenizer.pad_id), stage)
    return last_values(model(batch.tokens), batch.lengths)


def _step(config: Config, stage: Stage, model: ScalarModel, optimizer, batch, learning_rate: float) -> dict[str, float]:
    sums = {"rewards/accuracies": 0.0, "rewards/margins": 0.0, "rewards/chosen": 0.0, "rewards/rejected": 0.0}

    def loss_of(rows: Tensor) -> Tensor:
        pairs = [batch[i] for i in rows.tolist()]
        scores = _scores(model, stage, [c for c, _ in pairs] + [r for _, r in pairs])
        chosen, rejected = scores.chunk(2)
        held = chosen.detach(), rejected.detach()
        sums["rewards/accuracies"] += float(pairwise_accuracy(*held).sum())
        sums["rewards/margins"] += float((held[0] - held[1]).sum())
        sums["rewards/chosen"] += float(held[0].sum())
        sums["rewards/rejected"] += float(held[1].sum())
        return bradley_terry_loss(chosen, rejected).sum() / len(batch)

    lengths = [max(len(c), len(r)) * 2 for c, r in batch]
    groups = [torch.from_numpy(group) for group in micro_batches(lengths, stage.limits.micro_tokens)]
    result = optimize(
        model,
        optimizer,
        groups,
        loss_of,
        learning_rate=learning_rate,
        max_grad_norm=config.max_grad_norm,
        what=f"reward seed {stage.seed}",
    )
    stage.meter.train(model.parameter_count, sum(len(c) + len(r) for c, r in batch))
    means = {name: value / len(batch) for name, value in sums.items()}
    return {"loss": result.loss, **means, "grad_norm": result.grad_norm, "learning_rate": learning_rate}


@torch.no_grad()
def _accuracy(stage: Stage, model: ScalarModel, items: list[tuple[Tokenized, Tokenized]]) -> float:
    lengths, right = [2 * max(len(c), len(r)) for c, r in items], 0.0
    for group in micro_batches(lengths, 2 * stage.limits.micro_tokens):
        sides = [items[i][0] for i in group] + [items[i][1] for i in group]
        right += float(pairwise_accuracy(*_scores(model, stage, sides).chunk(2)).sum())
    stage.meter.forward(model.parameter_count, sum(len(c) + len(r) for c, r in items))
    return right / len(items)


def _calibrate(stage: Stage, policy, model: ScalarModel) -> dict[str, float]:
    prompts = stage.task.prompts("train")[:_CALIBRATION_SAMPLES]
    ids = [stage.prompt_ids(p) for p in prompts]
    limit = stage.limits.max_new_tokens
    draws = uniforms(stage.seed, "calibration", 0, range(len(ids)), limit)
    rollout = stage.engine(policy).generate(ids, draws, max_new_tokens=limit, sampling=stage.sampling)
    stage.meter.sample(policy.parameter_count, sum(map(len, ids)), rollout.sampled_tokens)
    scores = LearnedReward(model).scores(rollout.tokens, rollout.lengths)
    stage.meter.forward(model.parameter_count, int(rollout.lengths.sum()))
    return {"mean": float(scores.mean()), "std": float(scores.std()), "samples": len(prompts)}
