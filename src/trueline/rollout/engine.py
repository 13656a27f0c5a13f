"""What a rollout is, and the few verbs every engine has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from trueline.models.decoder import Decoder
from trueline.models.scoring import Sampling

__all__ = ["Rollout", "RolloutEngine"]


@dataclass(frozen=True)
class Rollout:
    """Sampled responses behind their prompts, one row a sample, padded on the right.

    tokens [B, T]; response_mask [B, T] True on response tokens (the end token is one); logprobs [B, T] as sampled, zero
    elsewhere; lengths [B] real tokens of the row; prompt_lengths [B]; ended [B] True where the response stopped by
    itself, False where the length limit cut it; version: of the weights that sampled.
    """

    tokens: Tensor
    response_mask: Tensor
    logprobs: Tensor
    lengths: Tensor
    prompt_lengths: Tensor
    ended: Tensor
    version: int

    def __len__(self) -> int:
        return self.tokens.shape[0]

    @property
    def response_lengths(self) -> Tensor:
        """Number of response tokens of each row [B]."""
        return self.lengths - self.prompt_lengths

    @property
    def sampled_tokens(self) -> int:
        """Number of tokens that were sampled."""
        return int(self.response_mask.sum())

    def responses(self) -> list[list[int]]:
        """The response ids of each row, without padding."""
        rows, starts, ends = self.tokens.tolist(), self.prompt_lengths.tolist(), self.lengths.tolist()
        return [row[start:end] for row, start, end in zip(rows, starts, ends)]

    def select(self, rows: Tensor) -> Rollout:
        """The given rows (indices), cut to the longest of them."""
        width = int(self.lengths[rows].max())
        return Rollout(
            self.tokens[rows, :width],
            self.response_mask[rows, :width],
            self.logprobs[rows, :width],
            self.lengths[rows],
            self.prompt_lengths[rows],
            self.ended[rows],
            self.version,
        )


class RolloutEngine(Protocol):
    """Samples responses. `load_weights` is the only way that training reaches an engine."""

    def load_weights(self, policy: Decoder, version: int) -> None:
        """Sample from `policy`'s present weights from now on."""
        ...

    def generate(
        self, prompts: Sequence[Sequence[int]], uniforms: np.ndarray, *, max_new_tokens: int, sampling: Sampling
    ) -> Rollout:
        """One response per prompt. `uniforms` [n, max_new_tokens] decide the draws; row i belongs to prompt i."""
        ...


def pad_prompts(prompts: Sequence[Sequence[int]], width: int, pad_id: int) -> tuple[Tensor, Tensor]:
    """Prompts as right-padded tokens [n, width] and their lengths [n]."""
    tokens = torch.full((len(prompts), width), pad_id, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)] = torch.tensor(prompt, dtype=torch.long)
    return tokens, torch.tensor([len(prompt) for prompt in prompts])
