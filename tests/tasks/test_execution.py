"""A code task's judge on a real sandbox: who is judged by which tests, and what broken machinery is worth."""

from __future__ import annotations

import math

import pytest

from sandboxed import killed_twice, need_sandbox
from trueline.data.code_formats import Problem
from trueline.errors import InputError
from trueline.tasks.execution import Execution, Judge, sampled_pairs
from trueline.tasks.task import Sampled
from trueline.types import AssertTest, CallTest, Prompt

DOUBLE = Problem("double", "Double x.", "f", tests=(CallTest("f", [2], 4),), reward_tests=(CallTest("f", [3], 6),),
                 public_tests=(CallTest("f", [0], 0),))  # fmt: skip
ASK = Prompt.ask("Double x.", meta={"task_id": "double"})
RIGHT, WRONG = "def f(x):\n    return 2 * x", "def f(x):\n    return 7"
FOR_EVALUATION = "def f(x):\n    return {0: 0, 2: 4}.get(x)"
FOR_REWARD = "def f(x):\n    return {0: 0, 3: 6}.get(x)"
NOT_SHOWN = "def f(x):\n    return 2 * x or 1"  # fails the example alone


def judge_of(problem: Problem = DOUBLE, **settings: object) -> Judge:
    need_sandbox()
    return Judge(Execution(**settings), lambda prompt: problem)


def test_learners_and_evaluation_are_judged_by_different_tests() -> None:
    judge, programs = judge_of(), [RIGHT, FOR_EVALUATION, FOR_REWARD, NOT_SHOWN, WRONG]
    asked = [ASK] * len(programs)
    assert judge.rewards(asked, programs) == [10.0, 0.0, 10.0, 0.0, 0.0]
    assert judge.passed(asked, programs) == [True, False, True, False, False]
    judged = judge.judgements(asked, programs)
    assert [j.score for j in judged] == [1.0, 1.0, 0.0, 1.0, 0.0]  # gold is the hidden tests alone
    assert [j.parts["public"] for j in judged] == [1.0, 1.0, 1.0, 0.0, 0.0]


def test_without_reward_tests_the_hidden_ones_pay() -> None:
    one = Problem("double", "Double x.", "f", tests=DOUBLE.tests)
    assert judge_of(one).rewards([ASK] * 2, [FOR_EVALUATION, FOR_REWARD]) == [10.0, 0.0]


@pytest.mark.parametrize(("scale", "full", "wrong"), [("pass", 10.0, 0.0), ("graded", 1.0, -0.3), ("fraction", 1, 0.5)])
def test_the_scale_is_the_settings(scale, full, wrong) -> None:
    judge = judge_of(reward=scale)
    assert judge.settings.full_reward == full
    assert judge.rewards([ASK] * 2, [RIGHT, FOR_EVALUATION]) == [full, wrong]


def test_the_users_prelude_runs_before_the_program() -> None:
    program = "def f(x):\n    return int(math.ldexp(x, 1))"
    assert judge_of().passed([ASK], [program]) == [False]
    assert judge_of(prelude="import math").passed([ASK], [program]) == [True]


def test_what_is_shown_of_mbpp_runs_with_its_set_up() -> None:
    """The file shows the first assertion without the code that it needs: a right program must not fail for that."""
    needs = AssertTest("base = 3\nassert f(base) == 6")
    mbpp = Problem("927", "Double x.", "f", tests=(needs, AssertTest("base = 3\nassert f(2) == 4")),
                   public_tests=(AssertTest("assert f(base) == 6"),), format="mbpp")  # fmt: skip
    judge = judge_of(mbpp)
    assert judge.rewards([ASK] * 2, [RIGHT, WRONG]) == [10.0, 0.0]
    assert [(j.score, j.parts["public"]) for j in judge.judgements([ASK] * 2, [RIGHT, WRONG])] == [(1, 1), (0, 0)]


