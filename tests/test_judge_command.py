"""`trueline judge`: rows, figures, going on after a stop, and what it refuses; real programs in the real sandbox."""

from __future__ import annotations

import dataclasses
import io
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from program import ENVIRONMENT, trueline
from sandboxed import QUICK, killed_twice, quick
from trueline.commands.judge import _row, judge_files
from trueline.commands.judge_summary import summarise
from trueline.commands.judged_rows import JudgedRow
from trueline.commands.program_options import ProgramOptions, options_from
from trueline.commands.progress import bar, seconds_left
from trueline.data.code_formats import Problem
from trueline.errors import InputError
from trueline.sandbox import CallTest, Pool, Verdict

REAL = Path(__file__).resolve().parents[1] / ".." / "shared" / "data"

DOUBLE = {
    "task_id": "double",
    "prompt": "Twice x.",
    "entry": "f",
    "tests": [{"args": [n], "expected": 2 * n} for n in (1, 2, 3)],
}
ECHO = {"task_id": "echo", "prompt": "Print the line.", "tests": [{"stdin": "a\n", "expected": "a\n"}]}
BODIES = {
    "return 2 * x": ("pass", "", None),
    "return (": ("fail", "syntax", 0),
    "return 2 if x == 1 else 1 / 0": ("fail", "runtime", 1),
    "return 2 * x if x < 3 else 0": ("fail", "wrong", 2),
    "while True: pass": ("limit", "timeout", 0),
    "return bytearray(1 << 40)": ("limit", "memory", 0),
    "return 'x' * (1 << 22)": ("limit", "output", 0),
}


