"""The language of the dialogue world: what is written is read back, and broken text is told from unusual text."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trueline.tasks import dialogue_grammar as grammar
from trueline.tasks.dialogue_grammar import REMEDIES, STYLES, TOPICS, parse, write_evasion, write_help, write_refusal

STEPS = sorted(itertools.chain.from_iterable(TOPICS.values()))


@pytest.mark.parametrize("name", STYLES)
def test_what_is_written_is_read_back(name) -> None:
    """Three thousand responses of each style: behaviour, steps in order, no broken word, the style's own segments."""
    rng, style = np.random.default_rng(0), STYLES[name]
    for _ in range(1000):
        steps = [STEPS[i] for i in rng.integers(len(STEPS), size=rng.integers(1, 5))]
        helped, refused = parse(write_help(style, steps, rng)), parse(write_refusal(style, rng.random() < 0.5, rng))
        evaded = parse(write_evasion(style, rng))
        assert (helped.behaviour, refused.behaviour, evaded.behaviour) == ("help", "refusal", "evasion")
        assert list(helped.steps) == steps and refused.steps == evaded.steps == ()
        assert helped.broken == refused.broken == evaded.broken == 0.0
        for parsed in (helped, refused, evaded):
            assert {s.split("/")[1] for s in parsed.segments if "/" in s} <= {name}


@pytest.mark.parametrize("name", STYLES)
def test_an_alternative_is_seen_where_there_is_one(name) -> None:
    rng = np.random.default_rng(0)
    for alternative in (False, True):
        parsed = parse(write_refusal(STYLES[name], alternative, rng))
        assert ("alternative" in parsed.segments) == alternative


def test_no_phrase_means_two_things() -> None:
    """Every phrase of every style, step and remedy is a segment of its own; the lone stop is one more."""
    phrases = [*STEPS, *REMEDIES, *grammar.REFUSALS, *grammar.EVASIONS, "."]
    for style in STYLES.values():
        for group in (style.openers, style.joins, style.closers):
            phrases += sorted({phrase for phrase in group if phrase})
    assert len(phrases) == len(set(phrases)) == len(grammar._SEGMENTS)


def test_every_topic_has_four_steps_of_its_own() -> None:
    assert len(STEPS) == len(set(STEPS)) == 4 * len(TOPICS)
    assert not set(grammar.BENIGN) & set(grammar.HARMFUL)


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
    assert parse(text).right_steps("brew tea") == right


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60))
def test_any_text_can_be_parsed(text) -> None:
    parsed = parse(text)
    assert 0.0 <= parsed.broken <= 1.0
    assert parsed.behaviour in ("help", "refusal", "evasion", "none")


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(sorted(grammar._SEGMENTS)), min_size=1, max_size=12))
def test_segments_in_any_order_are_never_broken(phrases) -> None:
    """The law behind the examples. A stop after a phrase that begins one does not glue: the longest match is taken, and
    what is left of it is a segment again or part of one."""
    parsed = parse(" ".join(phrases))
    assert parsed.broken == 0.0
