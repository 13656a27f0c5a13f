"""What scores say before training, by hand and against distributions whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from trueline.evaluation.probes import best_of_gain, by_kind, constant_lead, disagreement, frequent, mean_interval


def test_an_interval_by_hand() -> None:
    found = mean_interval([1.0, 2.0, 3.0, float("nan")])
    assert found["mean"] == 2.0 and found["sd"] == 1.0
    assert found["ci95"] == pytest.approx([2 - 1.959964 / 3**0.5, 2 + 1.959964 / 3**0.5])
    assert mean_interval([4.0]) == {"mean": 4.0, "sd": None, "ci95": None}
    assert mean_interval([])["mean"] is None


def test_an_interval_holds_the_mean_in_95_of_100() -> None:
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(2000):
        low, high = mean_interval(rng.normal(1.0, 2.0, 150))["ci95"]
        held += low <= 1.0 <= high
    assert 0.935 < held / 2000 < 0.965


def test_the_most_frequent_texts_and_of_equal_ones_the_earlier() -> None:
    assert frequent(["b", "a", "c", "a", "b", "d"], 3) == [("b", 2), ("a", 2), ("c", 1)]
    assert frequent([], 3) == []


def test_disagreement_by_hand() -> None:
    """Two prompts of two responses: one is ordered alike, one the other way round, so half are turned."""
    scores = np.array([[[0.0, 1.0], [0.0, 1.0]], [[0.0, 2.0], [1.0, 0.0]]])
    found = disagreement(scores)
    assert found["rank"] == 0.5
    assert found["sd"] == pytest.approx(np.sqrt((0 + 0.5 + 0.5 + 0.5) / 4))  # variances (0-0)/2, (1-2)^2/2, ...
    assert found["correlation"] == pytest.approx(np.corrcoef([0, 1, 0, 1], [0, 2, 1, 0])[0, 1])


def test_disagreement_of_members_that_share_what_they_know() -> None:
    """r_m = s + e_m with sd 1 and sigma: sd is sigma, the correlation 1 / (1 + sigma^2), and of two responses the share
    turned is arccos(correlation) / pi (Sheppard's orthant probability)."""
    rng, sigma = np.random.default_rng(1), 0.7
    shared = rng.normal(size=(1, 3000, 4))
    found = disagreement(shared + sigma * rng.normal(size=(3, 3000, 4)))
    rho = 1 / (1 + sigma**2)
    assert found["sd"] == pytest.approx(sigma, abs=0.02)
    assert found["correlation"] == pytest.approx(rho, abs=0.02)
    assert found["rank"] == pytest.approx(np.arccos(rho) / np.pi, abs=0.02)


def test_disagreement_of_the_same_member_twice_and_of_one() -> None:
    scores = np.random.default_rng(2).normal(size=(1, 20, 3))
    found = disagreement(np.concatenate([scores, scores]))
    assert (found["sd"], found["rank"]) == (0.0, 0.0) and found["correlation"] == pytest.approx(1.0)
    assert disagreement(np.zeros((2, 3, 2))) == {"sd": 0.0, "correlation": None, "rank": None}
    with pytest.raises(ValueError, match="two members"):
        disagreement(scores)


def test_best_of_gain_by_hand() -> None:
    scores = np.array([[[0.0, 2.0], [3.0, 1.0]], [[0.0, 1.0], [0.0, 4.0]]])
    found = best_of_gain(scores, np.array([[0.0, 10.0], [np.nan, 5.0]]))
    assert found["n"] == 2 and found["proxy"]["mean"] == 1.0  # 2 - 1 and 3 - 2
    assert found["transferred"]["mean"] == pytest.approx((0.5 - 2.0) / 2) and found["share"] == -0.75
    assert found["gold"]["mean"] == 5.0  # the second favourite was not judged
    assert set(best_of_gain(scores[:1])) == {"n", "proxy"}


def test_best_of_gain_of_noise_transfers_nothing_and_of_what_is_shared_its_share() -> None:
    """E max of 8 normals is 1.4236; a member's favourite is worth rho times that to another member."""
    rng = np.random.default_rng(3)
    noise = best_of_gain(rng.normal(size=(2, 4000, 8)))
    assert noise["proxy"]["mean"] == pytest.approx(1.4236, abs=0.03) and abs(noise["share"]) < 0.03
    shared = rng.normal(size=(4000, 8))
    found = best_of_gain(shared + 0.7 * rng.normal(size=(2, 4000, 8)), shared)
    assert found["share"] == pytest.approx(1 / 1.49, abs=0.03)
    assert found["gold"]["mean"] == pytest.approx(1.4236 / 1.49**0.5, abs=0.03)


def test_the_constant_that_leads_by_hand() -> None:
    own = np.array([[0.0, 2.0], [1.0, 1.0]])  # means 1 and 1, best 2 and 1: the gain is 0.5
    constants = np.array([[0.0, 1.0], [3.0, 0.0]])
    found = constant_lead(constants, own)
    assert (found["best"], found["ratio"], found["beats"], found["prompts"]) == (1, 1.0, 0.5, 2)
    assert found["lead"]["mean"] == 0.5
    alone = constant_lead(constants, own, [0])
    assert (alone["best"], alone["ratio"], alone["beats"]) == (1, 2.0, 1.0)
    assert constant_lead(constants, own, [1])["ratio"] is None  # the policy says the same thing twice: nothing to gain
    with pytest.raises(ValueError, match="at least one"):
        constant_lead(constants, own, [])


def test_a_healthy_reward_model_s_ratio_is_below_one_and_a_broken_one_s_is_above() -> None:
    """A reward of fit to the prompt pays a fixed text only where it happens to fit; one of the text alone pays it
    everywhere."""
    rng = np.random.default_rng(4)
    fit, own = rng.normal(size=(12, 150)), rng.normal(size=(150, 8))
    assert constant_lead(fit, own)["ratio"] < 0.3
    broken = fit + np.array([3.0] + [0.0] * 11)[:, None]
    found = constant_lead(broken, own)
    assert found["best"] == 0 and found["ratio"] > 1.5 and found["lead"]["ci95"][0] > 0


def test_rows_by_kind_where_there_are_kinds() -> None:
    assert by_kind(["b", "a", "b", ""]) == {"a": [1], "b": [0, 2]}
    assert by_kind(["a", "a"]) == {} == by_kind(["", ""])
