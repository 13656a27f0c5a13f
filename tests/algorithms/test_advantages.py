"""Token rewards, GAE, group baselines: corners by hand, laws, invariances."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import pad

from trueline.algorithms.advantages import (
    best_of_n_kl,
    gae,
    group_advantages,
    last_token,
    rloo_advantages,
    shape_rewards,
)

MODEST = settings(max_examples=30, deadline=None, database=None, derandomize=True)
SEEDS = st.integers(0, 10_000)
CLOSE = {"rtol": 1e-11, "atol": 1e-11}


def responses(seed, rows=5, columns=8):
    """Rewards, values and masks of contiguous responses that start and end anywhere in their rows."""
    generator = torch.Generator().manual_seed(seed)
    rewards, values = torch.randn(2, rows, columns, generator=generator, dtype=torch.float64)
    start = torch.randint(0, columns, (rows, 1), generator=generator)
    length = 1 + (torch.rand(rows, 1, generator=generator) * (columns - start)).long()
    places = torch.arange(columns)
    return rewards, values, (places >= start) & (places < start + length)


def gae_by_definition(rewards, values, mask, gamma, lam, bootstrap):
    """The double sum of the definition, row by row: A_t = sum_k (gamma lam)^k delta_{t+k}."""
    advantages = torch.zeros_like(rewards)
    for row in range(len(rewards)):
        places = mask[row].nonzero().flatten().tolist()
        after = [*values[row, places].tolist(), float(bootstrap[row])]
        deltas = [float(rewards[row, t]) + gamma * after[i + 1] - after[i] for i, t in enumerate(places)]
        for i, t in enumerate(places):
            advantages[row, t] = sum((gamma * lam) ** k * delta for k, delta in enumerate(deltas[i:]))
    return advantages


def test_score_lands_on_the_last_real_token():
    logprobs = torch.tensor([[-1.0, -2.0, -3.0, -9.0], [-9.0, -1.0, -1.0, -2.0]])
    ref_logprobs = torch.tensor([[-2.0, -2.0, -2.0, -1.0], [-1.0, -1.5, -1.0, -1.0]])
    mask = torch.tensor([[True, True, True, False], [False, True, True, True]])
    # k1 = logprobs - ref: row 0: 1, 0, -1; row 1: 0.5, 0, -1; times -0.1; scores 5 and 7 on the third and fourth place
    found = shape_rewards(torch.tensor([5.0, 7.0]), logprobs, ref_logprobs, mask, kl_coef=0.1)
    torch.testing.assert_close(found, torch.tensor([[-0.1, 0.0, 5.1, 0.0], [0.0, -0.05, 0.0, 7.1]]))
    ended = torch.tensor([True, False])
    found = shape_rewards(torch.tensor([5.0, 7.0]), logprobs, ref_logprobs, mask, kl_coef=0.1, scored=ended)
    torch.testing.assert_close(found, torch.tensor([[-0.1, 0.0, 5.1, 0.0], [0.0, -0.05, 0.0, 0.1]]))


@given(SEEDS)
@MODEST
def test_shaped_rewards_add_up_to_score_minus_penalty(seed):
    logprobs, ref_logprobs, mask = responses(seed)
    scores = torch.randn(5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    total = shape_rewards(scores, logprobs, ref_logprobs, mask, kl_coef=0.3).sum(-1)
    penalty = ((logprobs - ref_logprobs) * mask).sum(-1)
    torch.testing.assert_close(total, scores - 0.3 * penalty, **CLOSE)
    assert (last_token(mask).sum(-1) == 1).all()
    assert (last_token(mask) & mask == last_token(mask)).all()


def test_gae_by_hand():
    # gamma 0.5, lam 0.5, values 1 2 4, rewards 0 0 8, bootstrap 0:
    # delta = 0 + .5*2 - 1 = 0; 0 + .5*4 - 2 = 0; 8 - 4 = 4; A = 0 + .25*1 = .25; 0 + .25*4 = 1; 4
    mask = torch.tensor([[True, True, True]])
    advantages, returns = gae(
        torch.tensor([[0.0, 0.0, 8.0]]), torch.tensor([[1.0, 2.0, 4.0]]), mask, gamma=0.5, lam=0.5
    )
    assert advantages.tolist() == [[0.25, 1.0, 4.0]]
    assert returns.tolist() == [[1.25, 3.0, 8.0]]


@given(SEEDS, st.floats(0, 1), st.floats(0, 1))
@MODEST
def test_gae_equals_its_definition(seed, gamma, lam):
    rewards, values, mask = responses(seed)
    bootstrap = torch.randn(5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    advantages, returns = gae(rewards, values, mask, gamma=gamma, lam=lam, bootstrap=bootstrap)
    expected = gae_by_definition(rewards, values, mask, gamma, lam, bootstrap)
    torch.testing.assert_close(advantages, expected, **CLOSE)
    torch.testing.assert_close(returns, (expected + values) * mask, **CLOSE)


@given(SEEDS)
@MODEST
def test_gae_limits(seed):
    rewards, values, mask = responses(seed)
    to_go = (rewards * mask).flip(-1).cumsum(-1).flip(-1)
    advantages, returns = gae(rewards, values, mask)
    torch.testing.assert_close(advantages, (to_go - values) * mask, **CLOSE)  # lam 1, gamma 1: return-to-go minus value
    torch.testing.assert_close(returns, to_go * mask, **CLOSE)
    myopic, _ = gae(rewards, values, mask, gamma=0.0)
    torch.testing.assert_close(myopic, (rewards - values) * mask, **CLOSE)
    exact, _ = gae(rewards, to_go, mask, lam=0.3)  # a perfect critic leaves no advantage at any lam
    torch.testing.assert_close(exact, torch.zeros_like(exact), **CLOSE)


@given(SEEDS)
@MODEST
def test_cutting_a_response_and_bootstrapping_changes_nothing(seed):
    # at lam 1, the return from the cut on is all that the head needs to know of the tail
    rewards, values, _ = responses(seed)
    mask = torch.ones_like(rewards, dtype=torch.bool)
    whole, returns = gae(rewards, values, mask, gamma=0.9)
    head, _ = gae(rewards[:, :4], values[:, :4], mask[:, :4], gamma=0.9, bootstrap=returns[:, 4])
    torch.testing.assert_close(head, whole[:, :4], **CLOSE)
    without, _ = gae(rewards[:, :4], values[:, :4], mask[:, :4], gamma=0.9)
    assert (without - head).abs().max() > 1e-6


@given(SEEDS, st.integers(0, 4), st.integers(0, 4))
@MODEST
def test_padding_and_row_order_never_matter(seed, left, right):
    rewards, values, mask = responses(seed)
    order = torch.randperm(5, generator=torch.Generator().manual_seed(seed))
    bootstrap = torch.arange(5.0, dtype=torch.float64)
    settings = {"gamma": 0.9, "lam": 0.8}
    plain = gae(rewards, values, mask, bootstrap=bootstrap, **settings)
    wide = [pad(x[order], (left, right), value=math.nan) for x in (rewards, values)]
    padded = gae(*wide, pad(mask[order], (left, right), value=False), bootstrap=bootstrap[order], **settings)
    for found, expected in zip(padded, plain):
        torch.testing.assert_close(found, pad(expected[order], (left, right)), rtol=0, atol=0)


def test_a_gap_inside_a_response_is_skipped():
    rewards, values = torch.tensor([[1.0, 50.0, 2.0]]), torch.tensor([[0.5, 70.0, 0.25]])
    gap = torch.tensor([[True, False, True]])
    with_gap, _ = gae(rewards, values, gap, gamma=0.5, lam=0.5)
    packed, _ = gae(rewards[:, [0, 2]], values[:, [0, 2]], gap[:, [0, 2]], gamma=0.5, lam=0.5)
    assert with_gap[:, [0, 2]].tolist() == packed.tolist()
    assert with_gap[0, 1] == 0


def test_rloo_by_hand():
    # group 1, 2, 6: others' means 4, 3.5, 1.5; group 0, 0, 3: 1.5, 1.5, 0
    found = rloo_advantages(torch.tensor([1.0, 2.0, 6.0, 0.0, 0.0, 3.0]), group_size=3)
    assert found.tolist() == [-3.0, -1.5, 4.5, -1.5, -1.5, 3.0]


@given(SEEDS, st.floats(-50, 50), st.floats(0.1, 20))
@MODEST
def test_group_baselines_ignore_a_prompts_difficulty(seed, shift, scale):
    scores = torch.randn(12, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    shifts = shift * torch.arange(3, dtype=torch.float64).repeat_interleave(4)
    loo, group = rloo_advantages(scores, group_size=4), group_advantages(scores, group_size=4, eps=0)
    moved = scale * scores + shifts
    torch.testing.assert_close(rloo_advantages(moved, group_size=4), scale * loo, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(group_advantages(moved, group_size=4, eps=0), group, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(loo.view(3, 4).sum(-1), torch.zeros(3, dtype=torch.float64), **CLOSE)
    centred = scores.view(3, 4) - scores.view(3, 4).mean(-1, keepdim=True)
    torch.testing.assert_close(loo, (4 / 3 * centred).flatten(), **CLOSE)  # loo = n/(n-1) times the centred score


def test_group_advantages_by_hand():
    # 0 and 2: mean 1, sample deviation sqrt(2): -+1/sqrt(2); equal scores: 0, not nan
    found = group_advantages(torch.tensor([0.0, 2.0, 5.0, 5.0]), group_size=2)
    torch.testing.assert_close(found, torch.tensor([-(0.5**0.5), 0.5**0.5, 0.0, 0.0]), rtol=1e-3, atol=0)


def test_best_of_n_kl():
    assert best_of_n_kl(1) == 0
    assert best_of_n_kl(2) == pytest.approx(math.log(2) - 0.5)
    # by its definition: the maximum of n uniforms has density n u^(n-1), KL = integral of p log p
    u = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    density = 8 * u**7
    assert float((density * density.log()).mean()) == pytest.approx(best_of_n_kl(8), abs=1e-4)


def test_errors_name_the_argument():
    rewards, values, mask = responses(0)
    scores = torch.zeros(5, dtype=torch.float64)
    with pytest.raises(ValueError, match="values"):
        gae(rewards, values[:, 1:], mask)
    with pytest.raises(ValueError, match="mask"):
        gae(rewards, values, mask.long())
    with pytest.raises(ValueError, match="bootstrap"):
        gae(rewards, values, mask, bootstrap=torch.zeros(4))
    with pytest.raises(ValueError, match="scores"):
        shape_rewards(scores[1:], rewards, values, mask, kl_coef=0.1)
    with pytest.raises(ValueError, match="no token"):
        shape_rewards(scores, rewards, values, mask & (torch.arange(5) > 0).unsqueeze(1), kl_coef=0.1)
    with pytest.raises(ValueError, match="scored"):
        shape_rewards(scores, rewards, values, mask, kl_coef=0.1, scored=torch.ones(5))
    for function in (rloo_advantages, group_advantages):
        with pytest.raises(ValueError, match="group_size"):
            function(scores, group_size=1)
        with pytest.raises(ValueError, match="divide"):
            function(scores, group_size=2)
