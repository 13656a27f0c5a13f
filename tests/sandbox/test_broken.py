"""A sandbox that is broken, for real where that can be done: it is told, and no verdict is lost or invented."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from trueline.errors import InputError
from trueline.sandbox import AssertTest, CallTest, Limits, Pool, Program, StdioTest, Verdict, self_test, worker
from trueline.sandbox.worker import TIERS

SOURCE = Path(__file__).resolve().parents[2] / "src"
QUICK = Limits(cpu_seconds=0.5, wall_seconds=2.0, memory_bytes=256 << 20)
SLEEP = "import time\ntime.sleep(0.03)\n"
PROBE = """
import json, sys
sys.path.insert(0, sys.argv[1])
from trueline.errors import InputError
from trueline.sandbox import CallTest, Pool, Program, self_test
report = self_test()
found = {"reasons": report.reasons, "best": report.best}
try:
    with Pool(1) as pool:
        good = Program("def f(x):\\n    return x\\n", (CallTest("f", [1], 1), CallTest("f", [1], 2)))
        found |= {"tier": pool.tier, "passed": [verdict.passed for verdict in pool.judge([good])]}
except InputError as error:
    found["refused"] = str(error)
print(json.dumps(found))
"""


def probed(*command: str, path: str = os.environ["PATH"]) -> dict:
    """What the sandbox says of itself in a process that `command` starts."""
    arguments = [*command, sys.executable, "-c", PROBE, str(SOURCE)]
    done = subprocess.run(arguments, capture_output=True, text=True, env={"PATH": path}, timeout=60)
    if done.returncode:
        pytest.skip(f"{command[0] if command else 'python'}: {done.stderr.strip()[-200:]}")
    return json.loads(done.stdout)


def assert_judged_or_refused(found: dict) -> None:
    if found["best"] is None:
        assert "no sandbox holds here" in found["refused"]
    else:
        assert found["tier"] == found["best"] == "landlock+seccomp" and found["passed"] == [[True, False]]


def test_bubblewrap_removed_from_the_path(pool, tmp_path) -> None:
    found = probed(path=str(tmp_path))
    for name in ("bubblewrap+landlock+seccomp", "bubblewrap+seccomp"):
        assert "bwrap is not installed" in found["reasons"][name]
    assert_judged_or_refused(found)


def test_namespaces_refused_by_the_kernel(pool) -> None:
    """Inside of `bwrap --disable-userns` no further user namespace can be made."""
    if (bwrap := shutil.which("bwrap")) is None:
        pytest.skip("bwrap is not installed")
    found = probed(bwrap, "--dev-bind", "/", "/", "--unshare-user", "--disable-userns", "--")
    for name in ("bubblewrap+landlock+seccomp", "bubblewrap+seccomp"):
        assert found["reasons"][name].startswith(f"sandbox worker ({name}) does not start: bwrap: ")
    assert_judged_or_refused(found)


def without(monkeypatch, function: str, instead: str) -> None:
    """Workers whose `confine` has another body of a function: as on a kernel that lacks what it asks for."""
    sources = dict(worker._modules())
    start = sources["confine"].index(f"def {function}(")
    body = sources["confine"].index(":\n", start) + 2
    changed = sources | {"confine": f"{sources['confine'][:body]}    {instead}\n{sources['confine'][body:]}"}
    monkeypatch.setattr(worker, "_modules", lambda: [[name, changed[name]] for name in sources])


def test_a_kernel_without_landlock(pool, monkeypatch) -> None:
    without(monkeypatch, "landlock_abi", "return 0")
    report = self_test()
    for tier in TIERS:
        if tier.landlock and "not installed" not in report.reasons[tier.name]:
            assert "the kernel has no Landlock" in report.reasons[tier.name]
    assert report.best in (None, "bubblewrap+seccomp")
    if report.best is None:
        with pytest.raises(InputError, match="the kernel has no Landlock"):
            Pool(1)
    else:
        with Pool(1) as narrower:
            assert narrower.tier == "bubblewrap+seccomp"


def test_a_kernel_without_seccomp(pool, monkeypatch) -> None:
    """A run that ends before its walls stand has no verdict: it is not the program that failed."""
    without(monkeypatch, "seccomp", "raise OSError(22, 'seccomp: Invalid argument')")
    report = self_test()
    assert report.best is None and report.reasons["unsafe"] == ""
    assert "a run did not start: OSError: [Errno 22] seccomp" in report.reasons[pool.tier]
    with pytest.raises(InputError, match=r"no sandbox holds here.*a run did not start.*unsafe=True"):
        Pool(1)


def programs() -> list[Program]:
    """Sixty programs of all outcomes, each with its own number in its verdict."""
    found = []
    for n in range(10):
        call = f"{SLEEP}def f(x):\n    return [x, {n}]\n"
        found += [
            Program(call, (CallTest("f", [1], [1, n]), CallTest("f", [2], [2, n]))),
            Program(call, (CallTest("f", [1], [1, n]), CallTest("f", [2], [n, 2, n]))),
            Program(f"{SLEEP}raise ValueError({n})\n", (CallTest("f", [1], 1),)),
            Program(f"{SLEEP}print(int(input()) + {n})\n", tuple(StdioTest(str(k), str(k + n)) for k in (1, 2))),
            Program(call, (AssertTest(f"assert f(1) == [1, {n}]"), AssertTest(f"assert f({n}) == 1"))),
            Program(f"def f():\n    return {n}\n    (" if n % 5 else "while True: pass", (CallTest("f", [], n),)),
        ]
    return found


def settled(verdicts: list[Verdict]) -> list[Verdict]:
    """Without what differs from time to time: the seconds, and which of the two time limits was met first."""
    return [replace(v, seconds=0.0, detail="" if v.outcome == "limit" else v.detail) for v in verdicts]


def disturb(pool: Pool, number: int, times: int, stop: threading.Event, hit: list[int]) -> None:
    """Send the signal to a worker, now and then, each time another one; `hit` gets the process ids."""
    while len(hit) < times and not stop.wait(0.15):
        with contextlib.suppress(ProcessLookupError, RuntimeError):  # replaced while we look
            for pid in pool.pids:
                if pid not in hit:
                    os.kill(pid, number)
                    hit.append(pid)
                    break


@pytest.mark.parametrize(("number", "times"), [(signal.SIGKILL, 3), (signal.SIGSTOP, 2)], ids=["killed", "hung"])
def test_no_verdict_is_lost_or_invented(pool, monkeypatch, number, times) -> None:
    """Workers are killed or stopped in the midst of judging: every verdict is that of an undisturbed run; a program
    that was hit gets a second try, or says `infrastructure` where that was hit too."""
    monkeypatch.setattr("trueline.sandbox.runs.GRACE", 0.5)
    work, stop, hit = programs(), threading.Event(), []
    with Pool(2, QUICK, pool.tier) as two:
        calm = settled(list(two.judge(work)))
        assert two.incidents == []
        thread = threading.Thread(target=disturb, args=(two, number, times, stop, hit))
        thread.start()
        rough = settled(list(two.judge(work)))
        stop.set()
        thread.join()
        assert 1 <= len(hit) <= times and len(two.incidents) >= 1
        told = " ".join(two.incidents)
        assert all(line.startswith("program ") for line in two.incidents)
        assert sum(str(pid) in told for pid in hit) >= 1
        assert number != signal.SIGSTOP or "no answer within" in told
        time.sleep(0.2)
        assert settled(list(two.judge(work[:6]))) == calm[:6]
    assert [v.outcome for v in calm[:5]] == ["pass", "fail", "fail", "pass", "fail"]
    lost = [n for n, verdict in enumerate(rough) if verdict.outcome == "infrastructure"]
    assert len(rough) == len(work) and len(lost) <= len(hit) // 2
    assert [verdict for n, verdict in enumerate(rough) if n not in lost] == [
        verdict for n, verdict in enumerate(calm) if n not in lost
    ]
    for n in lost:
        assert rough[n].passed == () and rough[n].error == "" and f"program {n}: " in told
