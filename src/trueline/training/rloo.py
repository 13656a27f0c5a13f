"""Critic-free policy gradients.

REINFORCE with a leave-one-out baseline (RLOO), or the group's mean and spread (GRPO's).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field

from trueline.algorithms.advantages import group_advantages, rloo_advantages
from trueline.algorithms.divergence import kl_k1
from trueline.algorithms.logprobs import sequence_logprobs
from trueline.config import Section
from trueline.runs.checkpoint import ModuleState, OptimizerState
from trueline.training.experience import Experience, collect, kl_metrics
from trueline.training.feedback import Feedback, reward_source
from trueline.training.policies import load_policy, save_policy
from trueline.training.policy_gradient import UpdateSettings, mean_metrics, minibatches, update_policy
from trueline.training.preflight import reference_gate
from trueline.training.stage import Stage
from trueline.training.step import learning_rate_at, make_optimizer

__all__ = ["LEARNS_FROM", "SEARCH", "Config", "train"]

LEARNS_FROM = "reward"
# Log ranges of a random search at 1 to 8 billion parameters.
SEARCH: Mapping[str, tuple[float, float]] = {"learning_rate": (1e-7, 3e-5), "kl_coef": (0.01, 0.3)}


class Config(Section):
    """`rloo.*`"""

    steps: int = Field(100, ge=1, description="batches of experience")
    batch_size: int = Field(512, ge=2, description="responses per batch of experience")
    samples_per_prompt: int = Field(4, ge=2, description="responses to each prompt; the others are the baseline")
    baseline: Literal["loo", "group"] = Field("loo", description="loo: leave one out; group: mean and spread (GRPO's)")
    minibatches: int = Field(4, ge=1, description="optimiser steps per batch")
    learning_rate: float = Field(1e-5, gt=0, description="of the policy")
    warmup_steps: int = Field(0, ge=0, description="batches of linear learning-rate warm-up")
    kl_coef: float = Field(
        0.1, ge=0, description="weight of the sequence KL in the score", json_schema_extra={"off": 0.0}
    )
    clip_range: float = Field(0.2, gt=0, description="of the ratio")
    reward_scale: float = Field(1.0, gt=0, description="multiplies the standardised score")
    reward_clip: float = Field(20.0, gt=0, description="scores are clipped to plus and minus this")
    entropy_coef: float = Field(0.0, ge=0, description="weight of an entropy bonus")
    ratio_stop: float = Field(5.0, gt=1, description="a minibatch whose mean ratio is above this is skipped")
    max_grad_norm: float = Field(1.0, ge=0, description="gradient norm clip; 0 is off")
    feedback: Feedback = Field("learned", description="who scores; gold calls count as labels")
    min_ended: float = Field(
        0.01, ge=0, le=1, description="share of the first samples that must end by themselves, for others have no score"
    )


def objective(config: Config) -> str:
    """The effective objective in one line."""
    baseline = "the other samples' mean" if config.baseline == "loo" else "the group's mean, divided by its spread"
    return (
        f"RLOO: maximise score ({config.feedback}) - {config.kl_coef:g} sequence KL(k1) to SFT, against {baseline}; "
        f"{config.samples_per_prompt} samples a prompt, batch {config.batch_size}, lr {config.learning_rate:g}; "
        "no critic"
    )


def train(config: Config, stage: Stage) -> None:
    """Train from SFT and save `model/`. Needs `inputs["sft"]`, and `inputs["reward"]` for a learned score."""
    # 1. Policy, reference, scorer.
    policy, reference = load_policy(stage, "sft"), load_policy(stage, "sft")
    score = reward_source(stage, config.feedback)
    optimizer = make_optimizer(policy, config.learning_rate)
    total = stage.total_steps(config.steps, executions=config.batch_size if config.feedback == "verifier" else 0)
    step = stage.begin({"policy": ModuleState(policy), "optimizer": OptimizerState(optimizer)}, objective(config))
    if step == 0:
        reference_gate(stage, reference)
    # 2. The loop: sample and score, compare within each prompt, update.
    while stage.may_step(step, total):
        exp = collect(
            stage,
            policy,
            reference,
            score,
            iteration=step,
            prompts=max(1, config.batch_size // config.samples_per_prompt),
            samples_per_prompt=config.samples_per_prompt,
            reward_scale=config.reward_scale,
            reward_clip=config.reward_clip,
            least_ended=config.min_ended,
        )
        metrics = kl_metrics(stage, policy, reference, False, exp)
        advantages = _advantages(config, exp)
        rate = learning_rate_at(
            step, peak=config.learning_rate, total=total, warmup=config.warmup_steps, schedule="constant"
        )
        settings = UpdateSettings(config.clip_range, config.entropy_coef, config.ratio_stop, config.max_grad_norm, rate)
        parts = minibatches(stage, step, 0, len(exp.rollout), config.minibatches)
        rows = [
            update_policy(stage, policy, optimizer, exp, advantages, part, settings, first=number == 0)
            for number, part in enumerate(parts)
        ]
        stage.end_step(step, total, metrics | mean_metrics(rows) | {"learning_rate": rate}, policy)
        step += 1
    # 3. What it leaves.
    save_policy(stage, policy)
    stage.finish(steps=step)


@torch.no_grad()
def _advantages(config: Config, exp: Experience):
    mask, counted = exp.rollout.response_mask, exp.scored | ~exp.rollout.ended
    scores = exp.scores
    if config.feedback == "verifier":  # a response that was cut off is worth no more than the worst that was run
        scores = torch.where(exp.rollout.ended, scores, scores.min().clamp(max=0.0))
    scores = scores - config.kl_coef * sequence_logprobs(kl_k1(exp.old_logprobs, exp.ref_logprobs), mask)
    compare = rloo_advantages if config.baseline == "loo" else group_advantages
    return compare(scores, group_size=config.samples_per_prompt, counted=counted)[:, None] * mask
