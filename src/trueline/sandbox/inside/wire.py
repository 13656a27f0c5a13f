"""Values as typed JSON text, and frames on a stream. What a hostile process writes is read here, so nothing but plain
builtin values can come out, and every malformed text is one `WireError`."""

from __future__ import annotations

import collections
import json
from collections.abc import Callable
from typing import Any

__all__ = ["MAX_DEPTH", "WireError", "canonical", "decode", "encode"]

MAX_DEPTH = 150
_SMALL = 1 << 63
_TYPES = {kind.__name__: kind for kind in (bool, int, float, complex, str, bytes, list, tuple, set, frozenset, dict)}
_TAGS = {tuple: "t", set: "s", frozenset: "z"}
_DICTS = (dict, collections.Counter, collections.OrderedDict, collections.defaultdict)


def _refuse(name: str) -> None:
    raise ValueError(name)


_dumps = json.JSONEncoder(separators=(",", ":"), check_circular=False).encode
_loads = json.JSONDecoder(parse_constant=_refuse).decode


class WireError(Exception):
    """A value that is not plain, or a text that is not ours."""


def encode(value: Any, refer: Callable[[Any], int] | None = None) -> str:
    """One line of ASCII JSON for a plain value.

    Plain: None, bool, int, float, complex, str, bytes, range, list, tuple, set, frozenset and dict, of exactly these
    types (Counter, OrderedDict and defaultdict count as dict), nested at most `MAX_DEPTH` deep; and the builtin types
    themselves. What is not plain becomes a reference by `refer(value) -> number`, or raises `WireError` without it.
    """
    return _dumps(_pack(value, refer, 0))


def canonical(value: Any) -> str:
    """The text of a plain value in which the order of sets and dictionaries does not show; raises like `encode`."""
    return _dumps(_sorted(_pack(value, None, 0)))


def _sorted(node: Any) -> Any:
    if type(node) is list:
        return [_sorted(item) for item in node]
    if type(node) is not dict:
        return node
    ((tag, body),) = node.items()
    body = _sorted(body)
    return {tag: sorted(body, key=json.dumps) if tag in "szd" else body}


def decode(text: str | bytes, resolve: Callable[[int], Any] | None = None) -> Any:
    """The value of a text by `encode`; a new object at each call. References go through `resolve`; without it, or where
    the text is malformed, too deep, or has unhashable keys, raises `WireError`."""
    try:
        return _unpack(_loads(text if type(text) is str else str(text, "utf-8")), resolve, 0)
    except (ValueError, TypeError, RecursionError, KeyError, OverflowError) as error:
        raise WireError(f"malformed value: {type(error).__name__}") from None


def _pack(value: Any, refer: Callable[[Any], int] | None, depth: int) -> Any:
    if depth > MAX_DEPTH:
        raise WireError(f"nested deeper than {MAX_DEPTH}")
    kind = type(value)
    if value is None or kind is bool or kind is str:
        return value
    if kind is int:
        return value if -_SMALL < value < _SMALL else {"i": hex(value)}
    if kind is float:
        return value if value - value == 0 else {"f": repr(value)}
    if kind is list:
        return [_pack(item, refer, depth + 1) for item in value]
    if kind in _TAGS:
        return {_TAGS[kind]: [_pack(item, refer, depth + 1) for item in value]}
    if kind in _DICTS:
        return {"d": [[_pack(k, refer, depth + 1), _pack(v, refer, depth + 1)] for k, v in dict.items(value)]}
    if kind is bytes:
        return {"b": value.hex()}
    if kind is complex:
        return {"c": [_pack(value.real, None, depth + 1), _pack(value.imag, None, depth + 1)]}
    if kind is range:
        return {"g": [_pack(part, None, depth + 1) for part in (value.start, value.stop, value.step)]}
    if kind is type and _TYPES.get(value.__name__) is value:
        return {"k": value.__name__}
    if refer is None:
        raise WireError(f"not a plain value: {kind.__name__}")
    return {"r": refer(value)}


def _unpack(node: Any, resolve: Callable[[int], Any] | None, depth: int) -> Any:
    if depth > MAX_DEPTH:
        raise ValueError("depth")
    if type(node) is list:
        return [_unpack(item, resolve, depth + 1) for item in node]
    if type(node) is not dict:
        return node
    ((tag, body),) = node.items()
    if tag == "i" or tag == "f" or tag == "b":
        if type(body) is not str:
            raise ValueError(tag)
        return int(body, 16) if tag == "i" else float(body) if tag == "f" else bytes.fromhex(body)
    if tag == "k":
        return _TYPES[body]
    if tag == "r":
        if resolve is None or type(body) is not int:
            raise ValueError(tag)
        return resolve(body)
    if type(body) is not list:
        raise ValueError(tag)
    if tag == "d":
        return {_unpack(k, resolve, depth + 1): _unpack(v, resolve, depth + 1) for k, v in body}
    items = [_unpack(item, resolve, depth + 1) for item in body]
    if tag == "c":
        real, imaginary = items
        return complex(real, imaginary)
    if tag == "g":
        return range(*items)
    return {"t": tuple, "s": set, "z": frozenset}[tag](items)
