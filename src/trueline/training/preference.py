"""What the methods that fit comparisons share: pairs as ids, the reference's log-probs, one optimiser step on a loss.

A loss here is a function of a group of pairs' sequence log-probs; the pages give theirs. `fit` is the whole loop of the
methods that differ in the loss alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from trueline.algorithms.averaging import ema_update_
from trueline.algorithms.dpo import implicit_rewards, nll
from trueline.algorithms.logprobs import sequence_logprobs
from trueline.algorithms.reward_modeling import pairwise_accuracy
from trueline.config import Section
from trueline.data.batches import Tokenized, collate, micro_batches
from trueline.distributed.sharding import parts
from trueline.errors import InputError
from trueline.models.decoder import Decoder
from trueline.models.fingerprints import fingerprint
from trueline.models.scoring import response_logprobs
from trueline.runs.checkpoint import ModuleState, OptimizerState
from trueline.training.memory import Part, each
from trueline.training.pairs import read_pairs
from trueline.training.policies import load_policy, save_policy
from trueline.training.preflight import data_gates, logprob_gate, reference_gate, slack
from trueline.training.sft import epoch_rows
from trueline.training.stage import Stage, batch_on
from trueline.training.step import Schedule, learning_rate_at, make_optimizer, optimize
from trueline.types import Pair

__all__ = [
    "PairItem",
    "PairLogprobs",
    "PairLoss",
    "PairLosses",
    "PairSettings",
    "ReferenceSettings",
    "fit",
    "next_pairs",
    "opening_gates",
    "pair_items",
    "pair_step",
    "planned_steps",
    "rate_at",
    "reference_logprobs",
    "score_pairs",
    "start_gate",
]


class PairSettings(Section):
    """What every method that fits pairs is told."""

    epochs: float = Field(2.0, gt=0, description="passes over the pairs")
    batch_size: int = Field(64, ge=1, description="pairs per optimiser step")
    learning_rate: float = Field(1e-6, gt=0, description="peak learning rate")
    schedule: Schedule = Field("constant", description="what the learning rate does after the warm-up")
    warmup_steps: int = Field(5, ge=0, description="steps of linear warm-up")
    max_grad_norm: float = Field(1.0, ge=0, description="gradient norm clip; 0 is off")
    nll_coef: float = Field(
        0.0, ge=0, description="weight of -log pi(chosen) per token; 0 is off", json_schema_extra={"off": 0.0}
    )


class ReferenceSettings(PairSettings):
    """The same where there is a reference."""

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


@dataclass(frozen=True)
class PairLogprobs:
    """A group of pairs as a loss sees it, each [B]: sequence log-probs (sums) of both sides, and response tokens."""

    chosen: Tensor
    rejected: Tensor
    ref_chosen: Tensor
    ref_rejected: Tensor
    chosen_lengths: Tensor
    rejected_lengths: Tensor

    @property
    def sides(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Chosen and rejected, then the reference's, as the losses of DPO's family take them."""
        return self.chosen, self.rejected, self.ref_chosen, self.ref_rejected

    def implicit_rewards(self, beta: float) -> tuple[Tensor, Tensor]:
        """beta (log pi - log ref) of both sides, without gradient."""
        chosen = implicit_rewards(self.chosen.detach(), self.ref_chosen, beta=beta)
        return chosen, implicit_rewards(self.rejected.detach(), self.ref_rejected, beta=beta)


@dataclass(frozen=True)
class PairLosses:
    """What a loss says of a group of pairs, each [B]: the loss, and what it takes for the reward of either side."""

    losses: Tensor
    chosen_rewards: Tensor
    rejected_rewards: Tensor


PairLoss = Callable[[PairLogprobs], PairLosses]


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
    stage.gates.ask(
        "sides that differ",
        "the share of pairs whose sides differ within the length limit",
        len(kept) / len(items),
        low=0.5,
        remedy="raise model.max_new_tokens: a pair that differs later teaches nothing",
        hard=False,
    )
    return kept


def opening_gates(stage: Stage, policy: Decoder, reference: Decoder | None, items: Sequence[PairItem]) -> None:
    """What must hold of pairs, policy and reference before the first step."""
    sides = [side for item in items for side in (item.chosen, item.rejected)]
    data_gates(stage, sides)
    if reference is not None:
        reference_gate(stage, reference)
    logprob_gate(stage, policy, sides)


