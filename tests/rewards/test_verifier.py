"""Scales by hand, what a verdict becomes as gold, and the verifier's memory over a real sandbox."""

from __future__ import annotations

import math

import pytest

from sandboxed import QUICK, killed_twice, need_sandbox
from trueline.data.code_formats import Problem
from trueline.rewards import verifier
from trueline.rewards.verifier import (
    ERRORS,
    SCALES,
    Verifier,
    candidate,
    fraction_reward,
    graded_reward,
    judgement,
    pass_reward,
    public_tests,
)
from trueline.sandbox import AssertTest, CallTest, Limits, Program, StdioTest, Verdict

TESTS = (CallTest("f", [1], 2), CallTest("f", [2], 4), CallTest("f", [3], 6))


def verdict(outcome: str, error: str = "", passed: tuple[bool, ...] = (False, False, False)) -> Verdict:
    first = None if all(passed) else passed.index(False)
    return Verdict(outcome, error, first, (None,) * len(passed), passed, "why")


# --- scales --------------------------------------------------------------------------------------------------------

# Of three tests: the paper's 10 or 0; CodeRL's -1 (does not compile), -0.6 (does not run to its end), -0.3 (is
# wrong), 1; the share of passing tests.
SCALED = [
    (verdict("pass", "", (True, True, True)), 10.0, 1.0, 1.0),
    (verdict("fail", "syntax"), 0.0, -1.0, 0.0),
    (verdict("fail", "runtime"), 0.0, -0.6, 0.0),
    (verdict("fail", "wrong"), 0.0, -0.3, 0.0),
    (verdict("fail", "wrong", (True, False, True)), 0.0, -0.3, 2 / 3),
    (verdict("limit", "timeout", (True, False, False)), 0.0, -0.6, 1 / 3),
    (verdict("limit", "memory"), 0.0, -0.6, 0.0),
    (verdict("limit", "output"), 0.0, -0.6, 0.0),
]


@pytest.mark.parametrize(("found", "paper", "graded", "fraction"), SCALED)
def test_scales_by_hand(found, paper, graded, fraction) -> None:
    assert (pass_reward(found), graded_reward(found), fraction_reward(found)) == (paper, graded, fraction)


def test_every_error_has_a_row_above() -> None:
    assert {found.error for found, *_ in SCALED} == {"", *ERRORS}


@pytest.mark.parametrize("name", SCALES)
def test_no_scale_rewards_a_failure_above_a_pass_nor_prices_broken_machinery(name) -> None:
    scale = SCALES[name]
    assert all(scale(found) < scale(SCALED[0][0]) for found, *_ in SCALED[1:])
    with pytest.raises(ValueError, match="the machinery failed"):
        scale(Verdict("infrastructure"))


# --- as gold -------------------------------------------------------------------------------------------------------


def test_gold_is_right_by_the_hidden_tests_alone() -> None:
    """The first of three tests is public: failing it alone does not make a program wrong."""
    found = judgement(verdict("fail", "wrong", (False, True, True)), TESTS, 1)
    assert found.score == 1.0 and found.parts == {"public": 0.0} | dict.fromkeys(ERRORS, 0.0)
    assert found.note == "passes all 2 hidden tests"
    found = judgement(verdict("fail", "wrong", (True, True, False)), TESTS, 1)
    assert found.score == 0.0 and found.parts == {"public": 1.0} | dict.fromkeys(ERRORS, 0.0) | {"wrong": 1.0}
    assert found.note == "wrong at hidden test 2 of 2: f(3) is 6, why"
    assert judgement(verdict("limit", "timeout"), TESTS, 1).note == "timeout at example 1: f(1) is 2, why"
    assert judgement(verdict("pass", "", (True,) * 3), TESTS, 0).score == 1.0


def test_notes_of_the_other_tests_and_of_long_ones() -> None:
    runs, script = (StdioTest("1\n", "2"),), (AssertTest("assert f(1) == 2"),)
    assert judgement(verdict("fail", "wrong", (False,)), runs, 0).note.endswith("1 of 1: input '1\\n' wants '2', why")
    assert judgement(verdict("fail", "runtime", (False,)), script, 0).note == "runtime at hidden test 1 of 1: why"
    long = (CallTest("f", ["x" * 10_000], "y" * 10_000),)
    assert len(judgement(verdict("fail", "wrong", (False,)), long, 0).note) <= 480


def test_broken_machinery_is_no_gold() -> None:
    found = judgement(Verdict("infrastructure", detail="worker gone"), TESTS, 1)
    assert math.isnan(found.score) and found.parts == {} and "worker gone" in found.note


# --- candidates ----------------------------------------------------------------------------------------------------

GIVEN = Limits(cpu_seconds=2.0, wall_seconds=6.0, memory_bytes=1 << 28, output_bytes=1 << 10)


@pytest.mark.parametrize(
    ("own", "patience", "cpu", "wall"),
    [
        (None, 5.0, 2.0, 6.0),
        (1.0, 1.0, 2.0, 6.0),  # a smaller limit of the problem's does not count
        (2.0, 1.0, 2.0, 6.0),
        (5.0, 1.0, 5.0, 15.0),  # 6 * 5 / 2
        (5.0, 2.0, 10.0, 30.0),
        (1.0, 4.0, 4.0, 12.0),
        (5.0, 0.1, 2.0, 6.0),
    ],
)
def test_a_longer_time_limit_of_the_problem_counts(own, patience, cpu, wall) -> None:
    problem = Problem("p", "prompt", time_limit=own)
    found = candidate(problem, "pass", tests=TESTS, limits=GIVEN, patience=patience).limits
    assert (found.cpu_seconds, found.wall_seconds) == (cpu, wall)
    assert (found.memory_bytes, found.output_bytes) == (1 << 28, 1 << 10)


