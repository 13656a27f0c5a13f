"""Hand-derived corners, closed forms of scipy, and coverage by simulation."""

from __future__ import annotations

from itertools import product
from math import isinf, sqrt

import numpy as np
import pytest
from scipy import stats

from trueline.study.statistics import (
    crossed_variance,
    equivalent,
    holm,
    kl_matched,
    length_controlled_difference,
    paired_interval,
    sample_means,
    seed_interval,
    seeds_needed,
    wilson,
)

RATIOS = ((1, 0, 1), (0, 1, 1), (0, 0, 1), (0.03, 1, 1), (0.1, 1, 1), (0.3, 1, 1), (1, 1, 1), (0.05, 3, 1))


def studies(rng, n, seeds, prompts, ratio):
    """n studies of true difference zero with variances (seed, prompt, error)."""
    seed, prompt, error = (v**0.5 for v in ratio)
    d = rng.normal(size=(n, seeds, prompts)) * error
    return d + rng.normal(size=(n, seeds, 1)) * seed + rng.normal(size=(n, 1, prompts)) * prompt


class TestPairedInterval:
    def test_two_by_two_by_hand(self):
        # d = [[1, 3], [2, 6]]: grand 3, seed means 2 and 4, prompt means 1.5 and 4.5, residuals +-0.5
        # MS_s = 2*(1+1)/1 = 4; MS_p = 2*(2.25+2.25)/1 = 9; MS_e = 4*0.25/1 = 1
        # Var = (4+9-1)/4 = 3; df = 12^2 / (16 + 81 + 1) = 144/98
        crossed = crossed_variance([[1.0, 3.0], [2.0, 6.0]])
        assert (crossed.mean, crossed.variance) == (3.0, 3.0)
        assert crossed.df == pytest.approx(144 / 98)
        assert (crossed.seed_variance, crossed.seed_df) == (1.0, 1.0)
        interval = paired_interval([[1.0, 3.0], [2.0, 6.0]])
        # t(144/98)*sqrt(3) = 6.16*1.73 = 10.7 is narrower than the seeds alone, t(1)*1 = 12.7: the guard holds
        assert interval.high - interval.mean == pytest.approx(stats.t.ppf(0.975, 1))

    def test_seed_variance_alone_is_the_t_test_over_seeds(self):
        by_seed = np.array([0.3, 0.9, 0.4, 1.1])
        ours = paired_interval(np.repeat(by_seed[:, None], 7, axis=1))
        theirs = stats.ttest_1samp(by_seed, 0.0)
        assert ours.p == pytest.approx(theirs.pvalue)
        assert (ours.low, ours.high) == pytest.approx(tuple(theirs.confidence_interval(0.95)))
        assert seed_interval(list(by_seed)).p == pytest.approx(theirs.pvalue)

    def test_prompt_variance_alone_is_the_t_test_over_prompts(self):
        by_prompt = np.random.default_rng(0).normal(0.4, 1.0, 25)
        ours = paired_interval(np.repeat(by_prompt[None], 3, axis=0))
        theirs = stats.ttest_1samp(by_prompt, 0.0)
        assert ours.p == pytest.approx(theirs.pvalue)
        assert (ours.low, ours.high) == pytest.approx(tuple(theirs.confidence_interval(0.95)))

    def test_p_and_interval_agree(self):
        for d in studies(np.random.default_rng(1), 200, 3, 20, (0.1, 0.5, 1)) + 0.4:
            interval = paired_interval(d)
            assert (interval.p < 0.05) == (interval.low > 0 or interval.high < 0)

    def test_order_sign_and_shift(self):
        d = np.random.default_rng(2).normal(size=(4, 11))
        base, flipped, moved = paired_interval(d), paired_interval(-d), paired_interval(d + 5)
        shuffled = paired_interval(d[[2, 0, 3, 1]][:, ::-1])
        assert (shuffled.mean, shuffled.low, shuffled.high) == pytest.approx((base.mean, base.low, base.high))
        assert (flipped.low, flipped.high) == pytest.approx((-base.high, -base.low))
        assert (moved.low, moved.high) == pytest.approx((base.low + 5, base.high + 5))

    def test_one_seed_claims_nothing(self):
        interval = paired_interval([[5.0, 5.1, 4.9]])
        assert isinf(interval.low) and isinf(interval.high) and interval.p == 1.0 and interval.mean == pytest.approx(5)

    def test_never_below_the_seeds_alone(self):
        for d in studies(np.random.default_rng(3), 300, 3, 15, (0.2, 0.2, 1)):
            by_seed = stats.sem(d.mean(axis=1)) * stats.t.ppf(0.975, 2)
            interval = paired_interval(d)
            assert interval.high - interval.mean >= by_seed * (1 - 1e-9)

    @pytest.mark.parametrize("bad", [[1.0, 2.0], [[]], [[1.0, np.nan]]])
    def test_bad_input_is_refused(self, bad):
        with pytest.raises(ValueError):
            paired_interval(bad)


