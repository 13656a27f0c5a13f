"""Who scores samples while training: the learned reward model, the task's own judge, or tests that run them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import nan
from typing import Literal

import torch
from torch import Tensor

from trueline.errors import NumericsError
from trueline.rollout.engine import Rollout
from trueline.training.reading import RewardReader
from trueline.training.stage import Stage
from trueline.types import Prompt

__all__ = ["Feedback", "Score", "reward_source"]

Feedback = Literal["learned", "gold", "verifier"]

Score = Callable[[Sequence[Prompt], Rollout], Tensor]
"""(prompts, rollout) -> scores [B]; row i of the rollout answers prompt i. NaN where nothing is known of a response."""


def reward_source(stage: Stage, feedback: Feedback) -> Score:
    """Scores standardised on SFT samples (learned), or in the judge's or the verifier's own scale. All are metered."""
    score = {"learned": _learned, "gold": _judged, "verifier": _verified}[feedback](stage)

    def checked(prompts: Sequence[Prompt], rollout: Rollout) -> Tensor:
        found = score(prompts, rollout)
        _check(found, prompts)
        return found

    return checked


def _check(raw: Tensor, asked: Sequence[Prompt]) -> None:
    """Raise NumericsError for scores [B] that are infinite, naming the prompts.

    NaN is a response that tests could not judge, and is left out; an infinite score is a broken judge.
    """
    if bool(raw.isinf().any()):
        rows = [asked[row].id for row in raw.isinf().nonzero()[:, 0].tolist()]
        raise NumericsError(
            f"scores that are not finite for {len(rows)} of {len(asked)} responses: {', '.join(rows[:8])}"
            f"{', ...' if len(rows) > 8 else ''}; nothing was trained on them: look at the reward",
            rows=tuple(rows),
        )


def _learned(stage: Stage) -> Score:
    reader = RewardReader(stage)

    def score(prompts: Sequence[Prompt], rollout: Rollout) -> Tensor:
        rows = reader.rows(prompts, rollout)
        stage.meter.reward_calls += len(rows)
        stage.meter.forward(reader.reward.model.parameter_count, int(rows.lengths.sum()))
        found = reader.standardized(rows)
        return found.masked_fill(found.isnan(), torch.inf)  # NaN is for what nobody judged; a model judges everything

    return score


def _judged(stage: Stage) -> Score:
    def score(prompts: Sequence[Prompt], rollout: Rollout) -> Tensor:
        stage.meter.reward_calls += len(rollout)
        stage.meter.labels += len(rollout)  # a gold call outside evaluation is a label
        texts = [stage.tokenizer.decode(response) for response in rollout.responses()]
        judged = stage.task.judge_many(prompts, texts)
        return torch.tensor([judgement.score for judgement in judged], device=rollout.tokens.device)

    return score


def _verified(stage: Stage) -> Score:
    """A response that was cut off is not run: it has no reward."""

    def score(prompts: Sequence[Prompt], rollout: Rollout) -> Tensor:
        responses = rollout.responses()
        whole = [row for row, ended in enumerate(rollout.ended.tolist()) if ended]
        texts = [stage.tokenizer.decode(responses[row]) for row in whole]
        stage.meter.reward_calls += len(whole)
        scores = torch.full((len(rollout),), nan)
        scores[whole] = torch.tensor(stage.task.rewards([prompts[row] for row in whole], texts))
        return scores.to(rollout.tokens.device)

    return score
