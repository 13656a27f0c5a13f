"""What can be learned in a batch of small worlds: a table of scores, or an MLP; and gradient descent on either.

A learner is its parameters, each [N, ...], and the function that makes scores [N, X, Y] of them. Worlds share no
parameter, so the gradient of the sum of their losses is each world's own, and one step trains them all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.optim import SGD, Adam, Optimizer

__all__ = ["Learner", "adam", "anchored", "descend", "gradient_descent", "mlp", "table"]

Loss = Callable[[Tensor], Tensor]
MakeOptimizer = Callable[[Sequence[Tensor]], Optimizer]


@dataclass(frozen=True)
class Learner:
    """`scores(parameters)` is [N, X, Y]: logits of a policy, or rewards."""

    parameters: tuple[Tensor, ...]
    scores: Callable[[Sequence[Tensor]], Tensor]

    def start(self) -> Tensor:
        """The scores before training."""
        return self.scores(self.parameters)


def table(start: Tensor) -> Learner:
    """One free score for each prompt and response: nothing is shared."""
    return Learner((start,), lambda parameters: parameters[0])


def mlp(parameters: tuple[Tensor, ...], times: int = 1) -> Learner:
    """One-hot prompt -> ReLU -> scores; the parameters of `worlds.mlp_parameters`, the batch repeated `times`.

    A one-hot input picks a row of the first weights, so the hidden layer of prompt x is ReLU(W1[x] + b1). Responses
    share it, and prompts share the second layer: training on one cell moves the others.
    """

    def scores(p: Sequence[Tensor]) -> Tensor:
        return torch.baddbmm(p[3], torch.relu(p[0] + p[1]), p[2])

    return Learner(tuple(part.repeat(times, 1, 1) for part in parameters), scores)


def anchored(learner: Learner, ref: Tensor) -> Learner:
    """The same function moved so that it starts at `ref` [N, X, Y]: ref + scores - scores at the start."""
    shift = ref - learner.start()
    return Learner(learner.parameters, lambda parameters: learner.scores(parameters) + shift)


def gradient_descent(rate: float) -> MakeOptimizer:
    """theta - rate * gradient."""
    return partial(SGD, lr=rate)


def adam(rate: float) -> MakeOptimizer:
    """Adam (Kingma and Ba 2015, arXiv 1412.6980), betas 0.9 and 0.999."""
    return partial(Adam, lr=rate)


def descend(learner: Learner, loss: Loss, optimizer: MakeOptimizer, *, steps: int, every: int = 1) -> Tensor:
    """Minimise `loss`, scores [N, X, Y] -> one loss per world [N]; returns the scores along the way, [T, N, X, Y].

    The first of the T is the start, then one `every` so many steps, and the last one. Full batch, so the way is
    deterministic but for what `loss` itself draws.
    """
    parameters = [part.clone().requires_grad_() for part in learner.parameters]
    descent = optimizer(parameters)
    path = [learner.start()]
    for step in range(1, steps + 1):
        descent.zero_grad(set_to_none=True)
        loss(learner.scores(parameters)).sum().backward()
        descent.step()
        if step % every == 0 or step == steps:
            with torch.no_grad():
                path.append(learner.scores(parameters).clone())  # a table's scores are the parameters themselves
    return torch.stack(path)
