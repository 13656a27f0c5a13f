"""What a disk holds after a power cut: a file system's operations replayed, with what was never synced taken away.

Bytes are on the disk once their file was synced; a name is once its folder was. In between a file system may have
written either, so both ends are tried: no name that was not synced is there (strict), and every name is there while the
bytes behind it are not (eager: the zero-length files that delayed allocation leaves).
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePath

__all__ = ["Operation", "State", "crash_states", "read_journal"]


@dataclass(frozen=True)
class Operation:
    """One line of the journal that `disk.c` writes."""

    what: str
    path: str
    other: str
    offset: int
    data: bytes


@dataclass
class State:
    """Folders and files of a crash state; a file is its bytes, a folder None."""

    entries: dict[str, bytes | None] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Make it real."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for name in sorted(self.entries):
            data = self.entries[name]
            if data is None:
                (folder / name).mkdir()
            else:
                (folder / name).write_bytes(data)


class _File:
    """Bytes as they are now, and as the disk has them."""

    def __init__(self, data: bytes = b"") -> None:
        self.now = bytearray(data)
        self.synced = bytes(data)


class _Folder:
    """Names as they are now, and as the disk has them."""

    def __init__(self) -> None:
        self.now: dict[str, _File | _Folder] = {}
        self.synced: dict[str, _File | _Folder] = {}


def read_journal(path: Path, root: Path) -> list[Operation]:
    """The operations, in order.

    The tensors' library writes to a temporary file and renames it past the C library, where no journal sees it: that
    rename is put in, to the file below `root` that has those bytes.
    """
    journal = _written(path)
    for operation in [o for o in journal if o.what == "create" and PurePath(o.path).name.startswith(".tmp")]:
        writes = [o for o in journal if o.what == "write" and o.path == operation.path]
        data = b"".join(o.data for o in writes)
        named = [found for found in root.rglob("*.safetensors") if found.read_bytes() == data]
        assert len(named) == 1, operation.path
        target = str(PurePath(operation.path).with_name(named[0].name))
        journal.insert(journal.index(writes[-1]) + 1, Operation("rename", operation.path, target, 0, b""))
    return journal


def _written(path: Path) -> list[Operation]:
    data, found, at = path.read_bytes(), [], 0
    while at < len(data):
        end = data.index(b"\n", at)
        what, a, b, offset, size = data[at:end].decode().split("\t")
        at = end + 1 + int(size)
        found.append(Operation(what, a, b, int(offset), data[end + 1 : at]))
    return found


def crash_states(before: Path, root: Path, journal: list[Operation]) -> Iterator[tuple[State, bool]]:
    """Every state that a cut between two operations may leave, strict and eager; and whether all were through.

    `before` is a copy of `root` as it lay on the disk.
    """
    top = _read(before)
    for number in range(len(journal) + 1):
        if number:
            _apply(journal[number - 1], root, top)
        for eager in (False, True):
            state = State()
            _take(top, "", eager, state.entries)
            yield state, number == len(journal)


def _read(folder: Path) -> _Folder:
    found = _Folder()
    for path in folder.iterdir():
        found.now[path.name] = _read(path) if path.is_dir() else _File(path.read_bytes())
    found.synced = dict(found.now)
    return found


def _take(folder: _Folder, prefix: str, eager: bool, entries: dict[str, bytes | None]) -> None:
    for name, node in (folder.now if eager else folder.synced).items():
        if isinstance(node, _File):
            entries[prefix + name] = node.synced
        else:
            entries[prefix + name] = None
            _take(node, f"{prefix}{name}/", eager, entries)


def _apply(operation: Operation, root: Path, top: _Folder) -> None:
    parent, name = _place(operation.path, root, top)
    node = parent.now.get(name) if name else top
    if operation.what == "create" and isinstance(node, _File):
        node.now, node.synced = bytearray(), b""  # cut off: the disk may have that already
    elif operation.what == "create":
        parent.now[name] = _File()
    elif operation.what == "write":
        end = operation.offset + len(operation.data)
        node.now.extend(bytes(max(0, end - len(node.now))))
        node.now[operation.offset : end] = operation.data
    elif operation.what == "truncate":
        node.now = node.now[: operation.offset].ljust(operation.offset, b"\0")
    elif operation.what == "mkdir":
        parent.now[name] = _Folder()
    elif operation.what in ("unlink", "rmdir"):
        del parent.now[name]
    elif operation.what == "rename":
        target, new = _place(operation.other, root, top)
        target.now[new] = parent.now.pop(name)
    elif operation.what == "sync" and isinstance(node, _File):
        node.synced = bytes(node.now)
    elif operation.what == "sync":
        node.synced = dict(node.now)
    else:
        raise ValueError(operation.what)


def _place(path: str, root: Path, top: _Folder) -> tuple[_Folder, str]:
    parts = PurePath(path).relative_to(root).parts
    folder = top
    for part in parts[:-1]:
        folder = folder.now[part]
    return folder, parts[-1] if parts else ""
