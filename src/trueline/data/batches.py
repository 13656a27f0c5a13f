"""Token batches: prompt and response ids side by side, padded on the right, with the mask of what counts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

__all__ = ["TokenBatch", "Tokenized", "collate", "common_prompts", "micro_batches"]


@dataclass(frozen=True)
class Tokenized:
    """One prompt with one response, as ids. The response ends with the end token where the text was complete.

    `name` is the prompt's id, for errors; it is no part of what the row is.
    """

    prompt: tuple[int, ...]
    response: tuple[int, ...]
    name: str = field(default="", compare=False)

    def __len__(self) -> int:
        return len(self.prompt) + len(self.response)


@dataclass(frozen=True)
class TokenBatch:
    """tokens [B, T] padded on the right; response_mask [B, T] True on response tokens; lengths [B] of real tokens."""

    tokens: Tensor
    response_mask: Tensor
    lengths: Tensor

    def __len__(self) -> int:
        return self.tokens.shape[0]

    @property
    def total_tokens(self) -> int:
        """Real tokens, prompts included: what the FLOP accounting counts."""
        return int(self.lengths.sum())

    def to(self, device: torch.device) -> TokenBatch:
        """The same batch on another device."""
        return TokenBatch(self.tokens.to(device), self.response_mask.to(device), self.lengths.to(device))


def collate(items: Sequence[Tokenized], pad_id: int) -> TokenBatch:
    """A batch of `items` in their order. Raises ValueError on an empty prompt or response: nothing would be learnt."""
    if not items:
        raise ValueError("items: a batch needs at least one")
    lengths = np.array([len(item) for item in items])
    prompts = np.array([len(item.prompt) for item in items])
    empty = (prompts == 0) | (lengths == prompts)
    if empty.any():
        raise ValueError(f"items[{empty.argmax()}]: needs a prompt and a response of at least one token each")
    tokens = np.full((len(items), lengths.max()), pad_id, dtype=np.int64)
    for row, item in enumerate(items):
        tokens[row, : lengths[row]] = item.prompt + item.response
    index = np.arange(tokens.shape[1])
    mask = (index >= prompts[:, None]) & (index < lengths[:, None])
    return TokenBatch(torch.from_numpy(tokens), torch.from_numpy(mask), torch.from_numpy(lengths))


def micro_batches(lengths: Sequence[int], token_limit: int, alike: Sequence[int] | None = None) -> Iterator[np.ndarray]:
    """Row indices in groups of similar length whose padded size stays within `token_limit` (one row at least).

    Rows with the same number in `alike` stay side by side, and in one group where they fit: they share a prompt.
    Every loss is a sum with a denominator of the whole batch, so the grouping cannot change a gradient.
    """
    lengths = np.asarray(lengths)
    if alike is None:
        order = np.argsort(lengths, kind="stable")
        ends = np.ones(len(lengths), dtype=bool)
    else:
        alike = np.asarray(alike)
        longest = np.zeros(alike.max() + 1, dtype=lengths.dtype)
        np.maximum.at(longest, alike, lengths)
        order = np.lexsort((lengths, alike, longest[alike]))
        ends = np.append(alike[order][1:] != alike[order][:-1], True)
    group: list[int] = []
    whole = 0  # of the group, rows whose fellows are all in it
    widest = 0
    for row, end in zip(order, ends):
        while group and (len(group) + 1) * max(widest, int(lengths[row])) > token_limit:
            kept = whole or len(group)
            yield np.array(group[:kept])
            group, whole = group[kept:], 0
            widest = max((int(lengths[r]) for r in group), default=0)
        group.append(int(row))
        widest = max(widest, int(lengths[row]))
        whole = len(group) if end else whole
    if group:
        yield np.array(group)


def common_prompts(tokens: Tensor, prompt_lengths: Tensor) -> list[int]:
    """A number for each row of `tokens` [B, T], the same for rows whose first `prompt_lengths` [B] tokens are equal."""
    seen: dict[bytes, int] = {}
    ids = tokens.cpu().numpy()
    return [seen.setdefault(row[:length].tobytes(), len(seen)) for row, length in zip(ids, prompt_lengths.tolist())]
