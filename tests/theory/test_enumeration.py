"""KL estimators, values and gradients, against all 27 sequences of a 3-token, 3-step policy."""

from __future__ import annotations

import pytest
import torch

from trueline.algorithms.advantages import gae, shape_rewards
from trueline.algorithms.divergence import kl_exact, kl_k1, kl_k2, kl_k3
from trueline.algorithms.ppo import clipped_policy_loss
from trueline.theory.enumeration import (
    enumerate_sequences,
    estimator_gradient_as_loss,
    estimator_gradient_as_reward,
    estimator_mean,
    exact_kl,
    exact_kl_gradient,
    sequence_token_logprobs,
)

SPACE = enumerate_sequences(3, 3)
CLOSE = {"rtol": 1e-10, "atol": 1e-13}


def policies(seed, space=SPACE):
    generator = torch.Generator().manual_seed(seed)
    shape = (2, space.prefix_count, space.vocabulary)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).unbind(0)


def prefix_probabilities(logits):
    """The probability of reaching each prefix, by summing the sequences that pass through it."""
    logprobs = sequence_token_logprobs(SPACE, logits)
    before = (logprobs.cumsum(-1) - logprobs).exp()
    reach = torch.zeros(SPACE.prefix_count, dtype=torch.float64)
    for t in range(3):
        rows = {int(p): float(w) for p, w in zip(SPACE.prefixes[:, t], before[:, t])}
        for prefix, weight in rows.items():
            reach[prefix] = weight
    return reach


def test_the_space_is_complete():
    assert SPACE.tokens.shape == (27, 3)
    assert len({tuple(row) for row in SPACE.tokens.tolist()}) == 27
    assert SPACE.prefix_count == 13  # 1 + 3 + 9
    assert SPACE.prefixes.unique().tolist() == list(range(13))
    prefix_of = {tuple(tokens[:t]): prefix for tokens, row in zip(SPACE.tokens.tolist(), SPACE.prefixes.tolist())
                 for t, prefix in enumerate(row)}  # fmt: skip
    assert len(prefix_of) == len(set(prefix_of.values())) == 13
    logits, _ = policies(0)
    torch.testing.assert_close(
        sequence_token_logprobs(SPACE, logits).sum(-1).exp().sum(), torch.ones((), dtype=torch.float64)
    )
    with pytest.raises(ValueError, match="logits"):
        sequence_token_logprobs(SPACE, logits[:5])


@pytest.mark.parametrize("seed", range(3))
def test_values_k1_and_k3_are_unbiased_k2_is_not(seed):
    logits, ref_logits = policies(seed)
    kl = exact_kl(SPACE, logits, ref_logits)
    chain = (prefix_probabilities(logits) * kl_exact(logits, ref_logits)).sum()  # the chain rule of KL
    torch.testing.assert_close(kl, chain, **CLOSE)
    for estimator in (kl_k1, kl_k3):
        torch.testing.assert_close(estimator_mean(SPACE, estimator, logits, ref_logits), kl, **CLOSE)
    assert (estimator_mean(SPACE, kl_k2, logits, ref_logits) - kl).abs() > 1e-2


def test_k2_value_is_right_to_second_order():
    ref_logits, direction = policies(7)
    errors = []
    for size in (0.1, 0.05):
        logits = ref_logits + size * direction
        errors.append(float(estimator_mean(SPACE, kl_k2, logits, ref_logits) - exact_kl(SPACE, logits, ref_logits)))
    assert errors[0] / errors[1] == pytest.approx(8, rel=0.3)  # a third-order error: halving the step divides it by 8


@pytest.mark.parametrize("seed", range(3))
def test_gradient_of_k1_in_the_reward_is_exact(seed):
    logits, ref_logits = policies(seed)
    exact = exact_kl_gradient(SPACE, logits, ref_logits)
    assert exact.abs().max() > 1e-2
    torch.testing.assert_close(estimator_gradient_as_reward(SPACE, kl_k1, logits, ref_logits), exact, **CLOSE)
    for estimator in (kl_k2, kl_k3):
        biased = estimator_gradient_as_reward(SPACE, estimator, logits, ref_logits)
        assert (biased - exact).abs().max() > 1e-2


@pytest.mark.parametrize("seed", range(3))
def test_gradient_of_the_estimators_as_losses(seed):
    logits, ref_logits = policies(seed)
    exact = exact_kl_gradient(SPACE, logits, ref_logits)
    k1, k2, k3 = (estimator_gradient_as_loss(SPACE, k, logits, ref_logits) for k in (kl_k1, kl_k2, kl_k3))
    torch.testing.assert_close(k1, torch.zeros_like(k1), rtol=0, atol=1e-13)  # E[grad log pi] = 0: it does nothing
    reach = prefix_probabilities(logits)
    table = logits.clone().requires_grad_()
    (conditional,) = torch.autograd.grad((reach * kl_exact(table, ref_logits)).sum(), table)
    torch.testing.assert_close(k2, conditional, **CLOSE)
    (forward,) = torch.autograd.grad((reach * kl_exact(ref_logits, table)).sum(), table)
    torch.testing.assert_close(k3, forward, **CLOSE)
    for biased in (k2, k3):
        assert (biased - exact).abs().max() > 1e-2


def test_k2_as_a_loss_is_exact_for_a_single_token():
    space = enumerate_sequences(3, 1)
    logits, ref_logits = policies(0, space)
    found = estimator_gradient_as_loss(space, kl_k2, logits, ref_logits)
    torch.testing.assert_close(found, exact_kl_gradient(space, logits, ref_logits), **CLOSE)


def test_the_ppo_pipeline_descends_the_regularised_objective_exactly():
    # shaped rewards, GAE with an arbitrary critic, clipped loss at ratio 1, weighted by pi: the gradient must be
    # that of -(E[score] - kl_coef KL), for a baseline that does not see the token cancels in expectation
    logits, ref_logits = policies(4)
    scores = torch.randn(27, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    critic = torch.randn(13, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    table = logits.clone().requires_grad_()
    logprobs, ref_logprobs = sequence_token_logprobs(SPACE, table), sequence_token_logprobs(SPACE, ref_logits)
    mask = torch.ones(27, 3, dtype=torch.bool)
    with torch.no_grad():
        rewards = shape_rewards(scores, logprobs, ref_logprobs, mask, kl_coef=0.3)
        advantages, _ = gae(rewards, critic[SPACE.prefixes], mask)
        weights = logprobs.sum(-1, keepdim=True).exp()
    loss = (weights * clipped_policy_loss(logprobs, logprobs.detach(), advantages, clip_range=0.2)).sum()
    (found,) = torch.autograd.grad(loss, table)
    exact = (sequence_token_logprobs(SPACE, table).sum(-1).exp() * scores).sum()
    (expected,) = torch.autograd.grad(0.3 * exact_kl(SPACE, table, ref_logits) - exact, table)
    torch.testing.assert_close(found, expected, **CLOSE)
