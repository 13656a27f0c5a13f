"""Values over the wire: what is plain comes back the same in type and content, the rest is refused."""

from __future__ import annotations

import collections
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trueline.sandbox.compare import same_value
from trueline.sandbox.inside.wire import MAX_DEPTH, WireError, canonical, decode, encode

scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary(), st.complex_numbers(allow_nan=False)
)
hashables = st.recursive(
    scalars, lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=3), max_leaves=6
)
values = st.recursive(
    hashables,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner)
        | st.dictionaries(hashables, inner, max_size=3)
        | st.sets(hashables, max_size=3)
    ),
    max_leaves=12,
)


@settings(max_examples=200, deadline=None)
@given(values)
def test_a_plain_value_comes_back(value) -> None:
    text = encode(value)
    assert text.isascii() and "\n" not in text
    assert canonical(decode(text)) == canonical(value)
    assert "nan" in text or same_value(decode(text), value)


@pytest.mark.parametrize(
    "value",
    [range(3, 9, 2), 1 << 100000, -(1 << 70), float("-inf"), "\ud800", int, {int: [dict]}],
    ids=range(7),
)
def test_unusual_plain_values(value) -> None:
    assert decode(encode(value)) == value


def test_dictionaries_of_the_library_are_dictionaries() -> None:
    for value in (
        collections.Counter("aab"),
        collections.OrderedDict(a=2, b=1),
        collections.defaultdict(int, a=2, b=1),
    ):
        assert type(decode(encode(value))) is dict
        assert decode(encode(value)) == {"a": 2, "b": 1}


class Sly(int):
    def __eq__(self, other):
        return True

    __hash__ = int.__hash__


@pytest.mark.parametrize("value", [Sly(5), [Sly(5)], object(), lambda: 0, {1: Sly(5)}, iter([]), Ellipsis, Sly])
def test_what_is_not_plain_is_refused(value) -> None:
    with pytest.raises(WireError, match="not a plain value"):
        encode(value)


def test_references_take_the_place_of_objects() -> None:
    things = []
    text = encode([1, object], lambda value: things.append(value) or len(things) - 1)
    assert decode(text, things.__getitem__) == [1, object]
    with pytest.raises(WireError):
        decode(text)


def test_depth_is_bounded() -> None:
    value = []
    for _ in range(MAX_DEPTH):
        value = [value]
    assert decode(encode(value)) == value
    with pytest.raises(WireError, match="deeper"):
        encode([value])
    with pytest.raises(WireError):
        decode("[" * (MAX_DEPTH + 2) + "]" * (MAX_DEPTH + 2))


HOSTILE = ["", "{", "[" * 100000, '{"d":[[[],1]]}', '{"s":[[1]]}', '{"q":1}', "{}", '{"i":5}', '{"i":"zz"}',
           '{"f":"x"}',
           '{"b":"0"}', '{"c":[1]}', '{"c":["1",2]}', '{"g":[1,2,0]}', '{"g":[1.5,2,1]}', '{"r":0}', '{"t":5}', "NaN",
           "-Infinity", "1" * 5000, '{"a":1,"b":2}', '{"d":[1]}', '{"d":[[1,2,3]]}', "\x00", '{"k":"object"}',
           '{"k":[]}', '"\\u12"', '{"t":{"t":[]}}']  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_malformed_texts_are_one_error(text) -> None:
    with pytest.raises(WireError):
        decode(text)


def test_canonical_text_forgets_order_only() -> None:
    assert canonical({"a": 1, "b": {3, 1}}) == canonical({"b": {1, 3}, "a": 1})
    assert canonical([1, 2]) != canonical([2, 1])
    assert canonical((1,)) != canonical([1])
    json.loads(canonical({1: {2: 3}}))
