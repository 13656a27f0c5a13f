"""Estimators of KL(policy || reference) in nats, per token of a response sampled from the policy.

With d = log pi(y_t) - log ref(y_t) (Schulman 2020, "Approximating KL divergence"): k1 = d, k2 = d^2/2,
k3 = exp(-d) - 1 + d. Over samples from the policy k1 and k3 have the mean KL; k2 has not. As a **loss** (gradient
through the log-probs, samples fixed) they behave otherwise: the mean gradient of k1 is 0, that of k2 is the gradient of
the KL of each token's conditional with the prefixes held fixed, that of k3 is the gradient of each conditional's
KL(reference || policy), prefixes held fixed too.
`trueline.theory.enumeration` computes all of them exactly.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trueline.algorithms.shapes import require_same_shape, widened

__all__ = ["kl_exact", "kl_k1", "kl_k2", "kl_k3"]


def kl_k1(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """d = log pi - log ref per token. Unbiased, may be negative; the one that goes into the reward."""
    require_same_shape(logprobs=logprobs, ref_logprobs=ref_logprobs)
    return widened(logprobs) - widened(ref_logprobs)


def kl_k2(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """d^2 / 2 per token. Never negative; its mean differs from the KL from the third order of d on."""
    return 0.5 * kl_k1(logprobs, ref_logprobs).square()


def kl_k3(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """exp(-d) - 1 + d per token. Never negative and unbiased where the reference's support covers the policy's."""
    difference = kl_k1(logprobs, ref_logprobs)
    return torch.expm1(-difference) + difference


def kl_exact(logits: Tensor, ref_logits: Tensor) -> Tensor:
    """sum_v p_v (log p_v - log q_v) per position over the full vocabulary, [..., V] -> [...].

    Tokens that the policy forbids contribute 0; a token that only the reference forbids makes it infinite.
    """
    require_same_shape(logits=logits, ref_logits=ref_logits)
    logprobs = widened(logits).log_softmax(-1)
    probs = logprobs.exp()
    difference = logprobs - widened(ref_logits).log_softmax(-1)
    return torch.linalg.vecdot(probs, difference.masked_fill(probs == 0, 0.0))
