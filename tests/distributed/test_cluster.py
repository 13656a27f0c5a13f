"""A cluster of two machines, made here by Ray: the same numbers, and workers and machines that are lost.

Needs the extra `ray`; `make nightly` installs it.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.program import ENVIRONMENT, trueline
from tests.training.small import contents

from trueline.commands.resolve import resolve
from trueline.errors import InputError

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

night = pytest.mark.nightly
TOKEN = secrets.token_hex(32)
WITH_TOKEN = ENVIRONMENT | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}
STAGE = (
    "ppo", "dialogue", "--seeds", "0", "world.demonstrations=400", "world.pairs=120", "sft.epochs=1",
    "sft.batch_size=32", "reward.epochs=1", "ppo.steps=16", "ppo.batch_size=32", "train.snapshots=8", "-o", "run",
)  # fmt: skip

# The machines are a process of their own: this one must not read Ray's environment before its token is there.
MACHINES = """
import sys
from ray.cluster_utils import Cluster
machines = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
second = machines.add_node(num_cpus=2)
print(machines.address, flush=True)
for line in sys.stdin:
    if line.strip() == "lose":
        machines.remove_node(second, allow_graceful=False)
    elif line.strip() == "bring":
        second = machines.add_node(num_cpus=2)
    else:
        break
    print("done", flush=True)
machines.shutdown()
"""


class Machines:
    """Two machines of two cores each; the second can be lost and brought back."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", MACHINES], env=WITH_TOKEN, stdin=-1, stdout=-1, stderr=-3, text=True
        )
        self.address = self.process.stdout.readline().strip()
        assert self.address

    def tell(self, word: str) -> None:
        print(word, file=self.process.stdin, flush=True)
        assert self.process.stdout.readline().strip() == "done"


@pytest.fixture(scope="module")
def machines() -> Iterator[Machines]:
    pytest.importorskip("ray")
    made = Machines()
    yield made
    made.process.communicate("end\n", timeout=60)


def _started(folder: Path, machines: Machines, *more: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "trueline", *STAGE, f"cluster.address={machines.address}", *more]
    return subprocess.Popen(command, cwd=folder, env=WITH_TOKEN, stdout=-3, stderr=-1, text=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """The cells of the run on this machine alone."""
    folder = tmp_path_factory.mktemp("whole")
    ended = trueline(*STAGE, cwd=folder)
    assert ended.returncode == 0, ended.stderr
    return folder / "run" / "cells"


def _same(run: Path, whole: Path) -> None:
    """Every file of every cell, to the bit; the rows of lost workers and refused tries are not there twice."""
    cells = run / "cells"
    names = {path.name for path in whole.iterdir() if not path.name.startswith(".")}
    assert {path.name for path in cells.iterdir() if not path.name.startswith(".")} == names
    for name in names:
        assert contents(cells / name) == contents(whole / name)


def _rows(run: Path, method: str) -> int:
    for path in run.glob("cells/*/metrics.jsonl"):
        if json.loads((path.parent / "config.json").read_text())["method"] == method:
            return path.read_bytes().count(b"\n")
    return 0


def _until(process: subprocess.Popen, run: Path, rows: int) -> None:
    while _rows(run, "ppo") < rows:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)


def _actors(kind: str) -> list[int]:
    """The processes of actors of that kind."""
    found = subprocess.run(["pgrep", "-f", rf"^ray::{kind}"], capture_output=True, text=True).stdout
    return list(map(int, found.split()))


def _incidents(run: Path) -> list[str]:
    path = run / "incidents.jsonl"
    return [json.loads(line)["what"] for line in path.read_text().splitlines()] if path.exists() else []


def test_cells_with_their_helpers_elsewhere_are_the_same_to_the_bit(machines, whole, tmp_path) -> None:
    more = ("cluster.cpus=0.5", "cluster.samplers=2", "cluster.scorers=1")
    with _started(tmp_path, machines, *more) as process:
        assert process.wait(120) == 0, process.stderr.read()
    _same(tmp_path / "run", whole)


@night
def test_helpers_of_cells_that_run_here(machines, whole, tmp_path) -> None:
    more = ("cluster.cells=false", "cluster.samplers=3", "train.workers=1")
    with _started(tmp_path, machines, *more) as process:
        assert process.wait(120) == 0, process.stderr.read()
    _same(tmp_path / "run", whole)


@night
@pytest.mark.parametrize(("kind", "more"), [("_Worker", ()), ("_Sampler", ("cluster.samplers=2", "cluster.cpus=0.5"))])
def test_a_worker_that_is_killed_is_replaced_and_nothing_counts_twice(kind, more, machines, whole, tmp_path) -> None:
    with _started(tmp_path, machines, *more) as process:
        for wanted in (3, 9):
            _until(process, tmp_path / "run", wanted)
            killed = _actors(kind)
            assert killed
            os.kill(killed[0], signal.SIGKILL)
        assert process.wait(120) == 0, process.stderr.read()
    _same(tmp_path / "run", whole)
    if kind == "_Worker":
        assert all(what.startswith("a worker was lost") for what in _incidents(tmp_path / "run"))
        assert len(_incidents(tmp_path / "run")) == 2


@night
def test_a_machine_that_is_lost_is_done_without(machines, whole, tmp_path) -> None:
    # cells of two cores with their helper: some part of each is on the machine that goes
    with _started(tmp_path, machines, "cluster.samplers=2", "cluster.cpus=0.6") as process:
        _until(process, tmp_path / "run", 3)
        began, rows = time.monotonic(), _rows(tmp_path / "run", "ppo")
        machines.tell("lose")
        while _rows(tmp_path / "run", "ppo") <= rows + 1:
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() - began < 30
            time.sleep(0.02)
        assert process.wait(120) == 0, process.stderr.read()
    machines.tell("bring")
    _same(tmp_path / "run", whole)


