"""What is in a set of pairs beyond its format: repeats, contradictions, leaks between two files, lengths, scripts."""

from __future__ import annotations

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

from trueline.data.splits import conversation_id
from trueline.types import Pair

__all__ = ["Finding", "Lengths", "Survey", "scripts_of", "survey"]


@dataclass(frozen=True)
class Finding:
    """Rows that have something to do with one another, by their places, and the text that they share."""

    kind: str
    places: tuple[str, ...]
    text: str


@dataclass(frozen=True)
class Lengths:
    """In characters. `longer` is the share of pairs whose chosen side is the longer one, ties counted as a half."""

    prompt: tuple[int, ...]
    chosen: tuple[int, ...]
    rejected: tuple[int, ...]
    longer: float


@dataclass(frozen=True)
class Survey:
    """`findings` are of four kinds:

    * `duplicate`: same prompt and sides as an earlier pair; `reversed`: with the sides swapped;
    * `contradiction`: a response that is chosen in one pair of a prompt and rejected in another (reversed pairs aside);
    * `leak`: a conversation that stands in the evaluation file too, the places of both; `leaked_prompts` of them with
      the same prompt to the letter.

    `scripts` are shares of all letters by writing system, `mixed` pairs whose two sides are mostly in different ones.
    """

    pairs: int
    prompts: int
    findings: tuple[Finding, ...]
    lengths: Lengths
    scripts: dict[str, float]
    mixed: tuple[str, ...]
    leaked_prompts: int

    def of(self, kind: str) -> list[Finding]:
        """The findings of one kind, in the order of their first place in the file."""
        return [finding for finding in self.findings if finding.kind == kind]


def survey(pairs: Sequence[Pair], evaluation: Sequence[Pair] = ()) -> Survey:
    """Everything that `Survey` says of the pairs; `evaluation` are those of a file that must not share prompts."""
    leaks, leaked = _leaks(pairs, evaluation)
    letters: Counter[str] = Counter()
    mixed = []
    for pair in pairs:
        sides = [scripts_of([text]) for text in (pair.chosen, pair.rejected)]
        letters.update(sides[0])
        letters.update(sides[1])
        if all(sides) and len({side.most_common(1)[0][0] for side in sides}) > 1:
            mixed.append(_place(pair))
    total = sum(letters.values()) or 1
    return Survey(
        len(pairs),
        len({pair.prompt.id for pair in pairs}),
        (*_repeats(pairs), *_contradictions(pairs), *leaks),
        _lengths(pairs),
        {name: count / total for name, count in letters.most_common()},
        tuple(mixed),
        leaked,
    )


def scripts_of(texts: Iterable[str]) -> Counter[str]:
    """Letters by writing system: the first word of their Unicode names (LATIN, CYRILLIC, CJK, ...), capitalised."""
    found: Counter[str] = Counter()
    for letter, count in Counter(chain.from_iterable(texts)).items():
        if letter.isascii():
            if letter.isalpha():
                found["Latin"] += count
        elif letter.isalpha():
            found[unicodedata.name(letter, "UNKNOWN").split()[0].split("-")[0].capitalize()] += count
    return found


def _place(pair: Pair) -> str:
    return str(pair.prompt.meta.get("where", ""))


def _repeats(pairs: Sequence[Pair]) -> list[Finding]:
    places: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for pair in pairs:
        places[pair.prompt.id, pair.chosen, pair.rejected].append(_place(pair))
    found = []
    for (prompt, chosen, rejected), here in places.items():
        if len(here) > 1:
            found.append(Finding("duplicate", tuple(here), chosen))
        there = places.get((prompt, rejected, chosen))
        if there and chosen < rejected:  # each two once
            found.append(Finding("reversed", (*here, *there), chosen))
    return found


def _contradictions(pairs: Sequence[Pair]) -> list[Finding]:
    chosen: dict[tuple[str, str], list[Pair]] = defaultdict(list)
    for pair in pairs:
        chosen[pair.prompt.id, pair.chosen].append(pair)
    found: dict[tuple[str, str], list[str]] = {}
    for pair in pairs:
        key = (pair.prompt.id, pair.rejected)
        others = [other for other in chosen.get(key, ()) if other.rejected != pair.chosen]
        if others:
            found.setdefault(key, [_place(other) for other in others]).append(_place(pair))
    return [Finding("contradiction", tuple(dict.fromkeys(places)), text) for (_, text), places in found.items()]


def _leaks(pairs: Sequence[Pair], evaluation: Sequence[Pair]) -> tuple[list[Finding], int]:
    held: dict[str, list[Pair]] = defaultdict(list)
    for pair in evaluation:
        held[conversation_id(pair.prompt)].append(pair)
    found: dict[str, list[str]] = {}
    prompts = {pair.prompt.id for pair in evaluation}
    texts: dict[str, str] = {}
    for pair in pairs:
        key = conversation_id(pair.prompt)
        if key in held:
            found.setdefault(key, [_place(other) for other in held[key]]).append(_place(pair))
            texts[key] = next((m.content for m in pair.prompt.messages if m.role == "user"), pair.prompt.text)
    exact = len({pair.prompt.id for pair in pairs} & prompts)
    return [Finding("leak", tuple(dict.fromkeys(places)), texts[key]) for key, places in found.items()], exact


def _lengths(pairs: Sequence[Pair]) -> Lengths:
    prompt, chosen, rejected = ([], [], [])
    for pair in pairs:
        prompt.append(len(pair.prompt.text))
        chosen.append(len(pair.chosen))
        rejected.append(len(pair.rejected))
    wins = sum(1.0 if a > b else 0.5 if a == b else 0.0 for a, b in zip(chosen, rejected))
    return Lengths(tuple(prompt), tuple(chosen), tuple(rejected), wins / len(pairs) if pairs else float("nan"))
