"""Scores of a learned reward model on token batches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trueline.data.batches import common_prompts, micro_batches
from trueline.models.heads import ScalarModel, last_scores

__all__ = ["Described", "LearnedReward"]


@dataclass(frozen=True)
class Described:
    """What is known of a reward model whose weights are elsewhere."""

    config: Any
    parameter_count: int


class LearnedReward:
    """r(prompt, response) at the last real token, raw; `standardized` subtracts the calibration's mean and divides by
    its standard deviation, so that 0 and 1 mean the same for every reward model: an average SFT sample, one spread."""

    def __init__(
        self,
        model: ScalarModel | Described,
        calibration: Mapping[str, float] | None = None,
        *,
        token_limit: int = 16384,
    ):
        self.model, self.token_limit = model, token_limit
        self.calibration = calibration

    @torch.no_grad()
    def scores(self, tokens: Tensor, lengths: Tensor, prompt_lengths: Tensor | None = None) -> Tensor:
        """Raw scores [B] of right-padded tokens [B, T] with `lengths` [B] real ones; rows that share a prompt of
        `prompt_lengths` [B] tokens share its computation.

        What lies beyond the model's context is not read: texts of other models may be longer than its own tokens allow.
        """
        lengths = lengths.clamp(max=self.model.config.max_positions)
        out = torch.empty(len(tokens), device=tokens.device)
        prompts = None if prompt_lengths is None else prompt_lengths.clamp(max=self.model.config.max_positions)
        alike = None if prompts is None else common_prompts(tokens, prompts)
        for group in micro_batches(lengths.tolist(), self.token_limit, alike):
            rows = torch.from_numpy(group).to(tokens.device)
            width = int(lengths[rows].max())
            out[rows] = last_scores(
                self.model, tokens[rows, :width], lengths[rows], None if prompts is None else prompts[rows]
            ).float()
        return out

    def standardized(self, tokens: Tensor, lengths: Tensor, prompt_lengths: Tensor | None = None) -> Tensor:
        """Scores in units of the calibration's standard deviation."""
        if self.calibration is None:
            raise ValueError("calibration: this reward model has none; train it with the `reward` stage")
        return (self.scores(tokens, lengths, prompt_lengths) - self.calibration["mean"]) / max(
            self.calibration["std"], 1e-6
        )
