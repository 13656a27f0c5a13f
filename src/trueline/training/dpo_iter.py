"""Iterated DPO: sample from the present policy, label best against worst, train on those pairs, sample again.

`sync_every` is one axis from offline to online: with as many updates as the whole run it is one round of on-policy DPO,
with 1 it is online DPO (Guo et al. 2024, arXiv 2402.04792; Lanchantin et al. 2025, arXiv 2506.21495).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field

from trueline.config import Section
from trueline.data.batches import Tokenized
from trueline.models.fingerprints import fingerprint
from trueline.runs.checkpoint import ModuleState, OptimizerState
from trueline.seeds import permutation, uniforms
from trueline.training.dpo import pair_loss
from trueline.training.feedback import Feedback, reward_source
from trueline.training.policies import load_policy, save_policy
from trueline.training.preference import PairItem, opening_gates, pair_step, reference_logprobs, start_gate
from trueline.training.stage import Stage
from trueline.training.step import make_optimizer

__all__ = ["LEARNS_FROM", "SEARCH", "Config", "train"]

LEARNS_FROM = "reward"
# Log ranges of a random search at 1 to 8 billion parameters.
SEARCH: Mapping[str, tuple[float, float]] = {"learning_rate": (1e-7, 1e-5), "beta": (0.03, 0.5)}


class Config(Section):
    """`dpo_iter.*`"""

    beta: float = Field(0.1, gt=0, description="as in DPO")
    rounds: int = Field(4, ge=1, description="how often the policy is sampled and labelled anew")
    sync_every: int = Field(32, ge=1, description="optimiser steps between two samplings; 1 is online DPO")
    passes: float = Field(2.0, ge=1, description="how often each fresh pair is trained on before the next sampling")
    batch_size: int = Field(64, ge=1, description="pairs per optimiser step")
    samples_per_prompt: int = Field(6, ge=2, description="responses per prompt; the best and the worst make the pair")
    learning_rate: float = Field(1e-6, gt=0, description="learning rate")
    max_grad_norm: float = Field(1.0, ge=0, description="gradient norm clip; 0 is off")
    nll_coef: float = Field(
        0.0, ge=0, description="weight of -log pi(chosen) per token; 0 is off", json_schema_extra={"off": 0.0}
    )
    reference: Literal["sft", "refresh"] = Field("refresh", description="refresh: each round's reference is its start")
    feedback: Feedback = Field("learned", description="who labels; gold calls count as labels")
    fallback: bool = Field(
        True, description="verifier feedback: where no sample is right, the reference solution is the chosen side"
    )


class Round:
    """The labelled pairs of the round that is running: part of every checkpoint."""

    def __init__(self) -> None:
        self.items: list[PairItem] = []
        self.margin = 0.0

    def state(self):
        rows = [
            [i.chosen.prompt, i.chosen.response, i.rejected.response, i.ref_chosen, i.ref_rejected, i.chosen.name]
            for i in self.items
        ]
        return {}, {"items": rows, "margin": self.margin}

    def load(self, state) -> None:
        self.margin = state[1]["margin"]
        self.items = [
            PairItem(Tokenized(tuple(p), tuple(c), name), Tokenized(tuple(p), tuple(r), name), rc, rr)
            for p, c, r, rc, rr, name in state[1]["items"]
        ]


def objective(config: Config) -> str:
    """The effective objective in one line."""
    who = {
        "learned": "the learned reward model",
        "gold": "the gold judge (counted as labels)",
        "verifier": "tests that run them",
    }
    reference = "each round's start" if config.reference == "refresh" else "SFT, fixed"
    return (
        f"DPO-Iter: {config.rounds} rounds of {config.sync_every} DPO steps "
        f"(beta {config.beta:g}, lr {config.learning_rate:g}) on best against worst of "
        f"{config.samples_per_prompt} fresh samples, labelled by {who[config.feedback]}; "
        f"reference: {reference}"
    )


def train(config: Config, stage: Stage) -> None:
    """Train from SFT and save `model/`. Needs `inputs["sft"]`, and `inputs["reward"]` for learned feedback."""
    # 1. Policy, reference, labeller.
    policy, reference = load_policy(stage, "sft"), load_policy(stage, "sft")
    label = reward_source(stage, config.feedback)
    optimizer = make_optimizer(policy, config.learning_rate)
    current = Round()
    registry = {
        "policy": ModuleState(policy),
        "reference": ModuleState(reference),
        "optimizer": OptimizerState(optimizer),
        "round": current,
    }
    total = stage.total_steps(config.rounds * config.sync_every)
    stage.samples_every(config.sync_every)
    step = stage.begin(registry, objective(config))
    # 2. The loop over rounds, and over steps within one.
    while stage.may_step(step, total):
        number, within = divmod(step, config.sync_every)
        if within == 0:
            if config.reference == "refresh":
                reference.load_state_dict(policy.state_dict())
            _sample_and_label(config, stage, number, policy, reference, label, current)
        if not current.items:  # every prompt's samples were scored alike: nothing is left to learn from this labeller
            stage.snapshot(step, policy)
            break
        if step == 0:
            opening_gates(stage, policy, reference, current.items)
        picked = _rows(config, stage, number, within, len(current.items))
        gate = within == 0 and fingerprint(policy) == fingerprint(reference)
        batch, loss = [current.items[i] for i in picked], pair_loss(config.beta)
        metrics = pair_step(config, stage, policy, optimizer, batch, config.learning_rate, loss, name="loss/dpo")
        if gate:
            start_gate(stage, metrics, "loss/dpo", math.log(2))
        metrics |= {"round": number, "label_margin": current.margin, "pairs": len(current.items)}
        stage.end_step(step, total, metrics, policy)
        step += 1
    # 3. What it leaves.
    save_policy(stage, policy)
    stage.finish(steps=step)


def _rows(config: Config, stage: Stage, number: int, within: int, count: int) -> list[int]:
    start = within * config.batch_size
    order = [
        permutation(stage.seed, f"dpo-iter/{number}", p, count)
        for p in range(start // count, (start + config.batch_size) // count + 1)
    ]
    flat = [int(i) for part in order for i in part]
    offset = start - (start // count) * count
    return flat[offset : offset + config.batch_size]


def _sample_and_label(
    config: Config, stage: Stage, number: int, policy, reference_model, label, current: Round
) -> None:
    """Fresh prompts, n samples each, best against worst; prompts whose samples tie are left out."""
    n = config.samples_per_prompt
    wanted = max(1, round(config.sync_every * config.batch_size / config.passes))
    prompts = stage.task.prompts("train")
    order = permutation(stage.seed, "dpo-iter/prompts", 0, len(prompts))
    chosen = [prompts[order[(number * wanted + i) % len(prompts)]] for i in range(wanted)]
    ids = [stage.prompt_ids(p) for p in chosen for _ in range(n)]
    limit = stage.limits.max_new_tokens
    draws = uniforms(stage.seed, "dpo-iter/rollout", number, range(len(ids)), limit)
    rollout = stage.engine(policy).generate(ids, draws, max_new_tokens=limit, sampling=stage.sampling)
    stage.meter.sample(policy.parameter_count, sum(map(len, ids)), rollout.sampled_tokens)
    stage.meter.prompts += wanted
    scores = _ranked(label([p for p in chosen for _ in range(n)], rollout), rollout.ended).view(wanted, n)
    best = scores.nan_to_num(-torch.inf).argmax(1).tolist()
    worst = scores.nan_to_num(torch.inf).argmin(1).tolist()
    responses = rollout.responses()
    items, margin = [], 0.0
    for row, prompt in enumerate(chosen):
        winner, loser = (tuple(responses[row * n + place[row]]) for place in (best, worst))
        gain = float(scores[row, best[row]] - scores[row, worst[row]])
        right = stage.task.full_reward if config.feedback == "verifier" and config.fallback else -torch.inf
        if scores[row, best[row]] < right and (reference := stage.task.reference(prompt)) is not None:
            winner = stage.tokenize(prompt, reference).response
            gain = right - float(scores[row, worst[row]])
        if gain > 0 and winner != loser:  # False too where nothing is known of any of its samples
            sides = (Tokenized(ids[row * n], side, prompt.id) for side in (winner, loser))
            items.append(PairItem(*sides))
            margin += gain
    current.items = reference_logprobs(stage, reference_model, items) if items else []
    current.margin = margin / max(1, len(items))


def _ranked(scores: torch.Tensor, ended: torch.Tensor) -> torch.Tensor:
    """Scores by which best and worst are found; NaN is neither.

    A response that was cut off by the length limit is never the better one; one that ended and could not be judged
    stays NaN.
    """
    known = scores[ended & scores.isfinite()]
    floor = known.min() - 1.0 if len(known) else scores.new_zeros(())
    return torch.where(ended, scores, floor)
