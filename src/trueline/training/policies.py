"""Where a stage's models come from and where they go: folders of earlier cells, a user's checkpoint, or nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Generic, Literal, TypeVar

import torch
from torch import Tensor

from trueline.distributed.sharding import emptied, is_sharded, part, whole_for_leader
from trueline.errors import InputError
from trueline.models.adapters import Quantize, fresh_adapter
from trueline.models.checkpoints import Stored, load_decoder, load_scalar, save_model
from trueline.models.decoder import Decoder, DecoderConfig
from trueline.models.fingerprints import fingerprint
from trueline.models.heads import ScalarModel, scalar_from
from trueline.models.tiny import make_decoder
from trueline.runs import checkpoint
from trueline.runs.cell import read_json
from trueline.seeds import derive
from trueline.training.preflight import scored_gate
from trueline.training.stage import Stage

__all__ = [
    "Lent",
    "lent_policy",
    "lent_reward_model",
    "load_policy",
    "load_reward_model",
    "load_start",
    "policy_in",
    "read_reward_model",
    "save_critic",
    "save_policy",
    "save_reward_model",
    "scalar_of",
    "start_policy",
]

LENT_FROM = 64 * 2**20  # bytes of weights
Model = TypeVar("Model", Decoder, ScalarModel)


def start_policy(stage: Stage, *, fresh: bool = False, start: str = "sft") -> Decoder:
    """The policy to train: that of the input cell `start`; for SFT the user's checkpoint or a fresh model."""
    if not fresh:
        return load_policy(stage, start)
    source = stage.inputs.get("model")
    if source is not None and stage.limits.lora is not None:
        policy = fresh_adapter(source, stage.limits.lora, derive(stage.seed, "sft/lora"))
        return stage.placed(_check(policy, stage, source))
    if source is not None:
        policy = policy_in(stage, source)
        return _check(policy, stage, source)
    shape = DecoderConfig(**read_json(stage.inputs["shape"]))
    return stage.placed(make_decoder(shape, derive(stage.seed, "sft/init")))


def load_policy(stage: Stage, name: str) -> Decoder:
    """The final policy of an input cell."""
    return policy_in(stage, stage.inputs[name] / "model")


def policy_in(stage: Stage, folder: Path) -> Decoder:
    """The policy in a folder, an adapter's base held as the settings say."""
    return _in_parts(stage, folder, "policy") or stage.placed(load_decoder(folder, quantize=_quantize(stage)))


def _in_parts(stage: Stage, folder: Path, kind: Literal["policy", "reward"]) -> Decoder | ScalarModel | None:
    """The model in a folder, of which each process reads its part; None where it is read whole first."""
    if stage.world.size == 1 or not Stored.has(folder):
        return None
    stored = Stored(folder, kind)
    return stage.placed(stored.model, stored.rows)


def scalar_of(stage: Stage, source: Decoder | ScalarModel, *, bias: bool, keep_head: bool = False) -> ScalarModel:
    """A scalar model with a trunk of its own that equals the source's; see `models.heads.scalar_from`."""
    if not is_sharded(source):
        return stage.placed(scalar_from(source, bias=bias, keep_head=keep_head))
    held = {name: part(tensor.detach()) for name, tensor in source.named_parameters()}

    def rows(name: str, start: int, stop: int) -> Tensor:
        if name.startswith("trunk.") or (keep_head and name == "score.weight"):
            return held[name].clone()  # parts of equal weights are the same rows
        return torch.zeros(max(0, stop - start), *shapes[name][1:])

    model = ScalarModel(source.config, bias=bias, trunk=emptied(source).trunk)
    model.score.to(next(source.parameters()).dtype).to("meta")
    shapes = {name: tensor.shape for name, tensor in model.named_parameters()}
    return stage.placed(model, rows)


def _quantize(stage: Stage) -> Quantize:
    return "none" if stage.limits.lora is None else stage.limits.lora.quantize


