"""Rows of a prompt with two responses and a verdict: HelpSteer2's and HelpSteer3's strengths, the arena's winner."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from trueline.data.formats.conversations import asked, need_answer, read_messages
from trueline.data.formats.rows import Format, Record, RowProblem, need_columns, need_number, pair_of
from trueline.types import Message, Prompt

__all__ = ["ARENA", "HELPSTEER2_PREFERENCE", "HELPSTEER3", "helpsteer_prompt"]

_STRENGTH = 3
_TURN = re.compile(r"\n?<extra_id_1>(User|Assistant)\n")


def helpsteer_prompt(text: Any, field: str = "prompt") -> Prompt:
    """HelpSteer2 writes several turns into one text, `<extra_id_1>Assistant` and `<extra_id_1>User` between them."""
    if not isinstance(text, str) or "<extra_id_1>" not in text:
        return asked(text, field)
    first, *rest = _TURN.split(text)
    names = {"User": "user", "Assistant": "assistant"}
    turns = [Message("user", first), *(Message(names[n], t) for n, t in zip(rest[::2], rest[1::2]))]
    if turns[-1].role == "assistant" and not turns[-1].content.strip():
        turns.pop()
    return asked([{"role": turn.role, "content": turn.content} for turn in turns], field)


def _by_strength(row: Mapping[str, Any], prompt: Prompt, columns: tuple[str, str], verdict: str) -> list[Record]:
    """Below 0 the first is better, above 0 the second."""
    strength = need_number(row, verdict, -_STRENGTH, _STRENGTH)
    need_columns(row, columns, (str,))
    if strength == 0:
        raise RowProblem("ties", verdict, "neither response is better")
    chosen, rejected = columns if strength < 0 else columns[::-1]
    return [Record(pair_of(prompt, row[chosen], row[rejected], (chosen, rejected)))]


def _read_helpsteer2(row: Mapping[str, Any]) -> list[Record]:
    need_columns(row, ("prompt",), (str,))
    return _by_strength(row, helpsteer_prompt(row["prompt"]), ("response_1", "response_2"), "preference_strength")


def _read_helpsteer3(row: Mapping[str, Any]) -> list[Record]:
    need_columns(row, ("context",), (str, list))
    return _by_strength(row, asked(row["context"], "context"), ("response1", "response2"), "overall_preference")


HELPSTEER2_PREFERENCE = Format(
    "helpsteer2-preference",
    lambda row: {"response_1", "response_2", "preference_strength"} <= row.keys(),
    lambda row: {
        "prompt": "prompt",
        "chosen": "response_1 where preference_strength is below 0, response_2 where it is above",
        "rejected": "the other",
    },
    read=_read_helpsteer2,
    dropped=("ties",),
    numbers=("preference_strength",),
)

HELPSTEER3 = Format(
    "helpsteer3",
    lambda row: {"response1", "response2", "overall_preference"} <= row.keys(),
    lambda row: {
        "prompt": "context",
        "chosen": "response1 where overall_preference is below 0, response2 where it is above",
        "rejected": "the other",
    },
    read=_read_helpsteer3,
    dropped=("ties",),
    numbers=("overall_preference",),
)

_WINNERS = {"model_a": ("conversation_a", "conversation_b"), "model_b": ("conversation_b", "conversation_a")}
_TIED = ("tie", "tie (bothbad)", "both_bad")


def _read_arena(row: Mapping[str, Any]) -> list[Record]:
    need_columns(row, ("winner",), (str,))
    need_columns(row, ("conversation_a", "conversation_b"), (list,))
    if row["winner"] in _TIED:
        raise RowProblem("ties", "winner", "a tie")
    if row["winner"] not in _WINNERS:
        raise RowProblem("wrong_label", "winner", f"expected model_a, model_b or tie, got {row['winner'][:40]!r}")
    chosen, rejected = _WINNERS[row["winner"]]
    sides = [read_messages(row[name], name, last_may_be_empty=True) for name in (chosen, rejected)]
    for turns, name in zip(sides, (chosen, rejected)):
        need_answer(turns, name)
    if sides[0][:-1] != sides[1][:-1]:
        raise RowProblem("differing_prompts", rejected, "the models' earlier answers differ, so there is no one prompt")
    return [Record(pair_of(Prompt(sides[0][:-1]), sides[0][-1].content, sides[1][-1].content, (chosen, rejected)))]


ARENA = Format(
    "arena",
    lambda row: {"conversation_a", "conversation_b", "winner"} <= row.keys(),
    lambda row: {
        "prompt": "the turns of conversation_a before its last",
        "chosen": "the last turn of the winner's conversation",
        "rejected": "that of the other",
    },
    read=_read_arena,
    dropped=("ties", "differing_prompts"),
)
