"""Log-probs, entropy and the restriction that the sampler and every log-prob share."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trueline.algorithms.logprobs import (
    entropy,
    forbid,
    restrict,
    sequence_logprobs,
    token_logprobs,
    top_k_mask,
    top_p_mask,
)

MODEST = settings(max_examples=30, deadline=None, database=None, derandomize=True)
LOG = torch.tensor([[0.5, 0.25, 0.125, 0.125]], dtype=torch.float64).log()  # dyadic: sums are exact by hand


def random_logits(seed, *shape):
    return 3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(st.integers(0, 10_000))
@MODEST
def test_token_logprobs_are_a_shift_free_log_softmax(seed):
    logits = random_logits(seed, 2, 5, 7)
    tokens = torch.randint(7, (2, 5), generator=torch.Generator().manual_seed(seed))
    expected = logits.log_softmax(-1).gather(-1, tokens[..., None])[..., 0]
    torch.testing.assert_close(token_logprobs(logits, tokens), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(token_logprobs(logits + 40, tokens), expected, rtol=1e-11, atol=1e-11)
    every = torch.stack([token_logprobs(logits, torch.full((2, 5), v)) for v in range(7)])
    torch.testing.assert_close(every.exp().sum(0), torch.ones(2, 5, dtype=torch.float64))


def test_half_logits_give_float32_logprobs():
    logits = torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.bfloat16)
    found = token_logprobs(logits, torch.tensor([0]))
    assert found.dtype == torch.float32
    assert float(found) == pytest.approx(-2 - math.log(1 + math.exp(-1) + math.exp(-2)), abs=1e-6)


def test_gradients_with_and_without_forbidden_tokens():
    logits = random_logits(1, 2, 3, 5).requires_grad_()
    tokens = torch.tensor([[0, 1, 2], [2, 1, 0]])
    forbidden = torch.tensor([False, False, False, True, False])
    check = torch.autograd.gradcheck
    assert check(lambda x: token_logprobs(x, tokens), logits)
    assert check(lambda x: token_logprobs(restrict(x, temperature=0.7, forbidden=forbidden), tokens), logits)
    assert check(entropy, logits)
    assert check(lambda x: entropy(forbid(x, forbidden)), logits)


def test_forbidden_token_takes_no_mass():
    # forbidding 1/8 leaves 7/8: log-probs of the others rise by log 8/7, the PAD fault of a fraction of a nat
    forbidden = torch.tensor([False, False, False, True])
    found = restrict(LOG, forbidden=forbidden)
    assert float(token_logprobs(found, torch.tensor([0]))) == pytest.approx(math.log(4 / 7))
    assert token_logprobs(found, torch.tensor([3])).isneginf().all()
    assert not token_logprobs(LOG, torch.tensor([3])).isneginf().any()


def test_entropy_by_hand():
    assert float(entropy(LOG)) == pytest.approx(1.75 * math.log(2))  # 1/2 * 1 + 1/4 * 2 + 2 * 1/8 * 3 bits
    assert float(entropy(torch.zeros(1, 6))) == pytest.approx(math.log(6))
    assert float(entropy(torch.tensor([[0.0, float("-inf")]]))) == 0


def test_restrict_off_is_the_identity():
    assert restrict(LOG) is LOG


def test_temperature_divides_logits():
    torch.testing.assert_close(restrict(LOG, temperature=2.0).softmax(-1), LOG.exp().sqrt() / LOG.exp().sqrt().sum())


def test_top_k_and_top_p_by_hand():
    assert top_k_mask(LOG, 1).tolist() == [[False, True, True, True]]
    assert top_k_mask(LOG, 3).tolist() == [[False] * 4]  # the third place is a tie: both are kept
    assert top_k_mask(LOG, 99).tolist() == [[False] * 4]
    for top_p, kept in ((0.01, 1), (0.5, 1), (0.51, 2), (0.75, 2), (0.76, 3), (0.875, 3), (0.9, 4), (1.0, 4)):
        assert int((~top_p_mask(LOG, top_p)).sum()) == kept, top_p
    shuffled = LOG[:, [3, 1, 0, 2]]
    assert top_p_mask(shuffled, 0.75).tolist() == [[True, False, False, True]]


def test_top_p_is_taken_after_temperature():
    # at temperature 1/2 the probabilities are squared: 16, 4, 1, 1 over 22; 0.7 is reached by the first (0.727)
    assert int(restrict(LOG, temperature=0.5, top_p=0.7).isfinite().sum()) == 1
    assert int(restrict(LOG, top_p=0.7).isfinite().sum()) == 2


@given(st.integers(0, 10_000), st.integers(1, 9), st.floats(0.05, 1.0))
@MODEST
def test_restricted_distribution_is_the_renormalized_one(seed, top_k, top_p):
    logits = random_logits(seed, 4, 9)
    kept = restrict(logits, top_k=top_k, top_p=top_p).isfinite()
    assert kept.any(-1).all()
    assert (kept.sum(-1) <= top_k).all()
    probs = logits.softmax(-1) * kept
    torch.testing.assert_close(
        restrict(logits, top_k=top_k, top_p=top_p).softmax(-1), probs / probs.sum(-1, keepdim=True)
    )


def test_sequence_logprobs_sum_what_counts():
    logprobs = torch.tensor([[-1.0, -2.0, float("nan")], [-4.0, -8.0, -16.0]])
    mask = torch.tensor([[True, True, False], [False, True, True]])
    assert sequence_logprobs(logprobs, mask).tolist() == [-3.0, -24.0]


def test_errors_name_the_argument():
    with pytest.raises(ValueError, match="tokens"):
        token_logprobs(LOG, torch.zeros(2, dtype=torch.long))
    with pytest.raises(ValueError, match="forbidden: expected a boolean"):
        forbid(LOG, torch.zeros(4))
    with pytest.raises(ValueError, match="forbidden"):
        forbid(LOG, torch.zeros(5, dtype=torch.bool))
    with pytest.raises(ValueError, match="temperature"):
        restrict(LOG, temperature=0.0)
    with pytest.raises(ValueError, match="top_p"):
        restrict(LOG, top_p=0.0)
    with pytest.raises(ValueError, match="top_k"):
        restrict(LOG, top_k=-1)


def test_entropy_gradient_is_finite_with_forbidden_tokens_whatever_the_upstream_gradient():
    logits = torch.tensor([0.0, 1.0, float("-inf")], dtype=torch.float64, requires_grad=True)
    (1.5 * entropy(logits)).backward()
    p = torch.softmax(torch.tensor([0.0, 1.0], dtype=torch.float64), 0)
    h = -(p * p.log()).sum()
    expected = torch.cat((-1.5 * p * (p.log() + h), torch.zeros(1, dtype=torch.float64)))
    torch.testing.assert_close(logits.grad, expected)
