"""A run whose sides differ has no ratio."""

from __future__ import annotations

import math

import pytest

from trueline.benchmarks.equality import check_equal, equal_losses, equal_samples
from trueline.benchmarks.work import standard_work
from trueline.errors import RunError

SAMPLES = {"length": {"mean": 30.0, "std": 16.0}, "nll": {"mean": 6.0, "std": 0.4}, "score": {"mean": 0.1, "std": 0.2}}


def rounds(length: float, nll: float = 6.0, score: float = 0.1, count: int = 4) -> list[dict[str, float]]:
    return [{"val/length": length, "objective/entropy": nll, "objective/scores": score}] * count


def test_losses_within_the_tolerance_agree_and_beyond_it_do_not() -> None:
    assert equal_losses([1.0, 2.0], [1.001, 1.999], 2e-3)["agrees"]
    found = equal_losses([1.0, 2.0], [1.001, 2.01], 2e-3)
    assert not found["agrees"] and found["largest_difference"] == pytest.approx(0.01 / 2.01)
    assert not equal_losses([1.0, math.nan], [1.0, 1.0], 2e-3)["agrees"]


def test_a_missing_round_is_no_agreement() -> None:
    with pytest.raises(ValueError):
        equal_losses([1.0, 2.0], [1.0], 2e-3)


def test_z_is_in_standard_errors_of_the_difference() -> None:
    # 4 rounds of 64 on both sides: 16 sqrt(2/256) = 1.414 tokens; a fiftieth of 16 is forgiven first
    found = equal_samples(rounds(30.0), rounds(30.32 + 2 * math.sqrt(2)), SAMPLES, 64)
    assert found["metrics"]["length"]["z"] == pytest.approx(2.0) and found["agrees"]
    assert found["metrics"]["nll"]["z"] == 0.0
    assert not equal_samples(rounds(30.0), rounds(30.4 + 5 * math.sqrt(2)), SAMPLES, 64)["agrees"]


def test_lengths_that_hardly_ever_differ_have_a_spread_all_the_same() -> None:
    full = SAMPLES | {"length": {"mean": 64.0, "std": 0.0}}
    assert equal_samples(rounds(64.0), rounds(63.2), full, 64)["agrees"]
    assert not equal_samples(rounds(64.0), rounds(61.0), full, 64)["agrees"]


@pytest.mark.parametrize("peer", [rounds(30.0, nll=6.3), rounds(30.0, score=0.3), rounds(math.nan), [{}] * 4])
def test_another_distribution_another_score_and_nothing_do_not_agree(peer) -> None:
    assert not equal_samples(rounds(30.0), peer, SAMPLES, 64)["agrees"]


def test_the_run_ends_in_an_error() -> None:
    with pytest.raises(RunError, match=r"bench sft.*did not do the same work"):
        check_equal(standard_work("sft"), [{"loss": 1.0}], [{"loss": 1.1}], {})
    assert check_equal(standard_work("sft", precision="bf16"), [{"loss": 1.0}], [{"loss": 1.01}], {})["agrees"]
    with pytest.raises(RunError, match="bench rollout"):
        check_equal(standard_work("rollout"), rounds(30.0), rounds(50.0), SAMPLES)
