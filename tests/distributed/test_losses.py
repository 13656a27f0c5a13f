"""What goes wrong among processes: one is lost, they disagree, too little is set, the port is taken."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.distributed.together import join_all
from tests.reliability.child import start
from tests.reliability.test_workers import STAGE as LONG

from program import ENVIRONMENT
from trueline.errors import InputError

pytestmark = pytest.mark.integration


STAGE = (*LONG, "sft.epochs=1", "dpo.epochs=1", "dpo.batch_size=6")


def _port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return held.getsockname()[1]


def _start(folder: Path, rank: int, size: int, port: int, *arguments: str) -> subprocess.Popen:
    """One process, as torchrun starts it; nobody watches over the others here."""
    environment = ENVIRONMENT | {
        "RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }  # fmt: skip
    command = [sys.executable, "-m", "trueline", *arguments]
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=-3, stderr=-1, text=True)


def _losses(run: Path) -> list[float]:
    for path in run.glob("cells/*/metrics.jsonl"):
        if json.loads((path.parent / "config.json").read_text())["method"] == "dpo":
            return [json.loads(line)["loss"] for line in path.read_text().splitlines()]
    return []


def test_a_lost_process_ends_the_others_with_one_error(tmp_path) -> None:
    _lose_one(tmp_path)


@pytest.mark.nightly
def test_after_a_loss_the_run_goes_on_to_the_same_end(tmp_path) -> None:
    _lose_one(tmp_path)
    port = _port()
    again = [_start(tmp_path, rank, 2, port, *STAGE) for rank in range(2)]
    for process in again:
        with process:
            assert process.wait(120) == 0, process.stderr.read()
    os.rename(tmp_path / "run", tmp_path / "lost")
    port = _port()
    whole = [_start(tmp_path, rank, 2, port, *STAGE) for rank in range(2)]
    for process in whole:
        with process:
            assert process.wait(120) == 0
    assert _losses(tmp_path / "lost") == _losses(tmp_path / "run") and len(_losses(tmp_path / "run")) > 15


def _lose_one(tmp_path: Path) -> None:
    port = _port()
    with _start(tmp_path, 0, 2, port, *STAGE) as first, _start(tmp_path, 1, 2, port, *STAGE) as second:
        while len(_losses(tmp_path / "run")) < 9:
            assert first.poll() is None and second.poll() is None
            time.sleep(0.01)
        second.send_signal(signal.SIGKILL)
        began = time.monotonic()
        _, said = first.communicate(timeout=60)
        assert time.monotonic() - began < 30 and first.returncode == 1
        assert said.count("\n") == 1 and "another process of this run is gone" in said and "Traceback" not in said
        second.communicate(timeout=10)


def test_a_stop_of_one_stops_all_once_the_step_is_saved(tmp_path) -> None:
    port = _port()
    with _start(tmp_path, 0, 2, port, *STAGE) as first, _start(tmp_path, 1, 2, port, *STAGE) as second:
        while len(_losses(tmp_path / "run")) < 3:
            assert first.poll() is None and second.poll() is None
            time.sleep(0.005)
        second.send_signal(signal.SIGTERM)
        said, other = first.communicate(timeout=60)[1], second.communicate(timeout=60)[1]
    assert (first.returncode, second.returncode) == (143, 143) and "Traceback" not in said + other
    assert "torchrun --nproc-per-node 2 -m trueline dpo" in said
    saved = [path for path in (tmp_path / "run").glob("cells/*/stopped/step-*/MANIFEST.json")]
    assert len(saved) == 1 and int(saved[0].parent.name.removeprefix("step-")) == len(_losses(tmp_path / "run"))


def test_processes_that_want_different_things_say_so_once(tmp_path) -> None:
    port = _port()
    with (
        _start(tmp_path, 0, 2, port, *STAGE) as first,
        _start(tmp_path, 1, 2, port, *STAGE, "dpo.beta=0.7") as second,
    ):
        told, other = first.communicate(timeout=60)[1], second.communicate(timeout=60)[1]
    assert (first.returncode, second.returncode) == (2, 2) and other == ""
    assert "the 2 processes do not run the same" in told and told.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_process_parts_from_the_others_also_after_an_error() -> None:
    """One that does not aborts now and then at its exit: SIGABRT in place of its exit code."""
    port = _port()
    assert join_all([start(_fail_together, rank, port) for rank in range(2)]) == [7, 7]


def _fail_together(rank: int, port: int) -> None:
    import torch.distributed as dist

    from trueline.distributed.world import current, together

    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with pytest.raises(InputError), together() as world:
        assert world.everyone(rank) == [0, 1]
        raise InputError("settings", remedy="others")
    sys.exit(7 if current().size == 1 and not dist.is_initialized() else 1)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"WORLD_SIZE": "two"}, "'two' is no number of processes"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, "MASTER_ADDR, MASTER_PORT is not set"),
    ],
)
def test_what_torchrun_should_have_set(changes, reason, tmp_path) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "trueline", *STAGE],
        cwd=tmp_path,
        env=ENVIRONMENT | changes,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 2 and reason in ended.stderr and "torchrun" in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_a_port_that_is_taken(tmp_path) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        with _start(tmp_path, 0, 2, held.getsockname()[1], *STAGE) as process:
            said = process.communicate(timeout=60)[1]
    assert process.returncode == 1 and "is the port in use?" in said and "Traceback" not in said


def test_a_command_that_runs_in_one_process(tmp_path) -> None:
    port = _port()
    with _start(tmp_path, 0, 2, port, "evaluate", "dialogue") as process:
        said = process.communicate(timeout=60)[1]
    assert process.returncode == 2 and "evaluate runs in one process" in said
