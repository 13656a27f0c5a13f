"""The losses of `algorithms/` on a batch of small worlds: scores [N, X, Y] -> one loss per world [N].

Each is the mean over the world's pairs, all of them at every step, so nothing is sampled but the online KL of HyPO.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from trueline.algorithms.dpo import dpo_loss
from trueline.algorithms.ipo import ipo_loss
from trueline.algorithms.online_kl import online_kl
from trueline.algorithms.reward_modeling import bradley_terry_loss
from trueline.theory.worlds import Worlds

__all__ = ["bradley_terry", "dpo", "dpo_with_online_kl", "ipo", "sample_counts"]

Loss = Callable[[Tensor], Tensor]


def bradley_terry(worlds: Worlds) -> Loss:
    """The reward model's loss; scores are rewards."""
    return lambda rewards: worlds.mean(bradley_terry_loss(*worlds.sides(rewards)))


def dpo(worlds: Worlds, *, beta: float | Tensor) -> Loss:
    """DPO's loss; scores are logits. `beta` may be one number per world, [N].

    With logits z = ref + u, f = beta (u_chosen - u_rejected): the normaliser cancels.
    """
    if isinstance(beta, Tensor):
        scale = beta.view(-1, 1, 1)
        ref = worlds.sides(worlds.ref)
        # beta scales the log-ratios, so that one call of the loss serves every world
        return lambda logits: worlds.mean(
            bradley_terry_loss(*((side - r) * scale for side, r in zip(worlds.sides(logits.log_softmax(-1)), ref)))
        )
    return lambda logits: worlds.mean(
        dpo_loss(*worlds.sides(logits.log_softmax(-1)), *worlds.sides(worlds.ref), beta=beta)
    )


def ipo(worlds: Worlds, *, beta: float) -> Loss:
    """IPO's squared loss; its minimum has every labelled margin at 1 / (2 beta) where the pairs allow it."""
    return lambda logits: worlds.mean(
        ipo_loss(*worlds.sides(logits.log_softmax(-1)), *worlds.sides(worlds.ref), beta=beta)
    )


def dpo_with_online_kl(worlds: Worlds, *, beta: float, kl_coef: float, uniforms: Iterator[Tensor]) -> Loss:
    """DPO + kl_coef KL(pi || ref) on fresh samples of the policy: HyPO (Song et al. 2024, arXiv 2406.01462).

    Each call takes the next of `uniforms` [N, X, n], draws n responses per prompt from the policy as it is, and scores
    them with `algorithms.online_kl`. The baseline is the exact KL of the prompt, which no sample enters.
    """
    offline = dpo(worlds, beta=beta)

    def loss(logits: Tensor) -> Tensor:
        logprobs = logits.log_softmax(-1)
        with torch.no_grad():
            counts = sample_counts(logprobs.exp(), next(uniforms))
            exact = (logprobs.exp() * (logprobs - worlds.ref)).sum(-1, keepdim=True).expand_as(logprobs)
        penalty = (counts * online_kl(logprobs, worlds.ref, baseline=exact)).sum((1, 2)) / counts.sum((1, 2))
        return offline(logits) + kl_coef * penalty

    return loss


def sample_counts(probs: Tensor, uniforms: Tensor) -> Tensor:
    """How often each response is drawn: inverse CDF of `probs` [N, X, Y] at `uniforms` [N, X, n] -> counts [N, X, Y].

    Samples of one cell have the same log-probs and the same reward, so a sum over samples is a sum over cells weighted
    with these counts, gradients included. A response of probability 0 is never drawn.
    """
    edges = probs.cumsum(-1)
    drawn = torch.searchsorted(edges.contiguous(), uniforms.contiguous() * edges[..., -1:], right=True)
    drawn = drawn.clamp(max=probs.shape[-1] - 1)
    return torch.zeros_like(probs).scatter_add(2, drawn, torch.ones_like(uniforms))
