"""The clipped policy update of one batch of experience, given its advantages.

It is PPO's and the critic-free methods' own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trueline.algorithms.masking import masked_sum
from trueline.algorithms.ppo import approx_kl, clip_fraction, clipped_policy_loss
from trueline.data.batches import common_prompts, micro_batches
from trueline.models import workspace
from trueline.models.decoder import Decoder
from trueline.models.scoring import response_logprobs
from trueline.seeds import permutation
from trueline.training.experience import Experience
from trueline.training.stage import Stage
from trueline.training.step import optimize

__all__ = ["Also", "UpdateSettings", "groups_of", "mean_metrics", "minibatches", "update_policy"]


_RATIO_GATE = {"fp32": 1e-6, "bf16": 1e-2}


@dataclass(frozen=True)
class UpdateSettings:
    """What the clipped update needs to know."""

    clip_range: float
    entropy_coef: float
    ratio_stop: float
    max_grad_norm: float
    learning_rate: float


@dataclass(frozen=True)
class Also:
    """A loss that is part of the same step: of a head on the policy's own trunk. `loss_of` takes the rows of a group
    and adds its metrics to `sums`; `booked` runs when the step was taken, for the meter."""

    module: nn.Module
    loss_of: Callable[[Tensor], Tensor]
    sums: dict[str, float]
    booked: Callable[[], None]


def minibatches(stage: Stage, iteration: int, epoch: int, rows: int, count: int) -> list[Tensor]:
    """The rows of a batch, shuffled, in `count` parts (fewer where there are fewer rows)."""
    order = torch.from_numpy(permutation(stage.seed, f"{stage.method}/minibatches/{epoch}", iteration, rows))
    return [part.to(stage.device) for part in order.tensor_split(min(count, rows))]


def groups_of(stage: Stage, exp: Experience, rows: Tensor) -> list[Tensor]:
    """A minibatch in micro-batches of similar length, samples of one prompt side by side."""
    rollout = exp.rollout
    alike = common_prompts(rollout.tokens[rows], rollout.prompt_lengths[rows])
    groups = micro_batches(rollout.lengths[rows].tolist(), stage.limits.micro_tokens, alike)
    return [rows[torch.from_numpy(g).to(rows.device)] for g in groups]


def update_policy(
    stage: Stage,
    policy: Decoder,
    optimizer,
    exp: Experience,
    advantages: Tensor,
    rows: Tensor,
    settings: UpdateSettings,
    *,
    first: bool,
    after: Callable[[], None] = lambda: None,
    also: Also | None = None,
) -> dict[str, float]:
    """One optimiser step on the minibatch `rows`; `advantages` [B, T]. `after` runs when the step was applied.

    The minibatch's mean ratio is watched: over `ratio_stop` the step is not applied. At the first minibatch of a batch
    the ratio must be 1 within 1e-6, 1e-2 in bf16 (NumericsError): nothing has been updated yet. `also` is in the step.
    """
    if first:
        workspace.trim()
    rollout = exp.rollout
    count = int(rollout.response_mask[rows].sum())
    sums = dict.fromkeys(("policy/loss", "policy/clipfrac", "policy/approx_kl", "policy/ratio", "policy/entropy"), 0.0)

    def loss_of(group: Tensor) -> Tensor:
        width = int(rollout.lengths[group].max())
        mask = rollout.response_mask[group, :width]
        logprobs, entropies = response_logprobs(
            policy, rollout.tokens[group, :width], mask, stage.sampling, entropy=settings.entropy_coef > 0
        )
        old, advantage = exp.old_logprobs[group, :width], advantages[group, :width]
        losses = clipped_policy_loss(logprobs, old, advantage, clip_range=settings.clip_range)
        if exp.importance is not None:
            losses = losses * exp.importance[group, :width]
        loss = masked_sum(losses, mask) / count
        with torch.no_grad():
            held = logprobs.detach()
            sums["policy/loss"] += float(loss)
            sums["policy/clipfrac"] += (
                float(masked_sum(clip_fraction(held, old, advantage, clip_range=settings.clip_range), mask)) / count
            )
            sums["policy/approx_kl"] += float(masked_sum(approx_kl(held, old), mask)) / count
            sums["policy/ratio"] += float(masked_sum((held - old).exp(), mask)) / count
        if settings.entropy_coef > 0:
            bonus = masked_sum(entropies, mask) / count
            sums["policy/entropy"] += float(bonus.detach())
            loss = loss - settings.entropy_coef * bonus
        return loss if also is None else loss + also.loss_of(group)

    def accept() -> bool:
        if first:
            allowed = _RATIO_GATE[policy.trunk.precision]
            stage.gates.ask(
                "first ratio",
                "the mean ratio of a batch's first minibatch, before any update,",
                sums["policy/ratio"],
                low=1 - allowed,
                high=1 + allowed,
                remedy="the policy that is trained does not score like the one that sampled",
            )
        return sums["policy/ratio"] <= settings.ratio_stop

    result = optimize(
        policy if also is None else nn.ModuleList([policy, also.module]),
        optimizer,
        groups_of(stage, exp, rows),
        loss_of,
        learning_rate=settings.learning_rate,
        max_grad_norm=settings.max_grad_norm,
        what=f"{stage.method} seed {stage.seed}",
        accept=accept,
        sums=[sums] if also is None else [sums, also.sums],
        room=stage.room,
        name_of=exp.name_of,
    )
    optimizer.zero_grad(set_to_none=True)  # not beside the critic's
    stage.meter.train(policy.parameter_count, int(rollout.lengths[rows].sum()))
    if also is not None:
        also.booked()
    stopped = sums["policy/ratio"] > settings.ratio_stop
    if not stopped:
        after()
    if settings.entropy_coef == 0:
        del sums["policy/entropy"]
    return {**sums, "loss": result.loss, "policy/grad_norm": result.grad_norm, "policy/ratio_stopped": float(stopped)}


def mean_metrics(rows: list[dict[str, float]]) -> dict[str, float]:
    """The mean of each metric over the minibatches of a step."""
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]} if rows else {}
