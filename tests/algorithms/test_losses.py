"""PPO, DPO, reward-model and SFT losses, KL estimators: corners by hand, laws, float64 gradients, partitions."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck

from trueline.algorithms.divergence import kl_exact, kl_k1, kl_k2, kl_k3
from trueline.algorithms.dpo import dpo_loss, implicit_rewards, nll
from trueline.algorithms.logprobs import sequence_logprobs, token_logprobs
from trueline.algorithms.masking import masked_mean, normalize
from trueline.algorithms.ppo import (
    approx_kl,
    clip_fraction,
    clipped_policy_loss,
    clipped_value_loss,
    explained_variance,
)
from trueline.algorithms.reward_modeling import bradley_terry_loss, pairwise_accuracy
from trueline.algorithms.sft import sft_loss

MODEST = settings(max_examples=25, deadline=None, database=None, derandomize=True)
SEEDS = st.integers(0, 10_000)


def draws(seed, count, *shape):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, *shape, generator=generator, dtype=torch.float64).unbind(0)


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


# clip_range 0.2: ratio, advantage, loss = max(-A r, -A clip(r)), slope in logprob: -A r, or 0 where the clip binds
POLICY_CORNERS = [
    (1.0, 1.0, -1.0, -1.0),  # the first step: plain REINFORCE
    (1.0, -1.0, 1.0, 1.0),
    (1.5, 2.0, -2.4, 0.0),  # good action already likelier by more than the range: 2 * 1.2, no gradient
    (1.5, -2.0, 3.0, 3.0),  # bad action likelier: pushed down with full force
    (0.5, 2.0, -1.0, -1.0),  # good action less likely: pulled back up
    (0.5, -2.0, 1.6, 0.0),  # bad action already less likely: 2 * 0.8, no gradient
    (1.1, 1.0, -1.1, -1.1),  # inside the range
    (1.5, 0.0, 0.0, 0.0),
]


@pytest.mark.parametrize("ratio, advantage, loss, slope", POLICY_CORNERS)
def test_clipped_policy_loss_by_hand(ratio, advantage, loss, slope):
    logprobs = tensor([math.log(ratio)]).requires_grad_()
    found = clipped_policy_loss(logprobs, tensor([0.0]), tensor([advantage]), clip_range=0.2)
    (gradient,) = torch.autograd.grad(found.sum(), logprobs)
    assert found.item() == pytest.approx(loss)
    assert float(gradient) == pytest.approx(slope)
    bound = clip_fraction(logprobs.detach(), tensor([0.0]), tensor([advantage]), clip_range=0.2)
    assert float(bound) == float(slope == 0 and advantage != 0)


@given(SEEDS)
@MODEST
def test_ratio_one_gives_the_policy_gradient(seed):
    logprobs, advantages = draws(seed, 2, 3, 4)
    logprobs.requires_grad_()
    loss = clipped_policy_loss(logprobs, logprobs.detach(), advantages, clip_range=0.2)
    (gradient,) = torch.autograd.grad(loss.sum(), logprobs)
    torch.testing.assert_close(loss, -advantages)
    torch.testing.assert_close(gradient, -advantages)
    assert not clip_fraction(logprobs, logprobs, advantages, clip_range=0.2).any()
    assert not approx_kl(logprobs, logprobs).any()


@given(SEEDS)
@MODEST
def test_clipped_losses_bound_the_plain_ones_from_above(seed):
    logprobs, old, advantages, returns = draws(seed, 4, 3, 4)
    assert (
        clipped_policy_loss(logprobs, old, advantages, clip_range=0.2) >= -advantages * (logprobs - old).exp()
    ).all()
    plain = clipped_value_loss(logprobs, old, returns, clip_range=None)
    torch.testing.assert_close(plain, (logprobs - returns) ** 2 / 2)
    assert (clipped_value_loss(logprobs, old, returns, clip_range=0.2) >= plain).all()
    torch.testing.assert_close(clipped_value_loss(logprobs, old, returns, clip_range=1e9), plain)


@given(SEEDS)
@MODEST
def test_approx_kl_estimates_the_old_policys_kl_to_the_new(seed):
    old, new = (x.log_softmax(-1) for x in draws(seed, 2, 5))
    mean = (old.exp() * approx_kl(new, old)).sum()
    torch.testing.assert_close(mean, kl_exact(old, new))
    assert float(approx_kl(tensor([math.log(2)]), tensor([0.0]))) == pytest.approx(1 - math.log(2))  # (2 - 1) - log 2


# old value 0, clip_range 0.2; rows: value, return, loss, slope
VALUE_CORNERS = [
    (0.1, 1.0, 0.405, -0.9),  # inside: 0.9^2 / 2
    (0.5, 1.0, 0.32, 0.0),  # moved beyond the range towards the return: (0.2 - 1)^2 / 2, no gradient
    (-0.5, 1.0, 1.125, -1.5),  # moved away: 1.5^2 / 2 beats (-0.2 - 1)^2 / 2
    (2.0, 1.0, 0.5, 1.0),  # overshot: 1 / 2 beats 0.8^2 / 2
]


@pytest.mark.parametrize("value, target, loss, slope", VALUE_CORNERS)
def test_clipped_value_loss_by_hand(value, target, loss, slope):
    values = tensor([value]).requires_grad_()
    found = clipped_value_loss(values, tensor([0.0]), tensor([target]), clip_range=0.2)
    (gradient,) = torch.autograd.grad(found.sum(), values)
    assert found.item() == pytest.approx(loss)
    assert float(gradient) == pytest.approx(slope)


def test_explained_variance_by_hand():
    returns, mask = tensor([1.0, 2.0, 3.0, 99.0]), torch.tensor([True, True, True, False])
    assert explained_variance(returns, returns, mask) == 1
    assert explained_variance(returns + 7, returns, mask) == 1  # a constant error explains everything that varies
    assert explained_variance(torch.zeros(4), returns, mask) == 0
    # returns - values = -1, 0, 1 scaled by 2: variance 4 times: 1 - 4
    assert float(explained_variance(-returns, returns, mask)) == pytest.approx(-3)
    assert explained_variance(returns, torch.ones(4), mask) == 0  # nothing to explain


def test_dpo_starts_at_ln_2_with_the_known_slope():
    zero = torch.zeros(3, dtype=torch.float64)
    chosen, rejected = (tensor([-3.0, -20.0, -7.5]).requires_grad_() for _ in range(2))
    loss = dpo_loss(chosen, rejected, chosen.detach(), rejected.detach(), beta=0.1)
    torch.testing.assert_close(loss, torch.full_like(zero, math.log(2)))
    loss.sum().backward()
    torch.testing.assert_close(chosen.grad, torch.full_like(zero, -0.05))  # -beta sigmoid(0)
    torch.testing.assert_close(rejected.grad, torch.full_like(zero, 0.05))


@given(SEEDS, st.floats(0.01, 5), st.floats(-30, 30))
@MODEST
def test_dpo_laws(seed, beta, shift):
    chosen, rejected, ref_chosen, ref_rejected = draws(seed, 4, 6)
    loss = dpo_loss(chosen, rejected, ref_chosen, ref_rejected, beta=beta)
    rewards = [implicit_rewards(*both, beta=beta) for both in ((chosen, ref_chosen), (rejected, ref_rejected))]
    torch.testing.assert_close(loss, bradley_terry_loss(*rewards))
    swapped = dpo_loss(rejected, chosen, ref_rejected, ref_chosen, beta=beta)
    torch.testing.assert_close((-loss).exp() + (-swapped).exp(), torch.ones_like(loss))  # the two outcomes' odds
    moved = dpo_loss(chosen + shift, rejected + shift, ref_chosen, ref_rejected, beta=beta)
    torch.testing.assert_close(moved, loss, rtol=1e-9, atol=1e-9)  # mass lost on both sides alike is invisible to DPO


def test_bradley_terry_by_hand_and_far_out():
    found = bradley_terry_loss(tensor([2.0, 0.0, -1000.0, 1000.0]), tensor([0.0, 0.0, 0.0, 0.0]))
    expected = tensor([math.log(1 + math.exp(-2)), math.log(2), 1000.0, 0.0])
    torch.testing.assert_close(found, expected)


def test_accuracy_counts_a_tie_as_half():
    assert pairwise_accuracy(tensor([1.0, 0.0, 2.0]), tensor([0.0, 1.0, 2.0])).tolist() == [1.0, 0.0, 0.5]


def test_nll_is_per_row_and_sft_loss_per_token():
    logprobs = tensor([[-1.0, -3.0, -100.0], [-4.0, -100.0, -100.0]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    assert nll(logprobs, mask).tolist() == [2.0, 4.0]
    assert sft_loss(logprobs).tolist() == (-logprobs).tolist()
    assert masked_mean(sft_loss(logprobs), mask) == pytest.approx(8 / 3)


def test_every_loss_passes_gradcheck():
    a, b, c, d = (x.requires_grad_() for x in draws(3, 4, 2, 3))
    mask = torch.tensor([[True, True, False], [False, True, True]])
    assert gradcheck(lambda x: clipped_policy_loss(x, b.detach(), c.detach(), clip_range=0.2), a)
    assert gradcheck(lambda x: clipped_value_loss(x, b.detach(), c.detach(), clip_range=0.2), a)
    assert gradcheck(lambda x: clipped_value_loss(x, b.detach(), c.detach(), clip_range=None), a)
    assert gradcheck(bradley_terry_loss, (a, b))
    assert gradcheck(lambda *x: dpo_loss(*x, beta=0.3), (a[0], b[0], c[0], d[0]))
    assert gradcheck(lambda x: nll(x, mask), a)
    assert gradcheck(sft_loss, a)
    for estimator in (kl_k1, kl_k2, kl_k3, kl_exact, approx_kl):
        assert gradcheck(estimator, (a, b))
    assert gradcheck(lambda x: masked_mean(x, mask), a)
    assert gradcheck(lambda x: normalize(x, mask), a)


# d = log(pi / ref); k1 = d, k2 = d^2 / 2, k3 = exp(-d) - 1 + d
KL_CORNERS = [(0.0, 0.0, 0.0), (math.log(2), math.log(2) ** 2 / 2, math.log(2) - 0.5), (-1.0, 0.5, math.e - 2)]


@pytest.mark.parametrize("k1, k2, k3", KL_CORNERS)
def test_kl_estimators_by_hand(k1, k2, k3):
    both = tensor([k1 - 3.0]), tensor([-3.0])
    assert [float(k(*both)) for k in (kl_k1, kl_k2, kl_k3)] == pytest.approx([k1, k2, k3])


def test_k3_keeps_its_digits_near_zero():
    d = torch.tensor([1e-3])  # exp(-d) - 1 would leave 4 digits of float32
    assert float(kl_k3(d, torch.zeros(1))) == pytest.approx(5e-7, rel=0.1)
    assert (kl_k3(torch.linspace(-1e-2, 1e-2, 101), torch.zeros(101)) >= -1e-9).all()


@given(SEEDS)
@MODEST
def test_kl_exact_is_the_mean_of_k1_and_of_k3(seed):
    logits, ref_logits = draws(seed, 2, 3, 5)
    tokens = torch.arange(5).expand(3, 5)
    logprobs, ref_logprobs = (token_logprobs(x[:, None].expand(3, 5, 5), tokens) for x in (logits, ref_logits))
    for estimator in (kl_k1, kl_k3):
        mean = (logprobs.exp() * estimator(logprobs, ref_logprobs)).sum(-1)
        torch.testing.assert_close(kl_exact(logits, ref_logits), mean)
    torch.testing.assert_close(kl_exact(logits, logits), torch.zeros(3, dtype=torch.float64))


def test_kl_exact_and_support():
    policy, ref = tensor([[0.5, 0.5, 0.0]]).log(), tensor([[0.25, 0.25, 0.5]]).log()
    assert float(kl_exact(policy, ref)) == pytest.approx(math.log(2))
    assert kl_exact(ref, policy).isposinf().all()
    policy.requires_grad_()
    kl_exact(policy, ref).sum().backward()
    assert policy.grad.isfinite().all()


def model_gradient(weights, rows, denominator, padding):
    """d(step loss)/d(weights) of a toy language model on some rows of one fixed batch, padded further to the right."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(6, 5, 4, generator=generator, dtype=torch.float64)
    tokens = torch.randint(7, (6, 5), generator=generator)
    mask = torch.rand(6, 5, generator=generator) < 0.7
    mask[:, 0] = True
    old, advantages = torch.randn(2, 6, 5, generator=generator, dtype=torch.float64)

    def wide(x):
        return torch.nn.functional.pad(x[rows], (0, padding), value=1)

    logits = torch.nn.functional.pad(features[rows], (0, 0, 0, padding), value=1.0) @ weights
    logprobs, counts = token_logprobs(logits, wide(tokens)), torch.nn.functional.pad(mask[rows], (0, padding))
    policy = masked_mean(
        clipped_policy_loss(logprobs, wide(old) - 2, wide(advantages), clip_range=0.2),
        counts,
        denominator=denominator or mask.sum(),
    )
    preference = bradley_terry_loss(sequence_logprobs(logprobs, counts), torch.zeros(len(rows), dtype=torch.float64))
    return torch.autograd.grad(policy + preference.sum() / 6 + nll(logprobs, counts).sum() / 6, weights)[0]


