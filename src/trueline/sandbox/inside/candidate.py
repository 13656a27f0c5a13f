"""The candidate's side of a run: load the program, then call its functions, run it as a script, or serve a checker.

Nothing here knows an expected value, and nothing here is trusted: what it reports are values that others compare.
"""

from __future__ import annotations

import atexit
import gc
import io
import os
import sys
import threading
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
    """Call each (function, arguments); no two calls share an argument. One line per call; with `stop` none after a call
    that raised or gave what is not plain."""
    namespace = _load(job, "candidate")
    if namespace is None:
        return
    report("loaded")
    for name, arguments in job["calls"]:
        try:
            line = ("value", encode(_function(namespace, name)(*arguments)))
        except WireError as error:
            line = ("odd", _text(error))
        except BaseException as error:
            line = (_kind(error), _text(error))
        report(*line)
        if job["stop"] and line[0] != "value":
            return


def run_script(job: dict[str, Any]) -> None:
    """Run the program as `__main__` on its standard input, till its threads and exit handlers have ended."""
    sys.stdin = sys.__stdin__ = _stream(0, "r")
    out = sys.stdout = sys.__stdout__ = _stream(1, "w")
    ended = _load(job, "__main__") is not None
    if ended:
        threading._shutdown()
        atexit._run_exitfuncs()
    sys.stdout.flush()
    out.flush()
    if ended:
        sys.modules.pop("__main__", None)
        gc.collect()  # a stream of the program's own writes what it holds when it goes
        out.flush()
        report("loaded")


def _stream(fd: int, mode: str) -> io.TextIOWrapper:
    """A standard stream as an interpreter makes it at its start; quick readers of contest programs ask for its mode."""
    raw = io.FileIO(fd, mode, closefd=False)
    raw.name = ("<stdin>", "<stdout>")[fd]
    stream = io.TextIOWrapper((io.BufferedWriter if fd else io.BufferedReader)(raw), "utf-8", "surrogateescape")
    stream.mode = mode
    return stream


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
