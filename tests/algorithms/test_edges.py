"""Edges that a mutation run found unwatched: rows that do not count, shapes that would broadcast, more dimensions."""

from __future__ import annotations

import pytest
import torch

from trueline.algorithms import advantages, dpo, ipo, kto, logprobs, masking, online_kl, ppo, reward_modeling, simpo
from trueline.algorithms.averaging import RunningMoments

F64 = torch.float64


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=F64)


class TestRowsThatDoNotCount:
    """Two groups of three; of the first one row counts not, of the second only one does."""

    SCORES = tensor(1.0, 4.0, 1000.0, 7.0, -1000.0, 500.0)
    COUNTED = torch.tensor([True, True, False, True, False, False])

    def test_leave_one_out(self) -> None:
        found = advantages.rloo_advantages(self.SCORES, group_size=3, counted=self.COUNTED)
        assert found.tolist() == [-3.0, 3.0, 0.0, 0.0, 0.0, 0.0]

    def test_group(self) -> None:
        found = advantages.group_advantages(self.SCORES, group_size=3, eps=0.5, counted=self.COUNTED)
        std = 4.5**0.5  # of 1 and 4, with n - 1
        assert found.tolist() == pytest.approx([-1.5 / (std + 0.5), 1.5 / (std + 0.5), 0.0, 0.0, 0.0, 0.0])

    @pytest.mark.parametrize("function", [advantages.rloo_advantages, advantages.group_advantages])
    def test_a_mask_of_another_kind_is_refused(self, function) -> None:
        with pytest.raises(ValueError, match="counted: expected a boolean"):
            function(self.SCORES, group_size=3, counted=self.COUNTED.double())
        with pytest.raises(ValueError, match="counted: shape"):
            function(self.SCORES, group_size=3, counted=self.COUNTED[:3])

    @pytest.mark.parametrize("function", [advantages.rloo_advantages, advantages.group_advantages])
    def test_all_counted_is_as_without(self, function) -> None:
        scores = tensor(1.0, 2.0, 4.0, 8.0)
        everyone = torch.ones(4, dtype=torch.bool)
        assert torch.equal(function(scores, group_size=2), function(scores, group_size=2, counted=everyone))
        assert function(scores, group_size=2)[:2].sum() == 0


ONE, TWO = tensor(1.0), tensor(1.0, 2.0)
MASK = torch.ones(2, dtype=torch.bool)
GRID, FULL = torch.ones(2, 3, dtype=F64), torch.ones(2, 3, dtype=torch.bool)
BROADCASTS = {
    "last_token, rank": (lambda: advantages.last_token(MASK), "expected 2 dim"),
    "last_token, numbers": (lambda: advantages.last_token(FULL.long()), "boolean"),
    "rloo, rank": (lambda: advantages.rloo_advantages(GRID, group_size=2), "expected 1 dim"),
    "implicit rewards": (lambda: dpo.implicit_rewards(TWO, ONE, beta=0.1), "shape"),
    "dpo": (lambda: dpo.dpo_loss(TWO, TWO, ONE, TWO, beta=0.1), "shape"),
    "dpo, beta": (lambda: dpo.dpo_loss(TWO, TWO, TWO, TWO, beta=0.0), "positive"),
    "cdpo": (lambda: dpo.cdpo_loss(TWO, ONE, TWO, TWO, beta=0.1, label_smoothing=0.1), "rejected: shape"),
    "cdpo, beta": (lambda: dpo.cdpo_loss(TWO, TWO, TWO, TWO, beta=-1.0, label_smoothing=0.1), "beta"),
    "dpo-positive": (lambda: dpo.dpo_positive_loss(TWO, ONE, TWO, TWO, beta=0.1, penalty=1.0), "rejected: shape"),
    "ln-dpo": (lambda: dpo.ln_dpo_loss(TWO, TWO, TWO, TWO, ONE, TWO, beta=0.1), "chosen_lengths: shape"),
    "ln-dpo, no token": (lambda: dpo.ln_dpo_loss(TWO, TWO, TWO, TWO, TWO * 0, TWO, beta=0.1), "at least one token"),
    "ipo": (lambda: ipo.ipo_loss(TWO, TWO, TWO, ONE, beta=0.1), "ref_rejected: shape"),
    "simpo": (lambda: simpo.simpo_loss(TWO, TWO, ONE, TWO, beta=0.1, gamma=0.0), "chosen_lengths: shape"),
    "simpo rewards": (lambda: simpo.simpo_rewards(TWO, ONE, beta=0.1), "lengths: shape"),
    "kto": (lambda: kto.kto_loss(TWO, ONE, MASK, 0.0, beta=0.1), "ref_logprobs: shape"),
    "bradley-terry": (lambda: reward_modeling.bradley_terry_loss(TWO, ONE), "rejected_scores: shape"),
    "accuracy": (lambda: reward_modeling.pairwise_accuracy(TWO, ONE), "rejected_scores: shape"),
    "row means": (lambda: masking.masked_mean_per_row(GRID, FULL[:1]), "mask: shape"),
    "normalise": (lambda: masking.normalize(GRID, FULL[:1]), "mask: shape"),
    "sequences, rank": (lambda: logprobs.sequence_logprobs(TWO, MASK), "expected 2 dim"),
    "sequences, mask": (lambda: logprobs.sequence_logprobs(GRID, FULL[:1]), "mask: shape"),
    "policy": (lambda: ppo.clipped_policy_loss(TWO, ONE, TWO, clip_range=0.2), "old_logprobs: shape"),
    "value": (lambda: ppo.clipped_value_loss(TWO, ONE, TWO, clip_range=0.2), "old_values: shape"),
    "variance": (lambda: ppo.explained_variance(TWO, ONE, MASK), "returns: shape"),
    "online kl": (lambda: online_kl.online_kl(TWO, ONE), "ref_logprobs: shape"),
    "online kl, baseline": (lambda: online_kl.online_kl(TWO, TWO, baseline=ONE), "baseline: shape"),
}


