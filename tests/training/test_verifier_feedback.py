"""Rewards by execution in the training pages: what is run, what is not, and what becomes of a verdict that is none."""

from __future__ import annotations

import math
import os
import signal
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from trueline.algorithms.advantages import group_advantages, rloo_advantages
from trueline.runs.cell import read_json, read_jsonl
from trueline.training.dpo_iter import _ranked
from trueline.training.experience import collect
from trueline.training.feedback import reward_source
from trueline.training.pairs import read_pairs
from trueline.training.policies import load_policy

from .small import rows

NO = math.nan


@dataclass
class Recorded:
    """A code task whose rewards are given here; everything else is the real one's. `asked` holds what was to be run."""

    task: Any
    scores: Any
    asked: list[str]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.task, name)

    def rewards(self, prompts: Sequence[Any], responses: Sequence[str]) -> list[float]:
        self.asked += responses
        return [self.scores(i) for i in range(len(responses))]


def _sampled(world: Any, directory: Any, scores: Any, *, lengths: tuple[int, int] | None = None, prompts: int = 6):
    task = Recorded(world.task, scores, [])
    stage = world.stage("ppo", directory, task=task, lengths=lengths)
    stage.begin({}, "a test")
    policy = load_policy(stage, "sft")
    score = reward_source(stage, "verifier")
    experience = collect(
        stage, policy, policy, score, iteration=0, prompts=prompts, samples_per_prompt=2, reward_scale=1.0,
        reward_clip=20.0,
    )  # fmt: skip
    return stage, task, experience


@pytest.mark.integration
def test_a_response_that_was_cut_off_is_not_run_and_has_no_reward(tiny_code, tmp_path) -> None:
    """Five tokens are not enough for any program: nothing is run, no execution is charged, no row counts as scored."""
    stage, task, exp = _sampled(tiny_code, tmp_path, lambda i: 10.0, lengths=(52, 5))
    assert not exp.rollout.ended.any() and not exp.scored.any()
    assert task.asked == [] and stage.meter.reward_calls == 0
    assert exp.scores.tolist() == [0.0] * 12


@pytest.mark.integration
def test_a_verdict_that_failed_costs_one_sample(tiny_code, tmp_path) -> None:
    """The third response that is run could not be judged: it alone is unscored, and the step says so."""
    stage, task, exp = _sampled(tiny_code, tmp_path, lambda i: NO if i == 2 else 10.0)
    ended = exp.rollout.ended
    assert stage.meter.reward_calls == len(task.asked) == int(ended.sum()) > 6
    lost = ended & ~exp.scored
    assert int(lost.sum()) == 1 and exp.scores[lost].tolist() == [0.0]
    assert exp.scores[exp.scored].tolist() == [10.0] * (len(task.asked) - 1)


@pytest.mark.integration
@pytest.mark.parametrize("method", ["ppo", "rloo", "dpo-iter"])
def test_a_run_with_lost_verdicts_goes_on_and_reports_them(tiny_code, tmp_path, method) -> None:
    task = Recorded(tiny_code.task, lambda i: NO if i % 5 == 0 else 10.0 * (i % 2), [])
    settings = {"feedback": "verifier", "batch_size": 16, "learning_rate": 1e-3, "samples_per_prompt": 2}
    settings |= {"rounds": 1, "sync_every": 2, "passes": 2} if method == "dpo-iter" else {"steps": 2, "minibatches": 2}
    settings |= {"critic_from": "policy"} if method == "ppo" else {}
    cell = tiny_code.run(method, tmp_path, settings, task=task)
    found = rows(cell)
    assert len(found) == 2 and all(math.isfinite(row["loss"]) for row in found)
    assert read_json(cell / "cost.json")["own"]["reward_calls"] == len(task.asked)
    if method != "dpo-iter":
        assert all(row["objective/unjudged"] > 0 for row in found)


