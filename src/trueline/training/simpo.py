"""Simple preference optimisation (Meng et al. 2024, arXiv 2405.14734): log-probs per token, a margin, no reference."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field

from trueline.algorithms.simpo import simpo_loss, simpo_rewards
from trueline.runs.checkpoint import ModuleState, OptimizerState
from trueline.training.pairs import read_pairs
from trueline.training.policies import load_policy, save_policy
from trueline.training.preference import (
    PairLogprobs,
    PairLosses,
    PairSettings,
    next_pairs,
    opening_gates,
    pair_items,
    pair_step,
    planned_steps,
    rate_at,
)
from trueline.training.stage import Stage
from trueline.training.step import make_optimizer

__all__ = ["LEARNS_FROM", "SEARCH", "Config", "train"]

LEARNS_FROM = "pairs"
# Log ranges of a random search at 1 to 8 billion parameters.
SEARCH: Mapping[str, tuple[float, float]] = {"learning_rate": (1e-7, 1e-5), "beta": (1.0, 10.0)}


class Config(PairSettings):
    """`simpo.*`"""

    beta: float = Field(2.0, gt=0, description="multiplies the mean log-prob per token")
    gamma: float = Field(
        1.0, ge=0, description="margin that is asked for, in units of the reward", json_schema_extra={"off": 0.0}
    )


def objective(config: Config) -> str:
    """The effective objective in one line."""
    extra = f" + {config.nll_coef:g} NLL(chosen)" if config.nll_coef else ""
    return (
        f"SimPO: minimise -log sigmoid({config.beta:g} (log pi(chosen) per token - log pi(rejected) per token) "
        f"- {config.gamma:g}){extra}; no reference; "
        f"{config.epochs:g} epochs, batch {config.batch_size}, lr {config.learning_rate:g} {config.schedule}"
    )


def train(config: Config, stage: Stage) -> None:
    """Train from SFT and save `model/`. Needs `inputs["sft"]` and `inputs["pairs"]`."""

    def loss(pairs: PairLogprobs) -> PairLosses:
        lengths = pairs.chosen_lengths, pairs.rejected_lengths
        losses = simpo_loss(pairs.chosen, pairs.rejected, *lengths, beta=config.beta, gamma=config.gamma)
        chosen = simpo_rewards(pairs.chosen.detach(), lengths[0], beta=config.beta)
        return PairLosses(losses, chosen, simpo_rewards(pairs.rejected.detach(), lengths[1], beta=config.beta))

    # 1. Pairs as ids, and the policy. There is no reference, and so nothing to compare the first loss with.
    items = pair_items(stage, read_pairs(stage.inputs["pairs"]).training)
    policy = load_policy(stage, "sft")
    optimizer = make_optimizer(policy, config.learning_rate)
    total = stage.total_steps(planned_steps(config, items))
    step = stage.begin({"policy": ModuleState(policy), "optimizer": OptimizerState(optimizer)}, objective(config))
    if step == 0:
        opening_gates(stage, policy, None, items)
    # 2. The loop.
    while stage.may_step(step, total):
        batch, rate = next_pairs(config, stage, items, step), rate_at(config, step, total)
        metrics = pair_step(config, stage, policy, optimizer, batch, rate, loss, name="loss/simpo")
        stage.end_step(step, total, metrics, policy)
        step += 1
    # 3. What it leaves.
    save_policy(stage, policy)
    stage.finish(steps=step)