def planned_steps(config: PairSettings, items: Sequence[PairItem]) -> int:
    """The optimiser steps of `epochs` passes; one at least."""
    return max(1, round(config.epochs * len(items) / config.batch_size))


def next_pairs(config: PairSettings, stage: Stage, items: Sequence[PairItem], step: int) -> list[PairItem]:
    """The batch of step number `step`. The order is that of the seed, the same for every method that fits pairs."""
    return [items[i] for i in epoch_rows(stage.seed, "dpo/order", step, config.batch_size, len(items))]


def rate_at(config: PairSettings, step: int, total: int) -> float:
    """The learning rate of step number `step`."""
    return learning_rate_at(
        step, peak=config.learning_rate, total=total, warmup=config.warmup_steps, schedule=config.schedule
    )


def reference_logprobs(
    stage: Stage, reference: Decoder, items: list[PairItem], *, count: bool = True
) -> list[PairItem]:
    """The items with the reference's sequence log-probs.

    `count` is off where a resumed run has paid for them already.
    """
    chosen, rejected = score_pairs(stage, reference, items, count=count)
    return [PairItem(item.chosen, item.rejected, c, r) for item, c, r in zip(items, chosen.tolist(), rejected.tolist())]


@torch.no_grad()
def score_pairs(stage: Stage, model: Decoder, items: list[PairItem], *, count: bool = True) -> tuple[Tensor, Tensor]:
    """Sequence log-probs of both sides under `model`, two of [B]; a forward pass that is metered if `count`."""
    sides = [item.chosen for item in items] + [item.rejected for item in items]
    values = torch.zeros(len(sides), dtype=torch.float64)
    alike = [*range(len(items))] * 2  # both sides of a pair share its prompt

    def measure(group: np.ndarray) -> None:
        batch = batch_on(collate([sides[i] for i in group], stage.tokenizer.pad_id), stage)
        logprobs, _ = response_logprobs(model, batch.tokens, batch.response_mask, stage.sampling)
        values[torch.from_numpy(group)] = sequence_logprobs(logprobs, batch.response_mask).double().cpu()

    each(
        micro_batches([len(side) for side in sides], 2 * stage.limits.micro_tokens, alike),
        measure,
        stage.room,
        [values],
    )
    if count:
        stage.meter.forward(model.parameter_count, sum(item.tokens for item in items))
    chosen, rejected = values.chunk(2)
    return chosen, rejected


def pair_step(
    config,
    stage: Stage,
    policy: Decoder,
    optimizer,
    items: list[PairItem],
    learning_rate: float,
    loss: PairLoss,
    *,
    name: str,
    more: Sequence[Part] = (),
    more_sums: dict[str, float] | None = None,
) -> dict[str, float]:
    """One optimiser step on the mean of `loss` over a batch of pairs, plus nll_coef times the chosen responses' NLL.

    `config` has nll_coef and max_grad_norm. `more` are further parts of the same step's loss, which add their metrics
    to `more_sums`. The metrics are means over the pairs; `name` is that of the loss alone.
    """
    names = (name, "rewards/chosen", "rewards/rejected", "rewards/accuracies", "logps/chosen", "logps/rejected")
    sums = dict.fromkeys(names, 0.0)

    def part(rows: Tensor) -> Tensor:
        group = [items[i] for i in rows.tolist()]
        pairs, chosen_nll = _score(stage, policy, group, with_nll=config.nll_coef > 0)
        found = loss(pairs)
        total = found.losses.sum() / len(items)
        with torch.no_grad():
            accuracies = pairwise_accuracy(found.chosen_rewards, found.rejected_rewards)
            values = (found.losses, found.chosen_rewards, found.rejected_rewards, accuracies, *pairs.sides[:2])
            for key, value in zip(names, values):
                sums[key] += float(value.sum())
        if chosen_nll is not None:
            total = total + config.nll_coef * chosen_nll.sum() / len(items)
        return total

    lengths = [2 * max(len(item.chosen), len(item.rejected)) for item in items]
    parts = [Part(part, torch.from_numpy(rows)) for rows in micro_batches(lengths, stage.limits.micro_tokens)]
    result = optimize(
        policy,
        optimizer,
        [*parts, *more],
        lambda micro: micro(),
        learning_rate=learning_rate,
        max_grad_norm=config.max_grad_norm,
        what=f"{stage.method} seed {stage.seed}",
        sums=[sums, more_sums or {}],
        room=stage.room,
        name_of=lambda row: items[row].chosen.name,
    )
    stage.meter.train(policy.parameter_count, sum(item.tokens for item in items))
    means = {key: value / len(items) for key, value in sums.items()}
    return {
        "loss": result.loss,
        **means,
        "rewards/margins": means["rewards/chosen"] - means["rewards/rejected"],
        "grad_norm": result.grad_norm,
        "learning_rate": learning_rate,
    }


