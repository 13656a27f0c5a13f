"""A save on a disk that fails: killed, full, broken, read-only or without power at every single operation."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.reliability.figures import record

ROOT = Path(__file__).resolve().parents[2]
COMPILER = shutil.which("cc") or shutil.which("gcc")

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(COMPILER is None or not sys.platform.startswith("linux"), reason="needs Linux and a C compiler"),
]


@pytest.fixture(scope="module")
def disk(tmp_path_factory) -> Path:
    """The library that stands between a process and its disk."""
    made = tmp_path_factory.mktemp("disk") / "disk.so"
    source = Path(__file__).with_name("disk.c")
    subprocess.run([COMPILER, "-shared", "-fPIC", "-O1", "-o", str(made), str(source), "-ldl"], check=True)
    return made


def _run(disk: Path, folder: Path, *more: str) -> subprocess.CompletedProcess:
    path = os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH", ""), str(ROOT), str(ROOT / "src"))))
    environment = os.environ | {"LD_PRELOAD": str(disk), "PYTHONPATH": path}
    command = [sys.executable, "-m", "tests.reliability.disk_runs", str(folder), *more]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, cwd=ROOT)


def test_at_every_operation_of_a_save_a_complete_checkpoint_is_there_and_the_run_goes_on(disk, tmp_path) -> None:
    ran = _run(disk, tmp_path)
    assert ran.returncode == 0, ran.stderr[-2000:]
    found = json.loads(ran.stdout)
    count = found["killed"]["operations"]
    assert count >= 20 and found["killed"]["old"] > 0 and found["killed"]["new"] > 0
    assert found["killed"]["old"] + found["killed"]["new"] == count
    full = found["full"]
    assert full["told"] + full["through"] == full["operations"] and full["told"] >= count - 3
    assert "bytes needed" in ran.stderr and " free; what was there is kept" in ran.stderr
    assert found["power cut"]["finished"] and found["power cut"]["states"] > 2 * count
    record("H2", "save", **{name.replace(" ", "_"): part for name, part in found.items()})


def test_without_syncs_a_power_cut_is_seen_to_lose_the_save(disk, tmp_path) -> None:
    """Positive control of the replay."""
    ran = _run(disk, tmp_path, "without-sync")
    assert ran.returncode != 0 and "AssertionError" in ran.stderr
