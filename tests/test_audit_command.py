"""`trueline data audit`: problems whose own solution fails or flakes, and the rows of the others."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from program import trueline
from sandboxed import QUICK, killed_twice, quick
from trueline.commands.audit import audit_files, refusal
from trueline.commands.program_options import ProgramOptions
from trueline.errors import InputError, TruelineError
from trueline.sandbox import Limits, Pool

REAL = Path(__file__).resolve().parents[1] / ".." / "shared" / "data"

DOUBLE = {
    "task_id": "double", "prompt": "Twice x.", "entry": "f",
    "tests": [{"args": [n], "expected": 2 * n} for n in (1, 2, 3)], "public_tests": [{"args": [0], "expected": 0}],
}  # fmt: skip
FLAKY = "import os\ndef f(x):\n    return 2 * x + (x == 2) * (os.urandom(1)[0] & 1)\n"


def problem(name: str, *bodies: str, **more: object) -> dict:
    return DOUBLE | {"task_id": name, "solutions": [f"def f(x):\n    {body}\n" for body in bodies]} | more


ROWS = [
    problem("right", "return 2 * x", "return x + x"),
    problem("wrong", "return 2 * x", "return 2 * x if x < 3 else 0"),
    problem("public", "return 2 * x or 1"),
    problem("slow", "while True: pass"),
    problem("unparsed", "return ("),
    problem("none"),
]
FLAKE = problem("flaky") | {"solutions": [FLAKY]}


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def audit(
    file: Path, options: ProgramOptions | None = None, out: Path | None = None, **more: object
) -> tuple[dict, str]:
    text = io.StringIO()
    console = Console(file=text, width=200, highlight=False)
    return audit_files(str(file), out, options or quick(), console=console, **more), text.getvalue()


@pytest.mark.integration
def test_each_problem_is_told_what_became_of_its_solutions(tmp_path) -> None:
    report, shown = audit(write(tmp_path / "p.jsonl", ROWS), times=2)
    found = {item["task_id"]: item for item in report["problems"]}
    assert {name: item["status"] for name, item in found.items()} == {
        "right": "passes", "wrong": "fails", "public": "fails", "slow": "fails", "unparsed": "fails",
        "none": "no solution",
    }  # fmt: skip
    told = {name: (item["solution"], item["test"], item["error"]) for name, item in found.items()}
    assert told == {
        "right": ("", "", ""), "wrong": ("2 of 2", "hidden test 3 of 3", "wrong"),
        "public": ("1 of 1", "public test 1 of 1", "wrong"), "slow": ("1 of 1", "public test 1 of 1", "timeout"),
        "unparsed": ("1 of 1", "public test 1 of 1", "syntax"), "none": ("", "", ""),
    }  # fmt: skip
    assert report["counts"] == {"passes": 1, "fails": 4, "no solution": 1}
    assert (report["fit"], report["unfit"]) == (2, ["wrong", "public", "slow", "unparsed"])
    assert "6 problems, each solution run 2 times: 1 passes, 4 fails, 1 no solution\n" in shown
    assert f"{tmp_path}/p.jsonl:2: wrong fails: solution 2 of 2: wrong at hidden test 3 of 3: got 0\n" in shown
    assert report["tier"] in shown and report["incidents"] == []
    error = refusal(report)
    assert isinstance(error, InputError) and error.exit_code == 2
    assert "4 of 6 problems are not fit: wrong, public, slow, unparsed; mend them, or leave them out" in str(error)


@pytest.mark.integration
def test_a_solution_that_passes_sometimes_is_a_flake(tmp_path) -> None:
    """A fair coin for each run: 24 agree once in 2^23."""
    file = write(tmp_path / "p.jsonl", [FLAKE, ROWS[0]])
    report, shown = audit(file, times=24)
    item = report["problems"][0]
    assert (item["status"], item["solution"], item["test"]) == ("flakes", "1 of 1", "hidden test 2 of 3")
    assert report["unfit"] == ["flaky"] and "flaky flakes: solution 1 of 1: wrong at hidden test 2 of 3: got 5" in shown
    assert isinstance(refusal(report), InputError)


@pytest.mark.integration
def test_one_run_cannot_see_a_flake_and_the_first_solution_may_be_the_only_one_asked(tmp_path) -> None:
    report, _ = audit(write(tmp_path / "p.jsonl", [ROWS[0], ROWS[1], FLAKE]), times=1, solutions=1)
    assert [item["status"] for item in report["problems"][:2]] == ["passes", "passes"]
    assert report["problems"][2]["status"] in ("passes", "fails")
    assert [item["solutions"] for item in report["problems"]] == [1, 1, 1]


RAW = [  # spacing, order of the columns and escapes as a person might write them
    b'{ "prompt":"Twice x.",  "task_id": "\\u0072ight", "entry": "f", "tests": [{"args": [1], "expected": 2}],'
    b' "solutions": ["f = lambda x: 2 * x"]}',
    json.dumps(ROWS[1]).encode(),
    '{"task_id": "tail", "entry": "f", "tests": ["assert f(2) == 4"], "prompt": "Verdopple x – für €."}'.encode(),
]


@pytest.mark.integration
@pytest.mark.parametrize("name", ["p.jsonl", "p.jsonl.gz", "marked.jsonl"])
def test_the_rows_that_are_kept_keep_their_text(tmp_path, name) -> None:
    text = b"\r\n".join([RAW[0], b"", RAW[1], RAW[2]])  # the last line has no end
    data = {"p.jsonl.gz": gzip.compress(text), "marked.jsonl": b"\xef\xbb\xbf" + text}.get(name, text)
    (tmp_path / name).write_bytes(data)
    out = tmp_path / "new" / "kept.jsonl"
    report, shown = audit(tmp_path / name, out=out)
    assert out.read_bytes() == RAW[0] + b"\n" + RAW[2] + b"\n"
    assert refusal(report) is None and report["out"] == str(out) and f"2 problems kept: {out}" in shown
    assert [path.name for path in out.parent.iterdir()] == ["kept.jsonl"]
    again, _ = audit(out, need_solution=False)
    assert again["unfit"] == [] and again["fit"] == 2


@pytest.mark.integration
def test_the_items_of_a_list_become_lines(tmp_path) -> None:
    path = tmp_path / "p.json"
    path.write_text(json.dumps([ROWS[0], ROWS[1], ROWS[5], {"task_id": 1}, ROWS[0] | {"prompt": "Again."}]))
    out = tmp_path / "kept.jsonl"
    report, _ = audit(path, out=out, on_bad_row="drop")
    assert [json.loads(line) for line in out.read_text().splitlines()] == [ROWS[0], ROWS[5]]
    assert report["dropped_rows"] == 2


@pytest.mark.integration
def test_a_solution_can_be_demanded(tmp_path) -> None:
    file, out = write(tmp_path / "p.jsonl", [ROWS[0], ROWS[5]]), tmp_path / "kept.jsonl"
    report, _ = audit(file, out=out)
    assert refusal(report) is None and len(out.read_text().splitlines()) == 2
    report, _ = audit(file, need_solution=True)
    assert report["unfit"] == ["none"] and "1 of 2 problems are not fit: none" in str(refusal(report))
    report, _ = audit(write(file, [ROWS[5]]), out=tmp_path / "nothing.jsonl", need_solution=True)
    assert "no problem is left" in str(refusal(report)) and not (tmp_path / "nothing.jsonl").exists()


@pytest.mark.integration
def test_twenty_are_named(tmp_path) -> None:
    rows = [problem(f"p{n}", "return (") for n in range(23)]
    report, shown = audit(write(tmp_path / "p.jsonl", [*rows, ROWS[0]]), times=1)
    assert len(report["unfit"]) == 23 and shown.count(" fails: solution 1 of 1: syntax") == 20
    assert "... and 3 more: fails" in shown
    assert str(refusal(report)).split(": ")[1].startswith("p0, p1, ") and "p19, ...;" in str(refusal(report))


@pytest.mark.integration
def test_the_problems_own_time_limit_counts(tmp_path) -> None:
    spin = "import time\ndef f(x):\n    end = time.process_time() + 0.4 * (x == 1)\n"
    spin += "    while time.process_time() < end: pass\n    return 2 * x\n"
    rows = [DOUBLE | {"task_id": str(limit), "solutions": [spin], "time_limit": limit} for limit in (0.05, 0.25, 2)]
    file = write(tmp_path / "p.jsonl", rows)
    given = Limits(cpu_seconds=0.2, wall_seconds=2.0)
    assert audit(file, quick(limits=given), times=1)[0]["unfit"] == ["0.05", "0.25"]
    assert audit(file, quick(limits=given, patience=3.0), times=1)[0]["unfit"] == ["0.05"]


class Hunted(ProgramOptions):
    """The worker of its pool dies twice."""

    def pool(self) -> Pool:
        opened = super().pool()
        list(opened.judge([]))
        type(self).hunts.append(killed_twice(opened))
        type(self).hunts[-1].__enter__()
        return opened


@pytest.mark.integration
def test_broken_machinery_refuses_nothing_and_keeps_nothing(tmp_path) -> None:
    slow = problem("slow", "import time; time.sleep(0.6 * (x == 0)); return 2 * x")
    file, out = write(tmp_path / "p.jsonl", [slow, ROWS[0]]), tmp_path / "kept.jsonl"
    given, Hunted.hunts = quick(), []
    try:
        report, shown = audit(file, Hunted(given.limits), out)
    finally:
        Hunted.hunts[0].__exit__(None, None, None)
    assert report["counts"] == {"not judged": 1, "passes": 1} and len(report["incidents"]) == 2
    assert [json.loads(line)["task_id"] for line in out.read_text().splitlines()] == ["right"]
    error = refusal(report)
    assert type(error) is TruelineError and error.exit_code == 1 and "1 problems could not be judged" in str(error)
    assert "slow not judged" in shown


class Unopened(ProgramOptions):
    """No worker may be started."""

    def pool(self) -> Pool:
        raise AssertionError("a worker was started")


def test_bad_input_is_told_before_any_worker_starts(tmp_path) -> None:
    deep = json.loads("[" * 200 + "]" * 200)
    file = write(
        tmp_path / "p.jsonl", [ROWS[0], DOUBLE | {"task_id": "deep", "tests": [{"args": [1], "expected": deep}]}]
    )
    cases = [
        ({}, "p.jsonl:2: tests: problem deep: .*nested deeper"),
        ({"times": 0}, "--times: 0 shows nothing"),
        ({"solutions": 0}, "--solutions: 0 shows nothing"),
        ({"out": file}, "is a file that is read"),
        ({"format": "x"}, "unknown format"),
    ]
    for more, reason in cases:
        with pytest.raises(InputError, match=reason):
            audit(file, Unopened(QUICK), **more)
    assert len(file.read_text().splitlines()) == 2


@pytest.mark.integration
def test_the_command_and_its_exit_codes(tmp_path) -> None:
    quick()
    write(tmp_path / "p.jsonl", [ROWS[0], ROWS[1], ROWS[5]])
    bad = trueline("data", "audit", "p.jsonl", "--workers", "1", "--json", cwd=tmp_path)
    assert bad.returncode == 2 and json.loads(bad.stdout)["counts"] == {"passes": 1, "fails": 1, "no solution": 1}
    assert "trueline: 1 of 3 problems are not fit: wrong; mend them" in bad.stderr
    done = trueline("data", "audit", "p.jsonl", "-o", "kept.jsonl", "--workers", "1", cwd=tmp_path)
    assert done.returncode == 0 and "2 problems kept: kept.jsonl" in done.stdout and done.stderr == ""
    assert len((tmp_path / "kept.jsonl").read_text().splitlines()) == 2
    again = trueline("data", "audit", "kept.jsonl", "--need-solution", cwd=tmp_path)
    assert again.returncode == 2 and "1 of 2 problems are not fit: none" in again.stderr


@pytest.mark.nightly
@pytest.mark.parametrize(("name", "problems"), [("humaneval/HumanEval.jsonl.gz", 164), ("mbpp/mbpp.jsonl", 974)])
def test_published_solutions_pass_three_times(name, problems) -> None:
    path = REAL / name
    if not path.is_file():
        pytest.skip(f"no {name} beside the checkout")
    report, _ = audit(path, quick(workers=2, limits=Limits(cpu_seconds=10.0, wall_seconds=60.0)))
    assert report["unfit"] == [] and report["counts"] == {"passes": problems}
