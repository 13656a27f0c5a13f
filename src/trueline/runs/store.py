"""Cells are shared between run directories that lie side by side: a finished one is taken over, not made again.

A cell is addressed by everything that it depends on, so one of the same address is the same run. It is linked file by
file (hard links; copied where the file system has none): a directory stays whole when its neighbour is deleted.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

__all__ = ["HOLDER", "neighbours", "take_over"]

HOLDER = "runs.json"
"""What a directory has that holds several run directories."""


def neighbours(directory: Path) -> list[Path]:
    """The `cells/` of the run directories beside `directory` that belong to the same user, by name.

    A directory may hold several runs, one below the other (`findings/code`): they are beside what their holder is
    beside, and it is looked into as well.
    """
    own = directory.resolve()
    holders = [own.parent, *([own.parent.parent] if (own.parent / HOLDER).exists() else [])]
    found: dict[Path, None] = {}
    for holder in holders:
        for manifest in sorted([*holder.glob("*/manifest.json"), *holder.glob("*/*/manifest.json")]):
            cells = manifest.parent / "cells"
            if manifest.parent != own and cells.is_dir() and _ours(cells):
                found[cells] = None
    return list(found)


def _ours(path: Path) -> bool:
    return not hasattr(os, "getuid") or path.stat().st_uid == os.getuid()


def take_over(cell: Path, stores: Sequence[Path]) -> bool:
    """Whether `cell`, which is not there yet, was found finished in one of `stores` and linked into its place."""
    if cell.exists():
        return False
    for store in stores:
        source = store / cell.name
        if (source / "done.json").exists():
            _link_tree(source, cell)
            return True
    return False


def _link_tree(source: Path, target: Path) -> None:
    """Whole or not at all: put together aside and renamed."""
    aside = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    shutil.rmtree(aside, ignore_errors=True)
    aside.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(source, aside, copy_function=_link, ignore=_temporary)
    os.replace(aside, target)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _temporary(folder: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if name.endswith(".tmp")]
