"""The reward model: a Bradley-Terry fit to the pairs, started from SFT, calibrated on SFT samples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field, SerializerFunctionWrapHandler, model_serializer
from torch import Tensor

from trueline.algorithms.reward_modeling import bradley_terry_loss, pairwise_accuracy
from trueline.config import Section
from trueline.data.batches import Tokenized, collate, micro_batches
from trueline.errors import InputError
from trueline.models.heads import ScalarModel, last_scores
from trueline.rewards.learned import LearnedReward
from trueline.rollout.engine import Rollout
from trueline.runs.cell import write_json
from trueline.runs.checkpoint import ModuleState, OptimizerState
from trueline.seeds import uniforms
from trueline.training.given_reward import adopt
from trueline.training.held_out import calibration, counts, length_controls
from trueline.training.memory import each
from trueline.training.pairs import read_pairs
from trueline.training.policies import load_policy, save_reward_model, scalar_of
from trueline.training.preflight import data_gates, keep_examples, score_gate, slack
from trueline.training.sft import epoch_rows
from trueline.training.stage import Stage, batch_on
from trueline.training.step import Schedule, learning_rate_at, make_optimizer, optimize
from trueline.types import Pair, Prompt

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
    path: str = Field("", description="one from elsewhere, a folder or a name on the hub; none is trained")
    member: int = Field(0, ge=0, description="of an ensemble: each has its own order of the same pairs")

    @model_serializer(mode="wrap")
    def _as_addressed(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Member 0, and no path: written down as if there were no others."""
        values = plain(self)
        for name in ("member", "path"):
            if not getattr(self, name):
                values.pop(name, None)
        return values


def objective(config: Config) -> str:
    """The effective objective in one line."""
    other = f" (member {config.member} of an ensemble)" if config.member else ""
    return (
        f"reward model{other}: minimise -log sigmoid(r(chosen) - r(rejected)), from SFT, {config.epochs:g} epochs, "
        f"batch {config.batch_size}, lr {config.learning_rate:g} {config.schedule}; standardised on SFT samples"
    )


def train(config: Config, stage: Stage) -> None:
    """Train on the pairs of `config.part` and save `reward_model/` with its calibration and held-out accuracy."""
    if config.path:
        adopt(Path(config.path), config.part, stage)
        return
    # 1. Pairs: the held-out ones are decided by position, which is random already.
    sources = read_pairs(stage.inputs["pairs"])
    pairs, items = _differing(stage, getattr(sources, config.part))
    held = round(config.held_out * len(items))
    held_out, items = items[:held], items[held:]
    # 2. The model: SFT's trunk, a scalar head at zero.
    policy = load_policy(stage, "sft")
    model = scalar_of(stage, policy, bias=False)
    optimizer = make_optimizer(model, config.learning_rate, weight_decay=config.weight_decay)
    order = f"reward/order/{config.member}" if config.member else "reward/order"
    total = stage.total_steps(max(1, round(config.epochs * len(items) / config.batch_size)))
    step = stage.begin({"model": ModuleState(model), "optimizer": OptimizerState(optimizer)}, objective(config))
    if step == 0:
        data_gates(stage, [side for item in items for side in item])
    # 3. The loop.
    while stage.may_step(step, total):
        batch = [items[i] for i in epoch_rows(stage.seed, order, step, config.batch_size, len(items))]
        learning_rate = learning_rate_at(
            step, peak=config.learning_rate, total=total, warmup=config.warmup_steps, schedule=config.schedule
        )
        metrics = _step(config, stage, model, optimizer, batch, learning_rate)
        if step == 0:
            stage.gates.ask(
                "first loss/reward",
                "the first loss of a reward model whose head is zero",
                metrics["loss"],
                low=math.log(2) - 1e-4 * slack(stage),
                high=math.log(2) + 1e-4 * slack(stage),
                remedy="its head is not read at the last token of either side, or not zero",
            )
        stage.end_step(step, total, metrics, None)
        step += 1
    # 4. The scale of its scores on SFT samples; what it leaves.
    save_reward_model(stage, model)
    folder = stage.cell / "reward_model"
    keep_examples(stage, model, pairs, folder)
    score_gate(stage, model, [side for item in items for side in item])
    scale = _calibrate(stage, policy, model)
    write_json(folder / "calibration.json", scale)
    stage.gates.ask(
        "scale of scores",
        "the standard deviation of the reward model's scores on SFT samples, before they are divided by it,",
        scale["std"],
        low=1e-6,
        remedy="all samples have the same score: train the reward model longer, or look at its pairs",
    )
    # 5. What it is worth: accuracy and calibration on held-out pairs, accuracy on pairs of another distribution.
    facts = {"held_out_accuracy": None, "held_out_pairs": held, "trained_on": len(items), "accuracy": {}}
    if held:
        margins = _margins(stage, model, held_out)
        stage.meter.forward(model.parameter_count, sum(len(c) + len(r) for c, r in held_out))
        within = counts([p.prompt.kind for p in pairs[:held]], margins)
        facts |= {"held_out_accuracy": within["all"]["right"] / held, "calibration": calibration(margins)}
        facts["accuracy"] = {"in_distribution": within, **length_controls(pairs[:held], margins)}
    facts["accuracy"] |= _out_of_distribution(config, stage, policy, model, sources.elsewhere)
    stage.finish(steps=step, family="reward model", part=config.part, **facts)


