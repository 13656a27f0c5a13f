"""From logits to log-probabilities. The sampler and every log-prob go through the same `restrict`.

Where the two differ (a token that the sampler may not draw but the log-prob counts, a temperature applied on one side
only), the importance ratio is not 1 at the first step and the KL is off by a constant per token.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trueline.algorithms.shapes import require_mask, require_rank, widened

__all__ = ["entropy", "forbid", "restrict", "sequence_logprobs", "token_logprobs", "top_k_mask", "top_p_mask"]


def token_logprobs(logits: Tensor, tokens: Tensor) -> Tensor:
    """log softmax(logits)[token] = logits[token] - logsumexp(logits), in at least float32.

    `logits` [..., V], `tokens` [...] with indices 0..V-1 (no -100: mask the result instead) -> [...]. One [..., V]
    tensor is kept for the backward pass, and the logits are not: let go of them.
    """
    if logits.shape[:-1] != tokens.shape:
        raise ValueError(f"tokens: shape {tuple(tokens.shape)} differs from logits' {tuple(logits.shape[:-1])} + (V,)")
    return _log_softmax(logits).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)


def forbid(logits: Tensor, forbidden: Tensor) -> Tensor:
    """`logits` with -inf where `forbidden` is True. `forbidden` is boolean, [V] or any shape that broadcasts."""
    if forbidden.dtype != torch.bool:
        raise ValueError(f"forbidden: expected a boolean tensor (True = may not be sampled), got {forbidden.dtype}")
    if forbidden.shape[-1:] != logits.shape[-1:]:
        raise ValueError(f"forbidden: {tuple(forbidden.shape)} does not cover a vocabulary of {logits.shape[-1]}")
    return logits.masked_fill(forbidden, float("-inf"))


def restrict(
    logits: Tensor,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    forbidden: Tensor | None = None,
) -> Tensor:
    """The logits of the distribution that is sampled: forbidden tokens, then temperature, then top-k, then top-p.

    [..., V] -> [..., V]; what is removed is -inf. `top_k` 0 and `top_p` 1 are off. Top-k and top-p depend on the
    policy: after an update a sampled token may fall outside the new policy's set. To compare two policies on one set,
    keep `removed = restrict(...).isneginf()` of the sampling policy and apply `forbid(logits / temperature, removed)`
    to both (ReaLHF's logits mask). Greedy decoding is an argmax, not a temperature: 0 or less raises ValueError.
    """
    if temperature <= 0:
        raise ValueError(f"temperature: must be positive, got {temperature}; greedy decoding is an argmax")
    if forbidden is not None:
        logits = forbid(logits, forbidden)
    if temperature != 1.0:
        logits = widened(logits) / temperature
    if top_k:
        logits = forbid(logits, top_k_mask(logits, top_k))
    if top_p != 1.0:
        logits = forbid(logits, top_p_mask(logits, top_p))
    return logits


def top_k_mask(logits: Tensor, top_k: int) -> Tensor:
    """True where a token is **not** among the `top_k` largest. Ties with the k-th value are kept."""
    if top_k < 1:
        raise ValueError(f"top_k: must be at least 1, got {top_k}")
    kth = logits.topk(min(top_k, logits.shape[-1]), dim=-1).values[..., -1:]
    return logits < kth


def top_p_mask(logits: Tensor, top_p: float) -> Tensor:
    """True where a token is **not** in the smallest set, most likely first, whose probability reaches `top_p`.

    Holtzman et al. 2020 (arXiv 1904.09751), equation 2. The most likely token is always kept.
    """
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p: must lie in (0, 1], got {top_p}")
    ordered, order = widened(logits).sort(dim=-1, descending=True, stable=True)
    probs = ordered.softmax(-1)
    before = probs.cumsum(-1) - probs  # the mass of what is more likely
    return torch.zeros_like(order, dtype=torch.bool).scatter(-1, order, before >= top_p)


def entropy(logits: Tensor) -> Tensor:
    """-sum_v p_v log p_v in nats, [..., V] -> [...]. Forbidden tokens (-inf) contribute 0, to the gradient too."""
    logprobs = _log_softmax(logits)
    finite = logprobs.masked_fill(logprobs.isneginf(), 0.0)  # 0 * -inf is nan; the fill cuts its gradient too
    return -torch.linalg.vecdot(logprobs.exp(), finite)


def sequence_logprobs(logprobs: Tensor, mask: Tensor) -> Tensor:
    """log pi(y|x) = sum_t m_t log pi(y_t | x, y_<t), [B, T] -> [B]. A row that counts no token gives 0."""
    require_rank(2, logprobs=logprobs)
    require_mask(mask, logprobs)
    return widened(logprobs).masked_fill(~mask, 0.0).sum(-1)


def _log_softmax(logits: Tensor) -> Tensor:
    # widening inside the kernel: half-precision logits get no float32 copy of their own
    wide = logits.dtype if logits.dtype in (torch.float32, torch.float64) else torch.float32
    return logits.log_softmax(-1, dtype=wide)
