"""What is remembered from step to step: the moving reference, running moments, KL controllers."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trueline.algorithms.averaging import RunningMoments, ema_update_
from trueline.algorithms.controllers import AdaptiveKL, FixedKL
from trueline.algorithms.masking import masked_moments, merge

MODEST = settings(max_examples=20, deadline=None, database=None, derandomize=True)


def batch(seed, mean=3.0, std=2.0):
    generator = torch.Generator().manual_seed(seed)
    x = mean + std * torch.randn(8, 16, generator=generator, dtype=torch.float64)
    return x, torch.rand(8, 16, generator=generator) < 0.7


def test_ema_by_hand_keeps_storage_and_carries_no_gradient():
    target = [torch.tensor([0.0, 10.0]), torch.tensor([[4.0]])]
    source = [torch.nn.Parameter(torch.tensor([1.0, 20.0])), torch.nn.Parameter(torch.tensor([[0.0]]))]
    pointers = [t.data_ptr() for t in target]
    ema_update_(target, source, eta=0.25)
    assert target[0].tolist() == [0.25, 12.5]  # 1/4 source + 3/4 target
    assert target[1].tolist() == [[3.0]]
    assert [t.data_ptr() for t in target] == pointers
    assert not target[0].requires_grad


@given(st.integers(0, 1000), st.floats(0, 1))
@MODEST
def test_ema_laws(seed, eta):
    start, source = torch.randn(2, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    target = start.clone()
    for _ in range(3):
        ema_update_([target], [source], eta=eta)
    torch.testing.assert_close(target, source + (1 - eta) ** 3 * (start - source))  # the gap shrinks by 1 - eta a step
    for end, expected in ((0.0, start), (1.0, source)):
        target = start.clone()
        ema_update_([target], [source], eta=end)
        assert torch.equal(target, expected)


def test_ema_takes_parameters_of_a_module_in_another_dtype():
    torch.manual_seed(0)
    reference, policy = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2).bfloat16()
    ema_update_(reference.parameters(), policy.parameters(), eta=1.0)
    assert torch.equal(reference.weight, policy.weight.float())


def test_ema_errors_name_the_argument():
    one, two = [torch.zeros(2)], [torch.zeros(2), torch.zeros(2)]
    with pytest.raises(ValueError, match="eta"):
        ema_update_(one, one, eta=1.1)
    with pytest.raises(ValueError, match="2 tensors for 1"):
        ema_update_(one, two, eta=0.5)
    with pytest.raises(ValueError, match="tensor 1"):
        ema_update_(two, [torch.zeros(2), torch.zeros(3)], eta=0.5)


def test_running_moments_are_the_identity_until_the_first_update():
    moments, x = RunningMoments(eps=0.0), torch.tensor([1.0, -5.0])
    assert torch.equal(moments.normalize(x), x)
    moments.update(x, torch.zeros(2, dtype=torch.bool))
    assert (moments.mean, moments.std) == (0.0, 1.0)


@pytest.mark.parametrize("beta", [0.0, 0.9, 0.99995])
def test_one_update_is_debiased_to_the_batch_itself(beta):
    x, mask = batch(0)
    moments = RunningMoments(beta=beta)
    moments.update(x, mask)
    assert moments.mean == pytest.approx(float(x[mask].mean()), rel=1e-9)
    assert moments.std == pytest.approx(float(x[mask].std(correction=0)), rel=1e-9)


def test_two_updates_by_hand():
    # beta 1/2: weights 1/4 and 1/2, debiased 1/3 and 2/3. Batches {1, 3} and {4}: mean 2/3 + 8/3 = 10/3,
    # mean square 5/3 + 32/3 = 37/3, variance 37/3 - 100/9 = 11/9
    moments = RunningMoments(beta=0.5)
    moments.update(torch.tensor([1.0, 3.0, 99.0]), torch.tensor([True, True, False]))
    moments.update(torch.tensor([4.0]), torch.tensor([True]))
    assert moments.mean == pytest.approx(10 / 3)
    assert moments.std == pytest.approx((11 / 9) ** 0.5)


def test_variance_floor():
    moments = RunningMoments(var_floor=0.04)
    moments.update(torch.full((3,), 5.0), torch.ones(3, dtype=torch.bool))
    assert moments.std == pytest.approx(0.2)
    assert float(moments.normalize(torch.tensor(5.2))) == pytest.approx(1.0, abs=1e-3)


@given(st.integers(0, 1000))
@MODEST
def test_denormalize_inverts_and_ranks_count_as_one_batch(seed):
    x, mask = batch(seed)
    whole, ranks = RunningMoments(), RunningMoments()
    whole.update(x, mask)
    ranks.update_from(merge(masked_moments(x[:3], mask[:3]), masked_moments(x[3:], mask[3:])))
    assert ranks.mean == pytest.approx(whole.mean, rel=1e-12)
    assert ranks.std == pytest.approx(whole.std, rel=1e-9)
    torch.testing.assert_close(whole.denormalize(whole.normalize(x)), x)
    assert whole.normalize(x.float()).dtype == torch.float32


def test_running_moments_resume_bit_for_bit():
    whole, first, second = (RunningMoments(beta=0.9) for _ in range(3))
    for seed in range(4):
        whole.update(*batch(seed))
    for seed in range(2):
        first.update(*batch(seed))
    tensors, settings = first.state()
    first.update(*batch(9))  # the state is a snapshot, not a view
    second.load((tensors, json.loads(json.dumps(settings))))
    for seed in range(2, 4):
        second.update(*batch(seed))
    assert (second.mean, second.std) == (whole.mean, whole.std)
    second.load((tensors, settings))  # and loading took a copy: training on has not changed what was loaded
    assert second.state()[0] == tensors
    assert second.mean != whole.mean
    with pytest.raises(ValueError, match="state"):
        RunningMoments(beta=0.8).load((tensors, settings))


# coef 0.2, horizon 100, 10 responses: coef (1 + clip(kl / target - 1, -0.2, 0.2) / 10)
@pytest.mark.parametrize("kl, expected", [(6.0, 0.2), (6.6, 0.202), (60.0, 0.204), (0.0, 0.196), (-3.0, 0.196)])
def test_adaptive_kl_by_hand(kl, expected):
    controller = AdaptiveKL(0.2, target=6.0, horizon=100)
    controller.update(kl, 10)
    assert controller.coef == pytest.approx(expected)


def test_adaptive_kl_steers_towards_its_target():
    # a policy whose KL is 1 / coef: the only coefficient with KL 4 is 0.25
    controller = AdaptiveKL(1.0, target=4.0, horizon=100)
    for _ in range(200):
        controller.update(1 / controller.coef, 20)
    assert controller.coef == pytest.approx(0.25, rel=1e-3)


def test_controllers_keep_their_state():
    adaptive, again = AdaptiveKL(0.2, 6.0, 100), AdaptiveKL(0.7, 6.0, 100)
    adaptive.update(10.0, 10)
    tensors, settings = adaptive.state()
    again.load((tensors, json.loads(json.dumps(settings))))
    assert (tensors, again.coef) == ({}, adaptive.coef)
    with pytest.raises(ValueError, match="state"):
        AdaptiveKL(0.2, 5.0, 100).load(adaptive.state())
    fixed = FixedKL(0.05)
    fixed.update(1e9, 512)
    assert fixed.coef == 0.05
    fixed.load(({}, {"coef": 0.07}))
    assert fixed.state() == ({}, {"coef": 0.07})
    with pytest.raises(ValueError, match="target"):
        AdaptiveKL(0.2, 0.0, 100)
