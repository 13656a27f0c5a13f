"""Rows of LLaMA-Factory: `alpaca` (instruction, input, and two sides) and `sharegpt` (conversations, and two sides)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trueline.data.formats.conversations import answer_of, asked, system_of
from trueline.data.formats.rows import Format, Record, RowProblem, need_columns, pair_of
from trueline.types import Prompt

__all__ = ["ALPACA", "SHAREGPT", "instruction_of", "is_alpaca", "sharegpt_turns"]

_SIDES = ("chosen", "rejected")


def is_alpaca(row: Mapping[str, Any]) -> bool:
    """Whether the prompt is an instruction with an input, in columns of these names."""
    return "instruction" in row and "input" in row


def instruction_of(row: Mapping[str, Any]) -> Prompt:
    """Instruction and input joined by a line break, after the system text and the question-answer turns of history."""
    need_columns(row, ("instruction",), (str,))
    extra = row.get("input") or ""
    if not isinstance(extra, str):
        raise RowProblem("wrong_type", "input", f"expected a text, got {type(extra).__name__}")
    text = "\n".join(part for part in (row["instruction"], extra) if part)
    turns, history = [], row.get("history") or []
    if not isinstance(history, list):
        raise RowProblem("wrong_type", "history", f"expected a list, got {type(history).__name__}")
    for number, turn in enumerate(history, 1):
        if not isinstance(turn, list | tuple) or len(turn) != 2 or not all(isinstance(part, str) for part in turn):
            raise RowProblem("wrong_type", "history", f"turn {number}: expected [question, answer]")
        turns += [{"role": "user", "content": turn[0]}, {"role": "assistant", "content": turn[1]}]
    if not text.strip():
        raise RowProblem("empty_prompt", "instruction", "is empty")
    return asked([*turns, {"role": "user", "content": text}], "history" if turns else "instruction", system_of(row))


def _read_alpaca(row: Mapping[str, Any]) -> list[Record]:
    prompt = instruction_of(row)
    need_columns(row, _SIDES, (str,))
    return [Record(pair_of(prompt, row["chosen"], row["rejected"], _SIDES))]


ALPACA = Format(
    "alpaca",
    lambda row: is_alpaca(row) and all(side in row for side in _SIDES),
    lambda row: (
        {"prompt": "instruction, then input", "chosen": "chosen", "rejected": "rejected"}
        | {name: name for name in ("system", "history") if row.get(name)}
    ),
    read=_read_alpaca,
)


def sharegpt_turns(row: Mapping[str, Any]) -> tuple[str, list[Any], bool]:
    """Column, turns and whether these are {from, value}: `conversations`, or `messages` in the form of OpenAI."""
    column = "conversations" if "conversations" in row else "messages"
    need_columns(row, (column,), (list,))
    turns = row[column]
    return column, turns, bool(turns) and isinstance(turns[0], dict) and "from" in turns[0]


def _read_sharegpt(row: Mapping[str, Any]) -> list[Record]:
    column, turns, sharegpt = sharegpt_turns(row)
    prompt = asked(turns, column, system_of(row), sharegpt=sharegpt)
    sides = []
    for side in _SIDES:
        need_columns(row, (side,), (dict, str))
        value = row[side]
        sides.append(value if isinstance(value, str) else answer_of(value, side, sharegpt="from" in value))
    return [Record(pair_of(prompt, sides[0], sides[1], _SIDES))]


SHAREGPT = Format(
    "sharegpt",
    lambda row: bool({"conversations", "messages"} & row.keys()) and all(side in row for side in _SIDES),
    lambda row: (
        {"prompt": sharegpt_turns(row)[0], "chosen": "chosen", "rejected": "rejected"}
        | ({"system": "system"} if row.get("system") else {})
    ),
    read=_read_sharegpt,
)
