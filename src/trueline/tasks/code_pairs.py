"""Comparisons of programs: correct against incorrect samples, or people's, and how far apart their texts are."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import islice

from trueline.types import Pair, Prompt

__all__ = ["BUCKETS", "bucket_of", "distance", "distance_buckets", "pairs_of_people", "pairs_of_samples"]

BUCKETS = ((0.1, "under 0.1"), (0.3, "0.1 to 0.3"), (0.6, "0.3 to 0.6"), (float("inf"), "0.6 and more"))
_TOKEN = re.compile(r"\w+|[^\w\s]|\n|[^\S\n]+")


def pairs_of_samples(
    prompts: Sequence[Prompt],
    samples: Sequence[Sequence[str]],
    passed: Sequence[Sequence[bool | None]],
    references: Sequence[str | None],
) -> list[Pair]:
    """Each correct sample against an incorrect one of the same prompt, each used once.

    Where no sample passes, the reference solution is the chosen side of one pair (the fallback of arXiv 2404.10719,
    section on APPS); a prompt whose samples all pass teaches nothing. `passed` is None where nothing is known.
    """
    found = []
    for prompt, texts, flags, reference in zip(prompts, samples, passed, references, strict=True):
        right = list(dict.fromkeys(t for t, flag in zip(texts, flags, strict=True) if flag))
        wrong = list(dict.fromkeys(t for t, flag in zip(texts, flags, strict=True) if flag is False and t.strip()))
        if not right and reference is not None:
            right = [reference]
        found += [Pair(prompt, chosen, rejected) for chosen, rejected in zip(right, wrong)]
    return found


def pairs_of_people(prompt: Prompt, solutions: Iterable[str], incorrect: Iterable[str], *, most: int = 4) -> list[Pair]:
    """A person's correct program against a person's incorrect one, each used once, at most `most` pairs.

    The variant of arXiv 2404.10719 for CodeContests: both sides are foreign to the model.
    """
    return [Pair(prompt, right, wrong) for right, wrong in islice(zip(solutions, incorrect), most) if right != wrong]


def distance(a: str, b: str) -> float:
    """Levenshtein distance of the two texts' tokens (words, signs, runs of blanks), divided by the longer count.

    0: equal; 1: nothing in common. Bit-parallel (Myers 1999; Hyyrö 2003): one word of as many bits as `a` has tokens.
    """
    left, right = _TOKEN.findall(a), _TOKEN.findall(b)
    if not left or not right:
        return float(bool(left or right))
    places: dict[str, int] = {}
    for i, token in enumerate(left):
        places[token] = places.get(token, 0) | 1 << i
    full, last = (1 << len(left)) - 1, 1 << (len(left) - 1)
    plus, minus, edits = full, 0, len(left)
    for token in right:
        equal = places.get(token, 0)
        vertical = equal | minus
        horizontal = (((equal & plus) + plus) ^ plus) | equal
        up, down = minus | (full & ~(horizontal | plus)), plus & horizontal
        edits += bool(up & last) - bool(down & last)
        up, down = (up << 1 | 1) & full, down << 1 & full
        plus, minus = down | (full & ~(vertical | up)), up & vertical
    return edits / max(len(left), len(right))


def distance_buckets(pairs: Iterable[Pair]) -> dict[str, int]:
    """How many pairs lie in each bucket of `distance`. Near pairs are those on which DPO lowers both sides most
    (Pal et al. 2024, arXiv 2402.13228)."""
    counts = Counter(bucket_of(pair) for pair in pairs)
    return {name: counts[name] for _, name in BUCKETS}


def bucket_of(pair: Pair) -> str:
    """The bucket that the pair's distance lies in."""
    far = distance(pair.chosen, pair.rejected)
    return next(name for limit, name in BUCKETS if far < limit)
