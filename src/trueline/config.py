"""Strict configuration: a YAML or TOML file, then dotted overrides, into frozen sections; each error names its place.

A section is a `Section` subclass that sits beside its consumer. The three layers are: the section's own defaults, the
file, the overrides of the command line (the last one wins). `section.model_fields_set` tells what the user gave.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import reprlib
import tomllib
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pydantic
import yaml

from trueline.errors import InputError

__all__ = ["Section", "Setting", "ablatable", "describe", "digest", "load", "off_value", "to_plain"]

COMMAND_LINE = "command line"
BOUNDS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<", "min_length": "length >=", "max_length": "length <="}


class Section(pydantic.BaseModel):
    """One named group of settings: frozen, unknown keys refused, numbers finite."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True)


class Setting(NamedTuple):
    """One key of a section as `--help` lists it; a required key has no default (`...`)."""

    key: str
    type: str
    default: Any
    doc: str


@dataclass(frozen=True)
class _Given:
    """A value the user gave, with the place where it stands; `text` marks one that still is command-line text."""

    key: str
    value: Any
    where: str
    text: bool = False


def load(
    sections: Mapping[str, type[Section]],
    *,
    file: Path | None = None,
    overrides: Sequence[str] = (),
    top: Mapping[str, type] | None = None,
) -> dict[str, Any]:
    """Every section by its name, and those keys of `top` (outside any section, such as `task`) that were given.

    Raises `InputError` for the first thing that cannot be used: `where` is "FILE:LINE" (TOML: FILE) or "command line",
    `field` the dotted key.
    """
    top = top or {}
    known = [f"{name}.{key}" for name, section in sections.items() for key in section.model_fields] + list(top)
    given: dict[str, _Given] = {}
    for entry in [*(_read(file) if file else ()), *map(_override, overrides)]:
        if entry.key in sections and entry.value in (None, {}):  # `ppo:` with nothing below it
            continue
        if entry.key not in known:
            raise _unknown(entry, sections, known)
        if entry.key in given and not entry.text:  # `ppo.kl_coef:` beside `ppo:` with `kl_coef:` below it
            raise InputError("repeated key", where=entry.where, field=entry.key, remedy="keep one of them")
        given[entry.key] = entry
    place = str(file) if file else COMMAND_LINE
    loaded = {name: _section(name, section, given, place) for name, section in sections.items()}
    return loaded | {key: _top(given[key], kind) for key, kind in top.items() if key in given}


def to_plain(sections: Mapping[str, Any]) -> dict[str, Any]:
    """The resolved configuration as JSON-able values, sections as nested dictionaries."""
    return {k: v.model_dump(mode="json") if isinstance(v, pydantic.BaseModel) else v for k, v in sections.items()}


def digest(obj: Any) -> str:
    """First 16 hex digits of the sha256 of canonical JSON (sorted keys, no whitespace, floats by `repr`, no NaN).

    Tuples equal lists; 1 and 1.0 differ. This addresses run cells, so its output must never change.
    """
    text = json.dumps(obj, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=True, default=_plain)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def describe(section: type[Section]) -> list[Setting]:
    """The section's keys in their order, for listings."""
    rows = []
    for key, field in section.model_fields.items():
        default = ... if field.is_required() else field.get_default(call_default_factory=True)
        allowed = _range(section, key)
        rows.append(
            Setting(
                key, _type_name(field.annotation) + (f" {allowed}" if allowed else ""), default, field.description or ""
            )
        )
    return rows


def ablatable(section: type[Section]) -> list[str]:
    """The keys that declare an off value."""
    return [key for key, field in section.model_fields.items() if "off" in _extra(field)]


def off_value(section: type[Section], key: str) -> Any:
    """What switches the key off, from `Field(json_schema_extra={"off": ...})`; raises `InputError` if it has none."""
    if key not in ablatable(section):
        raise InputError(
            "has no off value", field=key, remedy=f"keys that do: {', '.join(ablatable(section)) or 'none'}"
        )
    return _extra(section.model_fields[key])["off"]


# --- reading -----------------------------------------------------------------------------------------------------


def _read(path: Path) -> Iterator[_Given]:
    suffix, where = path.suffix.lower(), str(path)
    if suffix not in {".yaml", ".yml", ".toml"}:
        raise InputError(f"unknown kind of file {path.suffix!r}", where=where, remedy="use .yaml or .toml")
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise InputError("file not found", where=where, remedy="check the path") from None
    except IsADirectoryError:
        raise InputError("is a directory", where=where, remedy="give the file inside it") from None
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", where=where) from None
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"not UTF-8 at byte {error.start}", where=f"{where}:{line}", remedy="save it as UTF-8"
        ) from None
    return _toml(text, where) if suffix == ".toml" else _yaml(text, where)


