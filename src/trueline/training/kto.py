"""Kahneman-Tversky optimisation (Ethayarajh et al. 2024, arXiv 2402.01306) of the two sides of each pair.

Chosen responses are desirable and rejected ones undesirable, each by itself: which was compared with which is not used.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from pydantic import Field
from torch import Tensor

from trueline.algorithms.averaging import ema_update_
from trueline.algorithms.kto import kto_loss, kto_reference_point
from trueline.data.batches import Tokenized
from trueline.distributed.sharding import parts
from trueline.models.fingerprints import fingerprint
from trueline.runs.checkpoint import ModuleState, OptimizerState
from trueline.training.pairs import read_pairs
from trueline.training.policies import load_policy, save_policy
from trueline.training.preference import (
    PairItem,
    PairLogprobs,
    PairLosses,
    ReferenceSettings,
    next_pairs,
    opening_gates,
    pair_items,
    pair_step,
    planned_steps,
    rate_at,
    reference_logprobs,
    score_pairs,
    start_gate,
)
from trueline.training.stage import Stage
from trueline.training.step import make_optimizer

__all__ = ["LEARNS_FROM", "SEARCH", "Config", "mismatched", "train"]

LEARNS_FROM = "pairs"
# Log ranges of a random search at 1 to 8 billion parameters.
SEARCH: Mapping[str, tuple[float, float]] = {"learning_rate": (1e-7, 1e-5), "beta": (0.03, 0.5)}


class Config(ReferenceSettings):
    """`kto.*`"""

    batch_size: int = Field(64, ge=2, description="pairs per optimiser step, two responses each")
    beta: float = Field(0.1, gt=0, description="how fast the value saturates away from the reference point")
    desirable_weight: float = Field(1.0, gt=0, description="weight of the chosen responses (lambda_D)")
    undesirable_weight: float = Field(1.0, gt=0, description="weight of the rejected responses (lambda_U)")


def objective(config: Config) -> str:
    """The effective objective in one line."""
    extra = f" + {config.nll_coef:g} NLL(chosen)" if config.nll_coef else ""
    reference = f"EMA {config.ema_eta:g} of the policy" if config.ema_eta else "SFT, fixed"
    return (
        f"KTO: minimise {config.desirable_weight:g} sigmoid({config.beta:g} (z0 - log pi/ref)) on chosen, "
        f"{config.undesirable_weight:g} sigmoid({config.beta:g} (log pi/ref - z0)) on rejected{extra}; "
        f"z0: mean log pi/ref of mismatched pairs; reference: {reference}; "
        f"{config.epochs:g} epochs, batch {config.batch_size}, lr {config.learning_rate:g} {config.schedule}"
    )


def train(config: Config, stage: Stage) -> None:
    """Train from SFT and save `model/`. Needs `inputs["sft"]` and `inputs["pairs"]`."""
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
    step = stage.begin(registry, objective(config))
    if not config.ema_eta:
        items = reference_logprobs(stage, reference, items, count=step == 0)
    if step == 0:
        opening_gates(stage, policy, reference, items)
    # 3. The loop: where the policy stands on responses to other prompts, then a step on these.
    while stage.may_step(step, total):
        batch = next_pairs(config, stage, items, step)
        if config.ema_eta:
            batch = reference_logprobs(stage, reference, batch)
        others = mismatched(batch)
        point = kto_reference_point(*(torch.cat(score_pairs(stage, model, others)) for model in (policy, reference)))
        rate = rate_at(config, step, total)
        metrics = pair_step(
            config, stage, policy, optimizer, batch, rate, partial(_losses, config, point), name="loss/kto"
        )
        if step == 0 and same:
            start_gate(stage, metrics, "loss/kto", (config.desirable_weight + config.undesirable_weight) / 4)
            start_gate(stage, metrics, "rewards/chosen", 0.0)  # an error that both sides share cancels in the loss
        if config.ema_eta:
            ema_update_(parts(reference), parts(policy), eta=config.ema_eta)
        stage.end_step(step, total, metrics | {"kto/reference_point": float(point)}, policy)
        step += 1
    # 4. What it leaves.
    save_policy(stage, policy)
    stage.finish(steps=step)


def _losses(config: Config, point: Tensor, pairs: PairLogprobs) -> PairLosses:
    """The mean of a pair's two losses, so that the mean over pairs is that over responses."""
    weights = {
        "beta": config.beta,
        "desirable_weight": config.desirable_weight,
        "undesirable_weight": config.undesirable_weight,
    }
    good = torch.ones_like(pairs.chosen, dtype=torch.bool)
    chosen = kto_loss(pairs.chosen, pairs.ref_chosen, good, point, **weights)
    rejected = kto_loss(pairs.rejected, pairs.ref_rejected, ~good, point, **weights)
    return PairLosses((chosen + rejected) / 2, *pairs.implicit_rewards(config.beta))


def mismatched(items: list[PairItem]) -> list[PairItem]:
    """Each prompt with both responses of the pair that follows it in the batch; the last is followed by the first."""
    following = items[1:] + items[:1]
    return [
        PairItem(
            Tokenized(item.chosen.prompt, other.chosen.response, item.chosen.name),
            Tokenized(item.chosen.prompt, other.rejected.response, item.chosen.name),
        )
        for item, other in zip(items, following)
    ]
