"""pass@k, n@k, intervals over problems and the breakdown of errors: by hand, by enumeration, and by recorded runs."""

from __future__ import annotations

import gzip
import json
from fractions import Fraction
from itertools import combinations
from math import fsum, inf, ulp
from pathlib import Path

import numpy as np
import pytest

from trueline.evaluation.passk import (
    ERRORS,
    Estimate,
    Tally,
    Trial,
    bootstrap,
    breakdown,
    clustered_n_at_k,
    n_at_k,
    pass_at_k,
    pass_at_ks,
    tally,
)

REAL = Path(__file__).resolve().parents[2] / ".." / "shared" / "data"


def real(name: str) -> Path:
    path = REAL / name
    if not path.is_file():
        pytest.skip(f"no {name} beside the checkout")
    return path


# --- pass@k --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", range(1, 7))
def test_pass_at_k_is_the_share_of_subsets_with_a_success(n) -> None:
    for c in range(n + 1):
        for k in range(1, n + 1):
            subsets = list(combinations([1] * c + [0] * (n - c), k))
            assert pass_at_k(n, c, k) == float(Fraction(sum(map(max, subsets)), len(subsets)))


def test_pass_at_k_keeps_its_digits_where_the_power_form_loses_them() -> None:
    # One right of a million, k = 1: 1 - (n-1)/n in floats is 1.00000000002876e-06.
    assert pass_at_k(10**6, 1, 1) == 1e-06
    assert 1 - (10**6 - 1) / 10**6 != 1e-06
    assert pass_at_k(10**5, 3, 50) == pytest.approx(1 - (1 - 50 / 10**5) ** 3, rel=1e-3)


@pytest.mark.parametrize(("n", "c", "k"), [(5, 1, 6), (5, 6, 1), (5, -1, 1), (5, 1, 0), (0, 0, 1)])
def test_pass_at_k_refuses_what_is_no_count(n, c, k) -> None:
    with pytest.raises(ValueError, match="pass_at_k needs"):
        pass_at_k(n, c, k)


def test_the_recorded_run_on_puzzles_is_recomputed() -> None:
    """397 problems, 1000 samples each; the record is a float sum of rounded terms: equal to the last place."""
    path = real("p3_puzzles/results_397_cushman_codex_1k_full.json.gz")
    experiments = json.loads(gzip.decompress(path.read_bytes()))
    compared = 0
    for experiment in experiments:
        if experiment["experiment"] == "bootstrap":  # stops at the first solution: it has no count of them
            continue
        counts = [int(puzzle["n_sols"]) for puzzle in experiment["sat_sols"]]
        assert len(counts) == 397
        for k, recorded in experiment["pass@k"]:
            found = fsum(pass_at_k(1000, c, k) for c in counts) / 397
            assert abs(found - recorded) <= ulp(recorded), (experiment["experiment"], k)
            compared += 1
    assert compared == 12


def test_the_example_samples_of_humaneval_pass_half() -> None:
    """Six samples of one problem: a deleted folder, a sleep and a read of stdin fail, three `return 1` pass."""
    rows = real("humaneval/example_samples.jsonl").read_text().splitlines()
    verdicts = ["fail", "limit", "fail", "pass", "pass", "pass"]
    found = tally((json.loads(row)["task_id"], verdict) for row, verdict in zip(rows, verdicts, strict=True))
    assert found == {"test/0": Tally(6, 3)}
    assert pass_at_ks(found.values())[1].mean == 0.5


def test_infrastructure_is_no_sample() -> None:
    rows = [("a", "pass"), ("b", "fail"), ("a", "infrastructure"), ("a", "limit")]
    assert tally(rows) == {"a": Tally(2, 1, 1), "b": Tally(1, 0)}
    with pytest.raises(ValueError, match="unknown verdict 'ok'"):
        tally([("a", "ok")])


def test_a_k_above_the_fewest_samples_is_left_out() -> None:
    assert set(pass_at_ks([Tally(10, 5), Tally(3, 1)], ks=(1, 3, 4, 10))) == {1, 3}
    assert pass_at_ks([Tally(10, 5), Tally(0, 0, 10)]) == {}
    assert pass_at_ks([]) == {}
    both = pass_at_ks([Tally(4, 2), Tally(2, 0)], ks=(1, 2))
    # (1/2 + 0) / 2 and (1 - C(2,2)/C(4,2) + 0) / 2 = (5/6) / 2
    assert (both[1].mean, both[2].mean) == (0.25, pytest.approx(5 / 12, abs=1e-15))


# --- n@k -----------------------------------------------------------------------------------------------------------


def enumerated(trials: list[Trial], n: int, k: int) -> Fraction:
    """n@k by its definition: every draw of k, every choice of submissions among those that pass the public tests."""
    chances = []
    for drawn in combinations(trials, k):
        kept = [trial.passed for trial in drawn if trial.public]
        choices = list(combinations(kept, min(n, len(kept))))
        chances.append(Fraction(sum(any(choice) for choice in choices), len(choices)))
    return sum(chances) / len(chances)


TRIALS = [
    Trial(True, True), Trial(True, False), Trial(True, False), Trial(False, False), Trial(False, True),
    Trial(True, True), Trial(False, False),
]  # fmt: skip


