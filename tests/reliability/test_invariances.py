"""What must not matter to a batch's loss and gradient: the order of rows, padding, how rows are grouped, neighbours.

Each quantity is a function of log-probs that a model would give: a table of weights per row, so that gradients of rows
are compared as a model's are. All in float64, to 1e-12.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from tests.reliability.figures import record
from torch import Tensor

from trueline.algorithms.advantages import gae, group_advantages, rloo_advantages, shape_rewards
from trueline.algorithms.divergence import kl_k1, kl_k2, kl_k3
from trueline.algorithms.dpo import cdpo_loss, dpo_loss, dpo_positive_loss, ln_dpo_loss
from trueline.algorithms.ipo import ipo_loss
from trueline.algorithms.kto import kto_loss
from trueline.algorithms.logprobs import sequence_logprobs
from trueline.algorithms.masking import masked_mean, masked_mean_per_row, masked_sum, masked_var, normalize
from trueline.algorithms.ppo import clip_fraction, clipped_policy_loss, clipped_value_loss, explained_variance
from trueline.algorithms.reward_modeling import bradley_terry_loss
from trueline.algorithms.sft import sft_loss
from trueline.algorithms.simpo import simpo_loss

EXAMPLES = int(os.environ.get("TRUELINE_EXAMPLES", "200"))
WIDTH = 6


class Batch:
    """Rows [B, T]: log-probs that depend on `weight` [B, T], those of a reference and of a sampler, and a mask; even
    rows are chosen sides, the odd row behind each is its rejected side."""

    def __init__(self, weight: Tensor, other: Tensor, mask: Tensor) -> None:
        self.weight, self.other, self.mask = weight, other, mask
        self.logprobs = (-torch.nn.functional.softplus(weight)).masked_fill(~mask, 0.0)
        self.reference = (-torch.nn.functional.softplus(other)).masked_fill(~mask, 0.0)
        self.values, self.returns = weight.masked_fill(~mask, 0.0), other.masked_fill(~mask, 0.0)
        self.sums = sequence_logprobs(self.logprobs, mask)
        self.reference_sums = sequence_logprobs(self.reference, mask)
        self.lengths = mask.sum(1)
        self.scores = other[:, 0]

    def pairs(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Sums of chosen, rejected, and of the reference of both."""
        return self.sums[::2], self.sums[1::2], self.reference_sums[::2], self.reference_sums[1::2]

    def rows(self, index: Tensor) -> Batch:
        """Some rows, in that order."""
        return Batch(self.weight[index], self.other[index], self.mask[index])

    def padded(self, count: int) -> Batch:
        """The same with more columns, that hold anything, behind."""
        junk = torch.full((len(self.mask), count), 3.5, dtype=torch.float64)
        off = torch.zeros(len(self.mask), count, dtype=torch.bool)
        return Batch(
            torch.cat([self.weight, junk], 1), torch.cat([self.other, junk], 1), torch.cat([self.mask, off], 1)
        )


Loss = Callable[[Batch], Tensor]
# A sum over the rows of a batch, divided by nothing: what micro-batches add up to.
SUMS: dict[str, Loss] = {
    "sft": lambda b: masked_sum(sft_loss(b.logprobs), b.mask),
    "dpo": lambda b: dpo_loss(*b.pairs(), beta=0.3).sum(),
    "cdpo": lambda b: cdpo_loss(*b.pairs(), beta=0.3, label_smoothing=0.2).sum(),
    "dpo-positive": lambda b: dpo_positive_loss(*b.pairs(), beta=0.3, penalty=2.0).sum(),
    "ln-dpo": lambda b: ln_dpo_loss(*b.pairs(), b.lengths[::2], b.lengths[1::2], beta=0.3).sum(),
    "ipo": lambda b: ipo_loss(*b.pairs(), beta=0.3).sum(),
    "simpo": lambda b: simpo_loss(*b.pairs()[:2], b.lengths[::2], b.lengths[1::2], beta=0.3, gamma=0.5).sum(),
    "kto": lambda b: kto_loss(b.sums, b.reference_sums, b.scores > 0, 0.1, beta=0.3).sum(),
    "bradley-terry": lambda b: bradley_terry_loss(b.sums[::2], b.sums[1::2]).sum(),
    "policy": lambda b: masked_sum(clipped_policy_loss(b.logprobs, b.reference, b.returns, clip_range=0.2), b.mask),
    "value": lambda b: masked_sum(clipped_value_loss(b.values, b.returns / 2, b.returns, clip_range=0.2), b.mask),
    "k1": lambda b: masked_sum(kl_k1(b.logprobs, b.reference), b.mask),
    "k2": lambda b: masked_sum(kl_k2(b.logprobs, b.reference), b.mask),
    "k3": lambda b: masked_sum(kl_k3(b.logprobs, b.reference), b.mask),
}
# Of the whole batch together: means, moments, what is normalised over it.
WHOLES: dict[str, Loss] = {
    "token mean": lambda b: masked_mean(b.logprobs, b.mask),
    "row means": lambda b: masked_mean_per_row(b.logprobs, b.mask).sum(),
    "variance": lambda b: masked_var(b.logprobs, b.mask),
    "normalised": lambda b: (normalize(b.logprobs, b.mask) * b.returns).sum(),
    "clip fraction": lambda b: masked_sum(clip_fraction(b.logprobs, b.reference, b.returns, clip_range=0.2), b.mask),
    "explained variance": lambda b: explained_variance(b.values, b.returns, b.mask),
    "advantages": lambda b: sum(part.square().sum() for part in gae(b.logprobs, b.values, b.mask, gamma=0.9, lam=0.8)),
    "token rewards": lambda b: (
        shape_rewards(b.scores, b.logprobs, b.reference, b.mask, kl_coef=0.2).square() * (1 + b.returns)
    ).sum(),
    "leave-one-out": lambda b: (rloo_advantages(b.sums, group_size=2) * b.scores).sum(),
    "group": lambda b: (group_advantages(b.sums, group_size=2) * b.scores).sum(),
}


