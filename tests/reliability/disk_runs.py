"""FOLDER: one save on a disk that fails at its every operation (LD_PRELOAD of disk.c); prints what was found, as JSON.

The save is a run's own: rows are logged and synced, a checkpoint is written, older state is dropped, the cell is
finished. Each attempt is a process of its own, forked from this one.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from trueline.errors import RunError
from trueline.models.fingerprints import fingerprint
from trueline.runs import checkpoint
from trueline.runs.cell import Cell, read_jsonl
from trueline.runs.checkpoint import ModuleState
from trueline.runs.durable import sync_tree

COUNT, KILL, FAIL_ONCE, FAIL_ON = range(4)
DISK = ctypes.CDLL(None)
BEFORE, NOW = 4, 6
"""The step of the checkpoint that is there, and of the one that is written."""


def policy(step: int) -> nn.Module:
    """The weights after that step."""
    torch.manual_seed(step)
    return nn.Linear(8, 4)


def registry(step: int) -> dict:
    """What a checkpoint of that step holds."""
    return {"policy": ModuleState(policy(step)), "critic": ModuleState(policy(100 + step))}


def prepared(folder: Path) -> Cell:
    """A cell with two checkpoints and their rows, all on the disk."""
    cell = Cell(folder)
    cell.open({"method": "ppo"})
    for step in range(1, BEFORE + 1):
        cell.log("metrics", {"step": step})
        if step in (BEFORE - 2, BEFORE):
            checkpoint.save(cell.checkpoints, step, registry(step))
    sync_tree(folder)
    return cell


def save(cell: Cell) -> None:
    """The save that is watched."""
    for step in range(BEFORE + 1, NOW + 1):
        cell.log("metrics", {"step": step})
    cell.sync_logs()
    checkpoint.save(cell.checkpoints, NOW, registry(NOW))


def finish(cell: Cell) -> None:
    """The end of a cell."""
    (cell / "model").mkdir(exist_ok=True)
    checkpoint.save_file({"w": torch.arange(6.0)}, cell / "model" / "model.safetensors")
    cell.finish(steps=NOW)


def go_on(cell: Cell) -> None:
    """The start of a run whose newest checkpoint is damaged: rows after the one before are dropped."""
    cell.rewind(BEFORE)


def in_a_fork(work: Callable[[], None]) -> int:
    """The wait status of a process that runs `work`: 0 where it ended well, 3 where it raised a RunError."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os._exit(0)
        except RunError as error:
            print(error, file=sys.stderr)
            os._exit(3)
        except BaseException as error:
            print(f"not ours: {error!r}", file=sys.stderr, flush=True)
            os._exit(4)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def armed(cell: Cell, work: Callable[[Cell], None], mode: int, at: int, number: int = 0, log: str = "") -> int:
    """The status of `work` with the disk armed."""

    def run() -> None:
        DISK.disk_arm(str(cell.directory).encode(), mode, at, number, log.encode())
        work(cell)
        DISK.disk_disarm()

    return in_a_fork(run)


def counted(cell: Cell, work: Callable[[Cell], None]) -> int:
    """How many operations `work` takes."""
    held = cell.directory.with_name("count")

    def run() -> None:
        DISK.disk_arm(str(cell.directory).encode(), COUNT, 0, 0, b"")
        work(cell)
        held.write_text(str(DISK.disk_disarm()))

    assert in_a_fork(run) == 0
    return int(held.read_text())


def whole(cell: Cell) -> int:
    """The step that a run would go on from; raises AssertionError where anything of it is not that step's."""
    found = checkpoint.newest(cell.checkpoints, cell.stopped)
    assert found.folder is not None, "no complete checkpoint"
    held = registry(99)
    checkpoint.restore(found.folder, found.step, held)
    assert fingerprint(held["policy"].module) == fingerprint(policy(found.step))
    assert fingerprint(held["critic"].module) == fingerprint(policy(100 + found.step))
    steps = [row["step"] for row in read_jsonl(cell / "metrics.jsonl")]
    assert steps[: found.step] == list(range(1, found.step + 1)), f"rows {steps} beside step {found.step}"
    return found.step


