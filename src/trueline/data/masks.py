"""A pair as a model sees it: which tokens are trained on, which are only read, which were cut off."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from trueline.data.chat import ChatTokenizer
from trueline.types import Pair

__all__ = ["Piece", "RenderedPair", "Side", "render_pair"]

Kind = Literal["read", "trained", "cut"]


@dataclass(frozen=True)
class Piece:
    """Neighbouring tokens of one kind: `tokens` are their texts one by one, special tokens written out."""

    kind: Kind
    tokens: tuple[str, ...]


@dataclass(frozen=True)
class Side:
    """Prompt and one response. `ends` is whether the trained tokens end with the token that ends an answer."""

    pieces: tuple[Piece, ...]
    trained: int
    read: int
    cut: int
    ends: bool


@dataclass(frozen=True)
class RenderedPair:
    """Both sides; `differ` is whether what is left of them after cutting differs, without which a pair says nothing."""

    pair: Pair
    chosen: Side
    rejected: Side
    differ: bool


def render_pair(pair: Pair, tokenizer: ChatTokenizer, *, max_prompt_tokens: int, max_new_tokens: int) -> RenderedPair:
    """As training tokenizes it: a prompt loses its oldest tokens, a response its last ones."""
    prompt = tokenizer.encode_prompt(pair.prompt)
    gone, kept = prompt[: max(len(prompt) - max_prompt_tokens, 0)], prompt[-max_prompt_tokens:]
    sides, ids = [], []
    for text in (pair.chosen, pair.rejected):
        response = tokenizer.encode_response(text)
        trained, lost = response[:max_new_tokens], response[max_new_tokens:]
        ids.append(trained)
        parts: list[tuple[Kind, Sequence[int]]] = [("cut", gone), ("read", kept), ("trained", trained), ("cut", lost)]
        pieces = tuple(Piece(kind, tuple(tokenizer.texts(part))) for kind, part in parts if part)
        sides.append(Side(pieces, len(trained), len(kept), len(gone) + len(lost), not lost))
    return RenderedPair(pair, sides[0], sides[1], ids[0] != ids[1])
