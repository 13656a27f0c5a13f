"""Turns as files write them, {role, content} or {from, value}, into messages whose roles are in order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trueline.data.formats.rows import RowProblem
from trueline.types import Message, Prompt

__all__ = ["answer_of", "asked", "need_answer", "read_message", "read_messages", "system_of"]

ROLES = ("system", "user", "assistant")
_SHAREGPT = {"human": "user", "gpt": "assistant", "user": "user", "assistant": "assistant", "system": "system"}


def read_messages(
    value: Any, field: str, *, last_may_be_empty: bool = False, sharegpt: bool = False
) -> tuple[Message, ...]:
    """A conversation whose roles are in order; raises `RowProblem` with the turn, counted from 1."""
    if not isinstance(value, list) or not value:
        raise RowProblem("wrong_type", field, "expected a list of messages with at least one turn")
    turns = tuple(read_message(item, i, field, sharegpt=sharegpt) for i, item in enumerate(value))
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


def read_message(item: Any, index: int, field: str, *, sharegpt: bool = False) -> Message:
    """One turn; `index` counts from 0. With `sharegpt` it is {from, value}, and human and gpt are its roles."""
    role_key, text_key = ("from", "value") if sharegpt else ("role", "content")
    if not isinstance(item, dict) or not isinstance(item.get(role_key), str) or not isinstance(item.get(text_key), str):
        raise RowProblem("wrong_type", field, f'turn {index + 1}: expected {{"{role_key}": text, "{text_key}": text}}')
    role = item[role_key]
    if sharegpt:
        role = _SHAREGPT.get(role, role)
    if role not in ROLES:
        remedy = {"human": "write user", "gpt": "write assistant"}.get(role, f"roles are {', '.join(ROLES)}")
        raise RowProblem("wrong_roles", field, f"turn {index + 1}: unknown role {role[:40]!r}", remedy)
    return Message(role, item[text_key])


def need_answer(turns: Sequence[Message], field: str) -> None:
    """The last turn must be the assistant's, and a prompt must stand before it."""
    if turns[-1].role != "assistant":
        raise RowProblem("wrong_roles", field, f"turn {len(turns)}: the last turn is not the assistant's")
    if len(turns) < 2:
        raise RowProblem("wrong_roles", field, "turn 1: no prompt before the response")


def answer_of(value: Any, field: str, *, sharegpt: bool = False) -> str:
    """The text of one assistant turn that stands alone."""
    message = read_message(value, 0, field, sharegpt=sharegpt)
    if message.role != "assistant":
        raise RowProblem("wrong_roles", field, "turn 1: the response is not the assistant's")
    return message.content


def asked(
    value: str | list[Any], field: str, system: str | None = None, kind: str = "", sharegpt: bool = False
) -> Prompt:
    """A prompt of one text or of turns that end with the user's, a system text before it where one is given."""
    if isinstance(value, str):
        if not value.strip():
            raise RowProblem("empty_prompt", field, "is empty")
        messages: tuple[Message, ...] = (Message("user", value),)
    else:
        messages = read_messages(value, field, sharegpt=sharegpt)
        if messages[-1].role == "assistant":
            raise RowProblem("wrong_roles", field, f"turn {len(messages)}: the prompt ends with the assistant")
    if system and system.strip():
        if messages[0].role == "system":
            raise RowProblem("wrong_roles", field, "a system turn here, and a system column beside it")
        messages = (Message("system", system), *messages)
    return Prompt(messages, kind)


def system_of(row: Mapping[str, Any], column: str = "system") -> str | None:
    """The text of the system column, None where there is none."""
    value = row.get(column)
    if value is None or isinstance(value, str):
        return value
    raise RowProblem("wrong_type", column, f"expected a text, got {type(value).__name__}")
