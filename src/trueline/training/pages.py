"""The training pages, discovered: every module of this package with a `Config`, an `objective` and a `train`.

A page that says what it learns from (`LEARNS_FROM`) is an arm of studies by its own name.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from types import ModuleType

import trueline.training
from trueline.types import Arm

__all__ = ["arms", "page", "pages", "section_pages"]


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


@cache
def arms() -> dict[str, Arm]:
    """Every arm that a study can compare, by name: what is composed of pages first, then each page that is an arm."""
    found = [
        Arm("sft", ""),
        Arm("best-of-n", "", learns_from="reward"),
        Arm("sft-chosen", "sft", "sft_chosen", "pairs", page("sft").SEARCH),
        Arm("dpo-nll", "dpo", "dpo_nll", "pairs", page("dpo").SEARCH),
        Arm("dpo+ppo", "ppo", "both", "reward", page("ppo").SEARCH),
    ]
    for name, module in pages().items():
        if hasattr(module, "LEARNS_FROM"):
            found.append(Arm(name, name, name.replace("-", "_"), module.LEARNS_FROM, module.SEARCH))
    return {arm.name: arm for arm in found}


def section_pages() -> dict[str, str]:
    """Section of the settings -> the page that reads it. A page that the study sets up by itself has none."""
    named = {name.replace("-", "_"): name for name, module in pages().items() if getattr(module, "SECTION", True)}
    return named | {arm.section: arm.page for arm in arms().values() if arm.section}
