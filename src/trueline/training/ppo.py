"""Proximal policy optimisation with a critic: the paper's recipe, each key of it a switch.

The three keys of Xu et al. 2024 (arXiv 2404.10719, section 5): advantage normalisation over the whole batch, a large
batch, and a reference that follows the policy as an exponential moving average.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from trueline.algorithms.advantages import gae, shape_rewards
from trueline.algorithms.averaging import RunningMoments, ema_update_
from trueline.algorithms.controllers import AdaptiveKL, FixedKL
from trueline.algorithms.masking import masked_mean, masked_sum, masked_var, normalize
from trueline.algorithms.ppo import clipped_value_loss, explained_variance
from trueline.config import Section
from trueline.distributed.sharding import parts
from trueline.errors import InputError
from trueline.models.decoder import Decoder
from trueline.models.fingerprints import fingerprint
from trueline.models.heads import ScalarModel, response_values
from trueline.rollout.engine import Rollout
from trueline.runs.checkpoint import ModuleState, OptimizerState
from trueline.training.experience import Experience, collect, kl_metrics, over_rows
from trueline.training.feedback import Feedback, reward_source
from trueline.training.policies import (
    lent_policy,
    load_policy,
    load_reward_model,
    load_start,
    save_critic,
    save_policy,
    scalar_of,
)
from trueline.training.policy_gradient import Also, UpdateSettings, groups_of, mean_metrics, minibatches, update_policy
from trueline.training.preflight import reference_gate, slack
from trueline.training.reading import tokenizer_of
from trueline.training.stage import Stage
from trueline.training.step import learning_rate_at, make_optimizer, optimize

__all__ = ["LEARNS_FROM", "SEARCH", "Config", "train"]

LEARNS_FROM = "reward"
# Log ranges of a random search at 1 to 8 billion parameters.
SEARCH: Mapping[str, tuple[float, float]] = {"learning_rate": (1e-7, 3e-5), "kl_coef": (0.01, 0.3)}


class Config(Section):
    """`ppo.*`"""

    steps: int = Field(100, ge=1, description="batches of experience")
    batch_size: int = Field(512, ge=2, description="responses per batch of experience", json_schema_extra={"off": 64})
    minibatches: int = Field(4, ge=1, description="optimiser steps a batch is split into, per epoch")
    epochs: int = Field(1, ge=1, description="passes over a batch")
    samples_per_prompt: int = Field(1, ge=1, description="responses to each prompt of a batch")
    learning_rate: float = Field(1e-5, gt=0, description="of the policy")
    critic_learning_rate: float = Field(5e-6, gt=0, description="of the critic")
    warmup_steps: int = Field(0, ge=0, description="batches of linear learning-rate warm-up")
    critic_warmup: int = Field(1, ge=0, description="first batches on which the critic alone is trained")
    critic_from: Literal["reward", "policy"] = Field("reward", description="what the critic starts from")
    critic_trunk: Literal["separate", "shared"] = Field(
        "separate",
        description="shared: the critic is a head on the policy's own trunk, both losses in one step",
        json_schema_extra={"off": "shared"},
    )
    value_coef: float = Field(1.0, ge=0, description="weight of the value loss where the trunk is shared")
    kl_coef: float = Field(
        0.1,
        ge=0,
        description="weight of the k1 KL to the reference in the token rewards",
        json_schema_extra={"off": 0.0},
    )
    kl_target: float = Field(0.0, ge=0, description="sequence KL that an adaptive coefficient aims at; 0: fixed")
    kl_horizon: float = Field(10000.0, gt=0, description="responses over which the adaptive coefficient moves")
    ema_eta: float = Field(
        0.001,
        ge=0,
        le=1,
        description="moving reference: ref <- eta policy + (1 - eta) ref after each step; 0 is off",
        json_schema_extra={"off": 0.0},
    )
    advantage_norm: bool = Field(
        True, description="standardise advantages over the whole batch", json_schema_extra={"off": False}
    )
    value_norm: bool = Field(True, description="running normalisation of returns", json_schema_extra={"off": False})
    clip_range: float = Field(0.2, gt=0, description="of the ratio")
    value_clip: float = Field(0.2, ge=0, description="of the value's move; 0 is off", json_schema_extra={"off": 0.0})
    gamma: float = Field(1.0, gt=0, le=1, description="discount")
    gae_lambda: float = Field(
        1.0, ge=0, le=1, description="of generalised advantage estimation", json_schema_extra={"off": 0.95}
    )
    reward_shift: float = Field(0.0, description="added to every score before it is scaled and clipped")
    reward_scale: float = Field(1.0, gt=0, description="multiplies the standardised score")
    reward_clip: float = Field(20.0, gt=0, description="scores are clipped to plus and minus this")
    entropy_coef: float = Field(0.0, ge=0, description="weight of an entropy bonus")
    ratio_stop: float = Field(5.0, gt=1, description="a minibatch whose mean ratio is above this is skipped")
    max_grad_norm: float = Field(1.0, ge=0, description="gradient norm clip of each network; 0 is off")
    reference: Literal["sft", "start"] = Field("sft", description="what the KL is taken to where the start is not SFT")
    feedback: Feedback = Field("learned", description="who scores; gold calls count as labels")
    min_ended: float = Field(
        0.01, ge=0, le=1, description="share of the first samples that must end by themselves, for others have no score"
    )

    @model_validator(mode="after")
    def _has_something_to_adapt(self) -> Config:
        if self.kl_target and not self.kl_coef:
            raise ValueError("kl_target multiplies kl_coef, which is 0 and stays 0: give it a start above 0")
        return self


def objective(config: Config) -> str:
    """The effective objective in one line."""
    kl = f"{config.kl_coef:g} KL(k1)" + (f", adaptive to {config.kl_target:g} nats" if config.kl_target else "")
    reference = f"EMA {config.ema_eta:g} of the policy" if config.ema_eta else "fixed"
    norm = "normalised over the batch" if config.advantage_norm else "raw"
    return (
        f"PPO: maximise score ({config.feedback}, x{config.reward_scale:g}, clip {config.reward_clip:g}) - {kl} "
        f"in the token rewards; reference: {config.reference}, {reference}; advantages {norm}; "
        f"batch {config.batch_size} in {config.minibatches} minibatches x {config.epochs}; "
        f"critic from {config.critic_from}; lr {config.learning_rate:g} / {config.critic_learning_rate:g}"
    )


def train(config: Config, stage: Stage) -> None:
    """Train from `inputs["start"]` (SFT where there is none) and save `model/` and `critic/`.

    Needs `inputs["sft"]`, and `inputs["reward"]` for a learned score or a critic that starts from it.
    """
    # 1. Four models: policy, critic, reference, reward model; and the original SFT that the KL is reported against.
    policy, reference = load_start(stage), load_policy(stage, "sft")
    moves = config.ema_eta > 0 or config.reference != "sft"
    if config.reference != "sft":
        reference = load_start(stage)
    original = lent_policy(stage, "sft") if moves else None
    score = reward_source(stage, config.feedback)
    critic = _critic(config, stage, policy)
    # 2. Everything that changes while training, registered.
    optimizer = make_optimizer(policy, config.learning_rate)
    if config.critic_trunk == "shared":
        optimizer = critic_optimizer = make_optimizer(nn.ModuleList([policy, critic]), config.learning_rate)
    else:
        critic_optimizer = make_optimizer(critic, config.critic_learning_rate)
    moments = RunningMoments()
    controller = FixedKL(config.kl_coef)
    if config.kl_target:
        controller = AdaptiveKL(config.kl_coef, config.kl_target, config.kl_horizon)
    registry = {
        "policy": ModuleState(policy),
        "critic": ModuleState(critic),
        "reference": ModuleState(reference),
        "optimizer": OptimizerState(optimizer),
        "critic_optimizer": OptimizerState(critic_optimizer),
        "moments": moments,
        "controller": controller,
    }
    total = stage.total_steps(config.steps, executions=config.batch_size if config.feedback == "verifier" else 0)
    same = fingerprint(policy) == fingerprint(reference)
    step = stage.begin(registry, objective(config))
    if step == 0:
        with original.here() if original else nullcontext(reference) as sft:
            reference_gate(stage, sft)
        del sft
    # 3. The loop: sample and score, shape and estimate, update.
    while stage.may_step(step, total):
        prompts = max(1, config.batch_size // config.samples_per_prompt)
        exp = collect(
            stage,
            policy,
            reference,
            score,
            iteration=step,
            prompts=prompts,
            samples_per_prompt=config.samples_per_prompt,
            reward_scale=config.reward_scale,
            reward_clip=config.reward_clip,
            least_ended=config.min_ended,
            reward_shift=config.reward_shift,
        )
        with original.here() if original else nullcontext(reference) as sft:
            metrics = kl_metrics(stage, policy, sft, moves, exp)
        del sft
        if step == 0 and same:
            stage.gates.ask(
                "KL at the start",
                "KL to the reference at the first step, where policy and reference are the same model,",
                metrics["objective/kl_reference"],
                low=-1e-3 * slack(stage),
                high=1e-3 * slack(stage),
                remedy="policy and reference do not score alike",
            )
        advantages, returns, values, more = _estimate(config, stage, critic, moments, controller.coef, exp)
        metrics |= more | _update(
            config,
            stage,
            policy,
            critic,
            reference,
            (optimizer, critic_optimizer),
            exp,
            advantages,
            returns,
            values,
            step,
            total,
        )
        controller.update(metrics["objective/kl_reference"], len(exp.rollout))
        metrics["objective/kl_coef"] = controller.coef
        stage.end_step(step, total, metrics, policy)
        step += 1
    # 4. What it leaves.
    save_policy(stage, policy)
    save_critic(stage, critic)
    stage.finish(steps=step)


def _critic(config: Config, stage: Stage, policy: Decoder) -> ScalarModel:
    """A critic of its own, or a head on the policy's trunk. From the reward model it keeps the head, moved to the
    standardised scale of the scores."""
    if config.critic_trunk == "shared":
        if stage.world.size > 1:
            raise InputError(
                "a trunk that policy and critic share trains in one process alone",
                where="settings",
                field="ppo.critic_trunk",
                remedy="use ppo.critic_trunk=separate, or start one process",
            )
        return stage.placed(ScalarModel(policy.config, bias=True, trunk=policy.trunk))
    if config.critic_from == "policy":
        return scalar_of(stage, policy, bias=True)
    if tokenizer_of(stage) is not stage.tokenizer:
        raise InputError(
            "the reward model reads other tokens than the policy",
            where=str(stage.inputs["reward"] / "reward_model"),
            field="ppo.critic_from",
            remedy="ppo.critic_from=policy",
        )
    source, calibration = load_reward_model(stage)
    critic = scalar_of(stage, source, bias=True, keep_head=True)
    scale = config.reward_scale / max(calibration["std"], 1e-6)
    with torch.no_grad():
        critic.score.weight.mul_(scale)
        critic.score.bias.fill_(-calibration["mean"] * scale)
    return critic


@torch.no_grad()
def _estimate(
    config: Config, stage: Stage, critic: ScalarModel, moments: RunningMoments, kl_coef: float, exp: Experience
):
    """Advantages, returns, values and metrics of a batch.

    The estimates are made in reward units. Values (the critic's before each response token) and returns come back in
    the space that the critic is trained in: with value_norm both are normalised with the moments that hold this batch's
    returns too, so that the clipped loss compares like with like.
    """
    rollout, mask = exp.rollout, exp.rollout.response_mask
    before, after_last = _values(stage, critic, rollout)
    raw = moments.denormalize(before) if config.value_norm else before
    after_last = moments.denormalize(after_last) if config.value_norm else after_last
    rewards = shape_rewards(exp.scores, exp.old_logprobs, exp.ref_logprobs, mask, kl_coef=kl_coef, scored=exp.scored)
    advantages, returns = gae(
        rewards,
        raw,
        mask,
        gamma=config.gamma,
        lam=config.gae_lambda,
        bootstrap=torch.where(exp.scored, 0.0, after_last),
    )
    metrics = {
        "value/explained_variance": float(explained_variance(raw, returns, mask)),
        "objective/returns": float(masked_mean(returns, mask)),
        "advantages/mean": float(masked_mean(advantages, mask)),
        "advantages/std": float(masked_var(advantages, mask).sqrt()),
    }
    if config.value_norm:
        moments.update(returns, mask)
        returns, raw = moments.normalize(returns), moments.normalize(raw)
    if config.advantage_norm:
        advantages = normalize(advantages, mask)
    return advantages, returns, raw, metrics


def _values(stage: Stage, critic: ScalarModel, rollout: Rollout) -> tuple[Tensor, Tensor]:
    """The critic's value before each response token [B, T], and after the last one [B]: before one more token."""
    index = torch.arange(rollout.tokens.shape[1] + 1, device=rollout.tokens.device)
    longer = replace(
        rollout,
        tokens=F.pad(rollout.tokens, (0, 1)),
        response_mask=F.pad(rollout.response_mask, (0, 1)) | (index == rollout.lengths[:, None]),
        lengths=rollout.lengths + 1,
    )
    values = over_rows(stage, longer, lambda t, m: response_values(critic, t, m), 2 * stage.limits.micro_tokens)
    stage.meter.forward(critic.parameter_count, int(rollout.lengths.sum()))
    return values[:, :-1].masked_fill(~rollout.response_mask, 0.0), values.gather(1, rollout.lengths[:, None])[:, 0]


def _update(
    config: Config,
    stage: Stage,
    policy,
    critic,
    reference,
    optimizers,
    exp: Experience,
    advantages: Tensor,
    returns: Tensor,
    values: Tensor,
    step: int,
    total: int,
) -> dict[str, float]:
    optimizer, critic_optimizer = optimizers
    schedule = {"total": total, "warmup": config.warmup_steps, "schedule": "constant"}
    settings = UpdateSettings(
        config.clip_range,
        config.entropy_coef,
        config.ratio_stop,
        config.max_grad_norm,
        learning_rate_at(step, peak=config.learning_rate, **schedule),
    )
    shared = config.critic_trunk == "shared"
    critic_peak = config.learning_rate if shared else config.critic_learning_rate
    critic_rate = learning_rate_at(step, peak=critic_peak, **schedule)

    def follow() -> None:
        if config.ema_eta:
            ema_update_(parts(reference), parts(policy), eta=config.ema_eta)

    policy_rows, critic_rows = [], []
    for epoch in range(config.epochs):
        for number, rows in enumerate(minibatches(stage, step, epoch, len(exp.rollout), config.minibatches)):
            value = _ValueLoss(config, critic, exp, returns, values, rows)
            warm = step >= config.critic_warmup
            if warm:
                first = epoch == 0 and number == 0
                also = Also(
                    critic.score, value.weighted, value.sums, lambda rows=rows: _meter(stage, critic, exp, rows)
                )
                policy_rows.append(
                    update_policy(
                        stage, policy, optimizer, exp, advantages, rows, settings,
                        first=first, after=follow, also=also if shared else None,
                    )
                )  # fmt: skip
            if shared and warm:
                critic_rows.append(dict(value.sums))
            else:
                critic_rows.append(_update_critic(config, stage, critic, critic_optimizer, value, critic_rate))
    critic_metrics = mean_metrics(critic_rows)
    return {
        "loss": critic_metrics["value/loss"],
        **critic_metrics,
        **mean_metrics(policy_rows),
        "learning_rate": settings.learning_rate,
    }


class _ValueLoss:
    """The clipped value loss of a minibatch, group by group; `sums` holds what its groups came to."""

    def __init__(self, config: Config, critic: ScalarModel, exp: Experience, returns, values, rows) -> None:
        self.config, self.critic, self.exp, self.rows = config, critic, exp, rows
        self.returns, self.values = returns, values
        self.count = int(exp.rollout.response_mask[rows].sum())
        self.sums = {"value/loss": 0.0}

    def __call__(self, group: Tensor) -> Tensor:
        rollout = self.exp.rollout
        width = int(rollout.lengths[group].max())
        mask = rollout.response_mask[group, :width]
        before = response_values(self.critic, rollout.tokens[group, :width], mask)
        losses = clipped_value_loss(
            before,
            self.values[group, :width],
            self.returns[group, :width],
            clip_range=self.config.value_clip or None,
        )
        loss = masked_sum(losses, mask) / self.count
        self.sums["value/loss"] += float(loss.detach())
        return loss

    def weighted(self, group: Tensor) -> Tensor:
        """As a part of the policy's loss."""
        return self.config.value_coef * self(group)


def _update_critic(
    config: Config, stage: Stage, critic, optimizer, value: _ValueLoss, learning_rate: float
) -> dict[str, float]:
    result = optimize(
        critic,
        optimizer,
        groups_of(stage, value.exp, value.rows),
        value,
        learning_rate=learning_rate,
        max_grad_norm=config.max_grad_norm,
        what=f"critic seed {stage.seed}",
        sums=[value.sums],
        room=stage.room,
        name_of=value.exp.name_of,
    )
    optimizer.zero_grad(set_to_none=True)  # not beside the policy's
    _meter(stage, critic, value.exp, value.rows)
    return {"value/loss": result.loss, "value/grad_norm": result.grad_norm}


def _meter(stage: Stage, critic: ScalarModel, exp: Experience, rows: Tensor) -> None:
    stage.meter.train(critic.parameter_count, int(exp.rollout.lengths[rows].sum()))