@pytest.mark.integration
def test_executions_bound_a_run_where_they_are_the_budget(tiny_code, tmp_path) -> None:
    """At most 16 programs a batch: 40 pay for two batches and not for a third."""
    settings = {"feedback": "verifier", "batch_size": 16, "steps": 9, "minibatches": 2, "critic_from": "policy"}
    cell = tiny_code.run("ppo", tmp_path, settings, budget=40.0, budget_rule="executions")
    spent = read_json(cell / "cost.json")["own"]["reward_calls"]
    assert 24 < spent <= 40 and read_json(cell / "done.json")["stopped_by_budget"]


@pytest.mark.integration
def test_where_no_sample_is_right_the_reference_is_the_chosen_side(tiny_code, tmp_path) -> None:
    """Nothing passes: with the fallback each pair's chosen side is the reference, without it there is no pair."""
    settings = {"feedback": "verifier", "batch_size": 8, "samples_per_prompt": 2, "rounds": 1, "sync_every": 2}
    seen: dict[bool, list] = {}
    for fallback in (True, False):
        task = Recorded(tiny_code.task, lambda i: 0.0, [])
        cell = tiny_code.run("dpo-iter", tmp_path / str(fallback), settings | {"fallback": fallback}, task=task)
        seen[fallback] = rows(cell) if (cell / "metrics.jsonl").exists() else []
    assert seen[False] == [] and len(seen[True]) == 2
    assert seen[True][0]["label_margin"] == pytest.approx(tiny_code.task.full_reward)


@pytest.mark.integration
def test_pairs_by_execution_are_executions_and_no_labels(tiny_code) -> None:
    cost = read_json(tiny_code.cells["pairs"] / "cost.json")["own"]
    assert 50 <= cost["reward_calls"] <= 60 and cost["labels"] == 0  # 20 prompts x 3, those that were cut off not run
    pairs, task = read_pairs(tiny_code.cells["pairs"]).training, tiny_code.task
    prompts = [p.prompt for p in pairs]
    assert len(pairs) >= 10
    assert task.judging.passed(prompts, [p.chosen for p in pairs]) == [True] * len(pairs)
    assert not any(task.judging.passed(prompts, [p.rejected for p in pairs]))
    done = read_json(tiny_code.cells["pairs"] / "done.json")
    assert sum(done["edit_distance"].values()) == done["pairs"] == len(pairs)


@pytest.mark.integration
def test_an_evaluation_has_each_prompt_s_figures_by_tier(tiny_code, tmp_path) -> None:
    more = {"inputs": {"arm": tiny_code.cells["sft"]}}
    picked = tiny_code.run("select", tmp_path / "picked", {"prompts": 8, "pairs": 4}, **more)
    more["inputs"]["picked"] = picked
    cell = tiny_code.run("evaluate", tmp_path / "cell", {"samples": 5, "test_prompts": 12, "shown": 3}, **more)
    figures = read_json(cell / "evaluation.json")["figures"]["selected"]
    scores = [r for r in read_jsonl(cell / "scores.jsonl") if (r["pick"], r["decoding"]) == ("selected", "sampled")]
    test = [row for row in scores if row["split"] == "test"]
    assert len(test) == 12 and {row["kind"] for row in scores if row["split"] == "hard"} == {"hard"}
    for row in test:
        right = sum(row["gold"])
        assert row["pass@1"] == [right / 5] and row["pass@5"] == [float(right > 0)]
        assert row[f"pass@5_{row['kind']}"] == row["pass@5"]
    assert figures["test/sampled/gold"] == pytest.approx(figures["test/sampled/pass@1"])
    shares = [figures[f"test/sampled/{name}"] for name in ("syntax", "runtime", "wrong", "timeout", "memory", "output")]
    assert sum(shares) + figures["test/sampled/gold"] == pytest.approx(1.0)
    assert {"test/greedy/gold", "hard/greedy/gold", "hard/sampled/pass@5"} <= set(figures)
    shown = [row for row in read_jsonl(cell / "samples.jsonl") if row["pick"] == "selected"]
    assert shown and all(row["note"] for row in shown)


