"""Pairs of programs by hand, and the distance of two texts against a plain table of edits."""

from __future__ import annotations

from itertools import groupby

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trueline.tasks.code_pairs import (
    BUCKETS,
    bucket_of,
    distance,
    distance_buckets,
    pairs_of_people,
    pairs_of_samples,
)
from trueline.types import Pair, Prompt

ASK, OTHER = Prompt.ask("write f"), Prompt.ask("write g")

# --- distance ------------------------------------------------------------------------------------------------------


def tokens(text: str) -> list[str]:
    """Words and blanks in runs, every other character by itself, a new line among them."""
    found: list[str] = []
    for kind, group in groupby(text, kind_of):
        run = "".join(group)
        found += [run] if kind in ("word", "blank") else run
    return found


def kind_of(char: str) -> str:
    if char.isalnum() or char == "_":
        return "word"
    return "line" if char == "\n" else "blank" if char.isspace() else "sign"


def edits(a: list[str], b: list[str]) -> int:
    """The table of Wagner and Fischer, row by row."""
    row = list(range(len(b) + 1))
    for i, left in enumerate(a, 1):
        previous, row[0] = row[0], i
        for j, right in enumerate(b, 1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (left != right))
    return row[-1]


def plain_distance(a: str, b: str) -> float:
    left, right = tokens(a), tokens(b)
    return edits(left, right) / max(len(left), len(right), 1)


PROGRAMS = st.one_of(st.text("ab1_ +(\n\t", max_size=90), st.text(max_size=20))


@given(PROGRAMS, PROGRAMS)
def test_the_distance_is_that_of_a_plain_table(a, b) -> None:
    assert distance(a, b) == plain_distance(a, b)


@given(PROGRAMS, PROGRAMS, PROGRAMS)
def test_it_is_a_share_alike_both_ways_and_zero_for_equal_tokens_alone(a, b, c) -> None:
    assert 0 <= distance(a, b) == distance(b, a) <= 1
    assert (distance(a, b) == 0) == (tokens(a) == tokens(b))
    # Edits obey the triangle inequality; the shares do after they are multiplied out.
    longest = lambda x, y: max(len(tokens(x)), len(tokens(y)))  # noqa: E731
    whole = [round(distance(x, y) * longest(x, y)) for x, y in ((a, c), (a, b), (b, c))]
    assert whole[0] <= whole[1] + whole[2]


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ("", "", 0.0),
        ("", "x", 1.0),
        ("x = 1", "x = 2", 1 / 5),  # x, blank, =, blank, number: one of five
        ("count = 1", "c = 1", 1 / 5),  # a word is one token, however long
        ("f(x)", "f(x, y)", 3 / 7),  # comma, blank, y come in: seven tokens in the longer
        ("a  b", "a b", 1 / 3),  # runs of blanks differ, as they do in Python
        ("a\n\nb", "a\nb", 1 / 4),  # new lines are one token each
        ("abc", "+-*", 1.0),
    ],
)
def test_distances_by_hand(a, b, expected) -> None:
    assert distance(a, b) == expected


def test_long_programs_need_more_bits_than_a_machine_word() -> None:
    a, b = "a + " * 200, "a + " * 150 + "b + " * 50
    assert distance(a, b) == 50 / 800


# Ten tokens, of which so many differ: a bucket holds its lower end.
@pytest.mark.parametrize(("differing", "bucket"), [(0, 0), (1, 1), (2, 1), (3, 2), (5, 2), (6, 3), (10, 3)])
def test_a_bucket_holds_its_lower_end(differing, bucket) -> None:
    pair = Pair(ASK, "+" * 10, "-" * differing + "+" * (10 - differing))
    assert bucket_of(pair) == BUCKETS[bucket][1]


def test_all_buckets_are_counted_also_the_empty_ones() -> None:
    assert distance_buckets([]) == {name: 0 for _, name in BUCKETS}
    pairs = [Pair(ASK, "a b", "a b"), Pair(ASK, "a b", "c d"), Pair(ASK, "a", "+")]
    assert list(distance_buckets(pairs).values()) == [1, 0, 0, 2]


# --- pairs ---------------------------------------------------------------------------------------------------------

SAMPLED = {
    # name: (samples, whether they pass, the reference, the pairs as (chosen, rejected))
    "all pass: nothing to tell apart": (["a", "b"], [True, True], "ref", []),
    "none passes: the reference against the first": (["a", "b"], [False, False], "ref", [("ref", "a")]),
    "none passes and there is no reference": (["a", "b"], [False, False], None, []),
    "as many pairs as the fewer side has": (
        ["a", "b", "c", "d", "e"],
        [True, False, True, False, True],
        "ref",
        [("a", "b"), ("c", "d")],
    ),
    "nothing is known of a sample": (["a", "b", "c"], [None, False, None], "ref", [("ref", "b")]),
    "nothing is known of any": (["a", "b"], [None, None], "ref", []),
    "a repeated sample counts once": (
        ["a", "a", "b", "b", "c"],
        [True, True, False, False, False],
        "ref",
        [("a", "b")],
    ),
    "an empty response is no side": (["", "  \n", "a"], [False, False, True], "ref", []),
    "the reference stands in where no sample passes alone": (["a", "b"], [True, False], "ref", [("a", "b")]),
    "no samples": ([], [], "ref", []),
}


@pytest.mark.parametrize("name", SAMPLED)
def test_pairs_of_samples_by_hand(name) -> None:
    samples, passed, reference, expected = SAMPLED[name]
    found = pairs_of_samples([ASK], [samples], [passed], [reference])
    assert [(p.chosen, p.rejected) for p in found] == expected
    assert all(p.prompt is ASK for p in found)


def test_samples_of_one_prompt_are_never_paired_with_those_of_another() -> None:
    found = pairs_of_samples([ASK, OTHER], [["a", "b"], ["c", "d"]], [[True, True], [False, False]], [None, None])
    assert found == []


def test_columns_of_unequal_length_are_a_fault_of_the_caller() -> None:
    with pytest.raises(ValueError, match="zip"):
        pairs_of_samples([ASK], [["a", "b"]], [[True]], [None])
    with pytest.raises(ValueError, match="zip"):
        pairs_of_samples([ASK, OTHER], [["a"]], [[True]], [None])


def test_pairs_of_people_use_each_program_once_and_leave_equal_sides_out() -> None:
    sides = [(p.chosen, p.rejected) for p in pairs_of_people(ASK, "abcde", "bbxyz", most=4)]
    assert sides == [("a", "b"), ("c", "x"), ("d", "y")]  # the second has equal sides, the fifth is one too many
    assert pairs_of_people(ASK, "abc", "", most=4) == [] == pairs_of_people(ASK, "", "abc", most=4)