@night
def test_workers_that_always_die_end_the_run_in_time(machines, tmp_path) -> None:
    with _started(tmp_path, machines) as process:
        _until(process, tmp_path / "run", 1)
        began = time.monotonic()
        while process.poll() is None:
            for pid in _actors("_Worker"):
                os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)
            assert time.monotonic() - began < 30
        said = process.stderr.read()
    assert process.returncode == 1 and "its worker was lost 3 times" in said and "Traceback" not in said


@night
def test_a_stop_is_saved_and_goes_on(machines, whole, tmp_path) -> None:
    with _started(tmp_path, machines) as process:
        _until(process, tmp_path / "run", 3)
        process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        assert process.wait(30) == 143 and time.monotonic() - began < 15
        assert "Go on with the same command" in process.stderr.read()
    assert not _actors("_Worker")
    with _started(tmp_path, machines) as process:
        assert process.wait(120) == 0, process.stderr.read()
    _same(tmp_path / "run", whole)


@night
def test_a_program_that_is_killed_leaves_no_worker(machines, tmp_path) -> None:
    with _started(tmp_path, machines) as process:
        _until(process, tmp_path / "run", 1)
        assert _actors("_Worker")
        process.kill()
    until = time.monotonic() + 30
    while _actors("_Worker") and time.monotonic() < until:
        time.sleep(0.1)
    assert not _actors("_Worker")


@night
def test_programs_are_judged_elsewhere_alike(machines, tmp_path) -> None:
    study = ("ppo", "code", "--quick", "world.demonstrations=200", "sft.epochs=1", "ppo.steps=2", "ppo.batch_size=16")
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    ended = trueline(*study, "-o", "run", cwd=tmp_path / "here")
    assert ended.returncode == 0, ended.stderr
    command = [
        # two cells fill the machines: judges that outlived their cell would leave no room for the next
        sys.executable, "-m", "trueline", *study, f"cluster.address={machines.address}", "cluster.judges=1",
        "cluster.cpus=1", "-o", "run",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=tmp_path / "there", env=WITH_TOKEN, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    here, there = (
        {p.name: p for p in (tmp_path / n / "run" / "cells").iterdir() if p.is_dir()} for n in ("here", "there")
    )
    shared = [name for name in here if not name.startswith(".")]
    assert shared and set(shared) <= set(there)
    for name in shared:
        same = {k: v for k, v in contents(here[name]).items() if k != "machinery.json"}
        assert same == {k: v for k, v in contents(there[name]).items() if k != "machinery.json"}


@pytest.mark.parametrize(
    ("environment", "code", "message"),
    [
        ({"RAY_AUTH_MODE": "disabled"}, 2, "a cluster without tokens runs any code"),
        pytest.param({"RAY_AUTH_TOKEN": secrets.token_hex(32)}, 1, "that takes this token", marks=night),
    ],
)
def test_who_has_no_token_is_refused(environment, code, message, machines, tmp_path) -> None:
    command = [sys.executable, "-m", "trueline", *STAGE, f"cluster.address={machines.address}"]
    done = subprocess.run(
        command, cwd=tmp_path, env=WITH_TOKEN | environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == code and message in done.stderr and "Traceback" not in done.stderr
    assert TOKEN not in done.stderr + done.stdout


def test_a_cluster_that_is_not_there(tmp_path) -> None:
    pytest.importorskip("ray")
    command = [sys.executable, "-m", "trueline", *STAGE, "cluster.address=127.0.0.1:1"]
    done = subprocess.run(command, cwd=tmp_path, env=WITH_TOKEN, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and "no Ray cluster at 127.0.0.1:1" in done.stderr and "Traceback" not in done.stderr


WAITING = """
import sys, time
from trueline.distributed import cluster
from trueline.distributed.settings import ClusterSettings
from trueline.errors import RunError

class Slow:
    def __init__(self):
        time.sleep(3)
    def answer(self):
        return 7

cluster._PATIENCE = 0.5
with cluster.connect(ClusterSettings(address=sys.argv[1])):
    pool = cluster.ActorPool(cluster.Actors(Slow, cpus=0.25), 1, name="scorer")
    assert pool.each([lambda actor: actor.answer.remote()]) == [7]
    pool.close()
    try:
        cluster.ActorPool(cluster.Actors(Slow, cpus=64), 1, name="scorer")
    except RunError as error:
        assert "1 scorers found no machine within 0.5 s" in str(error), error
    else:
        raise SystemExit("64 cores were found")
"""


def test_who_starts_slowly_is_waited_for_and_who_has_no_room_is_not(machines) -> None:
    command = [sys.executable, "-c", WAITING, machines.address]
    done = subprocess.run(command, env=WITH_TOKEN, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_a_cell_that_no_machine_can_hold(machines, tmp_path) -> None:
    with _started(tmp_path, machines, "cluster.cpus=64") as process:
        assert process.wait(60) == 2
        assert "a cell with its helpers takes 64 cores" in process.stderr.read()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["cluster.samplers=2"], r"cluster.samplers: is of a cluster, and none is named"),
        (
            ["cluster.address=auto", "cluster.samplers=2", "rollout.engine=vllm", "rollout.url=http://a:1"],
            r"cluster.samplers: the samples come from a server",
        ),
        (["cluster.address=auto", "cluster.cpus=0"], r"cluster.cpus"),
    ],
)
def test_settings_that_cannot_be_used(overrides, message) -> None:
    with pytest.raises(InputError, match=message):
        resolve("dialogue", overrides, quick=True)