def _toml(text: str, where: str) -> Iterator[_Given]:
    try:
        tree = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise InputError(f"broken TOML: {error}", where=where) from None
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from (_Given(f"{name}.{key}", inner, where) for key, inner in value.items())
        else:
            yield _Given(name, value, where)


def _yaml(text: str, where: str) -> Iterator[_Given]:
    loader = None
    try:
        loader = yaml.SafeLoader(text)
        root = loader.get_single_node()
        yield from _mapping(loader, root, where, "") if root else ()
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        tag = "could not determine a constructor" in (error.problem or "")
        reason = f"tag refused: {error.problem.split('tag ')[-1]}" if tag else f"broken YAML: {error.problem}"
        raise InputError(reason, where=where + line, remedy="only plain values are read" if tag else "") from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:  # ValueError: a date such as 2024-13-01
        raise InputError(f"broken YAML: {str(error).splitlines()[0]}", where=where) from None
    finally:
        if loader:
            loader.dispose()


def _mapping(loader: yaml.SafeLoader, root: yaml.Node, where: str, prefix: str) -> Iterator[_Given]:
    """The entries of the file's two levels: values deeper than `section.key` belong to the key."""
    here = f"{where}:{root.start_mark.line + 1}"
    if not isinstance(root, yaml.MappingNode):
        raise InputError("expected `section:` with its keys below", where=here, field=prefix.rstrip("."))
    seen: set[str] = set()
    for key_node, node in root.value:
        place = f"{where}:{key_node.start_mark.line + 1}"
        if not isinstance(key_node, yaml.ScalarNode):
            raise InputError("a key must be a name", where=place, field=prefix.rstrip("."))
        key = prefix + key_node.value
        if key in seen:
            raise InputError("repeated key", where=place, field=key, remedy="keep one of them")
        seen.add(key)
        if isinstance(node, yaml.MappingNode) and not prefix and node.value:
            yield from _mapping(loader, node, where, f"{key}.")
        else:
            yield _Given(key, loader.construct_object(node, deep=True), place)


def _override(text: str) -> _Given:
    key, equals, value = text.partition("=")
    key = key.strip()
    if not equals or not key:
        raise InputError(
            f"cannot read {text!r}", where=COMMAND_LINE, remedy="write key=value, such as ppo.kl_coef=0.05"
        )
    if value == "":
        raise InputError(
            "no value after =", where=COMMAND_LINE, field=key, remedy="write null for none, '' for an empty text"
        )
    return _Given(key, value, COMMAND_LINE, text=True)


# --- checking ----------------------------------------------------------------------------------------------------


def _section(name: str, section: type[Section], given: Mapping[str, _Given], place: str) -> Section:
    entries = {key: given[f"{name}.{key}"] for key in section.model_fields if f"{name}.{key}" in given}
    fields = section.model_fields
    values = {key: _value(entry, fields[key].annotation) for key, entry in entries.items()}
    try:
        return section.model_validate(values)
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False)[0]
    key = str(first["loc"][0]) if first["loc"] else ""
    where = entries[key].where if key in entries else place
    dotted = f"{name}.{key}" if key else name
    if first["type"] == "missing" and len(first["loc"]) == 1:
        raise InputError("required, not given", where=where, field=dotted, remedy=f"add {dotted}=...")
    if not key:
        raise InputError(_own_words(first), where=where, field=dotted)
    raise _wrong(first, where, dotted, fields[key].annotation, _range(section, key))


def _top(entry: _Given, kind: Any) -> Any:
    value = _value(entry, kind)
    try:
        return pydantic.TypeAdapter(kind, config=None).validate_python(value)
    except pydantic.ValidationError as error:
        raise _wrong(error.errors(include_url=False)[0], entry.where, entry.key, kind, "") from None


def _wrong(error: Any, where: str, field: str, annotation: Any, allowed: str) -> InputError:
    got, kind = reprlib.repr(error["input"]), error["type"]
    bound = not allowed and kind.startswith(("greater", "less", "too_", "string_too", "string_pattern"))
    if bound or kind in {"value_error", "assertion_error"}:
        return InputError(f"{_own_words(error)}, got {got}", where=where, field=field)
    choices = _choices(annotation)
    near = difflib.get_close_matches(str(error["input"]), choices, 1)
    remedy = f"did you mean {near[0]}?" if near else ""
    if choices and error["input"] in (True, False):
        remedy = "YAML reads on, off, yes and no as true and false: quote the word"
    expected = _type_name(annotation) + (f" {allowed}" if allowed else "")
    return InputError(f"expected {expected}, got {got}", where=where, field=field, remedy=remedy)


def _own_words(error: Any) -> str:
    return str(error["msg"]).removeprefix("Value error, ").removeprefix("Assertion failed, ")