def _differing(stage: Stage, pairs: Sequence[Pair]) -> tuple[list[Pair], list[tuple[Tokenized, Tokenized]]]:
    """Pairs whose sides differ within the length limit, and their ids; others say nothing."""
    sides = [(stage.tokenize(pair.prompt, pair.chosen), stage.tokenize(pair.prompt, pair.rejected)) for pair in pairs]
    kept = [(pair, item) for pair, item in zip(pairs, sides) if item[0] != item[1]]
    if not kept:
        remedy = "raise model.max_new_tokens or check the data"
        raise InputError("no pair has two different sides within the length limit", where="pairs", remedy=remedy)
    return [pair for pair, _ in kept], [item for _, item in kept]


def _scores(model: ScalarModel, stage: Stage, items: list[Tokenized]) -> Tensor:
    batch = batch_on(collate(items, stage.tokenizer.pad_id), stage)
    prompts = batch.response_mask.int().argmax(1)  # a batch has both sides of each pair: their prompt is computed once
    return last_scores(model, batch.tokens, batch.lengths, prompts)


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
        sums=[sums],
        room=stage.room,
        name_of=lambda row: batch[row][0].name,
    )
    stage.meter.train(model.parameter_count, sum(len(c) + len(r) for c, r in batch))
    means = {name: value / len(batch) for name, value in sums.items()}
    return {"loss": result.loss, **means, "grad_norm": result.grad_norm, "learning_rate": learning_rate}


@torch.no_grad()
def _margins(stage: Stage, model: ScalarModel, items: list[tuple[Tokenized, Tokenized]]) -> list[float]:
    """r(first) - r(second) of each pair; not booked, for the caller knows whether it is part of the method."""
    lengths, out = [2 * max(len(c), len(r)) for c, r in items], torch.zeros(len(items))

    def measure(group: np.ndarray) -> None:
        first, second = _scores(model, stage, [items[i][s] for s in (0, 1) for i in group]).chunk(2)
        out[torch.from_numpy(group)] = (first - second).float().cpu()

    each(micro_batches(lengths, 2 * stage.limits.micro_tokens), measure, stage.room)
    return out.tolist()


def _out_of_distribution(
    config: Config, stage: Stage, policy, model: ScalarModel, elsewhere: list[Pair]
) -> dict[str, dict[str, dict[str, float]]]:
    """`elsewhere`: pairs of kinds that were left out of training. `own_samples`, where a judge is embedded: two SFT
    samples to each of some selection prompts, ordered by gold, ties left out. Measurement alone: nothing of it is
    booked as a cost of the method, and nothing is learned from it."""
    found = {}
    if config.part == "training" and elsewhere:
        items = [(stage.tokenize(p.prompt, p.chosen), stage.tokenize(p.prompt, p.rejected)) for p in elsewhere]
        found["elsewhere"] = counts([p.prompt.kind for p in elsewhere], _margins(stage, model, items))
    if not stage.task.learned_gold:
        prompts, rollout, texts = _two_samples(stage, policy)
        gold = [judgement.score for judgement in stage.task.judge_many(prompts, texts)]
        scores = LearnedReward(model).scores(rollout.tokens, rollout.lengths, rollout.prompt_lengths).tolist()
        rows = [i for i in range(0, len(gold), 2) if gold[i] < gold[i + 1] or gold[i] > gold[i + 1]]
        margins = [(scores[i] - scores[i + 1]) * (1 if gold[i] > gold[i + 1] else -1) for i in rows]
        found["own_samples"] = counts([prompts[i].kind for i in rows], margins)
    return found


def _two_samples(stage: Stage, policy) -> tuple[list[Prompt], Rollout, list[str]]:
    prompts = [p for p in stage.task.prompts("selection")[: _CALIBRATION_SAMPLES // 2] for _ in range(2)]
    limit = stage.limits.max_new_tokens
    draws = uniforms(stage.seed, "reward/own-samples", 0, range(len(prompts)), limit)
    rollout = stage.engine(policy).generate(
        [stage.prompt_ids(p) for p in prompts], draws, max_new_tokens=limit, sampling=stage.sampling
    )
    return prompts, rollout, [stage.tokenizer.decode(response) for response in rollout.responses()]


def _calibrate(stage: Stage, policy, model: ScalarModel) -> dict[str, float]:
    prompts = stage.task.prompts("train")[:_CALIBRATION_SAMPLES]
    ids = [stage.prompt_ids(p) for p in prompts]
    limit = stage.limits.max_new_tokens
    draws = uniforms(stage.seed, "calibration", 0, range(len(ids)), limit)
    rollout = stage.engine(policy).generate(ids, draws, max_new_tokens=limit, sampling=stage.sampling)
    stage.meter.sample(policy.parameter_count, sum(map(len, ids)), rollout.sampled_tokens)
    scores = LearnedReward(model).scores(rollout.tokens, rollout.lengths, rollout.prompt_lengths)
    stage.meter.forward(model.parameter_count, int(rollout.lengths.sum()))
    return {"mean": float(scores.mean()), "std": float(scores.std()), "samples": len(prompts)}