class Lent(Generic[Model]):
    """A model of an input that is needed for a while in each step: it need not lie beside the step's peak.

    A small one stays in memory. A larger one is read again each time, or, on a GPU, waits in the host's memory.
    """

    def __init__(self, stage: Stage, read: Callable[[], Model]) -> None:
        self._stage, self._read = stage, read
        self._kept: Model | None = read()
        self.config, self.parameter_count = self._kept.config, self._kept.parameter_count
        self.stays = 4 * self.parameter_count < LENT_FROM or stage.world.size > 1
        if not self.stays and stage.device.type != "cpu":
            self._kept = self._kept.to("cpu")

    @contextmanager
    def here(self) -> Iterator[Model]:
        """The model, for as long as it is needed."""
        if self.stays:
            yield self._kept
        elif self._stage.device.type == "cpu":
            model, self._kept = self._kept, None  # the first time it was just read
            yield self._read() if model is None else model
        else:
            yield self._kept.to(self._stage.device)
            self._kept.to("cpu")


def lent_policy(stage: Stage, name: str) -> Lent[Decoder]:
    """The final policy of an input cell, lent."""
    return Lent(stage, lambda: load_policy(stage, name))


def load_start(stage: Stage) -> Decoder:
    """What a method starts from: SFT, or the input `start` at the checkpoint that the selection `start_pick` chose."""
    if "start" not in stage.inputs:
        return load_policy(stage, "sft")
    policy = load_policy(stage, "start")
    if "start_pick" in stage.inputs:
        step = read_json(stage.inputs["start_pick"] / "selection.json")["picks"]["selected"]
        if step:
            checkpoint.put_policy(stage.inputs["start"] / "checkpoints", step, policy)
    return policy


def load_reward_model(stage: Stage, name: str = "reward") -> tuple[ScalarModel, dict[str, float]]:
    """The reward model of an input cell, with the mean and standard deviation of its scores on SFT samples."""
    model = read_reward_model(stage, name)
    return model, _calibration(stage, name, model)


def lent_reward_model(stage: Stage, name: str = "reward") -> tuple[Lent[ScalarModel], dict[str, float]]:
    """The same, lent."""
    lent = Lent(stage, lambda: read_reward_model(stage, name))
    with lent.here() as model:
        return lent, _calibration(stage, name, model)


def read_reward_model(stage: Stage, name: str) -> ScalarModel:
    """Its weights alone."""
    folder = stage.inputs[name] / "reward_model"
    return _in_parts(stage, folder, "reward") or stage.placed(
        load_scalar(folder, bias=False, quantize=_quantize(stage))
    )


def _calibration(stage: Stage, name: str, model: ScalarModel) -> dict[str, float]:
    """The scale of its scores, once it scored its examples as it did when it was trained (a gate)."""
    folder = stage.inputs[name] / "reward_model"
    if (folder / "examples.json").exists():
        scored_gate(stage, model, folder)
    return read_json(folder / "calibration.json")


def save_policy(stage: Stage, policy: Decoder) -> None:
    """`model/`: a Hugging Face causal language model with its tokenizer."""
    ends = stage.tokenizer.end_ids  # what the policy was trained to end with, whatever its start's folder named
    stops = {"eos_token_id": list(ends) if len(ends) > 1 else ends[0]}
    held = whole_for_leader(policy, stage.world)
    if held is not None:
        save_model(held, stage.cell / "model", generation=stops)
        stage.tokenizer.save(stage.cell / "model")
    stage.facts["fingerprint"] = stage.world.from_leader(fingerprint(held) if held is not None else None)


def save_critic(stage: Stage, critic: ScalarModel) -> None:
    """`critic/`: a one-label token classifier."""
    _save_classifier(stage, critic, stage.cell / "critic")


def save_reward_model(stage: Stage, model: ScalarModel) -> None:
    """`reward_model/`: a one-label sequence classifier."""
    _save_classifier(stage, model, stage.cell / "reward_model")


def _save_classifier(stage: Stage, model: ScalarModel, folder: Path) -> None:
    """Other tools take a row's last token that is not padding for its end: a pad that ends answers would hide it."""
    tokenizer = stage.tokenizer
    spare = [tokenizer.pad_id, *tokenizer.forbidden_ids]
    pad = next((i for i in spare if i not in tokenizer.end_ids), tokenizer.pad_id)
    held = whole_for_leader(model, stage.world)
    if held is None or not stage.world.leads:
        folder.mkdir(parents=True, exist_ok=True)
        return
    save_model(held, folder, pad_id=pad)
    tokenizer.save(folder, pad_id=pad)


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