def write(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def solution(body: str, task: str = "double") -> dict:
    return {"task_id": task, "solution": f"def f(x):\n    {body}\n"}


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


class Bench:
    """A folder with problems, samples and OUT."""

    def __init__(self, folder: Path, samples: list[dict], problems: list[dict]) -> None:
        self.out, self.shown = folder / "out.jsonl", ""
        self.problems, self.samples = (
            write(folder / "problems.jsonl", problems),
            write(folder / "samples.jsonl", samples),
        )
        self.state = folder / "out.jsonl.state.json"

    def judge(self, options: ProgramOptions | None = None, **more: object) -> dict:
        text = io.StringIO()
        console = Console(file=text, width=200, highlight=False)
        summary = judge_files(self.problems, self.samples, self.out, options or quick(), console=console, **more)
        self.shown = text.getvalue()
        return summary


@pytest.fixture
def bench(tmp_path):
    """Makes a `Bench`; `double` is the problem unless others are given."""
    return lambda samples, problems=None: Bench(tmp_path, samples, problems or [DOUBLE])


# --- rows ----------------------------------------------------------------------------------------------------------


@pytest.mark.integration
def test_a_row_a_sample_in_input_order_with_every_error(bench) -> None:
    samples = []
    for body in BODIES:
        samples += [solution(body), {"task_id": "echo", "solution": f"print(input() * {len(samples) % 4})"}]
    found = bench(samples, [DOUBLE, ECHO])
    found.judge(quick(workers=2))
    rows = read(found.out)
    assert [list(row) for row in rows] == [["task_id", "index", "verdict", "error", "first_failing", "public"]] * 14
    assert [(row["task_id"], row["index"]) for row in rows] == [
        (task, n) for n in range(7) for task in ("double", "echo")
    ]
    assert [(row["verdict"], row["error"], row["first_failing"]) for row in rows[::2]] == list(BODIES.values())
    assert [row["verdict"] for row in rows[1::2]] == ["fail", "fail"] * 3 + ["fail"]
    assert all(row["public"] is None for row in rows)


@pytest.mark.integration
def test_figures_by_hand(bench) -> None:
    """double: 2 of 4 pass; echo: 1 of 5. pass@1 = (1/2 + 1/5)/2; no problem reaches 10, echo alone reaches 5."""
    good, bad = solution("return 2 * x"), solution("return x")
    echo = [{"task_id": "echo", "solution": source} for source in ("print(input())", "", "1", "2", "3")]
    found = bench([good, bad, good, bad, *echo], [DOUBLE, ECHO, DOUBLE | {"task_id": "unsampled"}])
    summary = found.judge()
    assert summary["pass@k"].keys() == {"1"} and summary["pass@k"]["1"]["mean"] == pytest.approx(0.35, abs=1e-15)
    assert (summary["problems"], summary["samples"], summary["problems_without_samples"]) == (2, 9, 1)
    assert summary["breakdown"]["shares"]["pass"] == pytest.approx(3 / 9)
    assert summary["breakdown"]["shares"]["wrong"] == pytest.approx(6 / 9)
    assert summary["n@k"] is None and summary["clustered_n@k"] is None
    assert summary["notes"] == ["k of 5 left out: 1 of 2 problems have fewer judged samples"]
    assert "pass@1               0.3500  95% 0.2000 to 0.5000 over 2 problems" in found.shown
    assert "without samples, and in none of these numbers: 1 problem\n" in found.shown
    assert summary["tiers"] == [summary["tiers"][0]] and f"tier {summary['tiers'][0]}; 0 incidents" in found.shown


@pytest.mark.integration
def test_the_example_of_humaneval_gives_one_half(tmp_path) -> None:
    """Its README: pass@1 is 0.5 (printed as 0.4999999999999999)."""
    folder = REAL / "humaneval"
    if not folder.is_dir():
        pytest.skip("no humaneval beside the checkout")
    files = [str(folder / f"example_{name}.jsonl") for name in ("problem", "samples")]
    summary = judge_files(*files, tmp_path / "out.jsonl", quick(), console=Console(file=io.StringIO()))
    assert summary["pass@k"]["1"]["mean"] == 0.5
    assert [row["verdict"] for row in read(tmp_path / "out.jsonl")] == ["fail", "limit", "fail", "pass", "pass", "pass"]


@pytest.mark.integration
def test_public_tests_filter_and_touch_no_verdict(bench) -> None:
    """A public test that hangs or is wrong says so in its own column. 1@4 is over the two that pass it: 1/2."""
    problem = DOUBLE | {"public_tests": [{"args": [0], "expected": 0}]}
    bodies = ["return 2 * x", "return 0", "return 2 * x if x else 1", "while not x: pass\n    return 2 * x"]
    found = bench([solution(body) for body in bodies], [problem])
    summary = found.judge(submit=1)
    rows = read(found.out)
    assert [row["verdict"] for row in rows] == ["pass", "fail", "pass", "pass"]
    assert [row["public"] for row in rows] == [True, True, False, False]
    assert summary["n@k"] == {"n": 1, "k": [4, 4], "mean": 0.5, "low": None, "high": None, "problems": 1}
    assert summary["pass@k"]["1"]["mean"] == 0.75 and summary["programs_run"] == 8
    assert "1@4                  0.5000 (one problem: no interval), by the public tests" in found.shown


@pytest.mark.integration
def test_public_tests_that_are_the_first_hidden_ones_are_not_run_again(bench) -> None:
    mbpp = {
        "task_id": 7, "text": "Twice x.", "code": "def f(x):\n    return 2 * x", "test_setup_code": "one = 1",
        "test_list": ["assert f(one) == 2", "assert f(2) == 4"],
    }  # fmt: skip
    bodies = ("return 2 * x", "return 2", "return 4", "return 1 / 0")
    found = bench([solution(body, "Mbpp/7") for body in bodies], [mbpp])
    summary = found.judge(submit=2)
    rows = read(found.out)
    assert [(row["task_id"], row["verdict"], row["public"], row["first_failing"]) for row in rows] == [
        ("Mbpp/7", "pass", True, None),
        ("Mbpp/7", "fail", True, 1),
        ("Mbpp/7", "fail", False, 0),
        ("Mbpp/7", "fail", False, 0),
    ]
    assert summary["programs_run"] == 4 and summary["n@k"]["mean"] == 1.0


@pytest.mark.integration
def test_clusters_submit_one_of_those_that_behave_alike(bench) -> None:
    """Three ways to the same wrong values, the right ones, and other wrong ones: two of five submitted at random find
    it with 1 - C(4, 2) / C(5, 2) = 0.4, two clusters hold it for certain. What is right is not what clusters."""
    problem = DOUBLE | {"public_tests": [{"args": [0], "expected": 0}]}
    bodies = ["return 0", "return x * 0", "return 0 if x else 0", "return x + x", "return 1 if x else 0"]
    found = bench([solution(body) for body in bodies], [problem])
    summary = found.judge(submit=2, cluster=True)
    assert summary["n@k"]["mean"] == 0.4 and summary["clustered_n@k"]["mean"] == 1.0
    clusters = [row["cluster"] for row in read(found.out)]
    assert clusters[0] == clusters[1] == clusters[2] and len(set(clusters)) == 3
    assert found.judge(submit=2, cluster=True)["clustered_n@k"] == summary["clustered_n@k"]  # from the rows alone


@pytest.mark.integration
def test_equal_programs_run_once(bench) -> None:
    """A completion, a solution and a response can be the same program; another problem's is another one."""
    starter = {"starter": "def f(x):\n", "continues": True}
    same = [
        {"task_id": "double", "completion": "    return 2 * x\n"},
        {"task_id": "double", "solution": "def f(x):\n    return 2 * x\n"},
        {"task_id": "double", "response": "So:\n```python\ndef f(x):\n    return 2 * x\n```\n"},
    ]
    found = bench([*same * 5, solution("return 2 * x", "again")], [DOUBLE | starter, DOUBLE | {"task_id": "again"}])
    summary = found.judge(quick(workers=2))
    assert [row["verdict"] for row in read(found.out)] == ["pass"] * 16
    assert (summary["programs_run"], summary["judged_now"]) == (2, 16)


@pytest.mark.integration
def test_stop_and_prelude_are_explicit(bench, tmp_path) -> None:
    problem = DOUBLE | {"starter": "def f(x):\n", "continues": True}
    rambling = {"task_id": "double", "completion": "    return 2 * x\n\nprint(f('"}
    wants = {"task_id": "double", "completion": "    return int(math.ldexp(x, 1))\n"}
    found = bench([rambling, wants], [problem])
    found.judge()
    assert [row["error"] for row in read(found.out)] == ["syntax", "runtime"]
    found.out = tmp_path / "other.jsonl"
    found.judge(quick(prelude="import math"), stop=True)
    assert [row["verdict"] for row in read(found.out)] == ["pass", "pass"]


@pytest.mark.integration
def test_a_problem_with_a_longer_time_limit_is_given_it(bench) -> None:
    spin = "import time\ndef f(x):\n    end = time.process_time() + 0.4\n    while time.process_time() < end: pass\n"
    sample = {"solution": spin + "    return 2 * x\n"}
    problems = [DOUBLE | {"tests": DOUBLE["tests"][:1]}, DOUBLE | {"task_id": "long", "time_limit": 2}]
    found = bench([sample | {"task_id": "double"}, sample | {"task_id": "long"}], problems)
    short = dataclasses.replace(QUICK, cpu_seconds=0.2)
    found.judge(quick(limits=short))
    assert [row["error"] for row in read(found.out)] == ["timeout", ""]


# --- going on ------------------------------------------------------------------------------------------------------

MIXED = [
    solution(body) for body in ("return 2 * x", "return x", "return (", "return 2 * x", "return 1 / 0", "return 8")
]


@pytest.mark.integration
def test_it_goes_on_from_wherever_the_file_was_cut(bench) -> None:
    found = bench(MIXED)
    whole = found.judge()
    kept = found.out.read_bytes()
    ends = [at + 1 for at, byte in enumerate(kept) if byte == 10]
    cuts = {0: 0, 1: 0, ends[0]: 1, ends[2] - 1: 2, ends[2] + 20: 3, ends[5] - 1: 5, ends[5]: 6}
    for size, rows in cuts.items():
        found.out.write_bytes(kept[:size])
        summary = found.judge()
        assert found.out.read_bytes() == kept, size
        assert summary["judged_now"] == 6 - rows
        assert summary["pass@k"] == whole["pass@k"] and summary["breakdown"] == whole["breakdown"]
    found.out.write_bytes(kept + b'{"task_id": "dou')
    assert found.judge()["judged_now"] == 0 and found.out.read_bytes() == kept


@pytest.mark.integration
def test_rows_that_are_there_are_believed_and_their_programs_not_run_again(bench) -> None:
    found = bench(MIXED)
    found.judge()
    rows = read(found.out)
    rows[0] |= {"verdict": "fail", "error": "wrong", "first_failing": 1}
    write(found.out, rows[:3])
    summary = found.judge()
    assert read(found.out)[:3] == rows[:3] and summary["judged_now"] == 3
    assert read(found.out)[3] == rows[0] | {"index": 3}  # the same program as the first
    assert summary["programs_run"] == 2


@pytest.mark.integration
def test_infrastructure_rows_are_judged_again(bench) -> None:
    found = bench(MIXED)
    found.judge()
    kept, rows = found.out.read_bytes(), read(found.out)
    for at in (1, 4):
        rows[at] |= {"verdict": "infrastructure", "error": "", "first_failing": None}
    write(found.out, rows[:5])
    summary = found.judge()
    assert found.out.read_bytes() == kept
    assert (summary["judged_now"], summary["programs_run"], summary["infrastructure"]) == (3, 3, 0)


class Watched(ProgramOptions):
    """Keeps the pool that it opened, and calls `meet` with it."""

    def pool(self) -> Pool:
        opened = super().pool()
        list(opened.judge([]))
        type(self).meet(opened)
        return opened


@pytest.mark.integration
def test_a_worker_that_dies_twice_is_never_counted(bench) -> None:
    slow = solution("import time; time.sleep(0.6); return 2 * x")
    found = bench([slow, solution("return 2 * x"), solution("return x")])
    given = quick()
    hunts = []

    def meet(pool: Pool) -> None:
        hunts.append(killed_twice(pool))
        hunts[0].__enter__()

    Watched.meet = staticmethod(meet)
    try:
        summary = found.judge(Watched(given.limits))
    finally:
        hunts[0].__exit__(None, None, None)
    assert [row["verdict"] for row in read(found.out)] == ["infrastructure", "pass", "fail"]
    assert read(found.out)[0] == {
        "task_id": "double", "index": 0, "verdict": "infrastructure", "error": "", "first_failing": None,
        "public": None,
    }  # fmt: skip
    assert summary["infrastructure"] == 1 and summary["breakdown"]["judged"] == 2 and len(summary["incidents"]) == 2
    assert summary["pass@k"]["1"]["mean"] == 0.5
    assert "not judged, for the machinery failed: 1." in found.shown and "2 incidents" in found.shown
    again = found.judge()
    assert [row["verdict"] for row in read(found.out)] == ["pass", "pass", "fail"]
    assert again["pass@k"]["1"]["mean"] == pytest.approx(2 / 3) and again["judged_now"] == 1


def test_a_problem_that_could_not_be_judged_has_no_figures() -> None:
    problems = [Problem("a", "prompt"), Problem("b", "prompt")]
    rows = [JudgedRow("a", 0, "pass", public=True), JudgedRow("b", 0, "infrastructure", public=True)]
    found = summarise(rows, problems, submit=1, cluster=False)
    assert found["pass@k"] == {} and found["breakdown"]["judged"] == 1 and found["n@k"]["problems"] == 1
    assert "no pass@k: of 1 problems no sample could be judged" in found["notes"]


def test_nothing_is_said_where_the_machinery_failed_on_the_public_tests() -> None:
    test = CallTest("f", [1], 2)
    problem = Problem("a", "prompt", tests=(test,), public_tests=(test,))
    right, broken = Verdict("pass", passed=(True,)), Verdict("infrastructure")
    for verdicts in ([right, broken], [broken, right], [broken]):
        assert _row(problem, verdicts) == JudgedRow("", 0, "infrastructure")
    assert _row(problem, [right, right]).public is True


@pytest.mark.integration
def test_killed_and_started_again(bench, tmp_path) -> None:
    samples = [solution(f"import time; time.sleep(0.3); return {n} * x") for n in range(8)]
    found = bench(samples)
    quick()  # skips where there is no sandbox
    command = [sys.executable, "-m", "trueline", "judge", "problems.jsonl", "samples.jsonl", "-o", "out.jsonl"]
    with subprocess.Popen(
        [*command, "--workers", "1"], cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.DEVNULL
    ) as run:
        deadline = time.monotonic() + 60
        while not (found.out.exists() and found.out.read_bytes().count(b"\n") >= 2) and time.monotonic() < deadline:
            time.sleep(0.02)
        run.send_signal(signal.SIGKILL)
    had = found.out.read_bytes()
    assert 2 <= had.count(b"\n") < 8
    done = trueline(*command[3:], "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["judged_now"] == 8 - had.count(b"\n")
    assert found.out.read_bytes().startswith(had)
    assert [row["verdict"] for row in read(found.out)] == ["fail", "fail", "pass"] + ["fail"] * 5


# --- what is refused -----------------------------------------------------------------------------------------------


class Unopened(ProgramOptions):
    """No worker may be started."""

    def pool(self) -> Pool:
        raise AssertionError("a worker was started")


UNOPENED = Unopened(QUICK)


def test_other_inputs_do_not_go_on(bench, tmp_path) -> None:
    found = bench(MIXED[:2])
    rows = [JudgedRow("double", n, "pass") for n in range(2)]
    text = "".join(json.dumps(dict(list(row._asdict().items())[:-1])) + "\n" for row in rows)
    found.out.write_text(text)
    with pytest.raises(InputError, match=r"is there already, without out\.jsonl\.state\.json beside it; choose"):
        found.judge(UNOPENED)
    found.state.write_text("{")
    with pytest.raises(InputError, match="cannot be read"):
        found.judge(UNOPENED)
    assert found.out.read_text() == text


@pytest.fixture
def finished(bench) -> Bench:
    found = bench(MIXED[:2])
    found.judge()
    return found


CHANGES = {
    "samples": lambda f: write(Path(f.samples), MIXED[:3]),
    "problems": lambda f: write(Path(f.problems), [DOUBLE | {"prompt": "Two times x."}]),
}
SETTINGS = {
    "limits": {"options": Unopened(dataclasses.replace(QUICK, cpu_seconds=0.4))},
    "prelude": {"options": Unopened(QUICK, prelude="import math")},
    "patience": {"options": Unopened(QUICK, patience=2.0)},
    "stop": {"stop": True},
    "cluster": {"cluster": True},
    "format": {"format": "problems"},
    "on_bad_row": {"on_bad_row": "drop"},
}


@pytest.mark.integration
@pytest.mark.parametrize("name", [*CHANGES, *SETTINGS])
def test_a_file_of_other_verdicts_is_named_and_left_alone(finished, name) -> None:
    kept = finished.out.read_bytes(), finished.state.read_bytes()
    if name in CHANGES:
        CHANGES[name](finished)
    with pytest.raises(InputError, match=rf"holds verdicts from other inputs or settings: {name}; choose") as raised:
        finished.judge(**{"options": UNOPENED} | SETTINGS.get(name, {}))
    assert raised.value.where == str(finished.out) and str(finished.state) in raised.value.remedy
    assert (finished.out.read_bytes(), finished.state.read_bytes()) == kept


ROWS = {
    "broken": ('{"task_id": "double"', ":2", "no row of verdicts"),
    "not-an-object": ("[]", ":2", "a row must have the columns"),
    "columns": ('{"task_id": "double", "index": 1}', ":2", "a row must have the columns task_id, index"),
    "order": (("index", 0), ":2", "sample 0 of 'double', where .*samples.jsonl:2 has 1 of 'double'"),
    "task": (("task_id", "echo"), ":2", "sample 1 of 'echo'"),
    "verdict": (("verdict", "ok"), ":2", "verdict 'ok'"),
    "no-error": (("error", ""), ":2", "verdict 'fail' with error ''"),
}


@pytest.mark.integration
@pytest.mark.parametrize("name", ROWS)
def test_rows_that_are_not_of_these_samples_are_refused(finished, name) -> None:
    change, line, reason = ROWS[name]
    rows = finished.out.read_text().splitlines()
    rows[1] = change if isinstance(change, str) else json.dumps(json.loads(rows[1]) | dict([change]))
    finished.out.write_text("\n".join(rows) + "\n")
    with pytest.raises(InputError, match=reason) as raised:
        finished.judge(UNOPENED)
    assert raised.value.where == f"{finished.out}{line}"


@pytest.mark.integration
def test_more_rows_than_samples_are_refused(finished) -> None:
    rows = finished.out.read_text().splitlines(keepends=True)
    finished.out.write_text("".join([*rows, rows[-1]]))
    with pytest.raises(InputError, match="more rows than the 2 samples"):
        finished.judge(UNOPENED)


DEEP = json.loads("[" * 200 + "]" * 200)
BAD = {
    "unknown-task": ([solution("", "three")], None, "samples.jsonl:1", "task_id", "no problem has the task id 'three'"),
    "no-text": ([{"task_id": "double"}], None, "samples.jsonl:1", "completion", "no text of a sample"),
    "text-of-numbers": (
        [MIXED[0], {"task_id": "double", "solution": 1}], None, "samples.jsonl:2", "solution", "expected a text",
    ),
    "no-tests": (MIXED, [DOUBLE | {"tests": []}], "problems.jsonl:1", "tests", "there is no hidden test"),
    "unknown-column": (MIXED, [DOUBLE | {"test": []}], "problems.jsonl:1", "test", "did you mean tests"),
    "twice": (MIXED, [DOUBLE, DOUBLE], "problems.jsonl:2", "task_id", "is taken by"),
    "deep-hidden": (
        MIXED, [ECHO, DOUBLE | {"tests": [{"args": [1], "expected": DEEP}]}], "problems.jsonl:2", "tests",
        "problem double: arguments or expected value: nested deeper than 150",
    ),
    "deep-public": (
        MIXED, [DOUBLE | {"public_tests": [{"args": [DEEP], "expected": 1}]}], "problems.jsonl:1", "public_tests",
        "problem double: .*nested deeper",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_told_before_any_worker_starts(bench, name) -> None:
    samples, problems, place, field, reason = BAD[name]
    found = bench(samples, problems)
    with pytest.raises(InputError, match=reason) as raised:
        found.judge(UNOPENED)
    assert raised.value.where.endswith(place) and raised.value.field == field and raised.value.remedy
    assert not found.out.exists() and not found.state.exists()


def test_the_output_is_never_an_input_nor_a_directory(bench, tmp_path) -> None:
    found = bench(MIXED)
    for out, reason in ((Path(found.samples), "is a file that is read"), (tmp_path, "is a directory")):
        found.out = out
        with pytest.raises(InputError, match=reason):
            found.judge(UNOPENED)
    found.out = Path(found.samples) / "out.jsonl"
    with pytest.raises(InputError, match="cannot be written"):
        found.judge(UNOPENED)
    assert len(read(Path(found.samples))) == len(MIXED)


def test_settings_that_cannot_be_used(bench) -> None:
    found = bench(MIXED)
    for more, reason in (
        ({"submit": 0}, "--submit: 0 submissions"),
        ({"format": "humanevil"}, "unknown format"),
        ({"on_bad_row": "skip"}, "unknown choice"),
    ):
        with pytest.raises(InputError, match=reason):
            found.judge(UNOPENED, **more)


TYPED = {
    "cpu_seconds": 2.0, "wall_seconds": None, "memory_mb": 512, "prelude": None, "patience": 1.0, "workers": None,
    "tier": "auto", "unsafe": False,
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"cpu_seconds": 0}, "--cpu-seconds: 0 is no positive number"),
        ({"cpu_seconds": float("nan")}, "--cpu-seconds: nan"),
        ({"wall_seconds": 1.0}, "--wall-seconds: 1.0 s is less than the 2.0 s"),
        ({"memory_mb": 8}, "--memory-mb: 8 MiB"),
        ({"patience": -1}, "--patience: -1"),
        ({"workers": 0}, "--workers: 0 workers"),
        ({"prelude": Path("absent.py")}, "absent.py: --prelude: cannot be read"),
    ],
)
def test_options_that_nothing_could_keep(change, reason) -> None:
    with pytest.raises(InputError, match=reason):
        options_from(**TYPED | change)


def test_options_as_typed(tmp_path) -> None:
    prelude = tmp_path / "prelude.py"
    prelude.write_text("import math\n")
    found = options_from(**TYPED | {"cpu_seconds": 5.0, "prelude": prelude, "memory_mb": 64, "workers": 3})
    assert (found.limits.cpu_seconds, found.limits.wall_seconds, found.limits.memory_bytes) == (5.0, 15.0, 64 << 20)
    assert (found.prelude, found.workers, found.unsafe) == ("import math\n", 3, False)
    assert options_from(**TYPED).workers >= 1
    for text, reason in (("def f(:\n", r"prelude.py:1: --prelude: no Python"), ("\0", "no Python")):
        prelude.write_text(text)
        with pytest.raises(InputError, match=reason):
            options_from(**TYPED | {"prelude": prelude})


@pytest.mark.integration
def test_the_least_memory_runs_programs(bench) -> None:
    found = bench(MIXED[:1])
    assert found.judge(quick(limits=options_from(**TYPED | {"memory_mb": 64}).limits))["pass@k"]["1"]["mean"] == 1.0


# --- as a user types it --------------------------------------------------------------------------------------------


@pytest.mark.integration
def test_the_command_and_its_exit_codes(bench, tmp_path) -> None:
    quick()
    found = bench([*MIXED[:2], {"task_id": "double"}])
    bad = trueline("judge", found.problems, found.samples, "-o", "out.jsonl", cwd=tmp_path)
    assert bad.returncode == 2 and bad.stdout == "" and len(bad.stderr.splitlines()) == 1
    assert "samples.jsonl:3: completion: no text of a sample" in bad.stderr and not found.out.exists()
    done = trueline(
        "judge", "problems.jsonl", "samples.jsonl", "-o", "out.jsonl", "--on-bad-row", "drop", "--workers", "1",
        cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0 and done.stderr == ""
    assert "pass@1               0.5000" in done.stdout and "bad rows dropped: 1" in done.stdout
    weak = trueline("judge", "problems.jsonl", "samples.jsonl", "-o", "weak.jsonl", "--on-bad-row", "drop", "--tier",
                    "unsafe", cwd=tmp_path)  # fmt: skip
    assert (
        weak.returncode == 2 and "does not contain programs" in weak.stderr and not (tmp_path / "weak.jsonl").exists()
    )
    rows = read(found.out)
    rows[0] |= {"verdict": "infrastructure", "error": "", "first_failing": None}
    write(found.out, rows)
    again = trueline("judge", "problems.jsonl", "samples.jsonl", "-o", "out.jsonl", "--on-bad-row", "drop", "--json",
                     cwd=tmp_path)  # fmt: skip
    assert again.returncode == 0 and json.loads(again.stdout)["judged_now"] == 1
    assert "pass@1" in again.stderr


# --- progress ------------------------------------------------------------------------------------------------------


def test_the_time_left_is_said_once_it_is_known() -> None:
    assert seconds_left(1, 100, 60.0) is None  # one in a hundred says nothing yet
    assert seconds_left(50, 100, 2.9) is None
    assert seconds_left(50, 100, 10.0) == 10.0
    assert seconds_left(25, 100, 10.0) == 30.0
    assert seconds_left(100, 100, 10.0) == 0.0


def test_progress_is_for_terminals() -> None:
    for terminal in (False, True):
        text = io.StringIO()
        with bar(Console(file=text, force_terminal=terminal, width=80), "judged", 2) as step:
            step()
            step()
        assert ("judged" in text.getvalue() and "2/2" in text.getvalue()) is terminal
        assert terminal or text.getvalue() == ""
