"""Rows laid end to end: no padding is computed, equal prompts are computed once, and of the last layer only what is
read.

`pack` turns right-padded rows and the positions whose hidden states are wanted into one run of tokens. Rows that share
a prompt become one family: the prompt once, then each row's own tokens, which attend to the prompt and to themselves.
What comes after the last wanted position of a row is left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from trueline.models.kernels import Families

__all__ = ["Packed", "pack"]

_WORTH_SHARING = 4  # tokens: a shorter common start is not worth a family of its own


@dataclass(frozen=True)
class Packed:
    """M tokens of S segments in families, and where the wanted states lie.

    tokens [M]; positions [M] int32 within each row; first [families + 1], start, length and skip [S] int32: skip is how
    many queries at a segment's start nobody reads. kept [K]: the rows of the last layer that are read, ascending.
    wanted [W]: for each wanted (row, position) in row-major order, its place among `kept`.
    """

    tokens: Tensor
    positions: Tensor
    first: Tensor
    start: Tensor
    length: Tensor
    skip: Tensor
    kept: Tensor
    wanted: Tensor
    longest: int

    def __len__(self) -> int:
        return len(self.tokens)

    def families(self, heads: int, kv_heads: int, dim: int, *, skip: bool) -> Families:
        """For the kernels; `skip` leaves out the queries that nobody reads."""
        none = torch.zeros_like(self.skip)
        held = (self.first, self.start, self.length, self.skip if skip else none)
        made = Families(*(t.data_ptr() for t in held), len(self.first) - 1, heads, kv_heads, dim, self.longest)
        made.held = held  # the addresses live as long as this does
        return made


def pack(tokens: Tensor, wanted: Tensor, prompt_lengths: Tensor | None = None) -> Packed:
    """`tokens` [B, T] and `wanted` [B, T] True at the positions whose hidden states are read.

    `prompt_lengths` [B] says how much of each row may be shared with other rows; without it, all up to the first wanted
    position. Rows that want nothing are left out. Raises ValueError where that is all of them.
    """
    ids, want = tokens.numpy(), wanted.numpy()
    first_wanted = want.argmax(1)
    ends = want.shape[1] - want[:, ::-1].argmax(1)  # one past the last wanted
    prompts = first_wanted + 1 if prompt_lengths is None else np.minimum(prompt_lengths.numpy(), ends)
    groups: dict[bytes, list[int]] = {}
    for row in want.any(1).nonzero()[0].tolist():
        length = int(prompts[row])
        alone = length < _WORTH_SHARING
        groups.setdefault(str(row).encode() if alone else ids[row, :length].tobytes(), []).append(row)
    if not groups:
        raise ValueError("wanted: no position is read")
    pieces, positions, starts, lengths, skips, first = [], [], [], [], [], [0]
    shared_base, own_base = np.zeros(len(ids), np.int64), np.zeros(len(ids), np.int64)
    at = 0

    def segment(row: int, begin: int, end: int, skip: int) -> int:
        nonlocal at
        pieces.append(ids[row, begin:end])
        positions.append(np.arange(begin, end, dtype=np.int32))
        starts.append(at)
        lengths.append(end - begin)
        skips.append(skip)
        at += end - begin
        return at - (end - begin)

    for rows in groups.values():
        if len(rows) == 1:
            row = rows[0]
            shared_base[row] = segment(row, 0, ends[row], first_wanted[row])
            own_base[row] = shared_base[row] + prompts[row]
        else:
            length = int(prompts[rows[0]])
            root = segment(rows[0], 0, length, min(length, int(first_wanted[rows].min())))
            for row in rows:
                shared_base[row] = root
                if ends[row] > length:
                    own_base[row] = segment(row, length, ends[row], max(0, int(first_wanted[row]) - length))
        first.append(len(starts))
    rows, columns = np.nonzero(want)
    flat = np.where(columns < prompts[rows], shared_base[rows] + columns, own_base[rows] + columns - prompts[rows])
    kept = np.concatenate([np.arange(s + k, s + n) for s, n, k in zip(starts, lengths, skips)])
    place = np.empty(at, np.int64)
    place[kept] = np.arange(len(kept))
    longest = max(lengths[root] + max(lengths[root + 1 : end], default=0) for root, end in pairwise(first))
    as_int32 = [torch.tensor(values, dtype=torch.int32) for values in (first, starts, lengths, skips)]
    return Packed(
        torch.from_numpy(np.concatenate(pieces)),
        torch.from_numpy(np.concatenate(positions)),
        *as_int32,
        torch.from_numpy(kept),
        torch.from_numpy(place[flat]),
        longest,
    )
