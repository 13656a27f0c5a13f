"""How preference files are written, one page per family: which columns play which role, and what can be wrong."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trueline.data.formats.comparisons import ARENA, HELPSTEER2_PREFERENCE, HELPSTEER3
from trueline.data.formats.hh_rlhf import HH_RLHF
from trueline.data.formats.labelled import HELPSTEER, KTO
from trueline.data.formats.llama_factory import ALPACA, SHAREGPT
from trueline.data.formats.pairs import MESSAGES, PAIRS
from trueline.data.formats.ranked import NEMO, REWARD_BENCH, ULTRAFEEDBACK
from trueline.data.formats.rows import Format
from trueline.data.formats.safe_rlhf import SAFE_RLHF

__all__ = ["FORMATS", "detect", "not_preferences"]

# In this order: the first whose columns are there is the format, so the particular stand before the plain.
FORMATS: Mapping[str, Format] = {
    format.name: format
    for format in (
        SAFE_RLHF, REWARD_BENCH, ULTRAFEEDBACK, NEMO, HELPSTEER2_PREFERENCE, HELPSTEER3, ARENA, HELPSTEER, KTO,
        SHAREGPT, ALPACA, MESSAGES, HH_RLHF, PAIRS,
    )
}  # fmt: skip


def detect(row: Mapping[str, Any]) -> str | None:
    """The format that this row is written in, or None if it fits none."""
    return next((name for name, format in FORMATS.items() if format.matches(row)), None)


def not_preferences(row: Mapping[str, Any]) -> str:
    """What a row is, in words, where it is of a known kind that holds no comparison; "" where that is not known."""
    if "reward_model" in row and "prompt" in row:
        return "prompts with a ground truth (verl), not comparisons"
    if "messages" in row and not {"chosen", "rejected", "completion"} & row.keys():
        return "conversations without a second response, not comparisons"
    if {"prompt", "completion"} <= row.keys() and "label" not in row and not {"chosen", "rejected"} & row.keys():
        return "prompts with one completion and no label, not comparisons"
    if {"instruction", "output"} <= row.keys() and not {"chosen", "rejected", "kto_tag"} & row.keys():
        return "instructions with one answer (alpaca), not comparisons"
    return ""
