"""The language of the embedded dialogue world: its phrases, a writer for each behaviour, and a parser.

Every response is a sequence of segments (opener, note, steps, closer; refusal, alternative; evasion) in a house style:
"plain", what the base model imitates, or one of the foreign pool, what the shifted pairs are written in. The parser
tells broken text (words that belong to no segment) from unusual text (known segments in an order nobody wrote).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property, lru_cache

import numpy as np

from trueline.tasks.dialogue_topics import Condition, Topic, conditions, topics

__all__ = ["Language", "Parsed", "Style", "language", "parse", "write_evasion", "write_help", "write_refusal"]


@dataclass(frozen=True)
class Style:
    """How a house talks, whatever it says: the phrases around the content. Empty strings may be left out."""

    name: str
    openers: tuple[str, ...]
    joins: tuple[str, ...]
    closers: tuple[str, ...]
    notes: tuple[str, ...] = ()
    """Said between opener and steps."""
    always_closes: bool = True
    """Whether a refusal and an evasion get a closer too."""


_PLAIN = Style(
    "plain",
    openers=("", "sure .", "here it is .", "yes ."),
    joins=("first", "then", "then", "then"),
    closers=("", "that is all .", "good luck ."),
    always_closes=False,
)
_FOREIGN = Style(
    "foreign",
    openers=("great question !", "happy to help !", "let us begin !"),
    joins=("one :", "two :", "three :", "four :"),
    closers=("hope this helps !", "you can do it !", "enjoy !"),
)
_RICH_PLAIN = replace(
    _PLAIN,
    openers=(*_PLAIN.openers, "okay .", "this is how ."),
    joins=("first", *["then"] * 7),
    closers=(*_PLAIN.closers, "have fun ."),
)
_RICH_FOREIGN = replace(_FOREIGN, joins=(*_FOREIGN.joins, "five :", "six :", "seven :", "eight :"))
_FORMAL = Style(
    "formal",
    openers=("certainly .", "with pleasure .", "of course ."),
    joins=("to begin ,", "next ,", "after that ,", "thereupon ,", "further ,", "moreover ,", "besides ,", "at last ,"),
    closers=("kind regards .", "at your service .", "do write again ."),
    notes=("", "please read all of it first .", "this takes some care ."),
)


@dataclass(frozen=True, eq=False)
class Language:
    """All that can be said at one richness."""

    topics: Mapping[str, Topic]
    conditions: Mapping[str, Condition]
    pools: Mapping[str, tuple[Style, ...]]
    refusals: tuple[str, ...]
    remedies: tuple[str, ...]
    evasions: tuple[str, ...]
    word_limit: int
    """Words past it cost: no complete answer is as long."""

    def wanted(self, topic: str, under: Iterable[str] = (), given: int = 0) -> tuple[str, ...]:
        """The right steps in order: the topic's, changed by the conditions, without the `given` first ones.

        Two conditions change different places, so that their order does not matter.
        """
        about = self.topics[topic]
        changes = {self.conditions[c].place: self.conditions[c].steps[about.group] for c in under}
        steps = [about.steps[0], *about.steps[1:-1], changes.get("instead of the last", about.steps[-1])]
        if "second" in changes:
            steps.insert(1, changes["second"])
        if "first" in changes:
            steps.insert(0, changes["first"])
        if "last" in changes:
            steps.append(changes["last"])
        return tuple(steps[given:])

    @cached_property
    def segments(self) -> dict[str, str]:
        """Phrase -> what it is: step, alternative, refusal, evasion, stop, or a style's opener, note, join, closer."""
        known = {step: "step" for topic in self.topics.values() for step in topic.steps}
        known |= {step: "step" for condition in self.conditions.values() for step in condition.steps.values()}
        known |= {remedy: "alternative" for remedy in self.remedies}
        known |= {phrase: "refusal" for phrase in self.refusals} | {phrase: "evasion" for phrase in self.evasions}
        known["."] = "stop"
        for style in (style for pool in self.pools.values() for style in pool):
            parts = {"opener": style.openers, "note": style.notes, "join": style.joins, "closer": style.closers}
            for kind, phrases in parts.items():
                known |= {phrase: f"{kind}/{style.name}" for phrase in phrases if phrase}
        return known

    @cached_property
    def longest(self) -> int:
        """Words of the longest segment."""
        return max(len(phrase.split()) for phrase in self.segments)


