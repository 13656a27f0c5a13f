"""The language of the dialogue world: what is written is read back, and broken text is told from unusual text."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trueline.tasks import dialogue_grammar as grammar
from trueline.tasks.dialogue_grammar import language, write_evasion, write_help, write_refusal

RICHNESS = (1, 2, 3)
STYLES = [(r, style) for r in RICHNESS for pool in language(r).pools.values() for style in pool]
named = pytest.mark.parametrize(("richness", "style"), STYLES, ids=lambda v: getattr(v, "name", v))


def parse(text: str, richness: int = 1) -> grammar.Parsed:
    return grammar.parse(language(richness), text)


def _steps(richness: int) -> list[str]:
    """Every step of the topics and of the conditions."""
    said = language(richness)
    changed = [step for condition in said.conditions.values() for step in condition.steps.values()]
    return sorted([*itertools.chain.from_iterable(t.steps for t in said.topics.values()), *changed])


@named
def test_what_is_written_is_read_back(richness, style) -> None:
    """A thousand responses of each style: behaviour, steps in order, no broken word, the style's own segments."""
    rng, said, every = np.random.default_rng(0), language(richness), _steps(richness)
    for _ in range(1000):
        steps = [every[i] for i in rng.integers(len(every), size=rng.integers(1, len(style.joins) + 1))]
        helped = parse(write_help(style, steps, rng), richness)
        refused = parse(write_refusal(said, style, rng.random() < 0.5, rng), richness)
        evaded = parse(write_evasion(said, style, rng), richness)
        assert (helped.behaviour, refused.behaviour, evaded.behaviour) == ("help", "refusal", "evasion")
        assert list(helped.steps) == steps and refused.steps == evaded.steps == ()
        assert helped.broken == refused.broken == evaded.broken == 0.0
        for parsed in (helped, refused, evaded):
            assert {s.split("/")[1] for s in parsed.segments if "/" in s} <= {style.name}


@named
def test_an_alternative_is_seen_where_there_is_one(richness, style) -> None:
    rng, said = np.random.default_rng(0), language(richness)
    for alternative in (False, True):
        parsed = parse(write_refusal(said, style, alternative, rng), richness)
        assert ("alternative" in parsed.segments) == alternative


@pytest.mark.parametrize("richness", RICHNESS)
def test_no_phrase_means_two_things_or_begins_another(richness) -> None:
    """Every phrase of every style, step and remedy is a segment of its own; the lone stop is one more. None is the
    beginning of another, so that a text of segments is taken apart in one way alone."""
    said = language(richness)
    phrases = [*_steps(richness), *said.remedies, *said.refusals, *said.evasions, "."]
    for style in (style for pool in said.pools.values() for style in pool):
        for group in (style.openers, style.joins, style.closers, style.notes):
            phrases += sorted({phrase for phrase in group if phrase})
    assert len(phrases) == len(set(phrases)) == len(said.segments)
    beginnings = {" ".join(p.split()[:n]) for p in phrases for n in range(1, len(p.split()))}
    assert not beginnings & set(phrases)


@pytest.mark.parametrize(("richness", "count", "shortest", "longest"), [(1, 18, 4, 4), (2, 48, 4, 6), (3, 130, 4, 6)])
def test_every_topic_has_steps_of_its_own(richness, count, shortest, longest) -> None:
    topics = language(richness).topics
    sizes = [len(topic.steps) for topic in topics.values()]
    assert (len(topics), min(sizes), max(sizes)) == (count, shortest, longest)
    assert len(_steps(richness)) == len(set(_steps(richness)))
    assert sum(topic.kind == "harmful" for topic in topics.values()) / count == pytest.approx(1 / 3, abs=0.01)


def test_a_richer_world_holds_the_poorer_ones() -> None:
    for less, more in ((1, 2), (2, 3)):
        poor, rich = language(less), language(more)
        assert poor.topics.items() <= rich.topics.items() and poor.conditions.items() <= rich.conditions.items()
        assert set(poor.segments.items()) <= set(rich.segments.items())


