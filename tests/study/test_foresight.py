"""Whether a figure foresees collapses: areas by hand, what knows only the dial, and too few runs."""

from __future__ import annotations

import numpy as np
import pytest

from trueline.study.foresight import FIGURES, Observation, area, figures_of, foresight, sentence

GAP, CONSTANT = "likelihood gap per token", "constant answer, all prompts"


def runs_of(rule, *, places: int = 3, seeds: int = 10):
    """`rule(place, seed, rng)` gives the figure and whether the run collapsed."""
    rng = np.random.default_rng(0)
    found = []
    for place in range(places):
        for seed in range(seeds):
            value, collapsed = rule(place, seed, rng)
            found.append(Observation({GAP: value}, collapsed, f"place {place}", f"{place}/{seed}"))
    return found


def test_the_area_by_hand() -> None:
    assert area([2.0, 3.0], [1.0, 2.0]) == pytest.approx((1 + 0.5 + 1 + 1) / 4)
    assert area([], [1.0]) is None and area([1.0], []) is None


def test_a_figure_that_decides_is_said_to_foresee() -> None:
    (found,) = foresight(runs_of(lambda p, s, rng: (float(s), s >= 5)), draws=200)
    assert (found.auc, found.within, found.word) == (1.0, 1.0, "foresees")
    assert "told them apart best, area 1.00" in sentence("PPO", [found])


def test_a_figure_that_only_knows_the_place_knows_nothing_within_it() -> None:
    (found,) = foresight(
        runs_of(lambda p, s, rng: (p + 0.01 * rng.random(), bool(rng.random() < 0.1 + 0.4 * p)), seeds=60), draws=200
    )
    assert found.auc > 0.65 and found.within == pytest.approx(0.5, abs=0.12)


def test_noise_is_not_told_apart_from_chance() -> None:
    (found,) = foresight(runs_of(lambda p, s, rng: (rng.random(), bool(rng.random() < 0.5)), seeds=40), draws=400)
    assert found.low < 0.5 < found.high and found.word == "not told apart from chance"
    assert "no figure told them apart" in sentence("DPO", [found])


def test_the_interval_draws_clusters_and_not_runs() -> None:
    """Twelve copies of four runs are four runs."""
    once = runs_of(lambda p, s, rng: (rng.random(), s % 2 == 0), places=2, seeds=10)
    copies = [Observation(o.figures, o.collapsed, o.place, o.cluster) for o in once for _ in range(12)]
    (few,), (many,) = foresight(once, draws=400), foresight(copies, draws=400)
    assert many.high - many.low == pytest.approx(few.high - few.low, abs=0.05)


def test_few_collapses_give_no_word() -> None:
    (found,) = foresight(runs_of(lambda p, s, rng: (float(s), s == 9), places=3), draws=50)
    assert found.collapsed == 3 and found.word == "too few"
    assert "too few of one kind" in sentence("PPO", [found])
    assert "nothing was measured" in sentence("PPO", [])


def test_figures_are_read_where_they_are_and_missing_ones_are_none() -> None:
    ratio = {"ratio": 1.5, "best": 0}
    probe = {
        "likelihood": {"gap": {"mean": 0.4}},
        "producible": {"pairs": 0.25},
        "constant": {"sets": {"own": {"all": ratio, "kinds": {"harmful": {"ratio": 2.5}, "benign": {"ratio": None}}}}},
    }
    found = figures_of(probe)
    assert set(found) == set(FIGURES)
    assert found[GAP] == 0.4 and found["pairs that SFT does not produce"] == 0.75
    assert found[CONSTANT] == 1.5 and found["constant answer, worst kind of prompt"] == 2.5
    assert found["best-of-n gain in gold"] is None
    assert figures_of({}) == dict.fromkeys(FIGURES)