@st.composite
def batches(draw) -> Batch:
    """Two to five pairs of rows with one to six tokens each, anywhere in the row."""
    count = 2 * draw(st.integers(2, 5))
    numbers = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    weight = torch.randn(count, WIDTH, generator=numbers, dtype=torch.float64).mul_(draw(st.sampled_from([0.1, 1, 4])))
    other = torch.randn(count, WIDTH, generator=numbers, dtype=torch.float64)
    starts = torch.randint(0, WIDTH, (count,), generator=numbers)
    ends = (starts + torch.randint(1, WIDTH + 1, (count,), generator=numbers)).clamp(max=WIDTH)
    index = torch.arange(WIDTH)
    mask = (index >= starts[:, None]) & (index < ends[:, None])
    return Batch(weight, other, mask)


def _gradient(loss: Loss, batch: Batch, change: Callable[[Batch], Batch] = lambda b: b) -> tuple[Tensor, Tensor]:
    """The loss of the changed batch, and its gradient in the weights of the batch as it was."""
    weight = batch.weight.clone().requires_grad_()
    value = loss(change(Batch(weight, batch.other, batch.mask)))
    gradient = torch.autograd.grad(value, weight)[0] if value.requires_grad else torch.zeros_like(weight)
    return value.detach(), gradient


def _same(found: tuple[Tensor, Tensor], wanted: tuple[Tensor, Tensor]) -> None:
    for a, b in zip(found, wanted):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12, equal_nan=False)


def _order_of_pairs(batch: Batch, seed: int) -> Tensor:
    pairs = torch.randperm(len(batch.mask) // 2, generator=torch.Generator().manual_seed(seed))
    return torch.stack([2 * pairs, 2 * pairs + 1], 1).flatten()


PROPERTIES = hypothesis.settings(max_examples=EXAMPLES, deadline=None, database=None, derandomize=EXAMPLES <= 200)
EVERY = {**SUMS, **WHOLES}


@pytest.mark.parametrize("name", EVERY)
def test_the_order_of_the_rows(name) -> None:
    @PROPERTIES
    @hypothesis.given(batches(), st.integers(0, 1000))
    def holds(batch, seed):
        order = _order_of_pairs(batch, seed)
        _same(_gradient(EVERY[name], batch, lambda b: b.rows(order)), _gradient(EVERY[name], batch))

    holds()


@pytest.mark.parametrize("name", EVERY)
def test_padding_behind(name) -> None:
    @PROPERTIES
    @hypothesis.given(batches(), st.integers(1, 5))
    def holds(batch, count):
        _same(_gradient(EVERY[name], batch, lambda b: b.padded(count)), _gradient(EVERY[name], batch))

    holds()


@pytest.mark.parametrize("name", SUMS)
def test_how_rows_are_grouped(name) -> None:
    """Accumulation: micro-batches of any sizes add up to the batch."""

    @PROPERTIES
    @hypothesis.given(batches(), st.integers(1, 4))
    def holds(batch, size):
        def grouped(b: Batch) -> Tensor:
            rows = torch.arange(len(b.mask)).split(2 * size)
            return torch.stack([SUMS[name](b.rows(part)) for part in rows]).sum()

        _same(_gradient(grouped, batch), _gradient(SUMS[name], batch))

    holds()


@pytest.mark.parametrize("name", SUMS)
def test_what_a_neighbour_holds(name) -> None:
    """Another row's numbers change no gradient of this row."""

    @PROPERTIES
    @hypothesis.given(batches())
    def holds(batch):
        changed = Batch(batch.weight.clone(), batch.other.clone(), batch.mask)
        changed.weight[2:] += 1.0
        changed.other[2:] -= 2.0
        found = _gradient(SUMS[name], Batch(changed.weight, changed.other, batch.mask))[1][:2]
        torch.testing.assert_close(found, _gradient(SUMS[name], batch)[1][:2], rtol=1e-12, atol=1e-12)

    holds()


def test_the_comparison_sees_a_mean_over_micro_batches() -> None:
    """Positive control: a mean of means is the classic fault."""
    batch = Batch(
        torch.arange(24.0, dtype=torch.float64).reshape(4, 6) / 10, torch.zeros(4, 6, dtype=torch.float64),
        torch.arange(6) < torch.tensor([[1], [2], [5], [6]]),
    )  # fmt: skip
    whole = masked_mean(batch.logprobs, batch.mask)
    parts = torch.stack([masked_mean(batch.rows(r).logprobs, batch.rows(r).mask) for r in torch.arange(4).split(2)])
    with pytest.raises(AssertionError):
        torch.testing.assert_close(parts.mean(), whole, rtol=1e-12, atol=1e-12)
    record("H12", "properties", properties=2 * len(EVERY) + 2 * len(SUMS), examples=EXAMPLES, failures=0)
