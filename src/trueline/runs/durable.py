"""Files that survive a crash and a power cut: written aside, synced, renamed, and the rename synced as well."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from trueline.errors import RunError

__all__ = ["drop_unfinished", "explained", "replace_text", "sync", "sync_tree"]


def replace_text(path: Path, text: str, *, durable: bool = False) -> None:
    """Write a file whole or not at all; `durable`: it is on the disk when this returns.

    Raises RunError where the disk is full or cannot be written to. The old file stays as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8", newline="\n")
        if durable:
            sync(temporary)
        os.replace(temporary, path)
        if durable:
            sync(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise explained(error, path, len(text.encode())) from error


def drop_unfinished(folder: Path) -> None:
    """Remove what writers that were killed left half written in a folder that this process alone writes to.

    Ours end with `.tmp`; those of the tensors' library begin with it.
    """
    for path in (*folder.glob(".*.tmp"), *folder.glob(".tmp*")):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def explained(error: OSError, path: Path, needed: int) -> RunError:
    """The error of a write of `needed` bytes, with what is free and what to do."""
    try:
        free = f"; {needed:,} bytes needed, {shutil.disk_usage(path.parent).free:,} free"
    except OSError:
        free = f"; {needed:,} bytes needed"
    return RunError(
        f"{path}: cannot be written ({error.strerror or error}){free}; what was there is kept: "
        "make room or permit writing, then run the same command again"
    )


def sync(path: Path) -> None:
    """Flush a file's bytes, or a folder's entries, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_tree(folder: Path) -> None:
    """Flush every file below, and the folders themselves, the innermost first."""
    for where, _, files in os.walk(folder, topdown=False):
        for name in files:
            sync(Path(where) / name)
        sync(Path(where))
