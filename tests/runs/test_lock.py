"""One process per run directory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from trueline.errors import RunError
from trueline.runs import lock

HOLD = """
import sys, time
from pathlib import Path
from trueline.runs.lock import held
with held(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def _holder(directory: Path) -> subprocess.Popen:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(directory)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_process_is_refused_and_told_by_whom(tmp_path) -> None:
    process = _holder(tmp_path)
    with process:
        with pytest.raises(RunError, match=f"process {process.pid} on .*nothing was touched"), lock.held(tmp_path):
            pass
        process.kill()


def test_a_lock_dies_with_its_holder_however_it_went(tmp_path) -> None:
    process = _holder(tmp_path)
    with process:
        process.kill()
        process.wait(10)
    with lock.held(tmp_path):
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()
        with lock.held(tmp_path):  # a command within a command
            pass
    with lock.held(tmp_path):
        pass


class TestWhereTheFileSystemHasNoLocks:
    @pytest.fixture(autouse=True)
    def _none(self, monkeypatch) -> None:
        import fcntl

        def flock(handle, how):
            raise OSError(38, "Function not implemented")

        monkeypatch.setattr(fcntl, "flock", flock)

    def _written(self, directory: Path, **changes) -> None:
        (directory / ".lock").write_text(json.dumps(lock._me() | changes))

    def test_a_living_holder_is_known_by_its_pid(self, tmp_path) -> None:
        self._written(tmp_path, pid=os.getppid())
        with pytest.raises(RunError, match=f"process {os.getppid()}"), lock.held(tmp_path):
            pass

    def test_one_of_another_machine_cannot_be_known_to_be_dead(self, tmp_path) -> None:
        self._written(tmp_path, pid=1, host="elsewhere")
        with pytest.raises(RunError, match="on elsewhere"), lock.held(tmp_path):
            pass

    def test_a_dead_holder_and_one_from_before_the_last_boot_hold_nothing(self, tmp_path) -> None:
        gone = subprocess.Popen([sys.executable, "-c", ""])
        gone.wait(10)
        for changes in ({"pid": gone.pid}, {"pid": os.getppid(), "boot": "another"}):
            self._written(tmp_path, **changes)
            with lock.held(tmp_path):
                pass
