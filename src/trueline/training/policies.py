"""Where a stage's models come from and where they go: folders of earlier cells, a user's checkpoint, or nothing."""

from __future__ import annotations

from pathlib import Path

from trueline.errors import InputError
from trueline.models.checkpoints import load_decoder, load_scalar, save_model
from trueline.models.decoder import Decoder, DecoderConfig
from trueline.models.heads import ScalarModel
from trueline.models.tiny import make_decoder
from trueline.runs import checkpoint
from trueline.runs.cell import read_json
from trueline.seeds import derive
from trueline.training.stage import Stage

__all__ = [
    "load_policy",
    "load_reward_model",
    "load_start",
    "save_critic",
    "save_policy",
    "save_reward_model",
    "start_policy",
]


def start_policy(stage: Stage, *, fresh: bool = False, start: str = "sft") -> Decoder:
    """The policy to train: that of the input cell `start`; for SFT the user's checkpoint or a fresh model."""
    if not fresh:
        return load_policy(stage, start)
    source = stage.inputs.get("model")
    if source is not None:
        return stage.placed(_check(load_decoder(source), stage, source))
    shape = DecoderConfig(**read_json(stage.inputs["shape"]))
    return stage.placed(make_decoder(shape, derive(stage.seed, "sft/init")))


def load_policy(stage: Stage, name: str) -> Decoder:
    """The final policy of an input cell."""
    return stage.placed(load_decoder(stage.inputs[name] / "model"))


def load_start(stage: Stage) -> Decoder:
    """What a method starts from: SFT, or the input `start` at the checkpoint that the selection `start_pick` chose."""
    if "start" not in stage.inputs:
        return load_policy(stage, "sft")
    policy = load_policy(stage, "start")
    if "start_pick" in stage.inputs:
        step = read_json(stage.inputs["start_pick"] / "selection.json")["picks"]["selected"]
        if step:
            policy.load_state_dict(checkpoint.read_policy(stage.inputs["start"] / "checkpoints", step))
    return policy


def load_reward_model(stage: Stage, name: str = "reward") -> tuple[ScalarModel, dict[str, float]]:
    """The reward model of an input cell, with the mean and standard deviation of its scores on SFT samples."""
    folder = stage.inputs[name] / "reward_model"
    return stage.placed(load_scalar(folder, bias=False)), read_json(folder / "calibration.json")


def save_policy(stage: Stage, policy: Decoder) -> None:
    """`model/`: a Hugging Face causal language model with its tokenizer."""
    ends = stage.tokenizer.end_ids  # what the policy was trained to end with, whatever its start's folder named
    stops = {"eos_token_id": list(ends) if len(ends) > 1 else ends[0]}
    save_model(policy, stage.cell / "model", generation=stops)
    stage.tokenizer.save(stage.cell / "model")


def save_critic(stage: Stage, critic: ScalarModel) -> None:
    """`critic/`: a one-label token classifier."""
    save_model(critic, stage.cell / "critic")
    stage.tokenizer.save(stage.cell / "critic")


def save_reward_model(stage: Stage, model: ScalarModel) -> None:
    """`reward_model/`: a one-label sequence classifier."""
    save_model(model, stage.cell / "reward_model")
    stage.tokenizer.save(stage.cell / "reward_model")


def _check(policy: Decoder, stage: Stage, source: Path) -> Decoder:
    need = stage.limits.max_prompt_tokens + stage.limits.max_new_tokens
    if policy.config.max_positions < need:
        raise InputError(
            f"the context is {policy.config.max_positions} tokens, prompt and response may take {need}",
            where=str(source),
            field="max_position_embeddings",
            remedy="lower model.max_prompt_tokens or model.max_new_tokens",
        )
    if policy.config.vocab_size < stage.tokenizer.vocab_size:
        raise InputError(
            f"{policy.config.vocab_size} embeddings for a tokenizer of {stage.tokenizer.vocab_size}",
            where=str(source),
            field="vocab_size",
            remedy="use the tokenizer that belongs to the model",
        )
    return policy
