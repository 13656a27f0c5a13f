"""Direct preference optimisation: fit the policy to the pairs through its implicit reward.

No sampling, no reward model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor

from trueline.algorithms.averaging import ema_update_
from trueline.algorithms.dpo import dpo_loss, implicit_rewards
from trueline.algorithms.logprobs import sequence_logprobs
from trueline.algorithms.reward_modeling import pairwise_accuracy
from trueline.config import Section
from trueline.data.batches import Tokenized, collate, micro_batches
from trueline.errors import InputError, NumericsError
from trueline.models.decoder import Decoder
from trueline.models.fingerprints import fingerprint
from trueline.models.scoring import response_logprobs
from trueline.runs.checkpoint import ModuleState, OptimizerState
from trueline.training.pairs import read_pairs
from trueline.training.policies import load_policy, save_policy
from trueline.training.sft import epoch_rows
from trueline.training.stage import Stage, batch_on
from trueline.training.step import Schedule, learning_rate_at, make_optimizer, optimize
from trueline.types import Pair

__all__ = ["Config", "PairItem", "pair_items", "pair_step", "reference_logprobs", "start_gate", "train"]


class Config(Section):
    """`dpo.*`"""

    beta: float = Field(0.1, gt=0, description="weight of the KL to the reference that the pairs are fitted under")
    epochs: float = Field(2.0, gt=0, description="passes over the pairs")
    batch_size: int = Field(64, ge=1, description="pairs per optimiser step")
    learning_rate: float = Field(1e-6, gt=0, description="peak learning rate")
    schedule: Schedule = Field("constant", description="what the learning rate does after the warm-up")
    warmup_steps: int = Field(5, ge=0, description="steps of linear warm-up")
    max_grad_norm: float = Field(1.0, ge=0, description="gradient norm clip; 0 is off")
    nll_coef: float = Field(
        0.0, ge=0, description="weight of -log pi(chosen) per token; 0 is off", json_schema_extra={"off": 0.0}
    )
    ema_eta: float = Field(
        0.0,
        ge=0,
        le=1,
        description="moving reference: ref <- eta policy + (1 - eta) ref after each step; 0 is off",
        json_schema_extra={"off": 0.0},
    )


@dataclass(frozen=True)
class PairItem:
    """Both sides of one comparison as ids, with the reference's sequence log-probs once they are known."""

    chosen: Tokenized
    rejected: Tokenized
    ref_chosen: float = 0.0
    ref_rejected: float = 0.0

    @property
    def tokens(self) -> int:
        return len(self.chosen) + len(self.rejected)


def objective(config: Config) -> str:
    """The effective objective in one line."""
    extra = f" + {config.nll_coef:g} NLL(chosen)" if config.nll_coef else ""
    reference = f"EMA {config.ema_eta:g} of the policy" if config.ema_eta else "SFT, fixed"
    return (
        f"DPO: minimise -log sigmoid({config.beta:g} (log pi/ref (chosen) - log pi/ref (rejected))){extra}; "
        f"reference: {reference}; "
        f"{config.epochs:g} epochs, batch {config.batch_size}, lr {config.learning_rate:g} {config.schedule}"
    )


def train(config: Config, stage: Stage) -> None:
    """Train from SFT and save `model/`. Needs `inputs["sft"]` and `inputs["pairs"]`."""
    # 1. Pairs as ids.
    items = pair_items(stage, read_pairs(stage.inputs["pairs"]).training)
    # 2. Policy, reference, and the reference's log-probs, stored once unless it moves.
    policy, reference = load_policy(stage, "sft"), load_policy(stage, "sft")
    optimizer = make_optimizer(policy, config.learning_rate)
    total = stage.total_steps(max(1, round(config.epochs * len(items) / config.batch_size)))
    registry = {"policy": ModuleState(policy), "optimizer": OptimizerState(optimizer)}
    if config.ema_eta:
        registry["reference"] = ModuleState(reference)
    same = fingerprint(policy) == fingerprint(reference)
    step = stage.begin(registry, objective(config))
    if not config.ema_eta:
        items = reference_logprobs(stage, reference, items, count=step == 0)
    # 3. The loop.
    while stage.may_step(step, total):
        batch = [items[i] for i in epoch_rows(stage.seed, "dpo/order", step, config.batch_size, len(items))]
        if config.ema_eta:
            batch = reference_logprobs(stage, reference, batch)
        learning_rate = learning_rate_at(
            step, peak=config.learning_rate, total=total, warmup=config.warmup_steps, schedule=config.schedule
        )
        metrics = pair_step(config, stage, policy, optimizer, batch, learning_rate)
        if step == 0 and same:
            start_gate(metrics)
        if config.ema_eta:
            ema_update_(reference.parameters(), policy.parameters(), eta=config.ema_eta)
        stage.end_step(step, total, metrics, policy)
        step += 1
    # 4. What it leaves.
    save_policy(stage, policy)
    stage.finish(steps=step)