def _unknown(entry: _Given, sections: Mapping[str, Any], known: Sequence[str]) -> InputError:
    name = entry.key.split(".")[0]
    if entry.key in sections:
        reason, candidates = "is a section, not a key", [key for key in known if key.startswith(f"{name}.")]
        return InputError(reason, where=entry.where, field=entry.key, remedy=f"its keys: {', '.join(candidates)}")
    reason = "unknown key" if name in sections or "." not in entry.key else f"unknown section {name!r}"
    # The same section first: ppo.kl_coff means ppo.kl_coef even where dpo has a nearer spelling.
    inside = [key for key in known if key.startswith(f"{name}.")]
    last = [key for key in known if key.rpartition(".")[2] == entry.key.rpartition(".")[2]]
    near = difflib.get_close_matches(entry.key, inside, 1, 0.7) or last[:1]
    near = near or difflib.get_close_matches(entry.key, [*known, *sections], 1)
    fallback = f"known: {', '.join(inside or [*sections, *(key for key in known if '.' not in key)])}"
    return InputError(
        reason, where=entry.where, field=entry.key, remedy=f"did you mean {near[0]}?" if near else fallback
    )


# --- values and types --------------------------------------------------------------------------------------------


def _value(entry: _Given, annotation: Any) -> Any:
    value = _from_text(entry, annotation) if entry.text else entry.value
    members = _members(annotation)
    if isinstance(value, bool) and not any(m in (bool, Any) or typing.get_origin(m) is typing.Literal for m in members):
        # pydantic would take true for the number 1
        raise InputError(f"expected {_type_name(annotation)}, got {value!r}", where=entry.where, field=entry.key)
    return value


def _from_text(entry: _Given, annotation: Any) -> Any:
    """Command-line text into a value: words stay words for text fields, commas make lists for list fields."""
    members, text = _members(annotation), entry.value
    quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
    sequence = next((m for m in members if typing.get_origin(m) in (tuple, list, Sequence) or m in (tuple, list)), None)
    if type(None) in members and text.lower() in {"null", "none", "~"}:
        return None
    if sequence is not None and not quoted and not text.startswith("[") and ("," in text or str not in members):
        args = [a for a in typing.get_args(sequence) if a is not Ellipsis]
        parts = [part.strip() for part in text.split(",") if part.strip()]
        return [
            _from_text(_Given(entry.key, p, entry.where, True), args[i if i < len(args) else -1] if args else Any)
            for i, p in enumerate(parts)
        ]
    if _is_word(members) and not (sequence is not None and text.startswith("[")):
        return text[1:-1] if quoted else text
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError):
        raise InputError(
            f"cannot read {reprlib.repr(text)}",
            where=entry.where,
            field=entry.key,
            remedy=f"expected {_type_name(annotation)}",
        ) from None


def _is_word(members: Sequence[Any]) -> bool:
    """Whether the text itself is the value: `007.jsonl`, `1e3`, `off` and `*.gz` are no YAML for a field of text."""
    words = [m for m in members if m is str or (isinstance(m, type) and issubclass(m, Path)) or _words(m)]
    return bool(words) and not any(m in (int, float, bool) for m in members)


def _words(member: Any) -> bool:
    return typing.get_origin(member) is typing.Literal and all(isinstance(a, str) for a in typing.get_args(member))


def _members(annotation: Any) -> list[Any]:
    """The union's members, `Annotated` taken off."""
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return _members(typing.get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType):
        return [inner for member in typing.get_args(annotation) for inner in _members(member)]
    return [annotation]


def _choices(annotation: Any) -> list[str]:
    if typing.get_origin(annotation) is typing.Literal:
        return [str(a) for a in typing.get_args(annotation)]
    return [c for a in typing.get_args(annotation) if a is not Ellipsis for c in _choices(a)]


def _type_name(annotation: Any) -> str:
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _type_name(args[0])
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_type_name(a) for a in args)
    if origin is typing.Literal:
        return "one of " + ", ".join(str(a) for a in args)
    if origin is tuple and Ellipsis not in args:
        return f"[{', '.join(map(_type_name, args))}]"
    if origin in (tuple, list, Sequence):
        return "a list of " + (_type_name(args[0]) if args else "values")
    if origin in (dict, Mapping):
        return "{name: value, ...}, a value being " + _type_name(args[1])
    words = {
        bool: "true or false",
        int: "an integer",
        float: "a number",
        str: "a text",
        type(None): "null",
        Path: "a path",
    }
    return words.get(annotation, getattr(annotation, "__name__", str(annotation)))


def _range(section: type[Section], key: str) -> str:
    found = [
        (b, getattr(m, b))
        for m in section.model_fields[key].metadata
        for b in BOUNDS
        if getattr(m, b, None) is not None
    ]
    return " and ".join(f"{BOUNDS[b]} {bound}" for b, bound in found)


def _extra(field: Any) -> Mapping[str, Any]:
    return field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}


def _plain(value: Any) -> Any:
    if isinstance(value, pydantic.BaseModel):
        return value.model_dump(mode="json")
    raise TypeError(f"{type(value).__name__} has no canonical JSON form")