class TestCoverage:
    @pytest.mark.parametrize("seeds", [3, 5])
    @pytest.mark.parametrize("ratio", RATIOS)
    def test_nominal_95_covers(self, seeds, ratio):
        rng = np.random.default_rng([seeds, *(int(100 * v) for v in ratio)])
        crossed = crossed_variance(studies(rng, 3000, seeds, 60, ratio))
        covered = np.mean(np.abs(crossed.mean) <= crossed.half_width())
        assert 0.93 <= covered <= 0.975

    def test_percentile_bootstrap_over_three_seeds_does_not(self):
        """With 3 seeds the 27 resamples' 2.5% and 97.5% points are the extremes: coverage 1 - 2/2^3 = 75%."""
        values = np.random.default_rng(4).normal(size=(2000, 3))
        resamples = np.array(list(product(range(3), repeat=3)))
        low, high = np.percentile(values[:, resamples].mean(axis=2), [2.5, 97.5], axis=1)
        assert np.mean((low <= 0) & (high >= 0)) < 0.85

    def test_prompts_alone_do_not(self):
        d = studies(np.random.default_rng(5), 1500, 3, 60, (0.1, 1, 1)).mean(axis=1)
        half = stats.t.ppf(0.975, 59) * d.std(axis=1, ddof=1) / sqrt(60)
        assert np.mean(np.abs(d.mean(axis=1)) <= half) < 0.85

    def test_satterthwaite_without_the_guard_falls_short(self):
        crossed = crossed_variance(studies(np.random.default_rng(6), 6000, 3, 200, (0.3, 1, 1)))
        bare = stats.t.ppf(0.975, crossed.df) * np.sqrt(crossed.variance)
        assert np.mean(np.abs(crossed.mean) <= bare) < 0.935


def test_samples_are_averaged_within_prompts_first():
    # prompt one has three samples, prompt two has one: each prompt weighs the same
    means = sample_means([[[1.0, 2.0, 6.0], [5.0]], [[4.0], [None, 7.0]]])
    assert means.tolist() == [[3.0, 5.0], [4.0, 7.0]]
    assert np.isnan(sample_means([[[None]]])).all()


def test_holm_by_hand():
    # sorted .005 .01 .03 .04 times 4 3 2 1 = .02 .03 .06 .04; the last is raised to .06
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_equivalence_needs_the_whole_interval():
    inside = paired_interval([[0.01, -0.01], [0.0, 0.02]])
    assert equivalent(inside, 1.0) and not equivalent(inside, 0.01)
    assert not equivalent(paired_interval([[0.0, 0.0]]), 1e9)  # one seed is never equivalent


@pytest.mark.parametrize("x,n", [(0, 10), (3, 10), (10, 10), (57, 200)])
def test_wilson_is_scipys(x, n):
    theirs = stats.binomtest(x, n).proportion_ci(method="wilson")
    assert wilson(x, n) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_wilson_without_trials_says_nothing():
    assert wilson(0, 0) == (0.0, 1.0)


class TestSeedsNeeded:
    def test_seed_variance_alone_by_brute_force(self):
        by_seed = np.array([1.0, -1.0, 0.5, -0.5])
        sd, target = by_seed.std(ddof=1), 0.4
        expected = next(n for n in range(2, 200) if stats.t.ppf(0.975, n - 1) * sd / sqrt(n) < target)
        assert seeds_needed(np.repeat(by_seed[:, None], 9, axis=1), target) == expected

    def test_a_smaller_target_takes_more_seeds(self):
        d = np.random.default_rng(7).normal(size=(3, 90)) + np.array([[0.6], [-0.6], [0.1]])
        counts = [seeds_needed(d, target) for target in (1.0, 0.6, 0.4)]
        assert counts == sorted(counts) and counts[0] < counts[-1]

    def test_prompts_alone_can_forbid_it(self):
        by_prompt = np.random.default_rng(8).normal(size=12)
        assert seeds_needed(np.repeat(by_prompt[None], 3, axis=0), 0.01) is None

    def test_one_seed_has_no_components(self):
        assert seeds_needed([[0.1, 0.2]], 1.0) is None


