"""What an arm's samples are held against, from the cells that came before: judge, proxy, SFT, the pairs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from trueline.data.batches import collate, micro_batches
from trueline.data.chat import ChatTokenizer
from trueline.evaluation.measure import EVALUATION_SEED, Instruments, Sampler
from trueline.evaluation.programs import pass_statistics
from trueline.evaluation.refusal import refuses
from trueline.models.decoder import Decoder
from trueline.models.scoring import Sampling, forbidden_mask, response_logprobs
from trueline.rollout.engine import Rollout
from trueline.runs import checkpoint
from trueline.runs.cell import read_jsonl
from trueline.training.judge import load_judge
from trueline.training.pairs import read_pairs
from trueline.training.policies import load_policy, load_start, policy_in
from trueline.training.reading import RewardReader, rendered
from trueline.training.stage import Stage, batch_on
from trueline.types import Judgement, Pair, Prompt

__all__ = [
    "Outside",
    "Point",
    "instruments_of",
    "outside_of",
    "own_tokenizer",
    "points_of",
    "sampler_of",
    "token_nll",
    "training_pairs",
]

Outside = Callable[[Sequence[Prompt], Sequence[str], Rollout], list[bool]] | None
_NOTHING = {"flops": 0.0, "sampled_tokens": 0, "trained_tokens": 0}


class Point:
    """One checkpoint of an arm with what it had cost so far; `policy()` loads it."""

    def __init__(self, step: int, policy: Callable[[], Decoder], spent: dict[str, float]) -> None:
        self.step, self.policy, self.spent = step, policy, spent


def points_of(stage: Stage, sft: Decoder) -> list[Point]:
    """The checkpoints of the arm; the start (its own policy before any step) comes first.

    A checkpoint that was trained elsewhere is one point: it has no training curve here.
    """
    arm: Path = stage.inputs["arm"]
    if arm == stage.inputs["sft"]:
        return [Point(0, lambda: sft, _NOTHING)]
    if not (arm / "checkpoints").is_dir():
        return [Point(0, lambda: load_policy(stage, "arm"), _NOTHING)]
    spent = {row["step"]: row for row in read_jsonl(arm / "metrics.jsonl")} if (arm / "metrics.jsonl").exists() else {}

    def load(step: int) -> Callable[[], Decoder]:
        def policy() -> Decoder:
            model = policy_in(stage, arm / "model")
            checkpoint.put_policy(arm / "checkpoints", step, model)
            return model

        return policy

    start = load_start(stage) if "start" in stage.inputs else sft
    points = [Point(0, lambda: start, _NOTHING)]
    for step in checkpoint.steps(arm / "checkpoints"):
        if step == 0:
            continue  # a run that found nothing to learn from: its end is its start
        row = spent[step]
        points.append(Point(step, load(step), {name: row[f"spent/{name}"] for name in _NOTHING}))
    return points


def sampler_of(stage: Stage, tokenizer: ChatTokenizer | None = None) -> Sampler:
    """The evaluation's sampler with the study's tokenizer, or with the checkpoint's own.

    A server holds the study's model: a checkpoint with another tokenizer is sampled here.
    """
    own = tokenizer or stage.tokenizer
    forbidden = forbidden_mask(own.vocab_size, own.forbidden_ids, stage.device)
    return Sampler(
        lambda prompt: own.encode_prompt(prompt)[-stage.limits.max_prompt_tokens :],
        own.decode,
        Sampling(forbidden=forbidden),
        own.pad_id,
        own.end_ids,
        stage.limits.max_new_tokens,
        EVALUATION_SEED,
        2 * stage.limits.micro_tokens,
        None if stage.engines.exact or tokenizer is not None else stage.engine,
    )


def own_tokenizer(stage: Stage) -> ChatTokenizer | None:
    """The arm's tokenizer where it is not the study's: a checkpoint that was trained elsewhere may have another."""
    folder = stage.inputs["arm"] / "model"
    if stage.inputs["arm"] == stage.inputs["sft"] or not (folder / "tokenizer.json").is_file():
        return None
    own = ChatTokenizer.load(folder)
    return None if own.fingerprint == stage.tokenizer.fingerprint else own


def instruments_of(
    stage: Stage, sft: Decoder, outside: Outside, *, judge: str, foreign: ChatTokenizer | None = None
) -> Instruments:
    """Gold by the task's judge, or by the learned one of the input `judge` ("selection" or "gold"). The proxy is the
    reward model where there is one, or whether a program passes the tests that its prompt shows. `foreign` is the arm's
    tokenizer where it is not the study's."""
    proxy, statistics = None, None
    if stage.task.verified:
        statistics = pass_statistics
        proxy = partial(_by_public_tests, stage)
    if "reward" in stage.inputs:
        proxy = _scorer(stage, "reward")
    rerender = None
    if foreign is not None:

        def rerender(prompts, texts, rollout):
            return rendered(stage, stage.tokenizer, prompts, texts, rollout.ended)

    start = load_start(stage) if "start" in stage.inputs else None
    refuses_of = refuses if stage.task.learned_gold else None
    return Instruments(_gold(stage, judge), sft, proxy, outside, rerender, statistics, start, refuses_of)