@pytest.mark.parametrize("parts", [[[0, 1, 2], [3, 4, 5]], [[5, 3], [1], [0, 4, 2]], [[i] for i in range(6)]])
@pytest.mark.parametrize("padding", [0, 3])
def test_microbatches_padding_and_order_leave_the_gradient(parts, padding):
    weights = torch.randn(4, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()
    whole = model_gradient(weights, list(range(6)), None, 0)
    split = sum(model_gradient(weights, rows, None, padding) for rows in parts)
    torch.testing.assert_close(split, whole, rtol=1e-11, atol=1e-13)
    assert whole.abs().max() > 1e-3


def test_errors_name_the_argument():
    three, two = torch.zeros(3), torch.zeros(2)
    for call, name in (
        (lambda: clipped_policy_loss(three, two, three, clip_range=0.2), "old_logprobs"),
        (lambda: clipped_policy_loss(three, three, two, clip_range=0.2), "advantages"),
        (lambda: clipped_policy_loss(three, three, three, clip_range=0), "clip_range"),
        (lambda: clipped_value_loss(three, three, two, clip_range=0.2), "returns"),
        (lambda: clipped_value_loss(three, three, three, clip_range=-1.0), "clip_range"),
        (lambda: bradley_terry_loss(three, two), "rejected_scores"),
        (lambda: pairwise_accuracy(three, two), "rejected_scores"),
        (lambda: dpo_loss(three, three, three, two, beta=0.1), "ref_rejected"),
        (lambda: dpo_loss(three, three, three, three, beta=0.0), "beta"),
        (lambda: implicit_rewards(three, two, beta=0.1), "ref_logprobs"),
        (lambda: kl_k3(three, two), "ref_logprobs"),
        (lambda: kl_exact(three, two), "ref_logits"),
        (lambda: explained_variance(three, two, torch.ones(3, dtype=torch.bool)), "returns"),
    ):
        with pytest.raises(ValueError, match=name):
            call()