@pytest.mark.parametrize("case", BROADCASTS)
def test_what_would_broadcast_is_refused(case) -> None:
    call, reason = BROADCASTS[case]
    with pytest.raises(ValueError, match=reason):
        call()


def test_accuracy_counts_a_tie_as_half() -> None:
    assert reward_modeling.pairwise_accuracy(tensor(2.0, 1.0, 1.0), tensor(1.0, 1.0, 3.0)).tolist() == [1.0, 0.5, 0.0]


def test_bins_take_certainty_and_are_ten_unless_told() -> None:
    chances, outcomes = torch.linspace(0, 1, 40, dtype=F64), torch.ones(40, dtype=F64)
    assert len(reward_modeling.reliability_bins(chances, outcomes)) == 10
    assert reward_modeling.reliability_bins(tensor(0.0, 1.0), tensor(0.0, 1.0), bins=1)[0].count == 2
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        reward_modeling.reliability_bins(tensor(0.5, 1.01), tensor(0.0, 1.0))


def test_variance_over_n_or_n_minus_1_and_one_token() -> None:
    x, mask = tensor(1.0, 2.0, 6.0, 99.0), torch.tensor([True, True, True, False])
    assert float(masking.masked_var(x, mask)) == pytest.approx(14 / 3)
    assert float(masking.masked_var(x, mask, unbiased=True)) == pytest.approx(7.0)
    moments = masking.masked_moments(x, mask)
    assert float(moments.var) == pytest.approx(14 / 3)
    nothing = masking.masked_moments(x, torch.zeros(4, dtype=torch.bool))
    assert float(nothing.var) == 0.0
    merged = masking.merge(moments, nothing)
    assert (float(merged.count), float(merged.mean), float(merged.m2)) == (3.0, 3.0, pytest.approx(14.0))
    empty = masking.merge(nothing, nothing)
    assert float(empty.count) == 0.0 and float(empty.mean) == 0.0


def test_a_spread_that_is_rounding_of_a_negative_mean_is_none() -> None:
    x = tensor(-1e6, -1e6 - 1e-9, -1e6 + 1e-9)
    assert masking.normalize(x, torch.ones(3, dtype=torch.bool)).tolist() == [0.0, 0.0, 0.0]


class TestLeadingDimensions:
    LOGITS = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0), dtype=F64)

    def test_top_k(self) -> None:
        mask = logprobs.top_k_mask(self.LOGITS, 2)
        assert mask.shape == self.LOGITS.shape and (~mask).sum(-1).tolist() == [[2, 2, 2], [2, 2, 2]]
        assert not logprobs.top_k_mask(self.LOGITS, 9).any()
        assert (~logprobs.top_k_mask(self.LOGITS, 1)).sum() == 6

    def test_top_p_keeps_the_first_of_equals(self) -> None:
        equal = torch.zeros(2, 2, 4, dtype=F64)
        kept = ~logprobs.top_p_mask(equal, 0.5)
        assert kept.tolist() == [[[True, True, False, False]] * 2] * 2

    def test_entropy(self) -> None:
        forbidden = logprobs.forbid(self.LOGITS, torch.tensor([True, False, False, False, False]))
        rest = self.LOGITS[..., 1:].log_softmax(-1)
        torch.testing.assert_close(logprobs.entropy(forbidden), -(rest.exp() * rest).sum(-1))

    def test_sequences(self) -> None:
        values, mask = tensor(1.0, 2.0, 3.0, 4.0).view(2, 2), torch.tensor([[True, True], [False, True]])
        assert logprobs.sequence_logprobs(values, mask).tolist() == [3.0, 4.0]


def test_the_online_kl_s_gradient_is_weighted_by_the_ratio_less_the_baseline() -> None:
    log, reference, baseline = tensor(-1.0, -2.0).requires_grad_(), tensor(-3.0, -2.5), tensor(0.5, 0.25)
    value = online_kl.online_kl(log, reference, baseline=baseline.requires_grad_())
    value.sum().backward()
    assert value.tolist() == [2.0, 0.5] and log.grad.tolist() == [1.5, 0.25] and baseline.grad is None


def test_a_reward_that_falls_by_its_own_rounding_has_not_fallen() -> None:
    sides = tensor(-100.0 - 1e-4), tensor(-5.0), tensor(-100.0), tensor(-5.0)
    assert torch.equal(dpo.dpo_positive_loss(*sides, beta=0.1, penalty=9.0), dpo.dpo_loss(*sides, beta=0.1))


def test_moments_have_a_floor_and_come_back_as_a_copy() -> None:
    moments = RunningMoments()
    moments.update(torch.full((4,), 3.0, dtype=F64), torch.ones(4, dtype=torch.bool))
    assert moments.std == pytest.approx(0.1)  # the root of the floor
    state = moments.state()
    other = RunningMoments()
    other.load(state)
    moments.update(torch.zeros(4, dtype=F64), torch.ones(4, dtype=torch.bool))
    assert other.mean == pytest.approx(3.0) and not other._mean.requires_grad