def _score(
    stage: Stage, policy: Decoder, group: list[PairItem], *, with_nll: bool
) -> tuple[PairLogprobs, Tensor | None]:
    batch = batch_on(collate([p.chosen for p in group] + [p.rejected for p in group], stage.tokenizer.pad_id), stage)
    logprobs, _ = response_logprobs(policy, batch.tokens, batch.response_mask, stage.sampling)
    chosen, rejected = sequence_logprobs(logprobs, batch.response_mask).chunk(2)
    ref_chosen = torch.tensor([p.ref_chosen for p in group], dtype=chosen.dtype, device=chosen.device)
    ref_rejected = torch.tensor([p.ref_rejected for p in group], dtype=chosen.dtype, device=chosen.device)
    lengths = batch.response_mask.sum(-1).chunk(2)
    count = len(group)
    chosen_nll = nll(logprobs[:count], batch.response_mask[:count]) if with_nll else None
    return PairLogprobs(chosen, rejected, ref_chosen, ref_rejected, *lengths), chosen_nll


def start_gate(stage: Stage, metrics: dict[str, float], name: str, expected: float, *, tolerance: float = 1e-4) -> None:
    """Where the policy is its reference, the loss alone has a known value on the first batch: ln 2 for the sigmoids.

    Raises NumericsError where `metrics[name]` is further from `expected` than `tolerance`, in bf16 than 300 times that:
    its rounding differs between groupings of the same rows.
    """
    allowed = tolerance * slack(stage)
    stage.gates.ask(
        f"first {name}",
        f"the first {name}, where policy and reference are the same model,",
        metrics[name],
        low=expected - allowed,
        high=expected + allowed,
        remedy="policy and reference do not score alike",
    )


def fit(
    config: ReferenceSettings,
    stage: Stage,
    line: str,
    loss: PairLoss,
    *,
    name: str,
    start: float,
    tolerance: float = 1e-4,
) -> None:
    """Fit the policy to the pairs from SFT, the reference SFT or its moving average, and save `model/`.

    `line` is the objective in one line, `name` the metric of the loss, `start` its value where the policy is the
    reference. Needs `inputs["sft"]` and `inputs["pairs"]`.
    """
    # 1. Pairs as ids.
    items = pair_items(stage, read_pairs(stage.inputs["pairs"]).training)
    # 2. Policy, reference, and the reference's log-probs, stored once unless it moves.
    policy, reference = load_policy(stage, "sft"), load_policy(stage, "sft")
    optimizer = make_optimizer(policy, config.learning_rate)
    total = stage.total_steps(planned_steps(config, items))
    registry = {"policy": ModuleState(policy), "optimizer": OptimizerState(optimizer)}
    if config.ema_eta:
        registry["reference"] = ModuleState(reference)
    same = fingerprint(policy) == fingerprint(reference)
    step = stage.begin(registry, line)
    if not config.ema_eta:
        items = reference_logprobs(stage, reference, items, count=step == 0)
    if step == 0:
        opening_gates(stage, policy, reference, items)
    # 3. The loop.
    while stage.may_step(step, total):
        batch = next_pairs(config, stage, items, step)
        if config.ema_eta:
            batch = reference_logprobs(stage, reference, batch)
        rate = rate_at(config, step, total)
        metrics = pair_step(config, stage, policy, optimizer, batch, rate, loss, name=name)
        if step == 0 and same:
            start_gate(stage, metrics, name, start, tolerance=tolerance)
        if config.ema_eta:
            ema_update_(parts(reference), parts(policy), eta=config.ema_eta)
        stage.end_step(step, total, metrics, policy)
        step += 1
    # 4. What it leaves.
    save_policy(stage, policy)
    stage.finish(steps=step)
