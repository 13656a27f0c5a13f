"""The candidate's side of a run: load the program, then call its functions, run it as a script, or serve a checker.

Nothing here knows an expected value, and nothing here is trusted: what it reports are values that others compare.
"""

from __future__ import annotations

import io
import os
import sys
import types
from typing import Any

from .channel import report
from .wire import WireError, decode, encode

__all__ = ["run_calls", "run_script", "serve"]

_exit = os._exit


def _kind(error: BaseException) -> str:
    return "memory" if type(error) is MemoryError else "runtime"


def _text(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"[:300]
    except BaseException:
        return type(error).__name__[:300]


def _load(job: dict[str, Any], name: str) -> dict[str, Any] | None:
    """The namespace after running the program, or None after reporting why not."""
    try:
        code = compile(job["source"], "<candidate>", "exec", dont_inherit=True)
    except MemoryError as error:
        return report("load", "memory", _text(error))
    except BaseException as error:  # also RecursionError and ValueError (NUL bytes)
        return report("load", "syntax", _text(error))
    module = types.ModuleType(name)
    sys.modules[name] = module
    try:
        if job["prelude"]:
            exec(compile(job["prelude"], "<prelude>", "exec", dont_inherit=True), module.__dict__)
        exec(code, module.__dict__)
    except SystemExit as error:
        if name == "__main__" and error.code in (None, 0):
            return module.__dict__
        return report("load", "runtime", _text(error))
    except BaseException as error:
        return report("load", _kind(error), _text(error))
    return module.__dict__


def _function(namespace: dict[str, Any], name: str) -> Any:
    """A function of the program, or a method of its class `Solution` (the style of some contest sites)."""
    if name in namespace or "Solution" not in namespace:
        return namespace[name]
    return getattr(namespace["Solution"](), name)


def run_calls(job: dict[str, Any]) -> None:
    """Call each (function, arguments); the arguments are decoded anew for each call. One line per call."""
    namespace = _load(job, "candidate")
    if namespace is None:
        return
    report("loaded")
    for name, arguments in job["calls"]:
        try:
            line = ("value", encode(_function(namespace, name)(*decode(arguments))))
        except WireError as error:
            line = ("odd", _text(error))
        except BaseException as error:
            line = (_kind(error), _text(error))
        report(*line)


def run_script(job: dict[str, Any]) -> None:
    """Run the program as `__main__` on its standard input."""
    sys.stdin = io.TextIOWrapper(io.BufferedReader(io.FileIO(0, "r", closefd=False)), "utf-8", "surrogateescape")
    out = io.BufferedWriter(io.FileIO(1, "w", closefd=False))
    sys.stdout = sys.__stdout__ = io.TextIOWrapper(out, "utf-8", "surrogateescape", write_through=False)
    ended = _load(job, "__main__") is not None
    sys.stdout.flush()
    if ended:
        report("loaded")


def serve(job: dict[str, Any]) -> None:
    """Answer a checker's requests on descriptor 4 until it hangs up: names, calls, attributes, items of our objects."""
    namespace = _load(job, "candidate")
    if namespace is None:
        return
    report("loaded")
    objects: list[Any] = []

    def refer(value: Any) -> int:
        for number, known in enumerate(objects[-1000:], max(0, len(objects) - 1000)):
            if known is value:
                return number
        objects.append(value)
        return len(objects) - 1

    with open(4, "rb", closefd=False) as requests:
        for line in requests:
            request = decode(line, objects.__getitem__)
            try:
                answer = ("value", encode(_answer(namespace, request), refer))
            except StopIteration:
                answer = ("end",)
            except WireError as error:
                answer = ("error", "WireError", _text(error))
            except BaseException as error:
                answer = ("error", type(error).__name__, _text(error))
            report(*answer, fd=4)


def _answer(namespace: dict[str, Any], request: list[Any]) -> Any:
    verb, target, *rest = request
    if verb == "name":
        return _function(namespace, target)
    if verb == "call":
        arguments, keywords = rest
        try:
            return target(*arguments, **keywords)
        except StopIteration as error:
            raise RuntimeError("StopIteration") from error
    if verb == "attribute":
        return getattr(target, rest[0])
    if verb == "assign":
        return setattr(target, *rest)
    if verb == "item":
        return target[rest[0]]
    if verb == "length":
        return len(target)
    return iter(target) if verb == "iterate" else next(target)
