"""Judges that were handed in: an endpoint's comparisons as gold, and how far a judge agrees with labelled pairs."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from trueline.evaluation.measure import Instruments, Sampler, Scorer, sample_texts
from trueline.models.decoder import Decoder
from trueline.rewards.endpoint import EndpointJudge
from trueline.rollout.engine import Rollout
from trueline.training.pairs import read_pairs
from trueline.training.reading import rendered
from trueline.training.stage import Stage
from trueline.types import Judgement, Pair, Prompt

__all__ = ["against_reference", "agreement", "is_given"]

_PAIRS = 200


def against_reference(judge: EndpointJudge, sft: Decoder, sampler: Sampler) -> Scorer:
    """Gold from -1 to 1: each response compared, in both orders, with one SFT sample to the same prompt.

    The reference is the same for every arm and every sample of a prompt, so that differences between arms are paired;
    SFT itself scores about 0.
    """
    references: dict[str, str] = {}

    def gold(prompts: Sequence[Prompt], texts: Sequence[str], rollout: Rollout) -> list[Judgement]:
        fresh = list({p.id: p for p in prompts if p.id not in references}.values())
        if fresh:
            _, drawn = sample_texts(sft, fresh, sampler, stream="reference")
            references.update((p.id, text) for p, text in zip(fresh, drawn))
        verdicts = judge.compare(prompts, texts, [references[p.id] for p in prompts])
        return [Judgement(v.score, {"position_inconsistency": float(not v.consistent)}) for v in verdicts]

    return gold


def is_given(stage: Stage, name: str) -> bool:
    """Whether the input of that name was handed in by the user, so that nothing here has measured it."""
    return name in stage.inputs and stage.inputs[name].name.startswith("given-")


def agreement(stage: Stage, instruments: Instruments, judge: EndpointJudge | None) -> dict[str, float]:
    """`right` of `pairs`: labelled comparisons of the gold split, which no arm sees, that the judge orders alike; a tie
    is half right. Empty where the task has no such pairs."""
    pairs = read_pairs(stage.inputs["pairs"]).gold[:_PAIRS] if "pairs" in stage.inputs else []
    if not pairs:
        return {}
    margins = _compared(judge, pairs) if judge is not None else _scored(stage, instruments, pairs)
    return {"right": sum(1.0 if m > 0 else 0.5 * (m == 0) for m in margins), "pairs": len(pairs)}


def _compared(judge: EndpointJudge, pairs: list[Pair]) -> list[float]:
    verdicts = judge.compare([p.prompt for p in pairs], [p.chosen for p in pairs], [p.rejected for p in pairs])
    return [verdict.score for verdict in verdicts]


def _scored(stage: Stage, instruments: Instruments, pairs: list[Pair]) -> list[float]:
    prompts, scores = [p.prompt for p in pairs], []
    for side in ("chosen", "rejected"):
        texts = [getattr(p, side) for p in pairs]
        ended = torch.ones(len(pairs), dtype=torch.bool)
        scores.append(
            [j.score for j in instruments.gold(prompts, texts, rendered(stage, stage.tokenizer, prompts, texts, ended))]
        )
    return [chosen - rejected for chosen, rejected in zip(*scores)]
