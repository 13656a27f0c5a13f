"""Rows of SafeRLHF: a prompt, two responses, a safety flag of each, and which is the more helpful and which the safer.

Columns are those of the published files (PKU-SafeRLHF, Ji et al. 2023 and 2024); others are left alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trueline.data.formats.rows import Format, Record, RowProblem, need_columns
from trueline.data.safety import pair_of_labels
from trueline.types import Prompt

__all__ = ["SAFE_RLHF"]

_NOTES = ("dual_safe", "mixed_safety", "dual_unsafe", "labels_in_conflict", "safer_against_flags")
"""Counted of rows that are kept: the sorts that filters go by, rows whose two labels name different responses, and rows
whose safer response is flagged unsafe while the other is flagged safe."""

_RESPONSES = ("response_0", "response_1")
_FLAGS = ("is_response_0_safe", "is_response_1_safe")
_LABELS = ("better_response_id", "safer_response_id")


def _read(row: Mapping[str, Any]) -> list[Record]:
    """The row as a pair, by the rule of `data.safety.pair_of_labels`.

    Raises RowProblem for a column that is missing or of another type, a label that is neither 0 nor 1, an empty text,
    equal responses.
    """
    need_columns(row, ("prompt", *_RESPONSES), (str,))
    need_columns(row, _FLAGS, (bool,))
    need_columns(row, _LABELS, (int,))
    for column in _LABELS:
        if row[column] not in (0, 1):
            raise RowProblem("wrong_label", column, f"expected 0 or 1, got {row[column]}")
    if not row["prompt"].strip():
        raise RowProblem("empty_prompt", "prompt", "is empty")
    for column in _RESPONSES:
        if not row[column].strip():
            raise RowProblem("empty_responses", column, "the response is empty")
    if row["response_0"] == row["response_1"]:
        raise RowProblem("identical_pairs", "response_1", "equals response_0")
    safe = (row[_FLAGS[0]], row[_FLAGS[1]])
    better, safer = (row[column] for column in _LABELS)
    responses = (row["response_0"], row["response_1"])
    pair = pair_of_labels(Prompt.ask(row["prompt"]), responses, better=better, safer=safer, safe=safe)
    sort = ("dual_unsafe", "mixed_safety", "dual_safe")[sum(safe)]
    notes = [sort, *(["labels_in_conflict"] if better != safer else [])]
    if safe[0] != safe[1] and not safe[safer]:
        notes.append("safer_against_flags")
    return [Record(pair, tuple(notes))]


SAFE_RLHF = Format(
    "safe-rlhf",
    lambda row: all(name in row for name in _RESPONSES),
    lambda row: {
        "prompt": "prompt",
        "chosen": "response_0 or response_1: the more helpful where both are safe, else the safer",
        "rejected": "the other",
    },
    read=_read,
    notes=_NOTES,
    flags=_FLAGS,
    numbers=_LABELS,
)
