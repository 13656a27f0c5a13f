"""Small worlds of many prompts: 8 prompts, 8 responses, few labelled pairs (arXiv 2404.10719, section 4.2), in a batch.

A batch holds N worlds. Tables are [N, X, Y]: prompt x, response y. The best response of prompt x is x itself, the
diagonal; every prompt has a pair with its best response in it, the other pairs are drawn at random, and labels follow
the utilities without noise. A world depends on its seed alone, never on the other worlds of the batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["BEST_UTILITY", "Worlds", "draw_worlds", "mlp_parameters"]

BEST_UTILITY = 1.5
"""Utility of the best response; the others' are uniform in [0, 1)."""


@dataclass(frozen=True)
class Worlds:
    """`ref` [N, X, Y] log-probs, `utilities` [N, X, Y], pairs `chosen` and `rejected` [N, X, K] as response numbers.

    `weights` [N, X, K] sum to 1 over a world's pairs; places that hold no pair weigh 0.
    """

    ref: Tensor
    utilities: Tensor
    chosen: Tensor
    rejected: Tensor
    weights: Tensor

    @property
    def covered(self) -> Tensor:
        """True where a response is in a pair of its prompt, [N, X, Y]."""
        count = torch.zeros_like(self.ref)
        for side in (self.chosen, self.rejected):
            count = count.scatter_add(2, side, (self.weights > 0).to(count))
        return count > 0

    @property
    def data(self) -> Tensor:
        """mu(y | x): the share of each response among the sides of its prompt's pairs, [N, X, Y]."""
        count = torch.zeros_like(self.ref)
        for side in (self.chosen, self.rejected):
            count = count.scatter_add(2, side, self.weights)
        return count / count.sum(-1, keepdim=True)

    def sides(self, table: Tensor) -> tuple[Tensor, Tensor]:
        """A table's values at the chosen and at the rejected side of each pair, two of [N, X, K]."""
        return table.gather(2, self.chosen), table.gather(2, self.rejected)

    def mean(self, values: Tensor) -> Tensor:
        """The mean over a world's pairs, [N, X, K] -> [N]."""
        return (values * self.weights).sum((1, 2))


def draw_worlds(seeds: Sequence[int], pairs_per_prompt: Sequence[int], ref: Tensor, *, size: int = 8) -> Worlds:
    """One world for each number of pairs and seed, the number varying slowest. `ref` [S, X, Y] log-probs per seed.

    A seed's pairs are nested: with fewer pairs a world lacks the last ones and is the same otherwise. Raises ValueError
    where a prompt has not that many pairs.
    """
    most = size * (size - 1) // 2
    if not pairs_per_prompt or not all(1 <= number <= most for number in pairs_per_prompt):
        raise ValueError(f"pairs_per_prompt: {list(pairs_per_prompt)}, each from 1 to {most}")
    if ref.shape != (len(seeds), size, size):
        raise ValueError(f"ref: shape {tuple(ref.shape)} for {len(seeds)} seeds of {size} x {size}")
    drawn = [_draw_one(seed, max(pairs_per_prompt), size) for seed in seeds]
    utilities, chosen, rejected = (torch.stack(parts) for parts in zip(*drawn))
    levels = len(pairs_per_prompt)
    weights = torch.zeros(levels, *chosen.shape, dtype=torch.float64)
    for level, number in enumerate(pairs_per_prompt):
        weights[level, :, :, :number] = 1 / (number * size)
    return Worlds(*(table.repeat(levels, 1, 1) for table in (ref, utilities, chosen, rejected)), weights.flatten(0, 1))


def _draw_one(seed: int, pairs: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Utilities [X, Y] and both sides of the pairs, [X, K]."""
    generator = torch.Generator().manual_seed(seed)
    utilities = torch.rand(size, size, generator=generator, dtype=torch.float64)
    utilities.fill_diagonal_(BEST_UTILITY)
    every = torch.combinations(torch.arange(size))
    sides = torch.empty(size, pairs, 2, dtype=torch.long)
    for x in range(size):
        order = every[torch.randperm(len(every), generator=generator)]
        with_best = (order == x).any(-1)
        first = order[with_best][:1]
        rest = order[~(order == first).all(-1)]
        sides[x] = torch.cat((first, rest))[:pairs]
    values = utilities.gather(1, sides.flatten(1)).view_as(sides)
    winner = values.argmax(-1, keepdim=True)
    return utilities, sides.gather(2, winner).squeeze(-1), sides.gather(2, 1 - winner).squeeze(-1)


def mlp_parameters(seeds: Sequence[int], *, size: int = 8, hidden: int = 64) -> tuple[Tensor, ...]:
    """First weights [S, X, H], bias [S, 1, H], second weights [S, H, Y], bias [S, 1, Y] of one MLP per seed.

    One-hot prompt -> ReLU -> a value per response. All are uniform within 1 / sqrt(inputs), as torch.nn.Linear draws
    them: the softmax of a fresh MLP is nearly uniform, 0.10 to 0.16 for 8 responses.
    """
    first, second = 1 / math.sqrt(size), 1 / math.sqrt(hidden)
    shapes = ((size, hidden, first), (1, hidden, first), (hidden, size, second), (1, size, second))
    nets = []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        nets.append([
            (2 * torch.rand(rows, columns, generator=generator, dtype=torch.float64) - 1) * bound
            for rows, columns, bound in shapes
        ])  # fmt: skip
    return tuple(torch.stack(parts) for parts in zip(*nets))
