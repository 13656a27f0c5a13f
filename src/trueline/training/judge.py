"""A judge of texts learned from pairs that no arm sees: gold, or selection, where no judge is embedded."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from trueline.config import Section
from trueline.errors import InputError
from trueline.rewards.linear import LinearJudge, fit_linear, load_linear, save_linear
from trueline.seeds import uniforms
from trueline.training.held_out import calibration, counts, length_controls
from trueline.training.pairs import read_pairs
from trueline.training.policies import load_policy
from trueline.training.stage import Stage

__all__ = ["Config", "load_judge", "train"]

_CALIBRATION_SAMPLES = 512

SECTION = False  # nothing for a user to set


class Config(Section):
    """What the study sets; there is no section of these in the settings."""

    part: Literal["training", "selection", "gold"] = Field("training", description="whose pairs")
    held_out: float = Field(0.3, ge=0, lt=0.9, description="share of the pairs kept out to measure accuracy on")


def objective(config: Config) -> str:
    """The effective objective in one line."""
    return (
        f"judge: minimise -log sigmoid(w . (f(chosen) - f(rejected))) + ridge over the {config.part} pairs, "
        "f features of the text, the ridge by cross-validation; standardised on SFT samples"
    )


def train(config: Config, stage: Stage) -> None:
    """Fit on the pairs of `config.part`, but for the first `config.held_out` of them; write `judge/`.

    Needs `inputs["pairs"]` and `inputs["sft"]`: the scale is that of SFT's samples on the selection prompts.
    """
    stage.begin({}, objective(config))
    # 1. Pairs: the held-out ones are decided by position, as those that lend the test prompts are.
    pairs = getattr(read_pairs(stage.inputs["pairs"]), config.part)
    if not pairs:
        raise InputError(f"no {config.part} pairs", where=stage.task.name, field="part", remedy="use another part")
    held = round(config.held_out * len(pairs))
    held_out, pairs = pairs[:held], pairs[held:]
    # 2. The fit, and its scale.
    judge = _standardized(stage, fit_linear(pairs))
    save_linear(judge, stage.cell / "judge")
    loss = judge.losses[f"{judge.penalty:g}"]
    stage.cell.log("metrics", {"step": 1, "loss": loss, "penalty": judge.penalty, "mean": judge.mean, "std": judge.std})
    # 3. What it is worth, on raw margins: those are log-odds.
    facts = {"family": "linear", "part": config.part, "trained_on": len(pairs), "accuracy": {}}
    facts |= {"held_out_accuracy": None, "held_out_pairs": held}
    if held:
        margins = [margin * judge.std for margin in judge.margins(held_out)]
        within = counts([p.prompt.kind for p in held_out], margins)
        facts["held_out_accuracy"] = within["all"]["right"] / held
        facts["calibration"] = calibration(margins)
        facts["accuracy"] = {"in_distribution": within, **length_controls(held_out, margins)}
    stage.finish(**facts)


def load_judge(cell: Path) -> LinearJudge:
    """The judge that the stage in `cell` wrote: `.scores(prompts, texts)`, 0 an average SFT sample, 1 one spread."""
    return load_linear(cell / "judge")


def _standardized(stage: Stage, judge: LinearJudge) -> LinearJudge:
    policy, limit = load_policy(stage, "sft"), stage.limits.max_new_tokens
    prompts = stage.task.prompts("selection")[:_CALIBRATION_SAMPLES]
    ids = [stage.prompt_ids(p) for p in prompts]
    draws = uniforms(stage.seed, "judge/calibration", 0, range(len(ids)), limit)
    rollout = stage.engine(policy).generate(ids, draws, max_new_tokens=limit, sampling=stage.sampling)
    return judge.standardized(prompts, [stage.tokenizer.decode(response) for response in rollout.responses()])
