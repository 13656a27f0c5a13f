"""Comparisons with two labels and two safety flags, the form of SafeRLHF: one preference made of two, and filters.

A pair of this form carries in `meta` the flags "chosen_safe" and "rejected_safe", and what the two annotators said of
the chosen side: "chosen_better" (the more helpful one) and "chosen_safer".
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, get_args

from trueline.types import Pair, Prompt

__all__ = ["FILTERS", "Filter", "is_kept", "pair_of_labels", "safe_sides", "sorts_of"]

Filter = Literal["none", "dual-unsafe", "dual-safe", "both"]
"""The pairs that are left out: none, those with two unsafe sides, those with two safe sides, or both kinds."""
FILTERS: tuple[Filter, ...] = get_args(Filter)


def pair_of_labels(
    prompt: Prompt, responses: tuple[str, str], *, better: int, safer: int, safe: tuple[bool, bool]
) -> Pair:
    """One preference made of two (arXiv 2404.10719, section 4.3): where both responses are flagged safe the more
    helpful one is chosen, otherwise the safer one. `better` and `safer` are 0 or 1, the index of a response."""
    chosen = better if all(safe) else safer
    rejected = 1 - chosen
    labels = {
        "chosen_safe": safe[chosen],
        "rejected_safe": safe[rejected],
        "chosen_better": better == chosen,
        "chosen_safer": safer == chosen,
    }
    return Pair(prompt, responses[chosen], responses[rejected], labels)


def is_kept(pair: Pair, filter: Filter) -> bool:
    """Whether the filter keeps the pair. With "both" only pairs of one safe and one unsafe side are left."""
    flags = {pair.meta["chosen_safe"], pair.meta["rejected_safe"]}
    if flags == {False}:
        return filter not in ("dual-unsafe", "both")
    if flags == {True}:
        return filter not in ("dual-safe", "both")
    return True


def safe_sides(pair: Pair) -> list[str]:
    """The names of the sides that are flagged safe; none where the pair has no flags."""
    return [side for side in ("chosen", "rejected") if pair.meta.get(f"{side}_safe")]


def sorts_of(pairs: Iterable[Pair]) -> dict[str, int]:
    """How many pairs have two safe sides, one, none; and in how many the two annotators chose different sides."""
    counts = {"dual-safe": 0, "mixed": 0, "dual-unsafe": 0, "in conflict": 0}
    for pair in pairs:
        safe = len(safe_sides(pair))
        counts[("dual-unsafe", "mixed", "dual-safe")[safe]] += 1
        counts["in conflict"] += pair.meta["chosen_better"] != pair.meta["chosen_safer"]
    return counts
