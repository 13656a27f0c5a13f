"""The native engine: batched sampling with a preallocated KV cache, finished rows compacted away.

Greedy decoding is `uniforms=None`. Tokens are drawn by the inverse of the cumulative distribution at one uniform per
(sample, position), so that neither the batch nor its order matters to a sample (bit-equal in float64; in fp32 a draw
within rounding of a boundary may differ between batchings).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from trueline.algorithms import logprobs as lp
from trueline.algorithms.shapes import widened
from trueline.errors import NumericsError
from trueline.models import workspace
from trueline.models.decoder import Decoder
from trueline.models.scoring import Sampling, head_logits
from trueline.rollout.compiled import can_generate, generate
from trueline.rollout.engine import Rollout, pad_prompts

__all__ = ["NativeEngine"]


class NativeEngine:
    """Samples from the policy module itself: weights are shared, so loading them is taking a reference.

    A response ends at `end_id`, or at whichever comes first where it is several.
    """

    def __init__(self, *, pad_id: int, end_id: int | Sequence[int], batch_size: int = 512) -> None:
        self.pad_id, self.batch_size = pad_id, batch_size
        self.end_ids = (end_id,) if isinstance(end_id, int) else tuple(end_id)
        self.policy: Decoder | None = None
        self.version = -1

    def load_weights(self, policy: Decoder, version: int) -> None:
        """Sample from `policy` from now on."""
        self.policy, self.version = policy, version

    @torch.no_grad()
    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        uniforms: np.ndarray | None,
        *,
        max_new_tokens: int,
        sampling: Sampling,
    ) -> Rollout:
        """One response per prompt, sampled in batches of similar prompt length; None for `uniforms` is greedy."""
        if self.policy is None:
            raise RuntimeError("load_weights before generate")
        if not prompts or min(len(p) for p in prompts) == 0:
            raise ValueError("prompts must be non-empty lists of token ids")
        longest, context = max(len(p) for p in prompts) + max_new_tokens, self.policy.config.max_positions
        if longest > context:
            raise ValueError(f"prompt and response need {longest} positions, the model has {context}: shorten either")
        if uniforms is not None and (len(uniforms) != len(prompts) or uniforms.shape[1] < max_new_tokens):
            raise ValueError(f"uniforms: shape {uniforms.shape}, needed are [{len(prompts)}, {max_new_tokens}]")
        workspace.release()  # a cache and a training pass are not needed at one time
        if can_generate(self.policy, sampling):
            return self._compiled(prompts, uniforms, max_new_tokens, sampling)
        order = np.argsort([len(p) for p in prompts], kind="stable")
        pieces = []
        for start in range(0, len(order), self.batch_size):
            rows = order[start : start + self.batch_size]
            draws = None if uniforms is None else torch.from_numpy(np.ascontiguousarray(uniforms[rows]))
            pieces.append(self._batch([prompts[i] for i in rows], draws, max_new_tokens, sampling))
        return _join(pieces, torch.from_numpy(np.argsort(order)), self.pad_id, self.version)

    def _compiled(self, prompts, uniforms: np.ndarray | None, limit: int, sampling: Sampling) -> Rollout:
        drawn = generate(self.policy, prompts, uniforms, max_new_tokens=limit, sampling=sampling, end_ids=self.end_ids)
        prompt_lengths = torch.tensor([len(p) for p in prompts])
        lengths = prompt_lengths + drawn.lengths
        index = torch.arange(int(lengths.max()))
        mask = (index >= prompt_lengths[:, None]) & (index < lengths[:, None])
        tokens, _ = pad_prompts(prompts, len(index), self.pad_id)
        made = torch.arange(limit) < drawn.lengths[:, None]
        captured = torch.zeros(tokens.shape).masked_scatter(mask, drawn.logprobs[made])
        self._check(captured)
        tokens = tokens.masked_scatter(mask, drawn.tokens[made])
        return Rollout(tokens, mask, captured, lengths, prompt_lengths, drawn.ended, self.version)

    def _check(self, captured: Tensor) -> None:
        if not captured.isfinite().all():
            raise NumericsError(
                f"rollout: log-probs of the policy (version {self.version}) are not finite; its weights are damaged or "
                "every token is forbidden"
            )

    def _batch(self, prompts: list[Sequence[int]], draws: Tensor | None, limit: int, sampling: Sampling):
        policy = self.policy
        device = policy.head.weight.device
        width = max(len(p) for p in prompts)
        padded, prompt_lengths = pad_prompts(prompts, width, self.pad_id)
        tokens = torch.full((len(prompts), width + limit), self.pad_id, dtype=torch.long, device=device)
        tokens[:, :width] = padded.to(device)
        captured = torch.zeros(tokens.shape, dtype=widened(policy.head.weight).dtype, device=device)
        at = prompt_lengths.to(device, copy=True)  # index of the token to be sampled next
        cache = policy.trunk.cache(len(prompts), width + limit)
        hidden = policy.trunk.prefill(tokens[:, :width], at.clone(), cache)
        lengths = torch.zeros(len(prompts), dtype=torch.long, device=device)
        ended = torch.zeros(len(prompts), dtype=torch.bool, device=device)
        live = torch.arange(len(prompts), device=device)  # rows of `tokens` that the cache's rows belong to
        running = torch.ones(len(prompts), dtype=torch.bool, device=device)
        ends = torch.tensor(self.end_ids, device=device)
        draws = None if draws is None else draws.to(device)
        for position in range(limit):
            processed = sampling.process(head_logits(policy, hidden))
            new = _draw(processed, None if draws is None else draws[live, position])
            row_at = at[live]
            tokens[live[running], row_at[running]] = new[running]
            captured[live[running], row_at[running]] = lp.token_logprobs(processed, new)[running]
            stopped = running & (new[:, None] == ends).any(1)
            ended[live[stopped]] = True
            lengths[live[running]] = row_at[running] + 1
            running = running & ~stopped
            left = int(running.sum())
            if left == 0 or position == limit - 1:
                break
            if left < 0.75 * len(live):
                keep = running.nonzero().squeeze(1)
                cache.keep(keep)
                live, new, row_at, running = live[keep], new[keep], row_at[keep], running[keep]
            hidden = policy.trunk.decode(new, row_at, cache)
            at[live] += 1
        self._check(captured)
        return tokens, captured, lengths, prompt_lengths.to(device), ended


def _draw(processed: Tensor, uniforms: Tensor | None) -> Tensor:
    """Inverse-CDF sample of each row of processed logits [B, V] at uniforms [B]; the argmax where there are none."""
    if uniforms is None:
        return processed.argmax(-1)
    dtype = torch.float64 if processed.dtype == torch.float64 else torch.float32
    cumulative = processed.to(dtype).softmax(-1).cumsum(-1)
    # Scaling by the last entry keeps the draw below the total whatever the rounding of the sum was.
    target = uniforms.to(dtype)[:, None] * cumulative[:, -1:]
    drawn = torch.searchsorted(cumulative, target, right=True).squeeze(1)
    # A draw that rounds onto the total lands past the end: the last token that has any probability is meant.
    last = cumulative.shape[1] - 1 - (processed > float("-inf")).flip(1).to(torch.int8).argmax(1)
    return torch.minimum(drawn, last)


def _join(pieces: list, order: Tensor, pad_id: int, version: int) -> Rollout:
    width = max(int(lengths.max()) for _, _, lengths, _, _ in pieces)
    tokens, captured = [], []
    for piece, logprobs, _, _, _ in pieces:
        missing = max(0, width - piece.shape[1])
        tokens.append(torch.nn.functional.pad(piece, (0, missing), value=pad_id)[:, :width])
        captured.append(torch.nn.functional.pad(logprobs, (0, missing))[:, :width])
    lengths, prompt_lengths, ended = (torch.cat([piece[i] for piece in pieces])[order] for i in (2, 3, 4))
    index = torch.arange(width, device=lengths.device)
    mask = (index >= prompt_lengths[:, None]) & (index < lengths[:, None])
    return Rollout(torch.cat(tokens)[order], mask, torch.cat(captured)[order], lengths, prompt_lengths, ended, version)
