"""Gates on data and models, asked at the start of a run: what each stands against is said with it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trueline.data.batches import Tokenized, collate
from trueline.data.chat import ChatTokenizer
from trueline.models.decoder import Decoder
from trueline.models.fingerprints import fingerprint
from trueline.models.heads import ScalarModel, last_scores
from trueline.models.scoring import response_logprobs
from trueline.runs.cell import read_json, write_json
from trueline.training.stage import Stage
from trueline.types import Message, Pair, Prompt

__all__ = [
    "data_gates",
    "end_gate",
    "keep_examples",
    "logprob_gate",
    "reference_gate",
    "row_values_gate",
    "sampled_gate",
    "score_gate",
    "scored_gate",
    "slack",
]

_ROWS = 4
_SLACK = {"fp32": 1.0, "bf16": 300.0}
"""Roundings of bf16 differ between groupings of the same rows."""


def slack(stage: Stage) -> float:
    """What a tolerance for fp32 is multiplied with in the precision of the run."""
    return _SLACK[stage.limits.precision]


def data_gates(stage: Stage, items: Sequence[Tokenized]) -> None:
    """Each example must have tokens that are trained on, some must teach how an answer ends, all one BOS or none."""
    trained = [len(item.response) for item in items]
    stage.gates.ask(
        "tokens trained on",
        "the fewest trained tokens of an example",
        min(trained),
        low=1,
        remedy="look at the file with trueline data show",
    )
    end_ids = stage.tokenizer.end_ids
    if set(stage.tokenizer.encode_response("")) & set(end_ids):  # rows that were drawn as ids have no ends to learn
        ends = sum(item.response[-1] in end_ids for item in items if item.response)
        stage.gates.ask(
            "ends to learn from",
            "the share of examples whose end is not cut off",
            ends / len(items),
            low=1 / len(items),
            remedy="raise model.max_new_tokens: no example is short enough to teach where an answer ends",
        )
    bos = stage.tokenizer.bos_id
    counts = {item.prompt.count(bos) for item in items if len(item.prompt) < stage.limits.max_prompt_tokens}
    if bos is not None and counts:
        stage.gates.ask(
            "one BOS",
            "the most BOS tokens in a prompt",
            max(counts),
            high=1,
            remedy="a user's text or the chat template writes a second one: look at it with trueline data show",
        )


def logprob_gate(stage: Stage, policy: Decoder, items: Sequence[Tokenized]) -> None:
    """`row_values_gate` of a policy's log-probs."""
    row_values_gate(
        stage,
        "rows by themselves",
        "a row's mean log-prob alone, padded and among others",
        items,
        lambda tokens, mask, lengths: response_logprobs(policy, tokens, mask, stage.sampling)[0],
    )


def score_gate(stage: Stage, model: ScalarModel, items: Sequence[Tokenized]) -> None:
    """`row_values_gate` of a reward model's scores: a score that is read at a padding token would show here."""
    row_values_gate(
        stage,
        "scores by themselves",
        "a row's score alone, padded and among others",
        items,
        lambda tokens, mask, lengths: last_scores(model, tokens, lengths),
    )


def keep_examples(
    stage: Stage, model: ScalarModel, pairs: Sequence[Pair], folder: Path, tokenizer: ChatTokenizer | None = None
) -> None:
    """A few responses with their scores, beside the reward model: whoever loads it must score them alike."""
    rows = [(pair.prompt, side) for pair in pairs[:_ROWS] for side in (pair.chosen, pair.rejected)]
    limits = (stage.limits.max_prompt_tokens, stage.limits.max_new_tokens)
    scores = _scores_of(stage, tokenizer or stage.tokenizer, model, rows, limits)
    examples = [
        {"prompt": [asdict(turn) for turn in prompt.messages], "response": response, "score": score}
        for (prompt, response), score in zip(rows, scores)
    ]
    write_json(folder / "examples.json", {"examples": examples, "limits": limits})


def scored_gate(stage: Stage, model: ScalarModel, folder: Path) -> None:
    """The examples that were kept with the reward model must have the scores that it gave them in training."""
    stored = read_json(folder / "examples.json")
    kept, limits = stored["examples"], tuple(stored["limits"])
    rows = [(Prompt(tuple(Message(**turn) for turn in row["prompt"])), row["response"]) for row in kept]
    own = ChatTokenizer.load(folder) if (folder / "tokenizer.json").is_file() else stage.tokenizer
    scores = _scores_of(stage, own, model, rows, limits)
    gap = max((abs(score - row["score"]) for score, row in zip(scores, kept)), default=0.0)
    stage.gates.ask(
        "scores as in training",
        "the largest gap of a kept example's score and the one that it had in training",
        gap,
        high=1e-4 * slack(stage),
        remedy="the reward model's folder or the tokenizer is not that of its training",
    )


