"""The nouns of the text side. Tensors have their own nouns where they are made (`data.packing`, `rollout`)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = [
    "Arm",
    "AssertTest",
    "CallTest",
    "Demonstration",
    "Judgement",
    "Message",
    "Pair",
    "Prompt",
    "StdioTest",
    "Test",
]

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str


@dataclass(frozen=True)
class Prompt:
    """The turns before the response.

    `kind` is a task's own label (for example "harmful"); `meta` belongs to the task.
    """

    messages: tuple[Message, ...]
    kind: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict, compare=False, hash=False)

    @property
    def text(self) -> str:
        """The turns as plain text, for reports and for hashing."""
        return "\n".join(f"{m.role}: {m.content}" for m in self.messages)

    @property
    def id(self) -> str:
        """The first 16 hex digits of the text's sha256: what splits and random streams are keyed by."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:16]

    @classmethod
    def ask(cls, text: str, kind: str = "", meta: Mapping[str, Any] | None = None) -> Prompt:
        """A prompt of one user turn."""
        return cls((Message("user", text),), kind, meta or {})


@dataclass(frozen=True)
class Pair:
    """A comparison: for one prompt, the response that was preferred and the one that was not.

    `meta` belongs to the task: where annotators flagged each side by itself it has "chosen_safe" and "rejected_safe".
    """

    prompt: Prompt
    chosen: str
    rejected: str
    meta: Mapping[str, Any] = field(default_factory=dict, compare=False, hash=False)


@dataclass(frozen=True)
class Demonstration:
    """A prompt with a response to imitate."""

    prompt: Prompt
    response: str


@dataclass(frozen=True)
class Judgement:
    """What a gold judge says of one response: the total score and its named parts (all are means over responses).

    `note` is a line for a reader. A score that is NaN is none: the judge's machinery failed.
    """

    score: float
    parts: Mapping[str, float] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class Arm:
    """A method as a study compares it: the page that trains it ("" where nothing is trained), its section of the
    settings, what it learns from, and the log ranges that tuning searches when the user declares none."""

    name: str
    page: str
    section: str = ""
    learns_from: Literal["nothing", "pairs", "reward"] = "nothing"
    search: Mapping[str, tuple[float, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class CallTest:
    """Call `function` (of the program, or of its class `Solution`) with plain arguments; it must return `expected`.

    Types count: True is not 1, 1 is not 1.0, a tuple is not a list. With `tolerance` > 0 numbers are numbers, and x is
    accepted where |x - e| <= tolerance * max(1, |e|). `as_json` compares what JSON can hold: a tuple counts as a list,
    a key of a dictionary as its text.
    """

    function: str
    args: list[Any]
    expected: Any
    tolerance: float = 0.0
    as_json: bool = False


@dataclass(frozen=True)
class StdioTest:
    """Run the program as a script on `stdin`; its output must have the tokens of `expected` (split at white space).

    With `tolerance` > 0 two tokens that are both decimal numbers may differ as in `CallTest`.
    """

    stdin: str
    expected: str
    tolerance: float = 0.0


@dataclass(frozen=True)
class AssertTest:
    """A script of assertions (the style of HumanEval and MBPP) that runs in a process of its own and calls the
    candidate in another. Where it defines `check` and the program names its `entry`, it ends with `check(entry)`."""

    code: str


Test = CallTest | StdioTest | AssertTest
"""Tests are plain data: nothing of them runs where they are read."""
