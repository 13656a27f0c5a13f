"""The 8 x 8 study of arXiv 2404.10719, section 4.2, over seeds, coverage and parameterisations, at matched KL.

One world per seed and number of pairs. The reference is the softmax of a fresh MLP, so an MLP policy starts there by
itself; a table starts there by a copy. The reward model is an MLP of its own draw, or a table of zeros. Both routes see
the same pairs:

* `ppo-exact`: reward model, then the KL-regularised optimum of its reward, its coefficient chosen for the KL;
* `ppo-sampled`: the same reward and coefficient, by PPO on sampled responses;
* `dpo`, `ipo`, `dpo-online-kl`: the loss, stopped where the policy is at the KL;
* `dpo-penalised`: DPO to the end of training, then the KL-regularised optimum of its own implicit reward. That is the
  policy between the reference and DPO's on the straight line of log-probs (arXiv 2402.02992), and it says what of a
  difference between the routes is due to stopping against penalising.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from trueline.theory.learners import Learner, adam, anchored, descend, gradient_descent, mlp, table
from trueline.theory.matching import path_at_kl, penalised_at_kl
from trueline.theory.objectives import bradley_terry, dpo, dpo_with_online_kl, ipo
from trueline.theory.on_policy import PpoSettings, sampled_ppo, uniforms_of
from trueline.theory.worlds import Worlds, draw_worlds, mlp_parameters

__all__ = ["ARMS", "LEARNERS", "Beds", "GridSettings", "Trained", "make_beds", "train_learner"]

ARMS = ("ppo-exact", "ppo-sampled", "dpo", "ipo", "dpo-online-kl", "dpo-penalised")
LEARNERS = ("mlp", "table")


@dataclass(frozen=True)
class GridSettings:
    """Numbers of pairs per prompt, KLs, and how long each part trains."""

    pairs: tuple[int, ...] = (1, 2, 3, 4)
    kls: tuple[float, ...] = (0.1, 0.3, 0.6, 1.0)
    beta: float = 0.1
    ipo_beta: float = 0.02
    online_kl_coef: float = 0.01
    steps: int = 600
    online_samples: int = 16
    ppo: PpoSettings = field(default_factory=PpoSettings)
    table_ppo_rate: float = 0.1


@dataclass(frozen=True)
class Beds:
    """The worlds [L * S], and the fresh networks of policy and reward model per seed."""

    seeds: tuple[int, ...]
    worlds: Worlds
    policy: tuple[Tensor, ...]
    reward: tuple[Tensor, ...]
    levels: int

    def policy_learner(self, kind: str, copies: int = 1) -> Learner:
        """A policy that starts at the reference."""
        if kind == "table":
            return table(self.worlds.ref.repeat(copies, 1, 1))
        return anchored(mlp(self.policy, self.levels * copies), self.worlds.ref.repeat(copies, 1, 1))

    def reward_learner(self, kind: str) -> Learner:
        """A reward model before training."""
        return table(torch.zeros_like(self.worlds.ref)) if kind == "table" else mlp(self.reward, self.levels)


@dataclass(frozen=True)
class Trained:
    """Of one kind of learner: rewards [N, X, Y], paths of logits by arm [T, N, X, Y], PPO's log-probs [K, N, X, Y].

    `sampled` has one policy per KL of `kls`, trained at the coefficient at which the exact optimum has that KL.
    """

    worlds: Worlds
    rewards: Tensor
    paths: dict[str, Tensor]
    sampled: Tensor
    kls: tuple[float, ...]

    def at_kl(self, arm: str, kl: float) -> Tensor:
        """Log-probs [N, X, Y] of an arm at a KL, nan in worlds where it is not reached.

        `ppo-sampled` exists at the KLs it was trained for; its policy is moved along its own log-ratio to the exact KL.
        """
        ref = self.worlds.ref
        if arm == "ppo-exact":
            return penalised_at_kl(ref, self.rewards, kl)[0]
        if arm == "ppo-sampled":
            return penalised_at_kl(ref, self.sampled[self.kls.index(kl)] - ref, kl)[0]
        if arm == "dpo-penalised":
            return penalised_at_kl(ref, self.paths["dpo"][-1].log_softmax(-1) - ref, kl)[0]
        return path_at_kl(self.paths[arm], ref, kl)


def make_beds(seeds: Sequence[int], settings: GridSettings, *, uniform: bool = False) -> Beds:
    """Worlds and networks; `uniform` puts a uniform reference in the place of the fresh MLP's.

    The three draws of a seed (world, policy, reward) use numbers of their own: seeds are spread by a factor of 3.
    """
    policy, reward = (mlp_parameters([3 * seed + i for seed in seeds]) for i in (1, 2))
    ref = mlp(policy).start().log_softmax(-1)
    if uniform:
        ref = torch.zeros_like(ref).log_softmax(-1)
    worlds = draw_worlds([3 * seed for seed in seeds], settings.pairs, ref)
    return Beds(tuple(seeds), worlds, policy, reward, len(settings.pairs))


def train_learner(kind: str, beds: Beds, settings: GridSettings, done: Callable[[], None] = lambda: None) -> Trained:
    """Everything that is trained with one kind of learner; `done` is called after each of its five parts.

    A table takes plain gradient descent, at rates per loss that keep it near the flow; MLPs take Adam at 3e-3.
    """
    worlds, steps = beds.worlds, settings.steps
    samples = worlds.ref.shape[1], settings.online_samples
    rate = (lambda plain: gradient_descent(plain)) if kind == "table" else (lambda plain: adam(3e-3))
    rewards = descend(beds.reward_learner(kind), bradley_terry(worlds), rate(8.0), steps=steps, every=steps)[-1]
    done()
    policy = beds.policy_learner(kind)
    paths = {"dpo": descend(policy, dpo(worlds, beta=settings.beta), rate(16.0), steps=2 * steps, every=4)}
    done()
    paths["ipo"] = descend(policy, ipo(worlds, beta=settings.ipo_beta), rate(0.25), steps=steps, every=2)
    done()
    with_online_kl = dpo_with_online_kl(
        worlds,
        beta=settings.beta,
        kl_coef=settings.online_kl_coef,
        uniforms=uniforms_of(beds.seeds, (2 * steps, *samples), beds.levels),
    )
    paths["dpo-online-kl"] = descend(policy, with_online_kl, rate(16.0), steps=2 * steps, every=4)
    done()
    sampled = _ppo_at_kls(kind, beds, rewards, settings)
    done()
    return Trained(worlds, rewards, paths, sampled, settings.kls)


def _ppo_at_kls(kind: str, beds: Beds, rewards: Tensor, settings: GridSettings) -> Tensor:
    """Sampled PPO with the coefficient of each KL, all in one batch -> log-probs [K, N, X, Y]."""
    ref, copies = beds.worlds.ref, len(settings.kls)
    coefs = torch.cat([penalised_at_kl(ref, rewards, kl)[1] for kl in settings.kls])
    ppo = settings.ppo if kind == "mlp" else replace(settings.ppo, rate=settings.table_ppo_rate)
    numbers = uniforms_of(beds.seeds, (ppo.rounds, ref.shape[1], ppo.samples), beds.levels * copies)
    logprobs = sampled_ppo(
        beds.policy_learner(kind, copies), ref.repeat(copies, 1, 1), rewards.repeat(copies, 1, 1), coefs, numbers, ppo
    )
    return logprobs.unflatten(0, (copies, -1))
