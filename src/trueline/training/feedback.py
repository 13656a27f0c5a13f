"""Who scores samples while training: the learned reward model, or the task's own judge."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from trueline.rewards.learned import LearnedReward
from trueline.rollout.engine import Rollout
from trueline.training.policies import load_reward_model
from trueline.training.stage import Stage
from trueline.types import Prompt

__all__ = ["Score", "reward_source"]

Score = Callable[[Sequence[Prompt], Rollout], Tensor]
"""(prompts, rollout) -> scores [B]; row i of the rollout answers prompt i."""


def reward_source(stage: Stage, feedback: Literal["learned", "gold"]) -> Score:
    """Scores standardised on SFT samples (learned), or the judge's own scale (gold). Each call is metered."""
    return _learned(stage) if feedback == "learned" else _judged(stage)


def _learned(stage: Stage) -> Score:
    model, calibration = load_reward_model(stage)
    reward = LearnedReward(model, calibration, token_limit=2 * stage.limits.micro_tokens)

    def score(prompts: Sequence[Prompt], rollout: Rollout) -> Tensor:
        stage.meter.reward_calls += len(rollout)
        stage.meter.forward(model.parameter_count, int(rollout.lengths.sum()))
        return reward.standardized(rollout.tokens, rollout.lengths)

    return score


def _judged(stage: Stage) -> Score:
    def score(prompts: Sequence[Prompt], rollout: Rollout) -> Tensor:
        stage.meter.reward_calls += len(rollout)
        stage.meter.labels += len(rollout)  # a gold call outside evaluation is a label
        texts = [stage.tokenizer.decode(response) for response in rollout.responses()]
        return torch.tensor(
            [stage.task.judge(p, t).score for p, t in zip(prompts, texts)], device=rollout.tokens.device
        )

    return score
