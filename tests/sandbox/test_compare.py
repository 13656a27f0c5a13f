"""Equality by type and content, and by tokens."""

from __future__ import annotations

import pytest

from trueline.sandbox.compare import as_json, same_tokens, same_value

NAN = float("nan")

SAME = [
    (1, 1), (1.5, 1.5), ("a", "a"), ([1, [2]], [1, [2]]), ((1,), (1,)), ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
    (None, None), (NAN, NAN), ([NAN], [NAN]), ({1, 2}, {2, 1}), (0.0, -0.0), (b"x", b"x"), (1 << 5000, 1 << 5000),
]  # fmt: skip
DIFFERENT = [
    (True, 1), (1, True), (1.0, 1), (1, 1.0), ((1,), [1]), ([1], (1,)), ("1", 1), (None, 0), (NAN, 0.0), (0.0, NAN),
    ({1: 2}, {True: 2}), ({1: 2}, {1: 2.0}), ({1}, {1.0}), ({(1, 2)}, {(1, True)}), ([1, 2], [1]), ({}, []),
    (b"x", "x"), ({"a": 1}, {"a": 1, "b": 2}), (float("inf"), 1e308), (frozenset([1]), {1}),
]  # fmt: skip


@pytest.mark.parametrize(("value", "expected"), SAME, ids=range(len(SAME)))
def test_same(value, expected) -> None:
    assert same_value(value, expected)


@pytest.mark.parametrize(("value", "expected"), DIFFERENT)
def test_different(value, expected) -> None:
    assert not same_value(value, expected)


@pytest.mark.parametrize(
    ("value", "expected", "same"),
    [
        (1.0005, 1.0, True),  # |d| = 5e-4 <= 1e-3 * max(1, 1)
        (1.0015, 1.0, False),
        (0.0009, 0.0, True),  # absolute below one
        (2000.0, 1999.0, True),  # 1 <= 1e-3 * 1999
        (2003.0, 2000.0, False),
        (1, 1.0, True),  # numbers are numbers
        (True, 1.0, False),  # a boolean is not
        (1.0, True, False),
        (NAN, 1.0, False),
        (float("inf"), 1.0, False),
        (1.0, float("inf"), False),
        (float("inf"), float("inf"), True),
        (10**400, 1.0, False),  # beyond the floats
        (1.0, 10**400, False),
        ([1.0005, "a"], [1.0, "a"], True),
        ({"k": (1.0005,)}, {"k": (1.0,)}, True),
        ("1.0005", "1.0", False),
    ],
)
def test_tolerance(value, expected, same) -> None:
    assert same_value(value, expected, 1e-3) is same


@pytest.mark.parametrize(
    ("text", "expected", "tolerance", "same"),
    [
        ("1 2\n", "1\n2", 0, True),
        ("1 2 3", "1 2", 0, False),
        ("", "\n", 0, True),
        ("YES", "yes", 0, False),
        ("1.0", "1", 0, False),
        ("1.0", "1", 1e-6, True),
        ("0.3333333", "0.33333333333", 1e-6, True),
        ("0.34", "0.33", 1e-6, False),
        ("nan", "1", 1e-6, False),
        ("inf", "1", 1e-6, False),
        ("1_0", "10", 1e-6, False),
        ("1e400", "1", 1e-6, False),
        ("1e400", "1e401", 1e-6, True),  # both are beyond the floats
        ("x 1.0", "y 1.0", 1e-6, False),
        ("9" * 500, "1", 1e-6, False),
        ("٣", "3", 1e-6, False),
    ],
)
def test_tokens(text, expected, tolerance, same) -> None:
    assert same_tokens(text, expected, tolerance) is same


def test_as_json_forgets_what_json_cannot_hold() -> None:
    assert as_json(((1, 2), {3: (4,)})) == [[1, 2], {"3": [4]}]
    assert as_json({1, 2}) == {1, 2}