class TestLengthControl:
    def test_pure_length_effect_vanishes(self):
        lengths = np.random.default_rng(9).normal(6, 3, (3, 30))
        interval = length_controlled_difference(0.25 * lengths, lengths)
        assert interval.mean == pytest.approx(0.0, abs=1e-12) and paired_interval(0.25 * lengths).mean > 1

    def test_intercept_is_the_regressions(self):
        rng = np.random.default_rng(10)
        lengths = rng.normal(4, 3, (4, 25))
        scores = 0.7 + 0.2 * lengths + rng.normal(0, 0.5, lengths.shape)
        theirs = stats.linregress(lengths.ravel(), scores.ravel())
        assert length_controlled_difference(scores, lengths).mean == pytest.approx(theirs.intercept)

    def test_interval_is_wider_where_equal_length_was_not_seen(self):
        rng = np.random.default_rng(11)
        near, noise = rng.normal(0, 3, (4, 25)), rng.normal(0, 0.5, (4, 25))
        widths = [i.high - i.low for i in (length_controlled_difference(noise, near + far) for far in (0.0, 20.0))]
        assert widths[1] > 2 * widths[0]

    def test_equal_lengths_change_nothing_and_a_constant_gap_is_not_comparable(self):
        scores = np.random.default_rng(12).normal(size=(3, 10))
        assert length_controlled_difference(scores, np.zeros((3, 10))) == paired_interval(scores)
        assert length_controlled_difference(scores, np.full((3, 10), 4.0)) is None

    def test_coverage(self):
        rng, hits = np.random.default_rng(13), 0
        for _ in range(400):
            lengths = rng.normal(2, 3, (3, 30))
            scores = 0.5 + 0.1 * lengths + studies(rng, 1, 3, 30, (0.1, 0.5, 1))[0]
            interval = length_controlled_difference(scores, lengths)
            hits += interval.low <= 0.5 <= interval.high
        assert 0.91 <= hits / 400 <= 0.99


class TestKLMatched:
    def test_interpolates_in_the_root(self):
        # a: gold = sqrt(KL) on [0, 4]; b: gold = 2 sqrt(KL) on [0, 9]; the smaller largest KL is 4
        a, b = [(0.0, 0.0), (4.0, 2.0)], [(0.0, 0.0), (9.0, 6.0)]
        matches = kl_matched([a, a], [b, b])
        assert [m.kl for m in matches] == [1.0, 2.0, 4.0]
        assert [m.gold_a for m in matches] == pytest.approx([1.0, sqrt(2), 2.0])
        assert [m.gold_b for m in matches] == pytest.approx([2.0, 2 * sqrt(2), 4.0])
        assert matches[0].interval.mean == pytest.approx(-1.0)

    def test_nothing_is_extrapolated(self):
        # b starts at KL 3: 25% and 50% of 4 have no checkpoint below them
        matches = kl_matched([[(0.0, 0.0), (4.0, 2.0)]] * 2, [[(3.0, 1.0), (9.0, 6.0)]] * 2)
        assert [m.interval is None for m in matches] == [True, True, False]

    def test_one_seed_without_a_bracket_is_enough(self):
        a, b = [(0.0, 0.0), (4.0, 2.0)], [(3.0, 1.0), (9.0, 6.0)]
        assert kl_matched([a, a], [a, b], fractions=(0.25,))[0].interval is None

    def test_first_crossing_of_a_curve_that_turns_back(self):
        a = [(0.0, 0.0), (4.0, 2.0), (1.0, 9.0), (16.0, 0.0)]
        assert kl_matched([a], [a], fractions=(0.0625,))[0].gold_a == pytest.approx(1.0)

    def test_an_arm_that_never_moved(self):
        still = [(0.0, 0.3), (-0.01, 0.3)]
        assert all(m.interval is None for m in kl_matched([still], [still]))