def test_the_users_prelude_comes_first() -> None:
    problem = Problem("p", "prompt", entry="f", prelude="import os")
    found = candidate(problem, "pass", tests=list(TESTS), limits=GIVEN, prelude="import math")
    assert found == Program("pass", TESTS, "import math\nimport os", "f", GIVEN)
    assert candidate(problem, "pass", tests=TESTS, limits=GIVEN).prelude == "import os"


def test_mbpp_runs_its_shown_assert_with_the_set_up_code() -> None:
    hidden = (AssertTest("x = 1\nassert f(x) == 2"), AssertTest("x = 1\nassert f(2) == 4"))
    shown = (AssertTest("assert f(x) == 2"),)
    assert public_tests(Problem("p", "prompt", tests=hidden, public_tests=shown, format="mbpp")) == hidden[:1]
    assert public_tests(Problem("p", "prompt", tests=hidden, public_tests=shown)) == shown
    assert public_tests(Problem("p", "prompt", tests=hidden, format="mbpp")) == ()


# --- over the sandbox ----------------------------------------------------------------------------------------------


@pytest.fixture
def judge():
    need_sandbox()
    with Verifier() as found:
        yield found


def program(body: str, *tests: CallTest) -> Program:
    return Program(f"def f(x):\n    {body}\n", tests or TESTS, limits=QUICK)


RIGHT = program("return 2 * x")


@pytest.mark.integration
def test_rewards_of_real_programs(judge) -> None:
    bodies = ["return 2 * x", "return (", "return 1 / 0", "return 2", "while True: pass", "return bytearray(1 << 40)"]
    programs = [program(body) for body in bodies] + [program("return 'x' * (1 << 22)")]
    assert judge.rewards(programs, graded_reward) == [1.0, -1.0, -0.6, -0.3, -0.6, -0.6, -0.6]
    assert judge.rewards(programs, pass_reward) == [10.0] + [0.0] * 6
    assert judge.rewards(programs, fraction_reward) == [1.0, 0.0, 0.0, 1 / 3, 0.0, 0.0, 0.0]
    assert [v.error for v in judge.verdicts(programs)] == [
        "",
        "syntax",
        "runtime",
        "wrong",
        "timeout",
        "memory",
        "output",
    ]
    assert judge.executions == 7 and judge.incidents == [] and judge.tier != "unsafe"


@pytest.mark.integration
def test_equal_programs_run_once_and_anything_else_makes_another(judge) -> None:
    assert [v.outcome for v in judge.verdicts([RIGHT, RIGHT, program("return 2 * x")])] == ["pass"] * 3
    assert judge.executions == 1
    assert judge.verdicts([RIGHT])[0].outcome == "pass" and judge.executions == 1
    others = [
        Program(RIGHT.source + "\n", RIGHT.tests, limits=QUICK),
        Program(RIGHT.source, RIGHT.tests[:2], limits=QUICK),
        Program(RIGHT.source, (CallTest("f", [1], 2), CallTest("f", [True], 2)), limits=QUICK),
        Program(RIGHT.source, (CallTest("f", [1], 2), CallTest("f", [1], 2)), limits=QUICK),
        Program(RIGHT.source, RIGHT.tests, "import math", limits=QUICK),
        Program(RIGHT.source, RIGHT.tests, entry="f", limits=QUICK),
        Program(RIGHT.source, RIGHT.tests),
    ]
    judge.verdicts(others)
    assert judge.executions == 1 + len(others)
    assert judge.verdicts([]) == []


@pytest.mark.integration
def test_what_is_remembered_survives_the_workers_and_is_bounded(judge, monkeypatch) -> None:
    several = [program(f"return 2 * x + {n}") for n in range(4)]
    judge.verdicts(several)
    judge.close()
    assert [v.outcome for v in judge.verdicts(several)] == ["pass", "fail", "fail", "fail"] and judge.executions == 4
    monkeypatch.setattr(verifier, "_KEPT", 2)
    judge.verdicts([program("return 9")])
    assert judge.executions == 5
    judge.verdicts([several[3], program("return 9")])  # the newest two are known
    assert judge.executions == 5
    judge.verdicts([several[0]])
    assert judge.executions == 6


@pytest.mark.integration
def test_long_outputs_are_forgotten(judge, monkeypatch) -> None:
    monkeypatch.setattr(verifier, "_KEPT_TEXT", 2500)
    talker = [program(f"return '{n}' * 1000", CallTest("f", [0], "")) for n in range(3)]
    first = judge.verdicts(talker)
    assert all(len(v.outputs[0]) == 1002 for v in first)
    judge.verdicts(talker[1:])
    assert judge.executions == 3
    assert judge.verdicts(talker[:1])[0].outputs == first[0].outputs and judge.executions == 4


@pytest.mark.integration
def test_broken_machinery_has_no_reward_and_is_judged_anew(judge) -> None:
    slow = program("import time; time.sleep(0.5); return 2 * x")
    assert judge.rewards([RIGHT], pass_reward) == [10.0]
    with killed_twice(judge._opened()):
        rewards = judge.rewards([slow, RIGHT], pass_reward)
    assert math.isnan(rewards[0]) and rewards[1] == 10.0
    assert len(judge.incidents) == 2
    assert judge.rewards([slow], pass_reward) == [10.0]