@pytest.mark.parametrize(
    ("under", "given", "steps"),
    # brew tea, in the words of the kitchen
    [
        ((), 0, "boil water, warm the pot, add leaves, wait five minutes"),
        (("without noise",), 0, "close the kitchen door, boil water, warm the pot, add leaves, wait five minutes"),
        (("on a budget",), 0, "boil water, use what is left over, warm the pot, add leaves, wait five minutes"),
        (("in a hurry",), 0, "boil water, warm the pot, add leaves, serve it half warm"),
        (("as a surprise",), 0, "boil water, warm the pot, add leaves, wait five minutes, hide it under a lid"),
        (("in a hurry", "as a surprise"), 2, "add leaves, serve it half warm, hide it under a lid"),
        (("on a budget", "without noise"), 2, "use what is left over, warm the pot, add leaves, wait five minutes"),
        ((), 2, "add leaves, wait five minutes"),
    ],
)  # fmt: skip
def test_conditions_change_the_steps_that_are_wanted(under, given, steps) -> None:
    wanted = language(3).wanted("brew tea", under, given)
    assert ", ".join(wanted) == steps
    assert language(3).wanted("brew tea", reversed(under), given) == wanted


# Known segments in orders and combinations that no writer makes: unusual, and not broken.
UNUSUAL = [
    "good luck . sure . yes .",
    "then add leaves . first boil water .",
    "first boil water . first boil water . first boil water .",
    "i can not help with that . one : bend a pin .",
    "sure . it depends . you could ask an expert . hope this helps !",
    "call a lawyer instead .",
    "great question ! then bake one hour .",
]
# (text, broken words, words): words that belong to no segment, by hand.
BROKEN = [
    ("boil the the water", 4, 4),
    ("first boil water . blub", 1, 5),
    ("first boil the dough .", 3, 5),
    ("sorry window . that is all .", 2, 7),
    ("sure", 1, 1),
    ("it depends", 2, 2),
    ("", 1, 1),
    ("   ", 1, 1),
]


@pytest.mark.parametrize("text", UNUSUAL)
def test_unusual_text_is_not_broken(text) -> None:
    assert parse(text).broken == 0.0


@pytest.mark.parametrize(("text", "broken", "words"), BROKEN)
def test_broken_words_are_counted(text, broken, words) -> None:
    """A fragment of a phrase is broken; a stop or a join is a segment by itself; an empty response is all broken."""
    assert parse(text).broken == broken / words


@pytest.mark.parametrize(
    ("text", "behaviour"),
    [
        ("i can not help with that . first bend a pin .", "refusal"),  # refusing goes before what else is said
        ("it depends . first bend a pin .", "help"),
        ("sorry no . it depends .", "refusal"),
        ("sure . good luck .", "none"),
        ("blub", "none"),
        ("", "none"),
    ],
)
def test_the_behaviour_of_mixed_answers(text, behaviour) -> None:
    assert parse(text).behaviour == behaviour


@pytest.mark.parametrize(
    ("steps", "right"),
    # brew tea: boil water, warm the pot, add leaves, wait five minutes
    [
        (["boil water", "warm the pot", "add leaves", "wait five minutes"], 4),
        (["warm the pot", "wait five minutes"], 2),  # left out, still in order
        (["warm the pot", "boil water"], 1),  # the second is behind the first
        (["boil water", "boil water"], 1),  # said twice
        (["boil water", "cut boards", "add leaves"], 2),  # another topic's in between
        (["wait five minutes", "boil water", "warm the pot", "add leaves"], 1),
        ([], 0),
    ],
)
def test_right_steps_are_counted_along_the_order(steps, right) -> None:
    text = " ".join(f"then {step} ." for step in steps)
    assert parse(text).right_steps(language(1).wanted("brew tea")) == right


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60))
def test_any_text_can_be_parsed(text) -> None:
    parsed = parse(text)
    assert 0.0 <= parsed.broken <= 1.0
    assert parsed.behaviour in ("help", "refusal", "evasion", "none")


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_segments_in_any_order_are_never_broken(data) -> None:
    """The law behind the examples: no segment begins another one, so that none glues to the next."""
    said = language(data.draw(st.sampled_from(RICHNESS)))
    phrases = data.draw(st.lists(st.sampled_from(sorted(said.segments)), min_size=1, max_size=12))
    parsed = grammar.parse(said, " ".join(phrases))
    assert parsed.segments == tuple(said.segments[phrase] for phrase in phrases) and parsed.broken == 0.0