def _by_public_tests(stage: Stage, prompts: Sequence[Prompt], texts: Sequence[str], rollout: Rollout) -> Tensor:
    """1 where the tests of the prompt pass, else 0; minus infinity where a program could not be judged."""
    judged = stage.task.judge_many(prompts, texts)
    return torch.tensor([j.parts.get("public", -np.inf) for j in judged], device=rollout.tokens.device)


def _gold(stage: Stage, judge: str):
    if judge not in stage.inputs:
        return lambda prompts, texts, rollout: stage.task.judge_many(prompts, texts)
    if (stage.inputs[judge] / "judge").is_dir():
        linear = load_judge(stage.inputs[judge])
        return lambda prompts, texts, rollout: [Judgement(value) for value in linear.scores(prompts, texts)]
    score = _scorer(stage, judge)
    return lambda prompts, texts, rollout: [Judgement(value) for value in score(prompts, texts, rollout).tolist()]


def _scorer(stage: Stage, name: str) -> Callable[[Sequence[Prompt], Sequence[str], Rollout], Tensor]:
    """Standardised scores of a learned model; one with a tokenizer of its own reads the texts with it."""
    reader = RewardReader(stage, name)
    return lambda prompts, texts, rollout: reader.standardized(reader.rows(prompts, rollout, texts))


def training_pairs(stage: Stage) -> list[Pair]:
    """The learners' pairs; none where checkpoints are measured without any."""
    return read_pairs(stage.inputs["pairs"]).training if "pairs" in stage.inputs else []


def outside_of(stage: Stage) -> Outside:
    """Whether a piece of structure occurs on no side of any pair, where the task has structure; otherwise by likelihood
    under a model fitted to the pairs. None where no pairs are given.
    """
    training = training_pairs(stage)
    if not training:
        return None
    if stage.task.structure(training[0].prompt, training[0].chosen) is not None:
        sides = (stage.task.structure(p.prompt, side) for p in training for side in (p.chosen, p.rejected))
        known = frozenset().union(*sides)
        return lambda prompts, texts, rollout: [not stage.task.structure(p, t) <= known for p, t in zip(prompts, texts)]
    if "density" not in stage.inputs:
        return None
    density = load_policy(stage, "density")
    held_out = [
        stage.tokenize(p.prompt, side)
        for p in training[-(len(training) // 10 or 1) :]
        for side in (p.chosen, p.rejected)
    ]
    batches = [
        batch_on(collate([held_out[i] for i in g], stage.tokenizer.pad_id), stage)
        for g in micro_batches([len(h) for h in held_out], 2 * stage.limits.micro_tokens)
    ]
    limit = float(
        np.quantile(np.concatenate([token_nll(stage, density, b.tokens, b.response_mask) for b in batches]), 0.99)
    )

    def outside(prompts: Sequence[Prompt], texts: Sequence[str], rollout) -> list[bool]:
        return (token_nll(stage, density, rollout.tokens, rollout.response_mask) > limit).tolist()

    return outside


@torch.no_grad()
def token_nll(stage: Stage, model: Decoder, tokens, mask) -> np.ndarray:
    """Mean negative log-likelihood per response token of each row, as far as the model's context reaches."""
    room = model.config.max_positions
    tokens, mask = tokens[:, :room], mask[:, :room]
    out = np.zeros(len(tokens))
    for group in micro_batches([tokens.shape[1]] * len(tokens), 2 * stage.limits.micro_tokens):
        scored, _ = response_logprobs(model, tokens[group], mask[group], stage.sampling)
        out[group] = (-scored.sum(1) / mask[group].sum(1)).cpu().numpy()
    return out
