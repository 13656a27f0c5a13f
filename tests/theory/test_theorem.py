"""Theorem 4.1 in numbers, the misspecified example and the coverage coefficients, against closed forms."""

from __future__ import annotations

import math

import pytest
import torch

from trueline.theory import coverage, misspecified, theorem
from trueline.theory.bandits import dpo_flow, highest_unlabelled, sign_descent_peak
from trueline.theory.tabular import dpo_population_loss, implicit_reward, optimal_policy, wins_table

PAIR = wins_table(3, [(0, 1, 1.0, 1.0)])


def vector(values):
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_the_loss_of_table_1_does_not_see_the_third_response(beta) -> None:
    rejected = [1e-1, 1e-4, 1e-8]
    losses = theorem.limit_loss(0.1, rejected, beta=beta)
    for b, loss in zip(rejected, losses):
        policy = vector([0.1, b, 0.9 - b])
        assert float(loss) == pytest.approx(math.log1p((b / 0.1) ** beta), rel=1e-12)
        ref = vector([0.4, 0.4, 0.2])  # ref(y1) = ref(y2) is all that enters
        assert float(dpo_population_loss(policy, ref, PAIR, beta=beta)) == pytest.approx(float(loss), rel=1e-9)
    assert losses[0] > losses[1] > losses[2]


def test_no_reward_puts_mass_where_the_reference_has_none() -> None:
    policies = theorem.one_pair_optimum(vector([0.5, 0.5, 0.0]), [0.0, 1.0, 30.0], beta=0.7)
    assert policies[:, 2].tolist() == [0.0] * 3
    ratio = policies[1, 0] / policies[1, 1]
    assert float(ratio) == pytest.approx(math.exp(1.0 / 0.7))


def test_soft_labels_leave_a_line_of_minimisers() -> None:
    ref, beta, win = vector([0.3, 0.5, 0.2]), 0.4, 0.8
    policies = theorem.soft_label_minimizers(ref, win, [0.1, 0.5, 0.9], beta=beta)
    wins = wins_table(3, [(0, 1, 1.0, win)])
    entropy = -(win * math.log(win) + (1 - win) * math.log(1 - win))
    for policy in policies:
        assert float(policy.sum()) == pytest.approx(1.0)
        assert float(dpo_population_loss(policy, ref, wins, beta=beta)) == pytest.approx(entropy, rel=1e-12)
    assert policies[:, 2].tolist() == [0.1, 0.5, 0.9]


def test_the_price_is_the_reward_that_leads_there() -> None:
    beta, refs = 0.5, vector([[0.45, 0.45, 0.1], [0.4995, 0.4995, 1e-3], [0.5, 0.5, 0.0]])
    prices = theorem.price_of_response(refs, 0.9, beta=beta)
    for ref, price in zip(refs[:2], prices):
        rewards = vector([0.0, -1e9, float(price)])
        assert float(optimal_policy(ref, rewards, beta=beta)[2]) == pytest.approx(0.9, rel=1e-9)
    assert float(prices[1] - prices[0]) == pytest.approx(beta * math.log(0.1 / 1e-3 * 0.4995 / 0.45))
    assert math.isinf(prices[2])


def test_the_inclusion_is_an_equality_with_full_support_and_proper_with_a_zero() -> None:
    found = theorem.support_inclusion(range(60), beta=0.3)
    assert found.rebuilt < 1e-12 and found.loss_gap < 1e-12
    assert found.outside == found.bandits == 60 and found.outside_gap < 1e-12


def test_the_bound_on_unlabelled_mass_is_reached_by_the_flow_and_never_passed() -> None:
    ref, wins = vector([0.05, 0.75, 0.2]), PAIR
    bound = float(highest_unlabelled(ref, wins))
    assert bound == pytest.approx(0.2 / (0.2 + 2 * math.sqrt(0.05 * 0.75)))
    path = dpo_flow(ref, wins, beta=1.0, step_size=0.01, steps=4000)[:, 2]
    assert bound - 1e-4 < float(path.max()) <= bound + 1e-12
    uniform = torch.full((4,), 0.25, dtype=torch.float64)
    assert float(highest_unlabelled(uniform, wins_table(4, [(0, 1, 1.0, 1.0)]))) == pytest.approx(0.5)  # two of four


