"""Splits depend on the prompt alone."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trueline.data.splits import assign, conversation_id, partition
from trueline.errors import InputError
from trueline.types import Message, Pair, Prompt

FRACTIONS = {"train": 0.8, "selection": 0.1, "gold": 0.1}


def test_assignments_never_change():
    # First byte of sha256("\\0" + id) by sha256sum, over 256: .61 .71 .34 .82 .22 .27 .91 .50; cut at .3 and .7.
    # A change here would move prompts between training and test of every stored run.
    found = [assign(f"{i:016x}", {"a": 0.3, "b": 0.4, "c": 0.3}) for i in range(8)]
    assert found == ["b", "c", "b", "c", "a", "a", "c", "b"]


def test_shares_are_near_their_fractions():
    found = [assign(str(i), FRACTIONS) for i in range(4000)]
    for name, fraction in FRACTIONS.items():  # within 4 standard deviations of a binomial count
        assert abs(found.count(name) - 4000 * fraction) < 4 * math.sqrt(4000 * fraction * (1 - fraction))


@given(st.text(max_size=20), st.permutations(sorted(FRACTIONS)))
def test_the_order_of_names_plays_no_part(prompt_id, names):
    assert assign(prompt_id, {name: FRACTIONS[name] for name in names}) == assign(prompt_id, FRACTIONS)


def test_the_salt_gives_another_split():
    plain, salted = ([assign(str(i), FRACTIONS, salt) for i in range(200)] for salt in ("", "other"))
    assert plain != salted


def test_an_empty_split_gets_nothing():
    assert {assign(str(i), {"a": 1.0, "b": 0.0}) for i in range(200)} == {"a"}


@pytest.mark.parametrize("fractions", [{}, {"a": 0.5}, {"a": 1.5, "b": -0.5}, {"a": math.nan}, {"a": 0.7, "b": 0.7}])
def test_fractions_that_are_no_partition_are_refused(fractions):
    with pytest.raises(InputError, match="do not sum to 1"):
        assign("x", fractions)


def test_a_dialogue_cut_at_two_turns_stays_in_one_split():
    pairs = []
    for i in range(100):
        short = Prompt.ask(f"Question {i}?")
        turns = (Message("user", f" question {i}?\n"), Message("assistant", "Hm."), Message("user", "Well?"))
        pairs += [Pair(short, "a", "b"), Pair(Prompt(turns), "a", "b")]
    parts = partition(pairs, FRACTIONS)
    homes = [{conversation_id(pair.prompt) for pair in part} for part in parts.values()]
    assert sum(map(len, homes)) == len(set.union(*homes)) == 100
    assert sum(map(len, parts.values())) == 200
    # negative control: the prompt's own id would tear some of them apart
    assert any(
        assign(a.prompt.id, FRACTIONS) != assign(b.prompt.id, FRACTIONS) for a, b in zip(pairs[::2], pairs[1::2])
    )
