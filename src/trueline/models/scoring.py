"""Log-probabilities of the response tokens of a batch, without keeping full-vocabulary logits.

The head is applied at response positions only, in chunks; above `_KEEP` logits the chunks are recomputed in the
backward pass. Sampling and scoring share `Sampling`, so a log-prob always belongs to the distribution that was sampled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from trueline.algorithms import divergence, logprobs
from trueline.algorithms.shapes import widened
from trueline.models.decoder import Decoder
from trueline.models.fused import head_logprobs
from trueline.models.packed_trunk import hidden_at

__all__ = ["Sampling", "exact_kl", "forbidden_mask", "head_logits", "response_hidden", "response_logprobs"]

_CHUNK = 4096
_KEEP = 1 << 25  # logits (fp32: 128 MB) that may be kept for the backward pass


@dataclass(frozen=True)
class Sampling:
    """How the next token's distribution is made of the logits; `forbidden` [V] marks what must not be sampled."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    forbidden: Tensor | None = None

    @property
    def plain(self) -> bool:
        """Whether logits are left as they are but for forbidden tokens."""
        return self.temperature == 1.0 and self.top_k == 0 and self.top_p == 1.0

    def process(self, logits: Tensor) -> Tensor:
        """The processed logits, in at least fp32, whose softmax is sampled from."""
        forbidden = self.covering(logits.shape[-1])
        return logprobs.restrict(
            widened(logits), temperature=self.temperature, top_k=self.top_k, top_p=self.top_p, forbidden=forbidden
        )

    def covering(self, vocab_size: int) -> Tensor | None:
        """`forbidden` of a model's `vocab_size`: embeddings padded beyond the tokenizer's last id are never sampled."""
        missing = 0 if self.forbidden is None else vocab_size - self.forbidden.shape[-1]
        return self.forbidden if missing <= 0 else F.pad(self.forbidden, (0, missing), value=True)


def forbidden_mask(vocab_size: int, forbidden_ids: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
    """[V] bool, True on the tokens that must not be sampled: what `Sampling.forbidden` holds."""
    mask = torch.zeros(vocab_size, dtype=torch.bool, device=device)
    mask[torch.tensor(tuple(forbidden_ids), dtype=torch.long)] = True
    return mask


def response_hidden(model: Decoder, tokens: Tensor, response_mask: Tensor) -> tuple[Tensor, Tensor]:
    """Hidden states [M, d] that predict the M response tokens, and those tokens [M], in row-major order."""
    if bool(response_mask[:, 0].any()):
        raise ValueError("response_mask must be False at index 0: nothing predicts the first token")
    wanted = F.pad(response_mask[:, 1:], (0, 1))
    return hidden_at(model.trunk, tokens, wanted), tokens[response_mask]


def response_logprobs(
    model: Decoder, tokens: Tensor, response_mask: Tensor, sampling: Sampling, *, entropy: bool = False
) -> tuple[Tensor, Tensor | None]:
    """log pi(token | before) at every response token, [B, T] with zeros elsewhere; and the entropy there if asked.

    tokens [B, T] right-padded, response_mask [B, T] bool. Gradient flows to the model through both.
    """
    return model.with_weights(_response_logprobs, tokens, response_mask, sampling, entropy)


def _response_logprobs(model: Decoder, tokens: Tensor, response_mask: Tensor, sampling: Sampling, entropy: bool):
    hidden, targets = response_hidden(model, tokens, response_mask)
    keep = hidden.shape[0] * model.config.vocab_size <= _KEEP or not torch.is_grad_enabled()
    pieces = []
    for hidden_part, target_part in zip(hidden.split(_CHUNK), targets.split(_CHUNK)):
        arguments = (model, hidden_part, target_part, sampling, entropy)
        pieces.append(_score(*arguments) if keep else checkpoint(_score, *arguments, use_reentrant=False))
    values = torch.cat([piece[0] for piece in pieces])
    scored = torch.zeros(tokens.shape, dtype=values.dtype, device=values.device).masked_scatter(response_mask, values)
    if not entropy:
        return scored, None
    entropies = torch.cat([piece[1] for piece in pieces])
    return scored, torch.zeros_like(scored).masked_scatter(response_mask, entropies)


def exact_kl(model: Decoder, reference: Decoder, tokens: Tensor, response_mask: Tensor, sampling: Sampling) -> Tensor:
    """KL(policy || reference) of the next-token distributions at every response token, [B, T], full vocabulary."""

    def with_reference(held: Decoder) -> Tensor:
        return model.with_weights(_exact_kl, held, tokens, response_mask, sampling)

    return reference.with_weights(with_reference)


def _exact_kl(model: Decoder, reference: Decoder, tokens: Tensor, response_mask: Tensor, sampling: Sampling) -> Tensor:
    hidden, _ = response_hidden(model, tokens, response_mask)
    ref_hidden, _ = response_hidden(reference, tokens, response_mask)
    pieces = [
        divergence.kl_exact(
            sampling.process(head_logits(model, part)), sampling.process(head_logits(reference, ref_part))
        )
        for part, ref_part in zip(hidden.split(_CHUNK), ref_hidden.split(_CHUNK))
    ]
    values = torch.cat(pieces)
    return torch.zeros(tokens.shape, dtype=values.dtype, device=values.device).masked_scatter(response_mask, values)


def head_logits(model: Decoder, hidden: Tensor) -> Tensor:
    """Logits [..., V] of hidden states [..., d], in the model's precision."""
    if model.trunk.precision == "fp32":
        return model.head(hidden)
    if not _is_matrix(model.head):
        with torch.autocast(hidden.device.type, torch.bfloat16):
            return model.head(hidden).float()
    return (hidden.bfloat16() @ model.head.weight.bfloat16().t()).float()


def _score(model: Decoder, hidden: Tensor, targets: Tensor, sampling: Sampling, entropy: bool):
    weight = model.head.weight
    same = hidden.dtype == weight.dtype and not torch.is_autocast_enabled(hidden.device.type)
    if same and sampling.plain and not entropy and _is_matrix(model.head):
        low = model.trunk.precision == "bf16"
        scored = head_logprobs(hidden, weight, targets, sampling.covering(len(weight)), low=low)
        return scored, scored
    processed = sampling.process(head_logits(model, hidden))
    scored = logprobs.token_logprobs(processed, targets)
    return scored, (logprobs.entropy(processed) if entropy else scored)


def _is_matrix(head: nn.Module) -> bool:
    """Whether logits are hidden states times a matrix and nothing else: no bias, no bending."""
    return type(head) is nn.Linear and head.bias is None
