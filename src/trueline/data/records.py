"""One raw row to one `Pair`: formats `pairs`, `messages`, `hh-rlhf`, `safe-rlhf`, and what can be wrong with a row."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from trueline.data.row_problems import Record, RowProblem, need_columns
from trueline.data.safe_rlhf import is_safe_rlhf, read_safe_rlhf
from trueline.types import Message, Pair, Prompt

__all__ = [
    "FORMATS",
    "HH_DROPPED",
    "HH_NOTES",
    "Record",
    "RowProblem",
    "detect",
    "parse_hh",
    "read_record",
    "render_hh",
]

FORMATS = ("pairs", "messages", "hh-rlhf", "safe-rlhf")
ROLES = ("system", "user", "assistant")

# Quirks of the published HH-RLHF files with which a row is kept, and counted; those of `HH_CHECKS` drop it.
HH_NOTES = (
    "role_word_in_text",
    "misspelt_role",
    "missing_space",
    "extra_space",
    "invisible_characters",
    "replacement_characters",
)

MARKER = re.compile(r"\n\n(Human|Assistant):")
ROLE_WORD = re.compile(r"\b(?:Human|Assistant):")
MISSPELT = re.compile(r"\n\s*(?:(?:Humans|Assistants|human|assistant|User|AI):|(?:Human|Assistant)[ \t]*(?=\n|$))")
INVISIBLE = re.compile("[\u200b-\u200f\u2028\u2029\u2060\ufeff\x01-\x08\x0b\x0c\x0e-\x1f]")


def detect(row: Mapping[str, Any]) -> str | None:
    """The format that this row is written in, or None if it fits none."""
    chosen, rejected = row.get("chosen"), row.get("rejected")
    if is_safe_rlhf(row):
        return "safe-rlhf"
    if "prompt" in row:
        return "pairs"
    if isinstance(chosen, list) and isinstance(rejected, list):
        return "messages"
    if isinstance(chosen, str) and isinstance(rejected, str) and MARKER.search(chosen) and MARKER.search(rejected):
        return "hh-rlhf"
    return None


def read_record(row: Mapping[str, Any], format: str) -> Record:
    """The row as a pair. Raises `RowProblem`, whose `name` is in `HH_DROPPED` for a known quirk of HH-RLHF."""
    readers = {"pairs": _pairs, "messages": _messages_pair, "hh-rlhf": _hh, "safe-rlhf": read_safe_rlhf}
    return readers[format](row)


# --- pairs and messages ------------------------------------------------------------------------------------------


def _pairs(row: Mapping[str, Any]) -> Record:
    need_columns(row, ("prompt", "chosen", "rejected"), (str, list))
    if isinstance(row["prompt"], str):
        if not row["prompt"].strip():
            raise RowProblem("empty_prompt", "prompt", "is empty")
        messages = (Message("user", row["prompt"]),)
    else:
        messages = read_messages(row["prompt"], "prompt")
        if messages[-1].role == "assistant":
            raise RowProblem("wrong_roles", "prompt", f"turn {len(messages)}: the prompt ends with the assistant")
    return _record(
        messages, _response(row["chosen"], "chosen", messages), _response(row["rejected"], "rejected", messages)
    )


def _response(value: str | list[Any], field: str, prompt: tuple[Message, ...]) -> str:
    """A text, a list of one assistant turn, or the whole conversation with the prompt repeated."""
    if isinstance(value, str):
        text = value
    elif len(value) == 1:
        text = _message(value[0], 0, field).content
        if value[0]["role"] != "assistant":
            raise RowProblem("wrong_roles", field, "turn 1: the response is not the assistant's")
    else:
        turns = read_messages(value, field, last_may_be_empty=True)
        _need_answer(turns, field)
        if turns[:-1] != prompt:
            raise RowProblem("differing_prompts", field, "its turns before the last are not the prompt")
        text = turns[-1].content
    if not text.strip():
        raise RowProblem("empty_response", field, "the response is empty")
    return text


def _messages_pair(row: Mapping[str, Any]) -> Record:
    need_columns(row, ("chosen", "rejected"), (list,))
    chosen, rejected = (read_messages(row[side], side, last_may_be_empty=True) for side in ("chosen", "rejected"))
    for turns, side in ((chosen, "chosen"), (rejected, "rejected")):
        _need_answer(turns, side)
        if not turns[-1].content.strip():
            raise RowProblem("empty_response", side, f"turn {len(turns)}: the response is empty")
    if chosen[:-1] != rejected[:-1]:
        same = next((i for i, (a, b) in enumerate(zip(chosen[:-1], rejected[:-1])) if a != b), None)
        turn = (min(len(chosen), len(rejected)) - 1 if same is None else same) + 1
        raise RowProblem("differing_prompts", "rejected", f"turn {turn}: differs from chosen before the last turn")
    return _record(chosen[:-1], chosen[-1].content, rejected[-1].content)


def read_messages(value: Any, field: str, *, last_may_be_empty: bool = False) -> tuple[Message, ...]:
    """A conversation whose roles are in order; raises `RowProblem` with the turn, counted from 1."""
    if not isinstance(value, list) or not value:
        raise RowProblem("wrong_type", field, "expected a list of messages with at least one turn")
    turns = tuple(_message(item, i, field) for i, item in enumerate(value))
    for i, turn in enumerate(turns):
        if turn.role == "system" and i > 0:
            what = "a second system turn" if turns[0].role == "system" else "the system turn is not the first"
            raise RowProblem("wrong_roles", field, f"turn {i + 1}: {what}")
        if turn.role == "assistant" and all(t.role == "system" for t in turns[:i]):
            raise RowProblem("wrong_roles", field, f"turn {i + 1}: the assistant speaks before the user")
        if not turn.content.strip() and not (last_may_be_empty and i == len(turns) - 1):
            raise RowProblem("empty_turn", field, f"turn {i + 1}: the content is empty")
    if turns[-1].role == "system":
        raise RowProblem("wrong_roles", field, f"turn {len(turns)}: no turn follows the system turn")
    return turns


def _message(item: Any, index: int, field: str) -> Message:
    if not isinstance(item, dict) or not isinstance(item.get("role"), str) or not isinstance(item.get("content"), str):
        raise RowProblem("wrong_type", field, f'turn {index + 1}: expected {{"role": text, "content": text}}')
    if item["role"] not in ROLES:
        remedy = {"human": "write user", "gpt": "write assistant"}.get(item["role"], f"roles are {', '.join(ROLES)}")
        raise RowProblem("wrong_roles", field, f"turn {index + 1}: unknown role {item['role'][:40]!r}", remedy)
    return Message(item["role"], item["content"])


def _need_answer(turns: Sequence[Message], field: str) -> None:
    if turns[-1].role != "assistant":
        raise RowProblem("wrong_roles", field, f"turn {len(turns)}: the last turn is not the assistant's")
    if len(turns) < 2:
        raise RowProblem("wrong_roles", field, "turn 1: no prompt before the response")


def _record(prompt: tuple[Message, ...], chosen: str, rejected: str, notes: tuple[str, ...] = ()) -> Record:
    if chosen == rejected:
        raise RowProblem("identical_pairs", "rejected", "equals chosen")
    return Record(Pair(Prompt(prompt), chosen, rejected), notes)


# --- HH-RLHF -----------------------------------------------------------------------------------------------------


def parse_hh(dialogue: str) -> tuple[Message, ...]:
    """The turns of "\\n\\nHuman: ...\\n\\nAssistant: ...", outer white space taken off.

    A marker counts only after an empty line: "Human:" inside a line, or after one line break, is text. Raises
    `RowProblem` where no marker begins the dialogue.
    """
    before, *parts = MARKER.split(dialogue)
    if not parts or before.strip():
        raise RowProblem("not_a_dialogue", "", "does not begin with '\\n\\nHuman:' or '\\n\\nAssistant:'")
    roles = {"Human": "user", "Assistant": "assistant"}
    return tuple(Message(roles[name], text.strip()) for name, text in zip(parts[::2], parts[1::2]))


def render_hh(messages: Sequence[Message]) -> str:
    """The inverse of `parse_hh` on regular dialogues."""
    names = {"user": "Human", "assistant": "Assistant"}
    return "".join(f"\n\n{names[m.role]}: {m.content}" for m in messages)


def _hh(row: Mapping[str, Any]) -> Record:
    need_columns(row, ("chosen", "rejected"), (str,))
    sides = {}
    for side in ("chosen", "rejected"):
        try:
            sides[side] = parse_hh(row[side])
        except RowProblem as problem:
            raise RowProblem(problem.name, side, problem.reason) from None
    chosen, rejected = sides["chosen"], sides["rejected"]
    for name, is_wrong in HH_CHECKS.items():
        if is_wrong(chosen, rejected):
            raise RowProblem(name, "", name.replace("_", " "))
    return Record(Pair(Prompt(chosen[:-1]), chosen[-1].content, rejected[-1].content), _hh_notes(row))


def _either(test: Callable[[Sequence[Message]], bool]) -> Callable[..., bool]:
    return lambda chosen, rejected: test(chosen) or test(rejected)


# In this order: a row is counted under the first that holds.
HH_CHECKS: dict[str, Callable[[Sequence[Message], Sequence[Message]], bool]] = {
    "identical_pairs": lambda chosen, rejected: chosen == rejected,
    "assistant_first": _either(lambda turns: turns[0].role == "assistant"),
    "ends_with_human": _either(lambda turns: turns[-1].role == "user"),
    "differing_prompts": lambda chosen, rejected: chosen[:-1] != rejected[:-1],
    "consecutive_turns": _either(lambda turns: any(a.role == b.role for a, b in pairwise(turns))),
    "empty_turn": _either(lambda turns: any(not turn.content for turn in turns[:-1])),
    "empty_response": _either(lambda turns: not turns[-1].content),
}
HH_DROPPED = tuple(HH_CHECKS)


def _hh_notes(row: Mapping[str, str]) -> tuple[str, ...]:
    raw = [text for side in ("chosen", "rejected") for text in MARKER.split(row[side])[2::2]]
    found = {
        "role_word_in_text": any(ROLE_WORD.search(text) for text in raw),
        "misspelt_role": any(MISSPELT.search(text) for text in raw),
        "missing_space": any(not text[0].isspace() for text in raw),
        "extra_space": any(text.removeprefix(" ") != text.strip() for text in raw),
        "invisible_characters": any(INVISIBLE.search(text) for text in raw),
        "replacement_characters": any("\ufffd" in text for text in raw),
    }
    return tuple(name for name in HH_NOTES if found[name])
