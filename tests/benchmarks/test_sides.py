"""The protocol with real child processes: rounds in turn, the waiting side at rest, a side that dies says why."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from trueline.benchmarks import peers
from trueline.benchmarks.sides import Side, rounds_in_turn
from trueline.errors import RunError

HEAD = """
import sys, time
from wire import Wire
wire = Wire()
print("libraries print on the standard output")
wire.say(ready=True, versions={"peer": "1"}, setting="plain")
"""
LOOP = """
for number in range(100):
    wire.order()
    with open(wire.work["log"], "a") as file:
        file.write(wire.work["name"])
    BODY
    wire.answer(result={"number": number})
"""


def side(tmp_path: Path, name: str, body: str) -> Side:
    """A peer of a few lines, run as the real ones are: a file of its own that finds `wire` on its path."""
    folder = tmp_path / name
    folder.mkdir()
    (folder / "work.json").write_text(json.dumps({"name": name, "log": str(tmp_path / "log")}))
    (folder / "side.py").write_text(HEAD + LOOP.replace("BODY", body))
    command = [sys.executable, str(folder / "side.py"), str(folder)]
    return Side(name, command, {"PYTHONPATH": str(Path(peers.__file__).parent)})


def test_rounds_alternate_and_the_waiting_side_rests(tmp_path) -> None:
    busy = "end = time.process_time() + 0.1\n    while time.process_time() < end: pass"
    with side(tmp_path, "a", busy) as a, side(tmp_path, "b", "time.sleep(0.1)") as b:
        a.ready()
        b.ready()
        steps = []
        ours, theirs = rounds_in_turn([a, b], 2, lambda: steps.append(1))
    assert (tmp_path / "log").read_text() == "ababab" and len(steps) == 6
    assert a.versions == {"peer": "1"} and a.facts == {"setting": "plain"}
    assert [r.result["number"] for r in theirs] == [0, 1, 2]
    for busy_round, resting in zip(ours, theirs):
        assert busy_round.cpu >= 0.1 and busy_round.seconds >= 0.09
        assert resting.seconds >= 0.1 and resting.cpu < 0.05
        assert busy_round.waited_cpu < 0.03 and resting.waited_cpu < 0.03
        assert 5 < resting.peak_mb < 200


def test_the_clock_stops_before_the_result_is_described(tmp_path) -> None:
    with side(tmp_path, "a", "wire.stop(); time.sleep(0.3)") as a:
        a.ready()
        assert a.round().seconds < 0.2


def test_burnt_waiting_is_seen(tmp_path) -> None:
    endless = "threading.Thread(target=eval, args=('all(True for _ in iter(int, 1))',), daemon=True).start()"
    spin = f"import threading\n    {endless}"
    with side(tmp_path, "a", spin) as a, side(tmp_path, "b", "time.sleep(0.3)") as b:
        a.ready()
        b.ready()
        ours, _ = rounds_in_turn([a, b], 1)
    assert ours[1].waited_cpu > 0.05


def test_a_side_that_dies_says_its_last_words(tmp_path) -> None:
    with side(tmp_path, "a", "raise ValueError('no such tensor')") as a:
        a.ready()
        with pytest.raises(RunError, match=r"(?s)side a ended with code 1.*no such tensor"):
            a.round()


def test_a_side_that_never_begins_says_why(tmp_path) -> None:
    with Side("peer", [sys.executable, "-c", "import nothing_of_that_name"]) as broken:
        with pytest.raises(RunError, match="nothing_of_that_name"):
            broken.ready()


def test_memory_is_the_sides_own(tmp_path) -> None:
    """The peak that getrusage gives is inherited from a parent that holds more than the child ever does."""
    held = bytearray(300 * 2**20)
    held[::4096] = b"x" * len(held[::4096])
    with side(tmp_path, "a", "pass") as a:
        a.ready()
        assert a.round().peak_mb < 150
