"""Rows of HH-RLHF: two dialogues in one text each, their shared turns first (Bai et al. 2022, arXiv 2204.05862)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from trueline.data.formats.rows import Format, Record, RowProblem, need_columns
from trueline.types import Message, Pair, Prompt

__all__ = ["HH_DROPPED", "HH_NOTES", "HH_RLHF", "parse_hh", "render_hh"]

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


def _read(row: Mapping[str, Any]) -> list[Record]:
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
    return [Record(Pair(Prompt(chosen[:-1]), chosen[-1].content, rejected[-1].content), _notes(row))]


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
    "empty_responses": _either(lambda turns: not turns[-1].content),
}
HH_DROPPED = tuple(HH_CHECKS)


def _notes(row: Mapping[str, str]) -> tuple[str, ...]:
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


def _matches(row: Mapping[str, Any]) -> bool:
    sides = (row.get("chosen"), row.get("rejected"))
    return "prompt" not in row and all(isinstance(side, str) and MARKER.search(side) for side in sides)


HH_RLHF = Format(
    "hh-rlhf",
    _matches,
    lambda row: {
        "prompt": "the turns of chosen before its last",
        "chosen": "last turn of chosen",
        "rejected": "last turn of rejected",
    },
    read=_read,
    dropped=HH_DROPPED,
    notes=HH_NOTES,
)