def test_a_failure_of_the_machinery_is_no_verdict() -> None:
    judge = judge_of(wall_seconds=10.0)
    slow = "import time\ndef f(x):\n    time.sleep(2)\n    return 2 * x"  # alive for as long as the hunt takes
    judge.rewards([ASK], [RIGHT])
    before = len(judge.facts()["incidents"])
    with killed_twice(judge.verifier._opened()):
        (reward,) = judge.rewards([ASK], [slow])
    assert math.isnan(reward) and len(judge.facts()["incidents"]) == before + 2
    assert judge.passed([ASK], [slow]) == [True]  # what broke is judged anew


def test_passed_is_none_and_gold_nan_where_nothing_is_known(monkeypatch) -> None:
    """The other two readings of the verdict that the test above gets from a real breakdown."""
    from trueline.sandbox import Verdict

    judge = judge_of()
    broken = Verdict("infrastructure", "", None, (), (), "the worker died")
    monkeypatch.setattr(judge.verifier, "verdicts", lambda programs: [broken for _ in programs])
    assert judge.passed([ASK], [RIGHT]) == [None]
    (judged,) = judge.judgements([ASK], [RIGHT])
    assert math.isnan(judged.score) and "the worker died" in judged.note


def test_settings_that_contain_nothing_are_refused() -> None:
    with pytest.raises(InputError, match="unsafe"):
        judge_of(tier="none").passed([ASK], [RIGHT])


# --- sampled pairs -------------------------------------------------------------------------------------------------


def sampler(rows: dict[str, list[Sampled]], seen: list[str]):
    def sample(prompts, n, purpose):
        assert purpose == "pairs"
        seen.extend(p.messages[-1].content for p in prompts)
        return [rows[p.messages[-1].content][:n] for p in prompts]

    return sample


def drawn(rows, *, pool=("a", "b"), prompts=2, samples=3, seed=0, reference=lambda prompt: None):
    seen: list[str] = []
    pool = [Prompt.ask(name) for name in pool]
    found = sampled_pairs(
        judge_of(), pool, seed, sampler(rows, seen), prompts=prompts, samples=samples, reference=reference
    )
    return found, seen


def test_right_samples_stand_against_wrong_ones_of_their_prompt() -> None:
    rows = {"a": [Sampled(WRONG), Sampled(RIGHT), Sampled("no program at all (")], "b": [Sampled(RIGHT)] * 3}
    found, _ = drawn(rows)
    assert [(p.prompt.messages[-1].content, p.chosen, p.rejected) for p in found.training] == [("a", RIGHT, WRONG)]
    assert found.executions == 6 and not found.selection and not found.gold


def test_a_response_that_was_cut_off_is_wrong_and_is_not_run() -> None:
    rows = {"a": [Sampled(RIGHT), Sampled(RIGHT + " # and", ended=False)]}
    found, _ = drawn(rows, pool="a", prompts=1, samples=2)
    assert [(p.chosen, p.rejected) for p in found.training] == [(RIGHT, RIGHT + " # and")]
    assert found.executions == 1


def test_where_every_response_was_cut_off_nothing_is_run() -> None:
    found, _ = drawn({"a": [Sampled("def", ended=False)]}, pool="a", prompts=1, samples=1, reference=lambda p: RIGHT)
    assert [(p.chosen, p.rejected) for p in found.training] == [(RIGHT, "def")] and found.executions == 0


def test_the_reference_is_asked_where_none_passes() -> None:
    rows = {name: [Sampled(WRONG)] * 3 for name in "ab"}
    found, _ = drawn(rows, reference=lambda prompt: RIGHT if prompt.text.endswith("a") else None)
    assert [(p.prompt.messages[-1].content, p.chosen, p.rejected) for p in found.training] == [("a", RIGHT, WRONG)]


def test_the_pool_is_gone_through_whole_before_any_prompt_comes_again() -> None:
    names = "abcdefgh"
    rows = {name: [Sampled(WRONG, ended=False)] for name in names}
    _, seen = drawn(rows, pool=names, prompts=20, samples=1)
    assert sorted(seen[:8]) == sorted(seen[8:16]) == list(names) and len(set(seen[16:])) == 4
    assert seen[:8] != list(names) and seen[:8] != seen[8:16]
    assert seen == drawn(rows, pool=names, prompts=20, samples=1)[1]
    assert seen != drawn(rows, pool=names, prompts=20, samples=1, seed=1)[1]
