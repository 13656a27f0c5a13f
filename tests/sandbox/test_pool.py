"""Order, replaced workers, nothing left behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from trueline.sandbox import AssertTest, CallTest, Limits, Pool, Program, SandboxError

QUICK = Limits(cpu_seconds=0.5, wall_seconds=1.0, memory_bytes=256 << 20)
GOOD = Program("def f(x):\n    return x\n", (CallTest("f", [1], 1),))
WAITS = Program("import time\ndef f(x):\n    time.sleep(0.5)\n    return x\n", (CallTest("f", [1], 1),))
SLOW = Program("while True:\n    pass\n", (CallTest("f", [1], 1),))


@pytest.fixture
def two(pool):
    with Pool(2, QUICK, pool.tier) as fresh:
        yield fresh


def processes_below(pid: int) -> list[int]:
    """Living descendants."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[1]) == pid and fields[0] != "Z":
            found += [int(path.parent.name), *processes_below(int(path.parent.name))]
    return found


def test_verdicts_come_in_order(two) -> None:
    programs = []
    for n in range(12):
        wait = "import time; time.sleep(0.1)" if n % 4 == 0 else "pass"
        programs.append(Program(f"{wait}\ndef f():\n    return {n}\n", (CallTest("f", [], n),)))
    verdicts = list(two.judge(iter(programs)))
    assert [v.outputs for v in verdicts] == [(str(n),) for n in range(12)]
    assert all(v.outcome == "pass" for v in verdicts) and two.incidents == []


def test_a_slow_program_does_not_hold_up_the_others(two) -> None:
    start = time.monotonic()
    verdicts = list(two.judge([SLOW, *[GOOD] * 20]))
    assert [v.outcome for v in verdicts] == ["limit"] + ["pass"] * 20
    assert time.monotonic() - start < 10


def kill_when_busy(pool: Pool, number: int, times: int = 1) -> threading.Thread:
    def work() -> None:
        for _ in range(times):
            seen = set(pool.pids)
            time.sleep(0.25)
            os.kill(pool.pids[0], number)
            while times > 1 and pool.pids and set(pool.pids) == seen:
                time.sleep(0.01)

    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_a_killed_worker_costs_nothing_but_time(pool) -> None:
    with Pool(1, QUICK, pool.tier) as one:
        assert [v.outcome for v in one.judge([GOOD])] == ["pass"]
        before = one.pids
        thread = kill_when_busy(one, signal.SIGKILL)
        verdicts = list(one.judge([WAITS, GOOD]))
        thread.join()
        assert [v.outcome for v in verdicts] == ["pass", "pass"]
        assert len(one.incidents) == 1 and one.incidents[0].startswith(f"program 0: worker {before[0]}: ")
        assert one.pids != before


def test_a_worker_that_dies_twice_is_infrastructure_never_a_failure(pool) -> None:
    """The worker is killed whenever a run is under way, until it has happened twice."""
    with Pool(1, QUICK, pool.tier) as one:
        list(one.judge([GOOD]))
        stop = threading.Event()

        def hunt() -> None:
            while not stop.is_set() and len(one.incidents) < 2:
                with contextlib.suppress(ProcessLookupError, RuntimeError):  # replaced while we look
                    for pid in filter(processes_below, one.pids):
                        os.kill(pid, signal.SIGKILL)
                time.sleep(0.02)

        thread = threading.Thread(target=hunt)
        thread.start()
        verdicts = list(one.judge([WAITS, GOOD]))
        stop.set()
        thread.join()
    assert [v.outcome for v in verdicts] == ["infrastructure", "pass"]
    assert verdicts[0].error == "" and len(one.incidents) == 2


def test_a_stopped_worker_is_replaced(pool, monkeypatch) -> None:
    monkeypatch.setattr("trueline.sandbox.runs.GRACE", 0.5)
    with Pool(1, QUICK, pool.tier) as one:
        list(one.judge([GOOD]))
        os.kill(one.pids[0], signal.SIGSTOP)
        assert [v.outcome for v in one.judge([GOOD])] == ["pass"]
        assert len(one.incidents) == 1 and "no answer" in one.incidents[0]


def test_a_sandbox_that_breaks_again_and_again_stops_the_judgement(pool, monkeypatch) -> None:
    with Pool(1, QUICK, pool.tier) as one:
        monkeypatch.setattr("trueline.sandbox.worker._BOOT", "import sys; sys.exit('broken on purpose')")
        with pytest.raises(SandboxError, match=r"broke in a row.*broken on purpose"):
            list(one.judge([GOOD] * 20))
        monkeypatch.undo()
        assert [v.outcome for v in one.judge([GOOD])] == ["pass"]


def test_nothing_is_left_after_close(pool) -> None:
    before = set(processes_below(os.getpid()))
    with Pool(2, QUICK, pool.tier) as fresh:
        list(fresh.judge([GOOD, Program(GOOD.source, (AssertTest("assert f(1) == 1"),)), SLOW]))
        assert len(fresh.pids) >= 3
        assert not [below for pid in fresh.pids for below in processes_below(pid)]
    assert set(processes_below(os.getpid())) == before
    assert fresh.pids == []


def test_an_abandoned_judgement_ends_its_runs(two) -> None:
    verdicts = two.judge([GOOD, SLOW, SLOW])
    assert next(verdicts).outcome == "pass"
    verdicts.close()
    assert not [below for pid in two.pids for below in processes_below(pid)]
    assert [v.outcome for v in two.judge([GOOD])] == ["pass"]


def test_one_judgement_at_a_time(two) -> None:
    verdicts = two.judge([GOOD, GOOD])
    next(verdicts)
    with pytest.raises(RuntimeError, match="judging already"):
        next(two.judge([GOOD]))
    verdicts.close()


def test_workers_die_with_a_killed_judge(pool, tmp_path) -> None:
    script = tmp_path / "judge.py"
    script.write_text(
        "import sys\nfrom trueline.sandbox import *\n"
        "pool = Pool(1, Limits(30, 60), sys.argv[1])\n"
        "good = Program('def f(): return 1', (CallTest('f', [], 1),))\n"
        "list(pool.judge([good]))\nprint(pool.pids[0], flush=True)\n"
        "list(pool.judge([Program('while True: pass', (CallTest('f', [], 1),))]))\n"
    )
    with subprocess.Popen([sys.executable, script, pool.tier], stdout=subprocess.PIPE, text=True) as judge:
        worker = int(judge.stdout.readline())
        deadline = time.monotonic() + 10
        while not (runs := processes_below(worker)) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert runs
        judge.kill()
    deadline = time.monotonic() + 10
    while any(map(alive, [worker, *runs])) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not [pid for pid in (worker, *runs) if alive(pid)]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False
