"""Autoregressive policies over a tiny vocabulary, every sequence enumerated: exact KL, gradients and expectations.

A policy is a table of logits [C, V], one row per prefix. With vocabulary 3 and length 3 there are 13 prefixes and 27
sequences. What it shows of an estimator k of KL(policy || reference), summed over a sequence's tokens:

| | mean | gradient when k is a loss | gradient when k is in the reward |
|---|---|---|---|
| k1 | the KL | 0 | the KL's gradient, exactly |
| k2 | biased | KL of each conditional, prefixes fixed: exact at length 1 only | biased |
| k3 | the KL | KL(reference, policy) of each conditional: biased | biased |

"As a loss" differentiates k through the log-probs of fixed samples; "in the reward" multiplies the summed, detached k
by the score function. Only k1 in the reward descends the KL of whole sequences, which is why `advantages.shape_rewards`
has it there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from trueline.algorithms.logprobs import token_logprobs

__all__ = [
    "SequenceSpace",
    "enumerate_sequences",
    "estimator_gradient_as_loss",
    "estimator_gradient_as_reward",
    "estimator_mean",
    "exact_kl",
    "exact_kl_gradient",
    "sequence_token_logprobs",
]

Estimator = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class SequenceSpace:
    """All sequences: `tokens` [N, T], and `prefixes` [N, T], the row of the logits table each token is drawn from."""

    tokens: Tensor
    prefixes: Tensor
    prefix_count: int
    vocabulary: int


def enumerate_sequences(vocabulary: int = 3, length: int = 3) -> SequenceSpace:
    """All `vocabulary ** length` sequences. A prefix of t tokens is numbered in base V after all shorter ones."""
    symbols = torch.arange(vocabulary)
    tokens = torch.cartesian_prod(*[symbols] * length).reshape(-1, length)
    columns, first = [], 0
    number = torch.zeros(len(tokens), dtype=torch.long)
    for t in range(length):
        columns.append(first + number)
        first += vocabulary**t
        number = number * vocabulary + tokens[:, t]
    return SequenceSpace(tokens, torch.stack(columns, dim=1), first, vocabulary)


def sequence_token_logprobs(space: SequenceSpace, logits: Tensor) -> Tensor:
    """log pi(y_t | y_<t) of every token of every sequence, [C, V] -> [N, T]."""
    if logits.shape != (space.prefix_count, space.vocabulary):
        raise ValueError(f"logits: shape {tuple(logits.shape)}, the table is {(space.prefix_count, space.vocabulary)}")
    return token_logprobs(logits[space.prefixes], space.tokens)


def exact_kl(space: SequenceSpace, logits: Tensor, ref_logits: Tensor) -> Tensor:
    """KL(policy || reference) of whole sequences = sum_y pi(y) (log pi(y) - log ref(y)), differentiable."""
    logprobs = sequence_token_logprobs(space, logits).sum(-1)
    ref_logprobs = sequence_token_logprobs(space, ref_logits).sum(-1)
    return (logprobs.exp() * (logprobs - ref_logprobs)).sum()


def exact_kl_gradient(space: SequenceSpace, logits: Tensor, ref_logits: Tensor) -> Tensor:
    """The gradient of `exact_kl` with respect to the policy's logits, [C, V]."""
    return _gradient(logits, lambda table: exact_kl(space, table, ref_logits))


def estimator_mean(space: SequenceSpace, estimator: Estimator, logits: Tensor, ref_logits: Tensor) -> Tensor:
    """E_{y ~ pi}[sum_t k(log pi(y_t), log ref(y_t))]."""
    logprobs = sequence_token_logprobs(space, logits)
    estimate = estimator(logprobs, sequence_token_logprobs(space, ref_logits)).sum(-1)
    return (logprobs.sum(-1).exp() * estimate).sum()


def estimator_gradient_as_loss(
    space: SequenceSpace, estimator: Estimator, logits: Tensor, ref_logits: Tensor
) -> Tensor:
    """E_{y ~ pi}[grad sum_t k_t]: the samples are fixed, the gradient flows through their log-probs."""
    ref_logprobs = sequence_token_logprobs(space, ref_logits)

    def loss(table: Tensor) -> Tensor:
        logprobs = sequence_token_logprobs(space, table)
        return (logprobs.sum(-1).exp().detach() * estimator(logprobs, ref_logprobs).sum(-1)).sum()

    return _gradient(logits, loss)


def estimator_gradient_as_reward(
    space: SequenceSpace, estimator: Estimator, logits: Tensor, ref_logits: Tensor
) -> Tensor:
    """E_{y ~ pi}[(sum_t k_t) grad log pi(y)]: k is a number in the reward, the gradient is the score function's."""
    ref_logprobs = sequence_token_logprobs(space, ref_logits)

    def loss(table: Tensor) -> Tensor:
        logprobs = sequence_token_logprobs(space, table)
        estimate = estimator(logprobs, ref_logprobs).sum(-1).detach()
        return (logprobs.sum(-1).exp().detach() * estimate * logprobs.sum(-1)).sum()

    return _gradient(logits, loss)


def _gradient(logits: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    table = logits.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(function(table), table)
    return gradient
