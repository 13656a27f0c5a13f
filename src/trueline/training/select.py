"""The checkpoints of one arm on the selection split, and which of them are picked. The test prompts are not touched."""

from __future__ import annotations

import numpy as np
import torch
from pydantic import Field

from trueline.algorithms.logprobs import sequence_logprobs
from trueline.config import Section
from trueline.data.batches import collate, micro_batches
from trueline.evaluation.measure import measure, metrics_of
from trueline.models.decoder import Decoder
from trueline.models.scoring import response_logprobs
from trueline.runs.cell import read_json, write_json
from trueline.training.instruments import (
    instruments_of,
    outside_of,
    own_tokenizer,
    points_of,
    sampler_of,
    training_pairs,
)
from trueline.training.policies import load_policy
from trueline.training.stage import Progress, Stage, batch_on
from trueline.types import Pair

__all__ = ["Config", "train"]


class Config(Section):
    """`select.*`"""

    prompts: int = Field(64, ge=2, description="prompts of the selection split at each checkpoint")
    pairs: int = Field(64, ge=1, description="training pairs whose log-probs are followed over training")
    best_of: int = Field(1, ge=1, description="the proxy's favourite of so many draws; the study sets it for best-of-n")


def objective(config: Config) -> str:
    """What this stage does in one line."""
    return f"select: every checkpoint on {config.prompts} selection prompts, temperature 1, one sample each"


def train(config: Config, stage: Stage) -> None:
    """Write `selection.json`: the curve over checkpoints and the picks.

    Inputs: `arm` (the trained cell; SFT's own for the arms sft and best-of-n), `sft`, `pairs`; `reward` for the proxy;
    `selection` where the judge is learned; `density` where the task has no signatures; `baseline`, SFT's own
    selection, whose only point every arm starts from.
    """
    stage.begin({}, objective(config))
    training, foreign = training_pairs(stage), own_tokenizer(stage)
    sft = load_policy(stage, "sft")
    points = points_of(stage, sft)
    sampler = sampler_of(stage, foreign)
    prompts = stage.task.prompts("selection")[: config.prompts]
    instruments = instruments_of(stage, sft, outside_of(stage), judge="selection", foreign=foreign)
    curve = []
    followed = [] if foreign else training[: config.pairs]
    if "baseline" in stage.inputs and "start" not in stage.inputs and config.best_of == 1 and len(points) > 1:
        # The start is SFT, which has been measured on these draws.
        curve, points = [read_json(stage.inputs["baseline"] / "selection.json")["curve"][0]], points[1:]
    for number, point in enumerate(points):
        policy = point.policy()
        measured = measure(policy, prompts, sampler, instruments, samples=1, stream="selection", best_of=config.best_of)
        metrics = metrics_of(measured, "selection/sampled") | _pair_logps(stage, policy, followed)
        curve.append({"step": point.step, **point.spent, "metrics": metrics})
        stage.report(Progress(stage.cell.directory.name, "select", number + 1, len(points) + 1))
    picks = _picks(curve)
    write_json(stage.cell / "selection.json", {"curve": curve, "picks": picks})
    chosen = next(point for point in curve if point["step"] == picks["selected"])
    stage.cell.finish(method="select", seed=stage.seed, gold=chosen["metrics"]["selection/sampled/gold"])


def _picks(curve: list[dict]) -> dict[str, int]:
    """The end of training, the checkpoint that the proxy would pick, and the selection judge's."""
    trained = curve[1:] or curve  # the start is another arm's policy
    proxy = [
        point["metrics"].get("selection/sampled/proxy", point["metrics"]["selection/sampled/gold"]) for point in trained
    ]
    gold = [point["metrics"]["selection/sampled/gold"] for point in trained]
    return {
        "end": trained[-1]["step"],
        "proxy": trained[int(np.argmax(proxy))]["step"],
        "selected": trained[int(np.argmax(gold))]["step"],
    }


@torch.no_grad()
def _pair_logps(stage: Stage, policy: Decoder, pairs: list[Pair]) -> dict[str, float]:
    """Mean sequence log-prob of the chosen and of the rejected sides of the same training pairs."""
    means: dict[str, float] = {}
    for side in ("chosen", "rejected") if pairs else ():
        items = [stage.tokenize(p.prompt, getattr(p, side)) for p in pairs]
        total = 0.0
        for group in micro_batches([len(item) for item in items], 2 * stage.limits.micro_tokens):
            batch = batch_on(collate([items[i] for i in group], stage.tokenizer.pad_id), stage)
            scored, _ = response_logprobs(policy, batch.tokens, batch.response_mask, stage.sampling)
            total += float(sequence_logprobs(scored, batch.response_mask).sum())
        means[f"pairs/logps_{side}"] = total / len(items)
    return means
