"""Best-of-n by counting subsets, Gao's forms with known coefficients, distances between curves, rules of stopping."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from tests.experiments.arm_runs import arm_of

from trueline.experiments.overoptimisation import (
    Curve,
    above_floor,
    best_of_n,
    best_of_n_kl,
    curves_of,
    early_stopping,
    fit,
    gain_at,
    overoptimisation_json,
)


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_best_of_n_is_the_mean_over_all_subsets(n) -> None:
    rng = np.random.default_rng(0)
    proxy, gold = rng.normal(size=6), rng.normal(size=6)
    subsets = [max(chosen, key=lambda i: proxy[i]) for chosen in combinations(range(6), n)]
    expected = np.mean([proxy[i] for i in subsets]), np.mean([gold[i] for i in subsets])
    assert best_of_n(proxy, gold, n) == pytest.approx(expected)


def test_equal_scores_share_and_too_many_are_refused() -> None:
    assert best_of_n([1.0, 1.0, 0.0], [0.0, 2.0, 9.0], 2)[1] == pytest.approx(1.0)
    with pytest.raises(ValueError, match="4 of 3"):
        best_of_n([1.0, 2.0, 3.0], [0.0, 0.0, 0.0], 4)


def test_its_kl() -> None:
    assert best_of_n_kl(1) == 0.0 and best_of_n_kl(4) == pytest.approx(np.log(4) - 0.75)


def curves(form, alpha, beta, *, seeds=4, noise=0.0):
    d, rng = np.linspace(0, 3, 12), np.random.default_rng(1)
    shape = d * (alpha - beta * (d if form == "best-of-n" else np.log(np.where(d > 0, d, 1.0))))
    return [Curve(d, 2 * d, shape + noise * rng.normal(size=12) * (d > 0)) for _ in range(seeds)]


@pytest.mark.parametrize("form, other", [("best-of-n", "RL"), ("RL", "best-of-n")])
def test_a_form_finds_its_coefficients_and_leaves_less_than_the_other(form, other) -> None:
    made = curves(form, 1.2, 0.4, noise=0.01)
    found = fit(made, form)
    assert found.alpha.mean == pytest.approx(1.2, abs=0.03) and found.beta.mean == pytest.approx(0.4, abs=0.02)
    assert found.alpha.low <= 1.2 <= found.alpha.high
    assert found.left < 0.01 < fit(made, other).left
    peak = 1.2 / 0.8 if form == "best-of-n" else np.exp(1.2 / 0.4 - 1)
    assert found.peak == pytest.approx(peak, rel=0.1)


def test_a_curve_that_does_not_turn_has_no_peak_and_one_that_does_not_move_no_fit() -> None:
    assert fit(curves("best-of-n", 1.0, -0.1), "best-of-n").peak is None
    still = [Curve(np.zeros(5), np.zeros(5), np.zeros(5))]
    assert fit(still, "RL") is None


def test_gains_are_compared_at_one_distance_and_not_beyond() -> None:
    high, low = curves("best-of-n", 1.5, 0.2), curves("best-of-n", 1.0, 0.2)
    assert gain_at(high[0], 1.0) == pytest.approx(1.3, abs=0.02)
    gap = above_floor(high, low, 1.0)
    assert gap.mean == pytest.approx(0.5, abs=0.01)
    assert gain_at(high[0], 3.5) is None and above_floor(high, low, 3.5) is None


def row(name, gold, *, end, floor=False):
    kls = np.linspace(0, 4, len(gold))
    made = arm_of(name, np.full((3, 5), max(gold)), end=np.full((3, 5), end), curve=[list(zip(kls, gold))] * 3)
    for cell in made.cells:
        for point, proxy in zip(cell.curve, np.linspace(0, 2, len(gold))):
            point.metrics["selection/sampled/proxy"] = proxy
        for prompt in cell.scores["selected", "test", "sampled"].values() if floor else ():
            prompt["proxy"] = [0.0, 1.0, 2.0, 3.0]
            prompt["gold"] = [0.0, 0.5, 0.8, 0.6]
    return made


def test_the_whole_record() -> None:
    rows = {
        "floor": row("floor", [0.0, 0.0, 0.0], end=0.0, floor=True),
        "ppo": row("ppo", [0.1, 0.9, 1.1, 0.4], end=0.4),
    }
    (curve, *_) = curves_of(rows["ppo"])
    assert curve.gold.tolist() == pytest.approx([0.0, 0.8, 1.0, 0.3]) and curve.d[-1] == 2.0
    stops = early_stopping(rows["ppo"])
    assert (stops["end"].mean, stops["selected"].mean) == pytest.approx((0.4, 1.1))
    record = overoptimisation_json(rows, "floor")
    assert set(record["fits"]) == {"ppo", "best-of-n"}
    assert record["floor"]["gold"][0] == 0.0 and record["floor"]["gold"][-1] == pytest.approx(0.6 - 0.475)
    assert [entry["gain"]["mean"] > 0 for entry in record["above_floor"]["ppo"]] == [True] * 4