@pytest.mark.parametrize("n", [1, 2, 3, 9])
@pytest.mark.parametrize("k", range(1, 8))
def test_n_at_k_is_the_enumerated_expectation(n, k) -> None:
    assert n_at_k(TRIALS, n, k) == float(enumerated(TRIALS, n, k))


def test_n_at_k_without_a_useful_public_test_is_pass_at_n() -> None:
    trials = [Trial(True, i < 3) for i in range(10)]
    for n in (1, 2, 5, 10):
        assert n_at_k(trials, n) == pytest.approx(pass_at_k(10, 3, n), abs=1e-15)
    assert n_at_k(trials, 2, 2) == pytest.approx(pass_at_k(10, 3, 2), abs=1e-15)


def test_a_sample_that_fails_the_public_tests_is_never_submitted() -> None:
    assert n_at_k([Trial(False, True)] * 5, 5) == 0.0
    assert n_at_k([Trial(False, True)] * 5 + [Trial(True, True)], 1) == 1.0


@pytest.mark.parametrize(("n", "k"), [(0, 1), (1, 0), (1, 8)])
def test_n_at_k_refuses(n, k) -> None:
    with pytest.raises(ValueError, match="n_at_k needs"):
        n_at_k(TRIALS, n, k)


def test_clusters_submit_one_each_from_the_largest() -> None:
    # Sizes 3 (a: wrong), 2 (b: one of two right), 1 (c: right), and a filtered one that would be right.
    trials = [Trial(True, False, "a")] * 3 + [Trial(True, True, "b"), Trial(True, False, "b"), Trial(True, True, "c")]
    trials.append(Trial(False, True, "d"))
    assert clustered_n_at_k(trials, 1) == 0.0
    assert clustered_n_at_k(trials, 2) == 0.5
    assert clustered_n_at_k(trials, 3) == 1.0
    # A second round begins with the largest again: a, b, a, b takes both of b.
    assert clustered_n_at_k(trials[:5], 3) == 0.5
    assert clustered_n_at_k(trials[:5], 4) == 1.0
    assert clustered_n_at_k([Trial(False, True)], 3) == 0.0


def test_clusters_of_one_each_are_submissions_in_order_and_one_cluster_is_pass_at_n() -> None:
    alone = [Trial(True, passed, i) for i, passed in enumerate([False, False, True])]
    assert [clustered_n_at_k(alone, n) for n in (1, 2, 3)] == [0.0, 0.0, 1.0]
    together = [Trial(True, i == 0, "same") for i in range(5)]
    assert clustered_n_at_k(together, 2) == pass_at_k(5, 1, 2)
    with pytest.raises(ValueError, match="clustered_n_at_k needs"):
        clustered_n_at_k([], 1)


# --- intervals and errors ------------------------------------------------------------------------------------------


def test_bootstrap_covers_the_true_mean() -> None:
    rng = np.random.default_rng(0)
    hits = sum(e.low <= 0.3 <= e.high for e in (bootstrap(rng.random(120) < 0.3, draws=400) for _ in range(300)))
    assert (
        0.91 <= hits / 300 <= 0.98
    )  # 0.95 give or take 2.5 standard errors of 300 trials and the bias of a percentile


def test_bootstrap_is_as_wide_as_the_normal_interval_and_repeats() -> None:
    values = np.random.default_rng(1).random(400)
    found = bootstrap(values)
    half = 1.959964 * values.std() / 20
    assert found.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert found.high == pytest.approx(values.mean() + half, abs=0.1 * half)
    assert found == bootstrap(values) != bootstrap(values, seed=1)
    assert bootstrap(values, level=0.5).high < found.high


def test_where_all_fail_or_all_pass_the_bound_is_exact() -> None:
    # (1 - p)^10 = 0.025 at the bound.
    zero, one = bootstrap([0.0] * 10), bootstrap([1.0] * 10)
    assert (zero.low, one.high) == (0.0, 1.0)
    assert (1 - zero.high) ** 10 == pytest.approx(0.025)
    assert one.low == pytest.approx(1 - zero.high)


def test_one_problem_says_nothing_of_problems() -> None:
    assert bootstrap([0.5]) == Estimate(0.5, -inf, inf, 1)
    for values in ([], [[0.5]], [float("nan")]):
        with pytest.raises(ValueError, match="one finite value per problem"):
            bootstrap(values)
    with pytest.raises(ValueError, match="level"):
        bootstrap([0.5, 1.0], level=1.0)


def test_the_breakdown_shares_what_was_judged() -> None:
    rows = [("pass", ""), ("pass", None), ("fail", "wrong"), ("limit", "timeout"), ("infrastructure", None)]
    found = breakdown(rows)
    assert (found.judged, found.infrastructure) == (4, 1)
    assert found.shares == {"pass": 0.5, "wrong": 0.25, "timeout": 0.25} | dict.fromkeys(
        set(ERRORS) - {"wrong", "timeout"}, 0.0
    )
    assert sum(found.shares.values()) == 1.0
    assert breakdown([("infrastructure", None)]).shares == {}


@pytest.mark.parametrize(("verdict", "error"), [("ok", ""), ("fail", None), ("limit", "slow"), ("pass", "wrong")])
def test_the_breakdown_refuses(verdict, error) -> None:
    with pytest.raises(ValueError, match=r"verdict|a pass has"):
        breakdown([(verdict, error)])