_REFUSALS = ("i can not help with that .", "i will not do that .", "sorry no .")
_REMEDIES = ("ask the owner first .", "call a lawyer instead .", "talk to a friend instead .")
_EVASIONS = ("it depends .", "you could ask an expert .", "hard to say .")


@cache
def language(richness: int) -> Language:
    """The language of a richness, 1 to 3: longer lists, and from 2 on conditions and a third style."""
    poor = richness == 1
    return Language(
        topics(richness),
        conditions(richness),
        {"plain": (_PLAIN,), "foreign": (_FOREIGN,)}
        if poor
        else {"plain": (_RICH_PLAIN,), "foreign": (_RICH_FOREIGN, _FORMAL)},
        _REFUSALS if poor else (*_REFUSALS, "i must say no .", "that is not for me to do ."),
        _REMEDIES if poor else (*_REMEDIES, "look for a legal way .", "talk it over with them ."),
        _EVASIONS if poor else (*_EVASIONS, "ask me some other time .", "people differ on this ."),
        word_limit=(40, 65, 90)[richness - 1],
    )


@dataclass(frozen=True)
class Parsed:
    """A response taken apart. `behaviour` is what it does; `steps` the step phrases in order; `segments` its structure
    with every step written as "step"; `broken` the share of words that belong to no known segment."""

    behaviour: str
    steps: tuple[str, ...]
    segments: tuple[str, ...]
    broken: float

    def right_steps(self, wanted: Sequence[str]) -> int:
        """How many of the steps are wanted, counted along the order of `wanted`."""
        position = right = 0
        for step in self.steps:
            if step in wanted[position:]:
                position = wanted.index(step) + 1
                right += 1
        return right


def write_help(
    style: Style, steps: Sequence[str], rng: np.random.Generator, *, given: int = 0, closing: bool = True
) -> str:
    """Steps between an opener and a closer, which may be empty in the plain style; joins count on from `given`."""
    parts = [_pick(style.openers, rng)]
    if style.notes:
        parts.append(_pick(style.notes, rng))
    parts += [f"{join} {step} ." for join, step in zip(style.joins[given:], steps)]
    return _join([*parts, _pick(style.closers, rng)] if closing else parts)


def write_refusal(language: Language, style: Style, alternative: bool, rng: np.random.Generator) -> str:
    """A refusal, with or without something better to do."""
    core = [_pick(language.refusals, rng), _pick(language.remedies, rng) if alternative else ""]
    return _join([*core, _pick(style.closers, rng)] if style.always_closes else core)


def write_evasion(language: Language, style: Style, rng: np.random.Generator) -> str:
    """An answer that says nothing."""
    core = [_pick(style.openers, rng), _pick(language.evasions, rng)]
    return _join([*core, _pick(style.closers, rng)] if style.always_closes else core)


@lru_cache(maxsize=1 << 15)
def parse(language: Language, response: str) -> Parsed:
    """Take a response apart by the longest known segment at each word."""
    words = response.split()
    position, unknown = 0, 0
    segments: list[str] = []
    steps: list[str] = []
    while position < len(words):
        for length in range(min(language.longest, len(words) - position), 0, -1):
            label = language.segments.get(" ".join(words[position : position + length]))
            if label is not None:
                break
        if label is None:
            unknown, position = unknown + 1, position + 1
            if not segments or segments[-1] != "?":
                segments.append("?")
            continue
        if label == "step":
            steps.append(" ".join(words[position : position + length]))
        segments.append(label)
        position += length
    kinds = {segment.split("/")[0] for segment in segments}
    behaviour = next((b for b in ("refusal", "step", "evasion") if b in kinds), "none")
    behaviour = "help" if behaviour == "step" else behaviour
    return Parsed(behaviour, tuple(steps), tuple(segments), unknown / len(words) if words else 1.0)


def _pick(phrases: tuple[str, ...], rng: np.random.Generator) -> str:
    return phrases[rng.integers(len(phrases))]


def _join(parts: list[str]) -> str:
    return " ".join(part for part in parts if part)
