"""Supervised fine-tuning: maximum likelihood of the demonstrations' response tokens."""

from __future__ import annotations

from torch import Tensor

__all__ = ["sft_loss"]


def sft_loss(logprobs: Tensor) -> Tensor:
    """-log pi(y_t | x, y_<t) per token. Reduce with the number of response tokens of the whole step as denominator."""
    return -logprobs
