"""Rows of a prompt with a chosen and a rejected response: `pairs` under many names of its columns, and `messages`.

The columns are those of TRL, and through `data.columns` and the synonyms below those of others: OpenRLHF's keys, the
question of Orca's pairs, an instruction without input. Where two columns could be the prompt, neither is taken.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trueline.data.formats.conversations import answer_of, asked, need_answer, read_messages, system_of
from trueline.data.formats.rows import Format, Record, RowProblem, need_columns, pair_of
from trueline.types import Message, Prompt

__all__ = ["MESSAGES", "PAIRS", "SYNONYMS"]

SYNONYMS = {
    "prompt": ("prompt", "question", "instruction", "query", "input", "problem"),
    "chosen": ("chosen", "chosen_response", "response_chosen", "preferred", "preferred_response", "answer_chosen"),
    "rejected": (
        "rejected", "rejected_response", "response_rejected", "dispreferred", "dispreferred_response",
        "non_preferred", "answer_rejected", "reject",
    ),
    "system": ("system", "system_prompt"),
}  # fmt: skip


def _columns(row: Mapping[str, Any]) -> dict[str, str]:
    """Role -> column, the plain name where several stand there; a role with none, or with two synonyms, is left out."""
    found = {}
    for role, names in SYNONYMS.items():
        here = [name for name in names if name in row]
        if role in row:
            found[role] = role
        elif len(here) == 1:
            found[role] = here[0]
    return found


def _matches(row: Mapping[str, Any]) -> bool:
    columns = _columns(row)
    return "prompt" in row or {"prompt", "chosen", "rejected"} <= columns.keys()


def _read(row: Mapping[str, Any]) -> list[Record]:
    columns = _columns(row)
    names = [columns.get(role, role) for role in ("prompt", "chosen", "rejected")]
    _explain(row, columns)
    need_columns(row, names, (str, list, dict))
    for name in names[:1]:
        need_columns(row, (name,), (str, list))
    system = system_of(row, columns["system"]) if "system" in columns else None
    prompt = asked(row[names[0]], names[0], system)
    chosen, rejected = (_response(row[name], name, prompt.messages) for name in names[1:])
    return [Record(pair_of(prompt, chosen, rejected, (names[1], names[2])))]


def _explain(row: Mapping[str, Any], columns: Mapping[str, str]) -> None:
    """Say more than that a column is missing, where more is known."""
    if "prompt" in columns:
        return
    several = [name for name in SYNONYMS["prompt"] if name in row]
    if len(several) > 1:
        reason = f"{' and '.join(map(repr, several))} could each be the prompt"
        raise RowProblem("missing_field", "prompt", reason, f"say which: data.columns=prompt={several[0]}")
    if all(isinstance(row.get(side), str) for side in ("chosen", "rejected")):
        remedy = "add a prompt column: where the response begins cannot be known from two texts"
        raise RowProblem("missing_field", "prompt", "missing", remedy)


def _response(value: str | dict[str, Any] | list[Any], field: str, prompt: tuple[Message, ...]) -> str:
    """A text, one assistant turn, or the whole conversation with the prompt repeated."""
    if isinstance(value, str):
        text = value
    elif isinstance(value, dict):
        if "role" not in value:
            raise RowProblem("wrong_type", field, "expected a text or a list of messages, got dict")
        text = answer_of(value, field)
    elif len(value) == 1:
        text = answer_of(value[0], field)
    else:
        turns = read_messages(value, field, last_may_be_empty=True)
        need_answer(turns, field)
        if turns[:-1] != prompt:
            raise RowProblem("differing_prompts", field, "its turns before the last are not the prompt")
        text = turns[-1].content
    if not text.strip():
        raise RowProblem("empty_responses", field, "the response is empty")
    return text


def _read_messages(row: Mapping[str, Any]) -> list[Record]:
    need_columns(row, ("chosen", "rejected"), (list,))
    chosen, rejected = (read_messages(row[side], side, last_may_be_empty=True) for side in ("chosen", "rejected"))
    for turns, side in ((chosen, "chosen"), (rejected, "rejected")):
        need_answer(turns, side)
        if not turns[-1].content.strip():
            raise RowProblem("empty_responses", side, f"turn {len(turns)}: the response is empty")
    if chosen[:-1] != rejected[:-1]:
        same = next((i for i, (a, b) in enumerate(zip(chosen[:-1], rejected[:-1])) if a != b), None)
        turn = (min(len(chosen), len(rejected)) - 1 if same is None else same) + 1
        raise RowProblem("differing_prompts", "rejected", f"turn {turn}: differs from chosen before the last turn")
    prompt = Prompt(chosen[:-1])
    return [Record(pair_of(prompt, chosen[-1].content, rejected[-1].content, ("chosen", "rejected")))]


PAIRS = Format("pairs", _matches, _columns, read=_read)
MESSAGES = Format(
    "messages",
    lambda row: "prompt" not in row and all(isinstance(row.get(side), list) for side in ("chosen", "rejected")),
    lambda row: {
        "prompt": "the turns of chosen before its last",
        "chosen": "last turn of chosen",
        "rejected": "last turn of rejected",
    },
    read=_read_messages,
)
