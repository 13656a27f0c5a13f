"""Folders that are handed in, looked at before any weight is read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trueline.data.chat import ChatTokenizer
from trueline.errors import InputError
from trueline.models.checkpoints import read_config
from trueline.models.folders import check_weights

__all__ = ["JUDGES", "check_checkpoint"]

JUDGES = ("reward", "judge")
"""Names that are no arms: a reward model that is reported as the proxy, and one that is taken for gold."""


def check_checkpoint(name: str, folder: Path, sections: Mapping[str, Any]) -> None:
    """Raise InputError unless the folder holds a policy, or for the names in `JUDGES` a reward model, its tokenizer
    and with room for the study's prompts and responses."""
    shape, tokenizer = read_config(folder), ChatTokenizer.load(folder)
    score = check_weights(folder).get("score.weight")
    if name in JUDGES and (score is None or score[0] != 1):
        raise InputError(
            "no one-label sequence classifier" if score is None else f"a classifier of {score[0]} labels, not of one",
            where=str(folder),
            field=name,
            remedy="give a reward model: AutoModelForSequenceClassification with num_labels=1, as it saves itself",
        )
    if name not in JUDGES and score is not None:
        raise InputError(
            "a classifier, not a language model",
            where=str(folder),
            field=name,
            remedy="give a policy; a reward model is given as reward=FOLDER or judge=FOLDER",
        )
    need = sections["model"].max_prompt_tokens + sections["model"].max_new_tokens
    if name not in JUDGES and shape.max_positions < need:
        raise InputError(
            f"the context is {shape.max_positions} tokens, prompt and response may take {need}",
            where=str(folder),
            field="max_position_embeddings",
            remedy="lower model.max_prompt_tokens or model.max_new_tokens",
        )
    if shape.vocab_size < tokenizer.vocab_size:
        raise InputError(
            f"{shape.vocab_size} embeddings for a tokenizer of {tokenizer.vocab_size}",
            where=str(folder),
            field="vocab_size",
            remedy="use the tokenizer that belongs to the model",
        )
