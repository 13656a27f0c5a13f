"""PPO on a batch of small worlds, with real samples: responses of one token, a critic, the clipped losses.

One round: every prompt's responses are sampled from the policy; the reward of y is r(x, y) - kl_coef (log pi(y|x) - log
ref(y|x)), the KL inside the reward as in `advantages.shape_rewards`; the advantage is that minus the critic's V(x);
then a few passes of `clipped_policy_loss` and `clipped_value_loss` over the same samples. With one token, GAE is the
advantage itself. The fixed point in expectation is `tabular.optimal_policy`, where the shaped reward is one constant
per prompt: there every advantage is 0 and the samples carry no noise.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trueline.algorithms.ppo import clipped_policy_loss, clipped_value_loss
from trueline.theory.learners import Learner, adam
from trueline.theory.objectives import sample_counts

__all__ = ["PpoSettings", "sampled_ppo", "uniforms_of"]


@dataclass(frozen=True)
class PpoSettings:
    """`passes` over each round's samples; both learning rates fall to 0 in a line over the rounds."""

    rounds: int = 300
    samples: int = 32
    passes: int = 4
    rate: float = 3e-3
    critic_rate: float = 0.1
    clip_range: float = 0.2


def uniforms_of(seeds: Sequence[int], shape: tuple[int, int, int], times: int) -> Iterator[Tensor]:
    """Uniform numbers for the draws of each round, [N, X, n] with N = `times` copies of the seeds.

    `shape` is (rounds, prompts, samples). Copies of a seed share their numbers, so that what is compared at one seed is
    compared on the same draws.
    """
    rounds, prompts, samples = shape
    streams = [torch.Generator().manual_seed(seed) for seed in seeds]
    for _ in range(rounds):
        drawn = [torch.rand(prompts, samples, generator=stream, dtype=torch.float64) for stream in streams]
        yield torch.stack(drawn).repeat(times, 1, 1)


def sampled_ppo(
    learner: Learner,
    ref: Tensor,
    rewards: Tensor,
    kl_coef: Tensor,
    uniforms: Iterator[Tensor],
    settings: PpoSettings,
) -> Tensor:
    """Train and return the last logits, [N, X, Y]. `ref` log-probs and `rewards` [N, X, Y], `kl_coef` [N].

    Rewards are divided by `kl_coef` and the KL then weighs 1: the same optimum, and one learning rate serves every
    world.
    """
    scaled = rewards / kl_coef.view(-1, 1, 1)
    parameters = [part.clone().requires_grad_() for part in learner.parameters]
    critic = (ref.exp() * scaled).sum(-1, keepdim=True).clone().requires_grad_()
    descents = adam(settings.rate)(parameters), adam(settings.critic_rate)([critic])
    rates = settings.rate, settings.critic_rate
    for done, numbers in enumerate(uniforms):
        for descent, rate in zip(descents, rates):
            descent.param_groups[0]["lr"] = rate * (1 - done / settings.rounds)
        with torch.no_grad():
            old = learner.scores(parameters).log_softmax(-1)
            counts = sample_counts(old.exp(), numbers)
            weights = counts / counts.sum((1, 2), keepdim=True)
            returns = scaled - (old - ref)
            old_values = critic.detach().expand_as(ref).clone()
            advantages = returns - old_values
        for _ in range(settings.passes):
            for descent in descents:
                descent.zero_grad(set_to_none=True)
            logprobs = learner.scores(parameters).log_softmax(-1)
            policy_loss = clipped_policy_loss(logprobs, old, advantages, clip_range=settings.clip_range)
            value_loss = clipped_value_loss(critic.expand_as(ref), old_values, returns, clip_range=None)
            (weights * (policy_loss + value_loss)).sum().backward()
            for descent in descents:
                descent.step()
    with torch.no_grad():
        return learner.scores(parameters).log_softmax(-1)
