"""The training pages, discovered: every module of this package with a `Config`, an `objective` and a `train`."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from types import ModuleType

import trueline.training

__all__ = ["page", "pages"]


@cache
def pages() -> dict[str, ModuleType]:
    """Pages by method name ("dpo-iter" for dpo_iter.py)."""
    found = {}
    for info in pkgutil.iter_modules(trueline.training.__path__):
        module = importlib.import_module(f"trueline.training.{info.name}")
        if all(hasattr(module, name) for name in ("Config", "objective", "train")) and module.__name__ != __name__:
            found[info.name.replace("_", "-")] = module
    return found


def page(method: str) -> ModuleType:
    """The page of a method."""
    return pages()[method]
