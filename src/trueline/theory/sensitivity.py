"""How far the difference between the routes depends on choices that the paper does not report.

DPO has two ways to a KL: a small beta stopped early (the pairs are hardly fitted) and a large beta trained long (they
are fitted). The reward route has the length of the reward model's training. MLPs throughout.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from trueline.theory.grid import Beds
from trueline.theory.learners import adam, descend
from trueline.theory.matching import path_at_kl, penalised_at_kl
from trueline.theory.objectives import bradley_terry, dpo

__all__ = ["dpo_by_beta", "reward_by_length"]


def dpo_by_beta(beds: Beds, betas: Sequence[float], kl: float, *, steps: int) -> Tensor:
    """DPO's policies stopped at `kl`, log-probs [B, N, X, Y], one for each beta; nan where it is not reached."""
    worlds, copies = beds.worlds, len(betas)
    scale = torch.tensor(betas, dtype=torch.float64).repeat_interleave(len(worlds.ref))
    every = {name: getattr(worlds, name).repeat(copies, 1, 1) for name in worlds.__dataclass_fields__}
    path = descend(
        beds.policy_learner("mlp", copies), dpo(replace(worlds, **every), beta=scale), adam(3e-3), steps=steps, every=4
    )
    return path_at_kl(path, every["ref"], kl).unflatten(0, (copies, -1))


def reward_by_length(beds: Beds, lengths: Sequence[int], kl: float) -> Tensor:
    """The KL-regularised optima at `kl` of a reward model after so many steps, log-probs [R, N, X, Y].

    `lengths` are multiples of the first one, which is the distance between the rewards that are kept.
    """
    first = lengths[0]
    if any(length % first for length in lengths):
        raise ValueError(f"lengths: {list(lengths)} are not multiples of {first}")
    ref = beds.worlds.ref
    path = descend(beds.reward_learner("mlp"), bradley_terry(beds.worlds), adam(3e-3), steps=max(lengths), every=first)
    return torch.stack([penalised_at_kl(ref, path[length // first], kl)[0] for length in lengths])