@dataclass
class Attacked:
    """The real code task, but the sandbox's worker is killed soon after each request."""

    task: Any

    def __getattr__(self, name: str) -> Any:
        return getattr(self.task, name)

    def rewards(self, prompts: Sequence[Any], responses: Sequence[str]) -> list[float]:
        verifier = self.task.judging.verifier
        assert verifier.tier and verifier._pool.pids
        timer = threading.Timer(0.02, os.kill, (verifier._pool.pids[0], signal.SIGKILL))
        timer.start()
        try:
            return self.task.rewards(prompts, responses)
        finally:
            timer.join()


@pytest.mark.integration
def test_a_killed_worker_changes_no_reward_and_is_reported(tiny_code, tmp_path) -> None:
    """Each of two batches loses its worker in the midst: its program is run again, and training is as without it."""
    settings = {"feedback": "verifier", "batch_size": 16, "steps": 2, "minibatches": 2, "critic_from": "policy"}
    verifier, found = tiny_code.task.judging.verifier, {}
    for name, task in (("calm", tiny_code.task), ("attacked", Attacked(tiny_code.task))):
        verifier._known.clear()  # so that the programs are run again
        before = len(verifier.incidents)
        found[name] = rows(tiny_code.run("ppo", tmp_path / name, settings, task=task))
        assert (len(verifier.incidents) - before >= 1) == (name == "attacked")
    assert found["calm"] == found["attacked"]
    assert all(row["objective/unjudged"] == 0 for row in found["attacked"])


# --- by hand


def test_an_unjudged_row_is_in_no_baseline() -> None:
    """Group one: 3, 5 and a lost row. Without it 3 - 5 = -2 and 5 - 3 = 2. Group two: one row left, which has no
    other: 0. Deviations 1 and 1 from the mean 4 of two rows: the sample's spread is sqrt(2)."""
    scores = torch.tensor([3.0, 100.0, 5.0, 7.0, 100.0, 100.0])
    counted = torch.tensor([True, False, True, True, False, False])
    assert rloo_advantages(scores, group_size=3, counted=counted).tolist() == [-2.0, 0.0, 2.0, 0.0, 0.0, 0.0]
    found = group_advantages(scores, group_size=3, eps=0.0, counted=counted)
    assert torch.allclose(found[:3], torch.tensor([-1.0, 0.0, 1.0]) / math.sqrt(2.0))
    assert found[1] == 0.0 and not found[3:].nan_to_num(0.0).any()


@pytest.mark.parametrize("advantages", [rloo_advantages, group_advantages])
def test_counting_every_row_changes_nothing(advantages) -> None:
    scores = torch.randn(12, generator=torch.Generator().manual_seed(0))
    everything = torch.ones(12, dtype=torch.bool)
    assert torch.equal(advantages(scores, group_size=4), advantages(scores, group_size=4, counted=everything))


def test_what_was_cut_off_ranks_below_everything_and_what_is_unknown_nowhere() -> None:
    scores = torch.tensor([10.0, NO, NO, 0.0])
    ended = torch.tensor([True, True, False, True])
    found = _ranked(scores, ended)
    assert found[[0, 2, 3]].tolist() == [10.0, -1.0, 0.0] and found[1].isnan()


def test_the_prompts_that_evaluation_uses_are_never_paid_for(tiny_code) -> None:
    """Rewards and gold have no test in common, not even on one prompt."""
    task = tiny_code.task
    problems = [task.world.problem_of(p) for p in task.prompts("train")[:40] + task.prompts("test")[:40]]
    for problem in problems:
        paid = {repr(test.args) for test in problem.reward_tests}
        judged = {repr(test.args) for test in problem.tests}
        assert len(paid) == len(judged) == 6 and not paid & judged
        assert repr(problem.public_tests[0].args) not in paid | judged