def test_adam_on_a_table_peaks_above_the_start_where_one_beats_several() -> None:
    best = max(1 / (8 - 1 - 3 + math.exp(s) + 3 * math.exp(-s)) for s in [0.001 * i for i in range(4000)])
    assert sign_descent_peak(8, 3) == pytest.approx(best, rel=1e-6)
    assert sign_descent_peak(8, 1) == pytest.approx(1 / 8) and sign_descent_peak(8, 3) > 1 / 8


class TestMisspecified:
    def test_dpo_s_theta_in_closed_form_and_by_search(self) -> None:
        case = misspecified.OneParameter()
        q = 0.1 / (1 + math.exp(-2.0)) + 0.9 / (1 + math.exp(0.5))
        assert misspecified.dpo_theta(case) == pytest.approx(math.log(q / (1 - q)) / case.beta)
        assert misspecified.population_theta(case) == pytest.approx(misspecified.dpo_theta(case), abs=1e-9)

    def test_it_reverses_above_the_share_and_not_below(self) -> None:
        share = misspecified.reversal_share(misspecified.OneParameter())
        for w, sign in ((share - 0.01, 1), (share + 0.01, -1)):
            assert misspecified.dpo_theta(misspecified.OneParameter(share=w)) * sign > 0

    @pytest.mark.parametrize("share", [0.1, 0.9, 0.99])
    def test_a_reward_model_does_not_care_which_pairs_were_compared(self, share) -> None:
        case = misspecified.OneParameter(share=share)
        found = misspecified.recovered_rewards(case)
        assert found.tolist() == pytest.approx((case.true_rewards - case.true_rewards.mean()).tolist(), abs=1e-9)
        theta = misspecified.best_theta(case, found)
        policy = misspecified.linear_policy(case, theta)
        assert float((policy * case.true_rewards).sum()) > float((case.ref * case.true_rewards).sum())
        phi = vector(case.features)
        mean = (policy * phi).sum()
        stationary = (policy * (phi - mean) * (found - case.beta * theta * phi)).sum()
        assert abs(float(stationary)) < 1e-9

    def test_dpo_falls_below_the_reference_and_ppo_does_not(self) -> None:
        case = misspecified.OneParameter()
        dpo = misspecified.linear_policy(case, misspecified.dpo_theta(case))
        assert float((dpo * case.true_rewards).sum()) < float((case.ref * case.true_rewards).sum())
        free = misspecified.free_policy(case, misspecified.recovered_rewards(case))
        again = implicit_reward(free, case.ref, beta=case.beta)
        assert (again - again.mean()).tolist() == pytest.approx(misspecified.recovered_rewards(case).tolist(), abs=1e-9)


class TestCoverage:
    def test_coefficients_by_hand(self) -> None:
        data = vector([[[0.5, 0.5, 0.0], [0.25, 0.25, 0.5]]])
        best = vector([[[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]])
        assert coverage.single_policy_coefficient(best, data).tolist() == [2.0]
        assert math.isinf(coverage.all_policy_coefficient(data)[0])
        assert coverage.all_policy_coefficient(data[:, 1:]).tolist() == [4.0]

    def test_within_a_kl_the_largest_ratio_is_that_of_two_points(self) -> None:
        ref, radius = vector([[[0.2, 0.3, 0.5]]]), 0.4
        found = float(coverage.kl_ball_coefficient(ref, radius)[0])
        p = found * 0.2  # the rarest response gives the largest ratio here
        assert p * math.log(p / 0.2) + (1 - p) * math.log((1 - p) / 0.8) == pytest.approx(radius, abs=1e-9)
        assert coverage.kl_ball_coefficient(ref, 10.0).tolist() == [5.0]  # far enough for certainty
