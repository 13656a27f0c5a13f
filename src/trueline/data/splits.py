"""Which split a prompt belongs to: a hash of its id, so that no prompt can stand in two splits."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from typing import Protocol, TypeVar

from trueline.errors import InputError
from trueline.types import Prompt

__all__ = ["assign", "conversation_id", "partition"]


class _HasPrompt(Protocol):
    @property
    def prompt(self) -> Prompt: ...


Item = TypeVar("Item", bound=_HasPrompt)


def assign(prompt_id: str, fractions: Mapping[str, float], salt: str = "") -> str:
    """The split of one id: u = sha256(salt, id) as a number in [0, 1), cut at the cumulated fractions, names sorted.

    Depends on nothing but its arguments: other rows, their order and the mapping's order play no part. Raises
    `InputError` unless the fractions are non-negative and sum to 1.
    """
    total = math.fsum(fractions.values())
    if not fractions or any(not f >= 0 for f in fractions.values()) or not math.isclose(total, 1.0, abs_tol=1e-9):
        raise InputError(f"split fractions {dict(fractions)} do not sum to 1", field="fractions")
    u = int.from_bytes(hashlib.sha256(f"{salt}\0{prompt_id}".encode()).digest()[:7]) / 2**56
    names = sorted(name for name, fraction in fractions.items() if fraction > 0)
    edge = 0.0
    for name in names:
        edge += fractions[name]
        if u < edge:
            return name
    return names[-1]  # the fractions sum to a little less than 1 in floating point


def partition(items: Iterable[Item], fractions: Mapping[str, float], salt: str = "") -> dict[str, list[Item]]:
    """Items by split, in their order; a conversation cut at different turns stays together (`conversation_id`)."""
    parts: dict[str, list[Item]] = {name: [] for name in fractions}
    for item in items:
        parts[assign(conversation_id(item.prompt), fractions, salt)].append(item)
    return parts


def conversation_id(prompt: Prompt) -> str:
    """16 hex digits of the first user turn, case and white space aside.

    The key to split real dialogues by: in HH-RLHF one prompt in ten begins with the same words as another one, often
    the same dialogue cut at a later turn, and the prompt's own id would put the two on either side of a split.
    """
    first = next((m.content for m in prompt.messages if m.role == "user"), prompt.text)
    return hashlib.sha256(" ".join(first.split()).casefold().encode()).hexdigest()[:16]
