"""A reward model from elsewhere in the place of one that is trained: linked, calibrated, measured on the pairs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from trueline.models.heads import ScalarModel
from trueline.runs.cell import write_json
from trueline.seeds import uniforms
from trueline.training.held_out import calibration, counts, length_controls
from trueline.training.pairs import read_pairs
from trueline.training.policies import load_policy, load_reward_model
from trueline.training.preflight import keep_examples
from trueline.training.reading import RewardReader
from trueline.training.stage import Stage

__all__ = ["adopt"]

_SAMPLES, _PAIRS = 512, 512


def adopt(path: Path, part: str, stage: Stage) -> None:
    """Leaves `reward_model/` as training one does: the folder's own files, its scale on SFT samples, its accuracy.

    The files are linked, not copied. The accuracy is on pairs that it was not trained on, as far as we know: all of
    `part` count as held out.
    """
    # 1. The folder.
    inner = stage.cell / "reward_model"
    inner.mkdir(exist_ok=True)
    for file in path.iterdir():
        link = inner / file.name
        if file.is_file() and not link.exists():
            link.symlink_to(file.resolve())
    for name in ("calibration.json", "examples.json"):  # of this study, whatever the folder brought
        (inner / name).unlink(missing_ok=True)
    write_json(inner / "calibration.json", {"mean": 0.0, "std": 1.0})
    stage.begin({}, f"reward model: given ({path.name}), not trained; standardised on SFT samples")
    # 2. How it reads, and its scale.
    here = replace(stage, inputs={**stage.inputs, "reward": stage.cell.directory})
    stage.engines.until_closed(here.engines.close)
    reader = RewardReader(here)
    prompts = stage.task.prompts("train")[:_SAMPLES]
    policy, limit = load_policy(stage, "sft"), stage.limits.max_new_tokens
    ids = [stage.prompt_ids(p) for p in prompts]
    draws = uniforms(stage.seed, "calibration", 0, range(len(ids)), limit)
    rollout = stage.engine(policy).generate(ids, draws, max_new_tokens=limit, sampling=stage.sampling)
    stage.meter.sample(policy.parameter_count, sum(map(len, ids)), rollout.sampled_tokens)
    scores = reader.standardized(reader.rows(prompts, rollout))  # raw so far: its scale is 0 and 1
    stage.meter.forward(reader.reward.model.parameter_count, int(rollout.lengths.sum()))
    scale = {"mean": float(scores.mean()), "std": float(scores.std()), "samples": len(prompts)}
    write_json(inner / "calibration.json", scale)
    stage.gates.ask(
        "scale of scores",
        "the standard deviation of the reward model's scores on SFT samples, before they are divided by it,",
        scale["std"],
        low=1e-6,
        remedy="all samples have the same score: is this a reward model for such texts?",
    )
    # 3. What it is worth on the pairs.
    pairs = [p for p in getattr(read_pairs(stage.inputs["pairs"]), part) if p.chosen != p.rejected][:_PAIRS]
    sides = []
    for side in ("chosen", "rejected"):
        rows = reader.written([p.prompt for p in pairs], [getattr(p, side) for p in pairs])
        sides.append(reader.standardized(rows).double().cpu())
    margins = (sides[0] - sides[1]).tolist()
    model = reader.reward.model
    if not isinstance(model, ScalarModel):  # its weights are elsewhere
        model, _ = load_reward_model(here)
    keep_examples(stage, model, pairs, inner, reader.tokenizer)
    within = counts([p.prompt.kind for p in pairs], margins)
    facts = {
        "held_out_accuracy": within["all"]["right"] / len(pairs),
        "held_out_pairs": len(pairs),
        "trained_on": 0,
        "calibration": calibration(margins),
        "accuracy": {"in_distribution": within, **length_controls(pairs, margins)},
    }
    stage.finish(steps=0, family="reward model, given", part=part, reads_again=reader.is_foreign, **facts)
