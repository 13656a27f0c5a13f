"""Is this value the expected one? Both are plain; nothing of the candidate's runs here."""

from __future__ import annotations

import re
from typing import Any

__all__ = ["as_json", "same_tokens", "same_value"]

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_NUMBERS = (int, float)


def same_value(value: Any, expected: Any, tolerance: float = 0.0) -> bool:
    """Equal in type and content, at every depth; NaN equals NaN. With `tolerance` > 0, between numbers (which booleans
    are not): |value - expected| <= tolerance * max(1, |expected|)."""
    kind = type(expected)
    if tolerance > 0 and kind in _NUMBERS and type(value) in _NUMBERS:
        return _near(value, expected, tolerance)
    if type(value) is not kind:
        return False
    if kind is float:
        return value == expected or (value != value and expected != expected)
    if kind is list or kind is tuple:
        return len(value) == len(expected) and all(map(same_value, value, expected, [tolerance] * len(value)))
    if kind is dict:
        return _same_dict(value, expected, tolerance)
    if kind is set or kind is frozenset:
        return value == expected and {_typed(item) for item in value} == {_typed(item) for item in expected}
    return bool(value == expected)


def _near(value: float, expected: float, tolerance: float) -> bool:
    if value == expected or (value != value and expected != expected):
        return True
    try:
        return abs(value - expected) <= tolerance * max(1.0, abs(expected)) < float("inf")
    except OverflowError:  # an integer beyond the floats
        return False


def _same_dict(value: dict, expected: dict, tolerance: float) -> bool:
    if len(value) != len(expected) or {_typed(key) for key in value} != {_typed(key) for key in expected}:
        return False
    return all(same_value(value[key], item, tolerance) for key, item in expected.items())


def _typed(item: Any) -> Any:
    """A hashable value together with the types in it: 1, 1.0 and True hash alike and are told apart here."""
    if type(item) in (tuple, frozenset):
        return type(item), type(item)(_typed(part) for part in item)
    return type(item), item


def same_tokens(text: str, expected: str, tolerance: float = 0.0) -> bool:
    """The same words between white space; with `tolerance` > 0 decimal numbers may differ as in `same_value`."""
    words, wanted = text.split(), expected.split()
    return len(words) == len(wanted) and all(
        word == want or (tolerance > 0 and _both_near(word, want, tolerance)) for word, want in zip(words, wanted)
    )


def _both_near(word: str, want: str, tolerance: float) -> bool:
    if len(word) > 400 or not (_NUMBER.fullmatch(word) and _NUMBER.fullmatch(want)):
        return False
    return _near(float(word), float(want), tolerance)


def as_json(value: Any) -> Any:
    """The value as JSON would hold it: tuples as lists, keys as text."""
    if type(value) in (list, tuple):
        return [as_json(item) for item in value]
    if type(value) is dict:
        return {key if type(key) is str else str(key): as_json(item) for key, item in value.items()}
    return value
