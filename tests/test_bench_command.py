"""`trueline bench sandbox` on a few programs: the figures are there, and a wrong verdict is no speed."""

from __future__ import annotations

import json
import sys

import pytest
from rich.console import Console

from trueline.commands import bench
from trueline.errors import InputError
from trueline.sandbox import CallTest, Pool, Program

pytestmark = pytest.mark.integration


@pytest.fixture(autouse=True)
def a_strong_tier(monkeypatch) -> None:
    monkeypatch.setattr(bench, "_ROUNDS", 2)
    try:
        Pool(1).close()
    except InputError as error:
        pytest.skip(str(error))


def test_it_measures_and_shows(capsys) -> None:
    found = bench.bench_sandbox(Console(width=140, file=sys.stdout), as_json=False, count=4)
    shown = capsys.readouterr().out
    assert found == json.loads(json.dumps(found))
    assert found["tier"] in shown and "programs/s" in shown and "subprocess" in shown
    assert 0 < found["start_seconds"] < found["first_verdict_seconds"] < 30
    assert set(found["kinds"]) == {"calls", "calls, honest", "stdio", "asserts"}
    for row in [*found["kinds"].values(), found["subprocess"]]:
        assert 0.1 < row["per_second_1"] < 1e5 and 0.1 < row["per_second_all"] < 1e5
    ratio = found["kinds"]["calls, honest"]["per_second_1"] / found["subprocess"]["per_second_1"]
    assert found["times_subprocess"]["per_second_1"] == ratio


def test_the_record_has_what_every_comparison_has() -> None:
    record = bench.sandbox_record(bench.bench_sandbox(Console(file=sys.stdout), as_json=True, count=4))
    assert record == json.loads(json.dumps(record)) and record["name"] == "sandbox" and record["rounds"] == 2
    ours, peer = (record[side]["seconds"]["all"] for side in ("ours", "peer"))
    assert record["ratio"]["all"] == [b / a for a, b in zip(ours, peer, strict=True)]
    assert 0.01 < record["ratio"]["min"] <= record["ratio"]["median"] <= record["ratio"]["max"] < 1000
    assert {"work", "machine", "versions", "date", "equal"} < set(record)


def test_as_json_it_prints_nothing_itself(capsys, monkeypatch) -> None:
    monkeypatch.setattr(bench, "_KINDS", {"calls, honest": bench._KINDS["calls, honest"]})
    bench.bench_sandbox(Console(file=sys.stdout), as_json=True, count=2)
    assert capsys.readouterr().out == ""


def test_a_wrong_verdict_is_no_speed() -> None:
    wrong = Program("def f():\n    return 1\n", (CallTest("f", [], 2),))
    with pytest.raises(RuntimeError, match="misjudged"):
        bench._judge([wrong], ["pass "], 1, 2)
