"""The closed forms against brute force, gradient descent and the paper's Table 1."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trueline.algorithms.dpo import dpo_loss
from trueline.theory.tabular import (
    bradley_terry_minimizer,
    bradley_terry_population_loss,
    classes_coincide,
    counter_example,
    dpo_minimizer,
    dpo_population_loss,
    implicit_reward,
    objective,
    optimal_policy,
    optimal_value,
    wins_table,
    within_support,
)

MODEST = settings(max_examples=20, deadline=None, database=None, derandomize=True)
SOFT = [(0, 1, 1.0, 0.7), (1, 2, 2.0, 0.6), (0, 2, 1.0, 0.9), (3, 4, 1.0, 0.2)]  # two connected sets, response 5 free


def vector(values):
    return torch.tensor(values, dtype=torch.float64)


def random_case(seed, size=6):
    generator = torch.Generator().manual_seed(seed)
    ref = torch.randn(size, generator=generator, dtype=torch.float64).softmax(-1)
    return ref, torch.randn(size, generator=generator, dtype=torch.float64), generator


def test_optimum_by_hand():
    # ref 1/2, 1/4, 1/4 with exp(r / beta) = 1, 2, 4: weights 2, 2, 4 over 8 (in quarters), Z = 2
    ref, rewards = vector([0.5, 0.25, 0.25]), 0.5 * vector([1.0, 2.0, 4.0]).log()
    torch.testing.assert_close(optimal_policy(ref, rewards, beta=0.5), vector([0.25, 0.25, 0.5]))
    assert float(optimal_value(ref, rewards, beta=0.5)) == pytest.approx(0.5 * math.log(2))


@given(st.integers(0, 1000), st.floats(0.1, 3))
@MODEST
def test_no_policy_beats_the_closed_form(seed, beta):
    ref, rewards, generator = random_case(seed)
    best = optimal_policy(ref, rewards, beta=beta)
    value = optimal_value(ref, rewards, beta=beta)
    torch.testing.assert_close(objective(best, ref, rewards, beta=beta), value)
    for _ in range(5):
        other = (best.log() + 0.3 * torch.randn(6, generator=generator, dtype=torch.float64)).softmax(-1)
        assert objective(other, ref, rewards, beta=beta) < value
        # and the gap is beta KL(other || best), exactly
        gap = beta * (other * (other.log() - best.log())).sum()
        torch.testing.assert_close(value - objective(other, ref, rewards, beta=beta), gap)


def test_zero_support_stays_zero_and_outside_costs_everything():
    ref, rewards = vector([0.5, 0.5, 0.0]), vector([0.0, 0.0, 1e6])
    assert optimal_policy(ref, rewards, beta=0.1).tolist() == [0.5, 0.5, 0.0]
    assert optimal_value(ref, rewards, beta=0.1) == 0
    assert objective(vector([0.1, 0.0, 0.9]), ref, rewards, beta=0.1).isneginf()


@given(st.integers(0, 1000), st.floats(0.1, 3))
@MODEST
def test_implicit_reward_inverts_the_optimum(seed, beta):
    ref, rewards, _ = random_case(seed)
    policy = optimal_policy(ref, rewards, beta=beta)
    recovered = implicit_reward(policy, ref, beta=beta) - rewards
    torch.testing.assert_close(recovered, recovered[:1].expand(6))  # up to the constant -beta log Z
    torch.testing.assert_close(optimal_policy(ref, implicit_reward(policy, ref, beta=beta), beta=beta), policy)


def test_population_losses_are_the_sample_losses_in_expectation():
    ref, rewards, _ = random_case(5)
    policy, wins = rewards.softmax(-1), wins_table(6, SOFT)
    i, j = wins.nonzero(as_tuple=True)
    samples = dpo_loss(policy.log()[i], policy.log()[j], ref.log()[i], ref.log()[j], beta=0.3)
    torch.testing.assert_close(dpo_population_loss(policy, ref, wins, beta=0.3), (wins[i, j] * samples).sum())


def test_soft_label_minimizer_by_hand():
    # one pair, label 0.7: the minimiser has r0 - r1 = logit 0.7 and the loss is the label's entropy; response 2 is free
    wins = wins_table(3, [(0, 1, 1.0, 0.7)])
    rewards = bradley_terry_minimizer(wins)
    assert float(rewards[0] - rewards[1]) == pytest.approx(math.log(7 / 3))
    assert rewards[2] == 0
    entropy = -0.7 * math.log(0.7) - 0.3 * math.log(0.3)
    assert float(bradley_terry_population_loss(rewards, wins)) == pytest.approx(entropy)


@given(st.integers(0, 1000))
@MODEST
def test_newtons_minimizer_has_no_gradient_and_recovers_consistent_rewards(seed):
    _, truth, generator = random_case(seed)
    pairs = [(i, j, 1.0, float(torch.sigmoid(truth[i] - truth[j]))) for i, j in ((0, 1), (1, 2), (2, 0), (3, 4))]
    found = bradley_terry_minimizer(wins_table(6, pairs))
    torch.testing.assert_close(found[:3] - found[:3].mean(), truth[:3] - truth[:3].mean(), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found[3] - found[4], truth[3] - truth[4], rtol=1e-9, atol=1e-9)
    noisy = wins_table(6, [(i, j, 1.0, float(p)) for (i, j), p in zip(
        ((0, 1), (1, 2), (2, 0), (3, 4)), 0.05 + 0.9 * torch.rand(4, generator=generator))])  # fmt: skip
    rewards = bradley_terry_minimizer(noisy).requires_grad_()
    (gradient,) = torch.autograd.grad(bradley_terry_population_loss(rewards, noisy), rewards)
    assert gradient.abs().max() < 1e-12


@pytest.mark.parametrize("pairs", [[(0, 1, 1.0, 1.0)], [(0, 1, 1.0, 0.7), (1, 2, 1.0, 1.0)]])
def test_deterministic_labels_have_no_finite_minimizer(pairs):
    with pytest.raises(ValueError, match="never beaten"):
        bradley_terry_minimizer(wins_table(3, pairs))


def test_deterministic_cycle_has_one():
    wins = wins_table(3, [(0, 1, 1.0, 1.0), (1, 2, 1.0, 1.0), (2, 0, 1.0, 1.0)])
    assert bradley_terry_minimizer(wins).tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("beta", [0.3, 1.0])
def test_gradient_descent_on_exact_dpo_converges_to_the_closed_form(beta):
    ref, _, _ = random_case(2)
    wins = wins_table(6, SOFT)
    logits = ref.log().requires_grad_()
    optimizer = torch.optim.LBFGS([logits], max_iter=400, tolerance_grad=1e-12, tolerance_change=0, history_size=20)

    def closure():
        optimizer.zero_grad()
        loss = dpo_population_loss(logits.softmax(-1), ref, wins, beta=beta)
        loss.backward()
        return loss

    optimizer.step(closure)
    torch.testing.assert_close(logits.detach().softmax(-1), dpo_minimizer(ref, wins, beta=beta), rtol=1e-6, atol=1e-8)
    # the reward-model route: minimise L_R, then the KL-regularised optimum
    assert closure().item() == pytest.approx(float(bradley_terry_population_loss(bradley_terry_minimizer(wins), wins)))


def test_minimizers_differ_only_where_nothing_was_compared():
    ref, _, _ = random_case(3)
    wins = wins_table(6, SOFT)
    plain = dpo_minimizer(ref, wins, beta=0.5)
    moved = dpo_minimizer(ref, wins, beta=0.5, free=vector([0.0, 0.0, 0.0, 0.0, 0.0, 2.0]))
    assert moved[5] > 2 * plain[5]  # mass outside the pairs may be anything
    losses = [dpo_population_loss(policy, ref, wins, beta=0.5) for policy in (plain, moved)]
    torch.testing.assert_close(*losses, rtol=1e-12, atol=0)
    with pytest.raises(ValueError, match="free"):
        dpo_minimizer(ref, wins, beta=0.5, free=vector([1.0, 0.0, 0.0, 0.0, 0.0, 0.0]))


def test_table_1():
    case = counter_example()
    assert dpo_population_loss(case.dpo_policy, case.ref, case.wins, beta=0.1) == 0  # a minimiser, 0.9 of it on y3
    assert dpo_population_loss(case.ppo_policy, case.ref, case.wins, beta=0.1) == 0
    assert dpo_population_loss(case.ref, case.ref, case.wins, beta=0.1) == pytest.approx(math.log(2))
    # L_DPO = log(1 + (b / a)^beta)
    found = dpo_population_loss(vector([0.2, 0.1, 0.7]), case.ref, case.wins, beta=0.5)
    assert float(found) == pytest.approx(math.log(1 + 0.5**0.5))
    # the reward r(y1) - r(y2) -> infinity drives the KL-regularised optimum to (1, 0, 0), whatever y3 is said to earn
    limit = optimal_policy(case.ref, vector([500.0, -500.0, 9e9]), beta=0.1)
    torch.testing.assert_close(limit, case.ppo_policy)
    assert within_support(case.ppo_policy, case.ref)
    assert not within_support(case.dpo_policy, case.ref)


def test_support_condition_closes_the_gap():
    case = counter_example()
    assert not classes_coincide(case.ref)
    ref = vector([0.45, 0.45, 0.1])
    assert classes_coincide(ref)
    # with full support the same kind of policy is the optimum of its own implicit reward, which minimises L_R as well
    wins = wins_table(3, [(0, 1, 1.0, 0.7)])
    policy = dpo_minimizer(ref, wins, beta=0.1, free=vector([0.0, 0.0, 1.0]))
    assert policy[2] > 0.9
    reward = implicit_reward(policy, ref, beta=0.1)
    torch.testing.assert_close(optimal_policy(ref, reward, beta=0.1), policy)
    best = bradley_terry_population_loss(bradley_terry_minimizer(wins), wins)
    torch.testing.assert_close(bradley_terry_population_loss(reward, wins), best)


def test_errors_name_the_argument():
    ref = vector([0.5, 0.5])
    with pytest.raises(ValueError, match="policy"):
        objective(vector([0.5, 0.6]), ref, ref, beta=1.0)
    with pytest.raises(ValueError, match="beta"):
        optimal_policy(ref, ref, beta=0.0)
    with pytest.raises(ValueError, match="wins"):
        bradley_terry_population_loss(ref, torch.zeros(3, 3))
    with pytest.raises(ValueError, match="pairs"):
        wins_table(2, [(0, 0, 1.0, 0.5)])
