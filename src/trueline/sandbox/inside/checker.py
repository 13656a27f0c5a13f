"""The checker's side of an assert script: it holds the assertions, and calls the candidate in another process.

What the candidate returns arrives as plain values (see `wire`), or as a `Remote` that never lends its own `__eq__`,
arithmetic or truth to an assertion.
"""

from __future__ import annotations

import builtins
import io
import sys
import types
from typing import Any

from .channel import report
from .wire import decode, encode

__all__ = ["run_check"]


class RemoteError(Exception):
    """The candidate failed in a way that has no builtin exception, or broke the protocol."""


class _Link:
    """Requests over descriptor 4, one answer each, `budget` bytes of answers in all."""

    def __init__(self, budget: int) -> None:
        self._file, self._budget = io.FileIO(4, "r+", closefd=False), budget
        self._data = b""

    def ask(self, verb: str, target: Any, *rest: Any) -> Any:
        request = encode([verb, target, *rest], _reference)
        report_line = memoryview(request.encode("ascii") + b"\n")
        try:
            while report_line:
                report_line = report_line[self._file.write(report_line) :]
            answer = decode_line(self._line())
        except OSError:
            raise RemoteError("the candidate's process ended") from None
        if answer[0] == "value":
            return decode(answer[1], lambda number: Remote(self, number))
        if answer[0] == "end":
            if verb == "next":
                raise StopIteration
            raise RemoteError("StopIteration")
        raise _exception(*answer[1:])

    def _line(self) -> bytes:
        while b"\n" not in self._data:
            more = self._file.read(1 << 16)
            self._budget -= len(more or b"")
            if not more or self._budget < 0:
                raise RemoteError("the candidate's process ended" if not more else "its answers are too long")
            self._data += more
        line, _, self._data = self._data.partition(b"\n")
        return line


def decode_line(line: bytes) -> list[str]:
    """An answer: a list of one to three strings. Raises RemoteError otherwise."""
    try:
        answer = decode(line)
    except Exception:
        answer = None
    known = {"value": 2, "end": 1, "error": 3}
    if type(answer) is list and all(type(part) is str for part in answer) and answer:
        if known.get(answer[0]) == len(answer):
            return answer
    raise RemoteError("the candidate broke the protocol")


def _exception(name: str, text: str) -> Exception:
    """The builtin exception of that name. StopIteration would silently end a loop of the script, so it is not one."""
    kind = getattr(builtins, name, None)
    if not (isinstance(kind, type) and issubclass(kind, Exception)) or name.startswith("Stop"):
        kind = RemoteError
    try:
        error = kind(text)
    except TypeError:  # UnicodeDecodeError and its like want more
        error = RemoteError(text)
    error.remote = True
    return error


class Remote:
    """An object that lives in the candidate's process. Equal to itself only, always true, no arithmetic, no order."""

    __slots__ = ("_link", "_number")

    def __init__(self, link: _Link, number: int) -> None:
        object.__setattr__(self, "_link", link)
        object.__setattr__(self, "_number", number)

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        return self._link.ask("call", self, list(arguments), keywords)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._link.ask("attribute", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._link.ask("assign", self, name, value)

    def __getitem__(self, key: Any) -> Any:
        return self._link.ask("item", self, key)

    def __len__(self) -> int:
        return self._link.ask("length", self)

    def __iter__(self) -> Any:
        iterator = self._link.ask("iterate", self)
        while True:
            try:
                yield self._link.ask("next", iterator)
            except StopIteration:
                return

    def __bool__(self) -> bool:
        return True

    def __eq__(self, other: object) -> bool:
        return type(other) is Remote and other._number == self._number

    def __hash__(self) -> int:
        return hash(("remote", self._number))

    def __repr__(self) -> str:
        return f"<object {self._number} of the candidate>"


def _reference(value: Any) -> int:
    if type(value) is Remote:
        return value._number
    raise TypeError(f"the script passes a {type(value).__name__}, which cannot leave its process")


class _Names(dict):
    """The script's globals. A name that is neither the script's, the prelude's, a builtin nor a module of the standard
    library is looked up in the candidate."""

    link: _Link

    def __missing__(self, name: str) -> Any:
        if hasattr(builtins, name) or name.startswith("__"):
            raise KeyError(name)
        if name in sys.stdlib_module_names:
            self[name] = __import__(name)
        else:
            try:
                self[name] = self.link.ask("name", name)
            except KeyError:
                raise KeyError(name) from None
        return self[name]


def run_check(job: dict[str, Any]) -> None:
    """Run prelude and script; `passed` is reported only where both ran to their end."""
    names = _Names(__name__="check")
    names.link = _Link(job["answer_bytes"])
    try:
        if job["prelude"]:
            exec(compile(job["prelude"], "<prelude>", "exec", dont_inherit=True), names)
        if job["entry"]:
            asked = names[job["entry"]] = names.link.ask("name", job["entry"])
        exec(compile(job["code"], "<test>", "exec", dont_inherit=True), names)
        if job["entry"] and type(names.get("check")) is types.FunctionType:  # not the candidate's
            names["check"](asked)
    except AssertionError as error:
        return report("runtime" if hasattr(error, "remote") else "wrong", f"AssertionError: {error}"[:300])
    except MemoryError:
        return report("memory", "in the checker")
    except BaseException as error:
        return report("runtime", f"{type(error).__name__}: {error}"[:300])
    report("passed")
