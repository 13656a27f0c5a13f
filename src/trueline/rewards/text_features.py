"""Features of a response's text for a linear judge: its manner, named, and its words, hashed.

None grows with length: shares, yes-or-no marks, and word counts scaled to unit length. None tells whether a response
was cut off: signs at its end are not looked at, but for a question mark. In the files of HH-RLHF being cut off goes
with being preferred or not, for reasons of how they were sampled; a judge of policies must not repay it.
"""

from __future__ import annotations

import math
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise

from trueline.types import Prompt

__all__ = ["BUCKETS", "MANNER", "manner", "size", "text_features", "words"]

BUCKETS = 1 << 14
"""Of the hashed words and pairs of words."""

_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*|[^\w\s]|_")
_REFUSAL = re.compile(
    r"\b(sorry|cannot|can't|won't|unable|not comfortable|shouldn't|illegal|don't think|not sure|i don't know|"
    r"not going to|against the law|harmful|unethical|dangerous)\b"
)
_YES, _NO = ("yes", "sure", "of course"), ("no", "i'm sorry", "sorry")
_LIST = re.compile(r"\n\s*[-*\d]")
_END = re.compile(r"[^\w?]+$")

MANNER = (
    "characters_per_word", "distinct_words", "prompt_words_taken_up", "words_from_prompt", "asks", "ends_asking",
    "commas", "refusal_words", "i", "you", "digits", "exclaims", "sentences", "opens_yes", "opens_no",
    "list", "quotes",
)  # fmt: skip
"""What `manner` measures, in its order."""


def words(text: str) -> list[str]:
    """Words and single signs, in lower case."""
    return _WORD.findall(text.lower())


def manner(prompt: Prompt, response: str) -> list[float]:
    """How the response speaks, [len(MANNER)]: shares of its words, and marks that are 0 or 1.

    The lists of words are English.
    """
    response = _END.sub("", response.strip())
    found, low = words(response), response.lower()
    n, own = max(1, len(found)), set(found)
    asked = set(words(prompt.messages[-1].content)) if prompt.messages else set()
    count = Counter(found)
    return [
        len(response) / n / 5,
        len(own) / n,
        len(asked & own) / max(1, len(asked)),
        len(asked & own) / max(1, len(own)),
        float("?" in response),
        float(response.endswith("?")),
        10 * count[","] / n,
        float(bool(_REFUSAL.search(low))),
        10 * count["i"] / n,
        10 * count["you"] / n,
        float(any(c.isdigit() for c in response)),
        float("!" in response),
        10 * count["."] / n,
        float(low.startswith(_YES)),
        float(low.startswith(_NO)),
        float(bool(_LIST.search(response))),
        float('"' in response),
    ]


def size(kinds: Sequence[str]) -> int:
    """How many features there are: those of manner for each kind of prompt, and the buckets."""
    return len(MANNER) * len(kinds) + BUCKETS


def text_features(prompt: Prompt, response: str, kinds: Sequence[str]) -> Iterator[tuple[int, float]]:
    """(index, value) of what is not zero; an index may come twice, its values are added.

    Each kind of prompt has features of its own: refusing is a merit in one and a fault in another. A prompt of a kind
    that is not in `kinds` has the mean of what it would be in each.
    """
    blocks = [list(kinds).index(prompt.kind)] if prompt.kind in kinds else range(len(kinds))
    share = 1 / len(blocks)
    for j, value in enumerate(manner(prompt, response)):
        if value:
            yield from ((block * len(MANNER) + j, share * value) for block in blocks)
    first = len(MANNER) * len(kinds)
    for gram, value in _grams(words(_END.sub("", response))).items():
        for block in blocks:
            yield first + zlib.crc32(f"{kinds[block]}\1{gram}".encode()) % BUCKETS, share * value


def _grams(found: Sequence[str]) -> dict[str, float]:
    """log(1 + count) of each word and each two in a row, the first with the start, scaled to unit length."""
    pairs = [f"{a}\0{b}" for a, b in pairwise(["", *found])]
    counts = {gram: math.log1p(n) for gram, n in Counter([*found, *pairs]).items()}
    norm = math.sqrt(sum(v * v for v in counts.values())) or 1.0
    return {gram: value / norm for gram, value in counts.items()}