def pair_items(stage: Stage, pairs: list[Pair]) -> list[PairItem]:
    """Pairs as ids. A pair whose sides are equal after the cut to the length limit teaches nothing and is dropped."""
    items = [PairItem(stage.tokenize(p.prompt, p.chosen), stage.tokenize(p.prompt, p.rejected)) for p in pairs]
    kept = [item for item in items if item.chosen != item.rejected]
    if not kept:
        raise InputError(
            "no pair has two different sides within the length limit",
            where="pairs",
            remedy="raise model.max_new_tokens or check the data",
        )
    return kept


@torch.no_grad()
def reference_logprobs(
    stage: Stage, reference: Decoder, items: list[PairItem], *, count: bool = True
) -> list[PairItem]:
    """The items with the reference's sequence log-probs.

    `count` is off where a resumed run has paid for them already.
    """
    sides = [item.chosen for item in items] + [item.rejected for item in items]
    values = torch.empty(len(sides), dtype=torch.float64)
    for group in micro_batches([len(side) for side in sides], 2 * stage.limits.micro_tokens):
        batch = batch_on(collate([sides[i] for i in group], stage.tokenizer.pad_id), stage)
        logprobs, _ = response_logprobs(reference, batch.tokens, batch.response_mask, stage.sampling)
        values[torch.from_numpy(group)] = sequence_logprobs(logprobs, batch.response_mask).double().cpu()
    if count:
        stage.meter.forward(reference.parameter_count, sum(item.tokens for item in items))
    chosen, rejected = values.chunk(2)
    return [PairItem(item.chosen, item.rejected, c, r) for item, c, r in zip(items, chosen.tolist(), rejected.tolist())]


def pair_step(
    config, stage: Stage, policy: Decoder, optimizer, items: list[PairItem], learning_rate: float
) -> dict[str, float]:
    """One optimiser step on a batch of pairs; the metrics are means over its pairs. `config` has beta, nll_coef and
    max_grad_norm."""
    names = ("loss/dpo", "rewards/chosen", "rewards/rejected", "rewards/accuracies", "logps/chosen", "logps/rejected")
    sums = dict.fromkeys(names, 0.0)
    chosen_tokens = sum(len(item.chosen.response) for item in items)

    def loss_of(rows: Tensor) -> Tensor:
        group = [items[i] for i in rows.tolist()]
        batch = batch_on(
            collate([p.chosen for p in group] + [p.rejected for p in group], stage.tokenizer.pad_id), stage
        )
        logprobs, _ = response_logprobs(policy, batch.tokens, batch.response_mask, stage.sampling)
        chosen, rejected = sequence_logprobs(logprobs, batch.response_mask).chunk(2)
        ref_chosen = torch.tensor([p.ref_chosen for p in group], dtype=chosen.dtype, device=chosen.device)
        ref_rejected = torch.tensor([p.ref_rejected for p in group], dtype=chosen.dtype, device=chosen.device)
        losses = dpo_loss(chosen, rejected, ref_chosen, ref_rejected, beta=config.beta)
        with torch.no_grad():
            won = implicit_rewards(chosen, ref_chosen, beta=config.beta)
            lost = implicit_rewards(rejected, ref_rejected, beta=config.beta)
            for name, value in zip(names, (losses, won, lost, pairwise_accuracy(won, lost), chosen, rejected)):
                sums[name] += float(value.sum())
        loss = losses.sum() / len(items)
        if config.nll_coef:
            loss = loss - config.nll_coef * chosen.sum() / chosen_tokens
        return loss

    lengths = [2 * max(len(item.chosen), len(item.rejected)) for item in items]
    groups = [torch.from_numpy(group) for group in micro_batches(lengths, stage.limits.micro_tokens)]
    result = optimize(
        policy,
        optimizer,
        groups,
        loss_of,
        learning_rate=learning_rate,
        max_grad_norm=config.max_grad_norm,
        what=f"{stage.method} seed {stage.seed}",
    )
    stage.meter.train(policy.parameter_count, sum(item.tokens for item in items))
    means = {name: value / len(items) for name, value in sums.items()}
    margins = means["rewards/chosen"] - means["rewards/rejected"]
    return {
        "loss": result.loss,
        **means,
        "rewards/margins": margins,
        "grad_norm": result.grad_norm,
        "learning_rate": learning_rate,
    }


def start_gate(metrics: dict[str, float]) -> None:
    """Where the policy is its reference, the sigmoid term of the first batch is ln 2.

    Raises NumericsError otherwise.
    """
    if abs(metrics["loss/dpo"] - math.log(2)) > 1e-4:
        raise NumericsError(
            f"start gate: the first DPO loss is {metrics['loss/dpo']:.6f}, not ln 2 = 0.693147, "
            "though policy and reference are the same model; policy and reference do not score alike"
        )