def fresh(folder: Path) -> Cell:
    """The prepared cell again."""
    shutil.rmtree(folder, ignore_errors=True)
    return prepared(folder)


def killed(folder: Path) -> dict:
    """Kill a save before each of its operations."""
    count = counted(fresh(folder), save)
    found = []
    for at in range(1, count + 1):
        cell = fresh(folder)
        assert armed(cell, save, KILL, at) == -9
        found.append(whole(cell))
        cell.rewind(found[-1])
        again(cell)
    return {"operations": count, "old": found.count(BEFORE), "new": found.count(NOW)}


def again(cell: Cell) -> None:
    """The save after a failed one: nothing that was left behind is in its way."""
    at = whole(cell)
    if at < NOW:
        cell.rewind(at)
        assert in_a_fork(lambda: save(cell)) == 0
    assert whole(cell) == NOW and not list(cell.checkpoints.glob(".tmp*"))


def failing(folder: Path, mode: int, number: int) -> dict:
    """Fail a save at each of its operations; what follows fails too (a full disk) or does not (a passing error)."""
    count = counted(fresh(folder), save)
    told = through = 0
    for at in range(1, count + 1):
        cell = fresh(folder)
        status = armed(cell, save, mode, at, number)
        assert status in (0, 3), f"operation {at}: exit {status}"
        told, through = told + (status == 3), through + (status == 0)
        step = whole(cell)
        assert status == 3 or step == NOW
        again(cell)
    return {"operations": count, "told": told, "through": through}


def dropped(folder: Path) -> dict:
    """Cut the power after each operation of a save and of a cell's end: what was not synced is gone."""
    from tests.reliability.power import crash_states, read_journal

    found: dict[str, int] = {"states": 0, "old": 0, "new": 0, "finished": 0}
    for work in (save, finish, go_on):
        cell = fresh(folder)
        if work is not save:
            save(cell)
            if work is go_on:
                (cell.checkpoints / f"step-{NOW:08d}" / "state.json").write_text("{}")
            sync_tree(folder)
        before = folder.with_name("before")
        shutil.rmtree(before, ignore_errors=True)
        shutil.copytree(folder, before)
        log = folder.with_name("journal")
        assert armed(cell, work, COUNT, 0, log=str(log)) == 0
        journal = read_journal(log, folder)
        for number, (state, done) in enumerate(crash_states(before, folder, journal)):
            target = folder.with_name(f"after-{number % 2}")
            state.write(target)
            after = Cell(target)
            step = whole(after)
            found["states"] += 1
            found["old"] += step == BEFORE
            found["new"] += step == NOW
            assert work is go_on or not done or step == NOW, "a save that returned was lost"
            if (target / "done.json").exists():
                found["finished"] += 1
                assert after.done == {"steps": NOW}
                kept = checkpoint.load_file(target / "model" / "model.safetensors")["w"]
                assert kept.tolist() == list(range(6)), "done.json outlived the model"
            assert work is not finish or not done or (target / "done.json").exists()
    return found


def main() -> None:
    """FOLDER [without-sync]: the second leaves every sync out, which must be found."""
    folder = Path(sys.argv[1]) / "cell"
    torch.set_num_threads(1)
    if sys.argv[2:] == ["without-sync"]:
        checkpoint.sync = lambda path: None
        print(json.dumps({"power cut": dropped(folder)}))
        return
    found = {
        "killed": killed(folder),
        "full": failing(folder, FAIL_ON, errno.ENOSPC),
        "full for a moment": failing(folder, FAIL_ONCE, errno.ENOSPC),
        "input/output error": failing(folder, FAIL_ONCE, errno.EIO),
        "interrupted": failing(folder, FAIL_ONCE, errno.EINTR),
        "read-only": failing(folder, FAIL_ON, errno.EROFS),
        "power cut": dropped(folder),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