@torch.no_grad()
def _scores_of(
    stage: Stage,
    tokenizer: ChatTokenizer,
    model: ScalarModel,
    rows: Sequence[tuple[Prompt, str]],
    limits: tuple[int, int],
) -> list[float]:
    """Scores within the limits that the model was trained with, whatever those of this run are."""
    items = [
        Tokenized(tuple(tokenizer.encode_prompt(p)[-limits[0] :]), tuple(tokenizer.encode_response(r)[: limits[1]]))
        for p, r in rows
    ]
    batch = collate(items, tokenizer.pad_id).to(stage.device)
    return last_scores(model, batch.tokens, batch.lengths).float().tolist()


@torch.no_grad()
def row_values_gate(
    stage: Stage,
    name: str,
    what: str,
    items: Sequence[Tokenized],
    values: Callable[[Tensor, Tensor, Tensor], Tensor],
    *,
    tolerance: float = 1e-4,
) -> None:
    """What a model says of a row must not hang on the rows beside it nor on padding.

    `values(tokens, response_mask, lengths)` is any row's figure, [B] or [B, T]. Some of the items are computed
    together, one by one, and one by one with padding behind.
    """
    by_length = sorted(items[:256], key=len)
    picked = [by_length[round(i * (len(by_length) - 1) / (_ROWS - 1))] for i in range(_ROWS)]
    together = _row_sums(values, picked, stage, 0)
    gap = 0.0
    for extra in (0, 5):
        alone = torch.cat([_row_sums(values, [item], stage, extra) for item in picked])
        gap = max(gap, float((alone - together).abs().max()))
    remedy = "the model reads padding or other rows: check its attention mask and position ids"
    stage.gates.ask(name, f"the largest gap of {what}", gap, high=tolerance * slack(stage), remedy=remedy)


def _row_sums(values: Any, items: Sequence[Tokenized], stage: Stage, extra: int) -> Tensor:
    batch = collate(items, stage.tokenizer.pad_id).to(stage.device)
    tokens = torch.nn.functional.pad(batch.tokens, (0, extra), value=stage.tokenizer.pad_id)
    mask = torch.nn.functional.pad(batch.response_mask, (0, extra))
    found = values(tokens, mask, batch.lengths)
    if found.ndim == 1:
        return found.double()
    return found.masked_fill(~mask, 0.0).double().sum(1) / mask.sum(1)


def reference_gate(stage: Stage, reference: Decoder) -> None:
    """The reference's weights must be those that SFT saved; under LoRA the bare base would be another model."""
    done = stage.inputs["sft"] / "done.json"
    stored = read_json(done).get("fingerprint") if done.exists() else None
    if stored is not None:
        stage.gates.ask(
            "reference is SFT",
            "1 where the reference has the weights that SFT saved, 0 where it has others,",
            float(fingerprint(reference) == stored),
            low=1,
            remedy="the folder of SFT was changed after its run, or an adapter was left out",
        )


def sampled_gate(stage: Stage, policy: Decoder, sampled: Tensor, recomputed: Tensor, mask: Tensor) -> float:
    """The engine that sampled and the trainer must say the same of a sample; both [B, T], mask [B, T] response tokens.

    In one arithmetic (fp32) to 1e-4; in bf16 the gap is written down alone. Of a server, whose arithmetic is its own,
    the mean of exp |difference| over the tokens is bounded: told above `rollout.gap_warn`, an end above
    `rollout.gap_stop`. Returns that mean.
    """
    apart = (recomputed - sampled).abs()[mask]
    ratio = float(apart.double().exp().mean()) if len(apart) else 1.0
    if not stage.engines.exact:
        _served_gate(stage, ratio)
        return ratio
    exact = policy.trunk.precision == "fp32" and policy.head.weight.dtype == torch.float32
    stage.gates.ask(
        "sampled = recomputed",
        "the largest gap of sampled and recomputed log-probs",
        float(apart.max()) if len(apart) else 0.0,
        high=1e-4 if exact else math.inf,
        remedy="the samples are not of the policy that is trained: other weights, masks or temperature in the engine",
    )
    return ratio


def _served_gate(stage: Stage, ratio: float) -> None:
    settings, what = stage.rollout, "the mean of exp |engine's - trainer's log-prob| of the sampled tokens"
    remedy = (
        "engine and trainer compute differently: the same precision in both, rollout.importance=token, or another "
        "attention in the server (--attention-backend)"
    )
    if ratio > settings.gap_warn:
        stage.warn(f"{what} is {ratio:.3f}, over rollout.gap_warn={settings.gap_warn:g}: {remedy}")
    stage.gates.ask("engine = trainer", what, ratio, high=settings.gap_warn, remedy=remedy, hard=False)
    stage.gates.ask("engine near trainer", what, ratio, high=settings.gap_stop, remedy=remedy)


def end_gate(stage: Stage, ended: float, *, least: float, hard: bool) -> None:
    """The share of samples that end by themselves."""
    stage.gates.ask(
        "ends in samples",
        "the share of samples that end by themselves",
        ended,
        low=least,
        remedy="a response that does not end has no score: train SFT longer, raise model.max_new_tokens, or look "
        "whether the file's answers end (trueline data show)",
        hard=hard,
    )
