"""Masked reductions: corners by hand, laws, and what stands outside a mask never matters."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trueline.algorithms.masking import (
    Moments,
    masked_mean,
    masked_mean_per_row,
    masked_moments,
    masked_sum,
    masked_var,
    merge,
    normalize,
)

MODEST = settings(max_examples=30, deadline=None, database=None, derandomize=True)
SEEDS = st.integers(0, 10_000)


def batch(seed, rows=6, columns=7, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    x = scale * torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    mask = torch.rand(rows, columns, generator=generator) < 0.6
    mask[:, 2] = True  # no row is empty
    return x, mask


def test_sum_and_mean_by_hand():
    x = torch.tensor([[1.0, 2.0, 100.0], [3.0, 100.0, 100.0]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    assert masked_sum(x, mask) == 6  # 1 + 2 + 3
    assert masked_mean(x, mask) == 2  # 6 / 3 tokens, not the mean of row means (1.5 + 3) / 2 = 2.25
    assert masked_mean(x, mask, denominator=12) == 0.5
    assert masked_mean_per_row(x, mask).tolist() == [1.5, 3.0]


def test_nan_outside_the_mask_reaches_neither_value_nor_gradient():
    x = torch.tensor([1.0, float("nan"), float("inf")], requires_grad=True)
    mask = torch.tensor([True, False, False])
    total = masked_mean(x, mask) + masked_sum(x, mask)
    total.backward()
    assert total == 2
    assert x.grad.tolist() == [2.0, 0.0, 0.0]
    assert normalize(x.detach(), mask).tolist() == [0.0, 0.0, 0.0]


def test_half_precision_is_summed_in_float32():
    x = torch.ones(5000, dtype=torch.bfloat16)  # bfloat16 cannot hold 4999
    assert masked_sum(x, torch.ones(5000, dtype=torch.bool)) == 5000


@given(SEEDS)
@MODEST
def test_microbatches_with_the_global_denominator_add_up(seed):
    x, mask = batch(seed)
    x.requires_grad_()
    (whole,) = torch.autograd.grad(masked_mean(x.square(), mask), x)
    count = int(mask.sum())
    parts = [masked_mean(x[rows].square(), mask[rows], denominator=count) for rows in ([0, 1, 2, 3], [4], [5])]
    (split,) = torch.autograd.grad(torch.stack(parts).sum(), x)
    torch.testing.assert_close(split, whole, rtol=1e-12, atol=1e-15)
    own = [masked_mean(x[rows].square(), mask[rows]) for rows in ([0, 1, 2, 3], [4], [5])]
    (wrong,) = torch.autograd.grad(torch.stack(own).mean(), x)  # the usual accumulation fault: a negative control
    assert (wrong - whole).abs().max() > 1e-6


@given(SEEDS, st.integers(1, 5))
@MODEST
def test_moments_of_parts_merge_into_those_of_the_whole(seed, cut):
    x, mask = batch(seed, scale=10.0)
    x = x + 1e6
    whole, merged = (
        masked_moments(x, mask),
        merge(masked_moments(x[:cut], mask[:cut]), masked_moments(x[cut:], mask[cut:])),
    )
    assert merged.count == whole.count
    torch.testing.assert_close(merged.mean, whole.mean, rtol=1e-14, atol=0)
    torch.testing.assert_close(merged.m2, whole.m2, rtol=1e-9, atol=0)
    expected = x[mask].var(correction=0)
    torch.testing.assert_close(merged.var, expected, rtol=1e-9, atol=0)


def test_empty_part_is_neutral():
    x, mask = batch(0)
    some, none = masked_moments(x, mask), masked_moments(x, torch.zeros_like(mask))
    assert none == Moments(*(torch.zeros((), dtype=torch.float64) for _ in range(3)))
    assert merge(some, none) == some
    assert merge(none, some) == some
    assert merge(none, none) == none


@given(SEEDS)
@MODEST
def test_normalized_batch_has_mean_0_and_variance_1(seed):
    x, mask = batch(seed, scale=5.0)
    z = normalize(x, mask)
    assert abs(z[mask].mean()) < 1e-12
    assert abs(z[mask].var(correction=0) - 1) < 1e-4  # eps = 1e-5 on a deviation of about 5
    assert not z[~mask].any()


@given(SEEDS, st.floats(-100, 100), st.floats(0.1, 50))
@MODEST
def test_normalize_ignores_shift_and_scale(seed, shift, scale):
    x, mask = batch(seed)
    torch.testing.assert_close(
        normalize(scale * x + shift, mask, eps=0), normalize(x, mask, eps=0), rtol=1e-9, atol=1e-9
    )


@given(SEEDS, st.integers(1, 5))
@MODEST
def test_ranks_normalize_as_one_batch_with_merged_moments(seed, cut):
    x, mask = batch(seed)
    x[:cut] += 3.0  # ranks that differ: local statistics would be wrong
    parts = [(x[:cut], mask[:cut]), (x[cut:], mask[cut:])]
    joint = merge(*(masked_moments(*part) for part in parts))
    together = torch.cat([normalize(*part, moments=(joint.mean, joint.var)) for part in parts])
    torch.testing.assert_close(together, normalize(x, mask), rtol=1e-10, atol=1e-12)
    alone = torch.cat([normalize(*part) for part in parts])
    assert (alone - normalize(x, mask)).abs().max() > 0.1


@given(SEEDS, st.integers(0, 3), st.integers(0, 3))
@MODEST
def test_padding_and_row_order_never_matter(seed, left, right):
    x, mask = batch(seed)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    padded = torch.nn.functional.pad(x[order], (left, right), value=float("nan"))
    wide = torch.nn.functional.pad(mask[order], (left, right), value=False)
    window = slice(left, left + x.shape[1])
    close = {"rtol": 1e-12, "atol": 1e-13}
    torch.testing.assert_close(masked_mean(padded, wide), masked_mean(x, mask), **close)
    torch.testing.assert_close(masked_var(padded, wide), masked_var(x, mask), **close)
    torch.testing.assert_close(masked_mean_per_row(padded, wide), masked_mean_per_row(x, mask)[order], **close)
    torch.testing.assert_close(normalize(padded, wide)[:, window], normalize(x, mask)[order], **close)


@pytest.mark.parametrize(
    "x", [torch.tensor([5.0]), torch.full((9,), 0.1), torch.full((7,), 1e6 / 3, dtype=torch.float64), torch.zeros(3)]
)
def test_no_spread_normalizes_to_zeros(x):
    mask = torch.ones_like(x, dtype=torch.bool)
    for eps in (1e-5, 0.0):
        assert normalize(x, mask, eps=eps).tolist() == [0.0] * len(x)


def test_small_but_real_spread_is_kept():
    z = normalize(torch.tensor([1.0, 1.0 + 1e-6], dtype=torch.float64), torch.tensor([True, True]), eps=0)
    torch.testing.assert_close(z, torch.tensor([-1.0, 1.0], dtype=torch.float64), rtol=1e-6, atol=0)


def test_normalize_keeps_dtype_and_stays_on_scale_in_float32():
    x = torch.tensor([1e8, 1e8 + 8.0])  # float32 resolves 8 there; the variance of 1e8-sized squares would not survive
    z = normalize(x, torch.tensor([True, True]))
    assert z.dtype == torch.float32
    torch.testing.assert_close(z, torch.tensor([-1.0, 1.0]), rtol=1e-4, atol=0)


def test_errors_name_the_argument():
    x, mask = batch(0)
    with pytest.raises(ValueError, match="mask: expected a boolean"):
        masked_sum(x, mask.double())
    with pytest.raises(ValueError, match="mask: shape"):
        masked_mean(x, mask[:, :-1])
    with pytest.raises(ValueError, match="no token counts"):
        masked_mean(x, torch.zeros_like(mask))
    with pytest.raises(ValueError, match="denominator"):
        masked_mean(x, mask, denominator=0)
    with pytest.raises(ValueError, match="a row counts no token"):
        masked_mean_per_row(x, mask & (torch.arange(6) != 3).unsqueeze(1))
    with pytest.raises(ValueError, match="undefined"):
        masked_var(x[0, :1], torch.ones(1, dtype=torch.bool), unbiased=True)
