"""Direct preference optimisation: fit the policy to the pairs through its implicit reward.

No reward model, and no sampling unless the online KL of HyPO (Song et al. 2024, arXiv 2406.01462) is switched on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor

from trueline.algorithms.advantages import rloo_advantages
from trueline.algorithms.averaging import ema_update_
from trueline.algorithms.dpo import dpo_loss
from trueline.algorithms.logprobs import sequence_logprobs
from trueline.algorithms.online_kl import online_kl
from trueline.data.batches import micro_batches
from trueline.distributed.sharding import parts
from trueline.models.decoder import Decoder
from trueline.models.fingerprints import fingerprint
from trueline.models.scoring import response_logprobs
from trueline.rollout.engine import Rollout
from trueline.runs.checkpoint import ModuleState, OptimizerState
from trueline.seeds import uniforms
from trueline.training.experience import rescore
from trueline.training.memory import Part
from trueline.training.pairs import read_pairs
from trueline.training.policies import load_policy, save_policy
from trueline.training.preference import (
    PairLogprobs,
    PairLoss,
    PairLosses,
    ReferenceSettings,
    next_pairs,
    opening_gates,
    pair_items,
    pair_step,
    planned_steps,
    rate_at,
    reference_logprobs,
    start_gate,
)
from trueline.training.preflight import sampled_gate
from trueline.training.sft import epoch_rows
from trueline.training.stage import Stage
from trueline.training.step import make_optimizer

__all__ = ["LEARNS_FROM", "SEARCH", "Config", "pair_loss", "train"]

LEARNS_FROM = "pairs"
# Log ranges of a random search at 1 to 8 billion parameters.
SEARCH: Mapping[str, tuple[float, float]] = {"learning_rate": (1e-7, 1e-5), "beta": (0.03, 0.5)}


class Config(ReferenceSettings):
    """`dpo.*`"""

    beta: float = Field(0.1, gt=0, description="weight of the KL to the reference that the pairs are fitted under")
    online_kl_coef: float = Field(
        0.0,
        ge=0,
        description="weight of the KL to the reference on fresh samples (HyPO); 0 is off",
        json_schema_extra={"off": 0.0},
    )
    online_batch: int = Field(16, ge=2, description="responses sampled per step for that KL")


@dataclass(frozen=True)
class Fresh:
    """Samples of the present policy, with the reference's sequence log-probs and each row's baseline, both [B]."""

    rollout: Rollout
    ref_logprobs: Tensor
    baseline: Tensor


def objective(config: Config) -> str:
    """The effective objective in one line."""
    extra = f" + {config.nll_coef:g} NLL(chosen)" if config.nll_coef else ""
    if config.online_kl_coef:
        extra += f" + {config.online_kl_coef:g} KL on {config.online_batch} fresh samples a step"
    reference = f"EMA {config.ema_eta:g} of the policy" if config.ema_eta else "SFT, fixed"
    return (
        f"DPO: minimise -log sigmoid({config.beta:g} (log pi/ref (chosen) - log pi/ref (rejected))){extra}; "
        f"reference: {reference}; "
        f"{config.epochs:g} epochs, batch {config.batch_size}, lr {config.learning_rate:g} {config.schedule}"
    )


def pair_loss(beta: float) -> PairLoss:
    """DPO's loss of a group of pairs, with the implicit rewards."""

    def loss(pairs: PairLogprobs) -> PairLosses:
        return PairLosses(dpo_loss(*pairs.sides, beta=beta), *pairs.implicit_rewards(beta))

    return loss


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
    # 3. The loop.
    while stage.may_step(step, total):
        batch = next_pairs(config, stage, items, step)
        if config.ema_eta:
            batch = reference_logprobs(stage, reference, batch)
        rate, loss, name = rate_at(config, step, total), pair_loss(config.beta), "loss/dpo"
        if config.online_kl_coef:
            fresh = _sample(config, stage, policy, reference, step)
            seen = {"online/kl": 0.0}
            online = _online_parts(config, stage, policy, fresh, seen)
            metrics = pair_step(
                config, stage, policy, optimizer, batch, rate, loss, name=name, more=online, more_sums=seen
            )
            metrics |= seen | {"online/length": float(fresh.rollout.response_lengths.float().mean())}
            stage.meter.train(policy.parameter_count, int(fresh.rollout.lengths.sum()))
        else:
            metrics = pair_step(config, stage, policy, optimizer, batch, rate, loss, name=name)
        if step == 0 and same:
            start_gate(stage, metrics, name, math.log(2))
        if config.ema_eta:
            ema_update_(parts(reference), parts(policy), eta=config.ema_eta)
        stage.end_step(step, total, metrics, policy)
        step += 1
    # 4. What it leaves.
    save_policy(stage, policy)
    stage.finish(steps=step)


@torch.no_grad()
def _sample(config: Config, stage: Stage, policy: Decoder, reference: Decoder, step: int) -> Fresh:
    """One response to each of the next training prompts. A row's baseline is the other rows' mean log-ratio."""
    pool = stage.task.prompts("train")
    rows = epoch_rows(stage.seed, "dpo/online-prompts", step, config.online_batch, len(pool))
    ids = [stage.prompt_ids(pool[i]) for i in rows]
    limit = stage.limits.max_new_tokens
    draws = uniforms(stage.seed, "dpo/online", step, range(len(ids)), limit)
    rollout = stage.engine(policy).generate(ids, draws, max_new_tokens=limit, sampling=stage.sampling)
    stage.meter.sample(policy.parameter_count, sum(map(len, ids)), rollout.sampled_tokens)
    stage.meter.prompts += len(ids)
    ref_logprobs = sequence_logprobs(rescore(stage, reference, rollout), rollout.response_mask)
    ratios = sequence_logprobs(rollout.logprobs, rollout.response_mask) - ref_logprobs
    return Fresh(rollout, ref_logprobs, ratios - rloo_advantages(ratios, group_size=len(ratios)))


def _online_parts(
    config: Config, stage: Stage, policy: Decoder, fresh: Fresh, seen: dict[str, float]
) -> list[Callable[[], Tensor]]:
    """online_kl_coef times the mean online KL, in micro-batches; what was measured is added to `seen`."""
    rollout, count = fresh.rollout, len(fresh.rollout)

    def part(rows: Tensor) -> Tensor:
        width = int(rollout.lengths[rows].max())
        mask = rollout.response_mask[rows, :width]
        logprobs, _ = response_logprobs(policy, rollout.tokens[rows, :width], mask, stage.sampling)
        sampled_gate(stage, policy, rollout.logprobs[rows, :width], logprobs.detach(), mask)
        sums = sequence_logprobs(logprobs, mask)
        terms = online_kl(sums, fresh.ref_logprobs[rows], baseline=fresh.baseline[rows])
        seen["online/kl"] += float(terms.detach().sum()) / count
        return config.online_kl_coef * terms.sum() / count

    groups = micro_batches(rollout.lengths.tolist(), stage.limits.micro_tokens)
    return [Part(part, torch.from_numpy(rows).to(stage.device)) for rows in groups]
