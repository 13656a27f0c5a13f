"""What could go wrong, measured before an arm is trained: of the pairs, of the reward model, of one answer to all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from pydantic import Field

from trueline.config import Section
from trueline.data.batches import collate
from trueline.evaluation.measure import sample_texts
from trueline.evaluation.probes import (
    Array,
    best_of_gain,
    by_kind,
    constant_lead,
    disagreement,
    frequent,
    mean_interval,
)
from trueline.models.decoder import Decoder
from trueline.rollout.engine import Rollout
from trueline.runs.cell import write_json
from trueline.training.instruments import sampler_of, token_nll, training_pairs
from trueline.training.policies import load_policy
from trueline.training.reading import RewardReader
from trueline.training.stage import Stage, batch_on
from trueline.types import Pair, Prompt

__all__ = ["Config", "train"]

"""Right-padded tokens [B, T], their real lengths [B], and those of their prompts [B]."""


class Config(Section):
    """`probe.*`"""

    prompts: int = Field(150, ge=2, description="selection prompts that own samples and fixed answers are scored on")
    best_of: int = Field(8, ge=2, description="own samples to each of them, of which the reward model takes one")
    pairs: int = Field(150, ge=2, description="training pairs, of different prompts, that are held against own samples")
    constants: int = Field(12, ge=2, description="fixed answers of each set: the most frequent texts")
    members: int = Field(1, ge=0, le=8, description="further reward models of the same pairs; 0: no disagreement")


def objective(config: Config) -> str:
    """What this stage does in one line."""
    return (
        f"probe: SFT's samples against the pairs and the reward model, {config.prompts} prompts x {config.best_of} "
        f"samples, {config.constants} fixed answers, {1 + config.members} reward models; nothing is trained"
    )


def train(config: Config, stage: Stage) -> None:
    """Write `probe.json`.

    Inputs: `sft`, `pairs`; `reward` where there is a reward model, `member-1` and so on where there are further ones.
    Draws are those of evaluation, the same for every training seed. Gold is asked as evaluation is: nothing is booked.
    """
    stage.begin({}, objective(config))
    sft, pairs = load_policy(stage, "sft"), _of_different_prompts(training_pairs(stage))[: config.pairs]
    # 1. Own samples: on selection prompts, and one on the prompt of each pair.
    asked = stage.task.prompts("selection")[: config.prompts]
    rows = [p for p in asked for _ in range(config.best_of)]
    rollout, texts = _draw(stage, sft, rows, "probe")
    beside, beside_texts = _draw(stage, sft, [p.prompt for p in pairs], "probe/pairs")
    # 2. The pairs, under SFT.
    found: dict[str, Any] = {"prompts": len(asked), "samples": config.best_of, "pairs": len(pairs)}
    found["likelihood"] = _likelihood(stage, sft, pairs, beside)
    found["producible"] = _producible(stage, pairs, rows, texts, beside_texts)
    # 3. The reward models, on both.
    if "reward" in stage.inputs:
        found |= _of_reward(config, stage, pairs, asked, rollout, texts)
    write_json(stage.cell / "probe.json", found)
    stage.finish()


def _of_different_prompts(pairs: Sequence[Pair]) -> list[Pair]:
    """The first pair of each prompt, in order."""
    return list({pair.prompt.id: pair for pair in reversed(pairs)}.values())[::-1]


def _draw(stage: Stage, policy: Decoder, rows: Sequence[Prompt], stream: str) -> tuple[Rollout, list[str]]:
    rollout, texts = sample_texts(policy, rows, sampler_of(stage), stream=stream)
    stage.meter.sample(policy.parameter_count, int(rollout.prompt_lengths.sum()), rollout.sampled_tokens)
    return rollout, texts


def _likelihood(stage: Stage, sft: Decoder, pairs: list[Pair], beside: Rollout) -> dict[str, Any]:
    """Mean log-prob per token under SFT of its own sample, of the chosen and of the rejected side, prompt by prompt.

    `gap` of a side is own minus side: 0 where the sides are what SFT would say, large where they are foreign to it.
    `gap` of both is that of the mean of the sides; `response_gap` is the same in nats per response, which a rare
    opening of a long and otherwise likely response shows in.
    """
    own, own_sum = _logprobs(stage, sft, beside.tokens, beside.response_mask)
    found: dict[str, Any] = {"own": mean_interval(own)}
    means, sums = [], []
    for side in ("chosen", "rejected"):
        items = [stage.tokenize(p.prompt, getattr(p, side)) for p in pairs]
        batch = batch_on(collate(items, stage.tokenizer.pad_id), stage)
        mean, total = _logprobs(stage, sft, batch.tokens, batch.response_mask)
        found[side] = mean_interval(mean) | {"gap": mean_interval(own - mean)}
        means.append(mean)
        sums.append(total)
    gaps = {"gap": own - np.mean(means, axis=0), "response_gap": own_sum - np.mean(sums, axis=0)}
    return found | {name: mean_interval(values) for name, values in gaps.items()}


def _logprobs(stage: Stage, sft: Decoder, tokens: torch.Tensor, mask: torch.Tensor) -> tuple[Array, Array]:
    """Of each response under SFT: the mean over its tokens and the sum."""
    stage.meter.forward(sft.parameter_count, int((tokens != stage.tokenizer.pad_id).sum()))
    mean = -token_nll(stage, sft, tokens, mask)
    return mean, mean * mask[:, : sft.config.max_positions].sum(1).cpu().numpy()


def _producible(
    stage: Stage, pairs: list[Pair], rows: Sequence[Prompt], texts: Sequence[str], beside: Sequence[str]
) -> dict[str, Any] | None:
    """Share of sides, and of pairs with both sides, whose every piece of structure SFT's `texts` have too.

    `own` is the same share of fresh samples of SFT itself, which is what a share can reach with so many texts. None
    where the task has no notion of structure.
    """
    if stage.task.structure(pairs[0].prompt, pairs[0].chosen) is None:
        return None
    known = frozenset().union(*(stage.task.structure(p, text) for p, text in zip(rows, texts)))
    chosen = [stage.task.structure(p.prompt, p.chosen) <= known for p in pairs]
    rejected = [stage.task.structure(p.prompt, p.rejected) <= known for p in pairs]
    own = [stage.task.structure(p.prompt, text) <= known for p, text in zip(pairs, beside)]
    both = [a and b for a, b in zip(chosen, rejected)]
    named = {"own": own, "chosen": chosen, "rejected": rejected, "pairs": both}
    return {name: float(np.mean(values)) for name, values in named.items()} | {"texts": len(texts)}


def _of_reward(
    config: Config, stage: Stage, pairs: list[Pair], asked: list[Prompt], rollout: Rollout, texts: list[str]
) -> dict[str, Any]:
    names = ["reward", *sorted(name for name in stage.inputs if name.startswith("member-"))]
    members = [RewardReader(stage, name) for name in names]
    every = [p for p in asked for _ in range(config.best_of)]
    drawn = [_scores(stage, member, member.rows(every, rollout, texts)) for member in members]
    own = np.stack(drawn).reshape(len(names), len(asked), -1)
    gold = None
    if not stage.task.learned_gold:
        judged = stage.task.judge_many(every, texts)
        gold = np.array([j.score for j in judged]).reshape(len(asked), -1)
    sides = {side: [getattr(p, side) for p in pairs] for side in ("chosen", "rejected")}
    found: dict[str, Any] = {"best_of": best_of_gain(own, gold)}
    if len(members) > 1:
        prompts = [p.prompt for p in pairs]
        table = np.stack(
            [np.stack([_scores(stage, m, m.written(prompts, sides[side])) for side in sides], axis=1) for m in members]
        )
        found["disagreement"] = {"members": len(members), "own": disagreement(own), "pairs": disagreement(table)}
    ended = [text for text, done in zip(texts, rollout.ended.tolist()) if done]
    half = config.constants // 2
    sets = {
        "own": frequent(ended, config.constants),
        "pairs": frequent(sides["chosen"], half) + frequent(sides["rejected"], config.constants - half),
    }
    found["constant"] = {
        "own_mean": float(own[0].mean()),
        "best_of_mean": float(own[0].max(axis=1).mean()),
        "gold_mean": None if gold is None or not np.isfinite(gold).any() else float(np.nanmean(gold)),
        "sets": {name: _constant(stage, members[0], asked, rows, own[0]) for name, rows in sets.items() if rows},
    }
    return found


def _constant(
    stage: Stage, reward: RewardReader, asked: list[Prompt], texts: list[tuple[str, int]], own: Array
) -> dict[str, Any]:
    """Each text on every prompt, whatever was asked, against own samples: over all prompts and for each kind."""
    answers = [text for text, _ in texts]
    rows = [p for p in asked for _ in answers]
    scores = _scores(stage, reward, reward.written(rows, answers * len(asked)))
    table = scores.reshape(len(asked), len(answers)).T
    kinds = by_kind([p.kind for p in asked])
    found = {"all": _named(stage, asked, answers, constant_lead(table, own), None)}
    found["kinds"] = {
        kind: _named(stage, asked, answers, constant_lead(table, own, group), group) for kind, group in kinds.items()
    }
    found["texts"] = [
        {"text": text, "count": count, "mean": float(mean)} for (text, count), mean in zip(texts, table.mean(axis=1))
    ]
    return found


def _named(
    stage: Stage, asked: list[Prompt], answers: list[str], found: dict[str, Any], group: list[int] | None
) -> dict[str, Any]:
    """With the text that leads and, where a judge is embedded, what that text is worth: for the report alone."""
    text, gold = answers[found["best"]], None
    if not stage.task.learned_gold:
        prompts = asked if group is None else [asked[i] for i in group]
        gold = mean_interval([j.score for j in stage.task.judge_many(prompts, [text] * len(prompts))])["mean"]
    return found | {"text": text, "gold": gold}


def _scores(stage: Stage, reader: RewardReader, rows: Rollout) -> Array:
    """Standardised scores of rows, in double precision."""
    stage.meter.forward(reader.reward.model.parameter_count, int(rows.lengths.sum()))
    return reader.standardized(rows).double().cpu().numpy()
