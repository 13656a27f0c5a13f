"""DPO's exact gradient flow on tabular logits: unlabelled responses are moved by the normaliser only."""

from __future__ import annotations

import math

import pytest
import torch

from trueline.theory.bandits import dpo_flow, dpo_logit_gradient, largest_unlabelled_mass
from trueline.theory.tabular import dpo_minimizer, dpo_population_loss, wins_table

PAIR = wins_table(3, [(0, 1, 1.0, 1.0)])


def vector(values):
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("seed", range(3))
def test_closed_form_gradient_equals_autograd_and_vanishes_off_the_pairs(seed):
    generator = torch.Generator().manual_seed(seed)
    ref = torch.randn(5, generator=generator, dtype=torch.float64).softmax(-1)
    wins = wins_table(5, [(0, 1, 1.0, 0.9), (1, 2, 2.0, 0.3)])
    logits = torch.randn(5, generator=generator, dtype=torch.float64).requires_grad_()
    (expected,) = torch.autograd.grad(dpo_population_loss(logits.softmax(-1), ref, wins, beta=0.2), logits)
    found = dpo_logit_gradient(logits.detach(), ref, wins, beta=0.2)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-14)
    assert found[3:].tolist() == [0.0, 0.0]
    assert abs(float(found.sum())) < 1e-15
    assert found[:3].abs().min() > 1e-4


def test_uniform_reference_never_raises_the_unlabelled():
    policies = dpo_flow(torch.full((3,), 1 / 3, dtype=torch.float64), PAIR, beta=1.0, step_size=0.2, steps=400)
    mass = policies[:, 2]
    assert (mass.diff() < 0).all()
    assert largest_unlabelled_mass(policies, PAIR) == mass[0]


def test_unlikely_chosen_raises_the_unlabelled_on_the_way():
    # logits log .1 + s and log .8 - s: the others' weights sum to at least 2 sqrt(.08), so y3 peaks at
    # .1 / (2 sqrt(.08) + .1) = .150 where the two are equal, and then falls towards .1 / (.1 + growing)
    policies = dpo_flow(vector([0.1, 0.8, 0.1]), PAIR, beta=1.0, step_size=0.02, steps=2000)
    peak = 0.1 / (2 * math.sqrt(0.08) + 0.1)
    assert peak == pytest.approx(0.150, abs=5e-4)
    assert float(largest_unlabelled_mass(policies, PAIR)) == pytest.approx(peak, abs=1e-5)
    assert policies[-1, 2] < 0.1
    assert policies[-1, 0] > 0.8


def test_flow_with_soft_labels_ends_at_the_closed_form():
    ref, wins = vector([0.2, 0.5, 0.2, 0.1]), wins_table(4, [(0, 1, 1.0, 0.7), (1, 2, 1.0, 0.4)])
    policies = dpo_flow(ref, wins, beta=1.0, step_size=2.0, steps=400)
    torch.testing.assert_close(policies[-1], dpo_minimizer(ref, wins, beta=1.0), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(policies[0], ref)


def test_zero_in_the_reference_has_no_flow():
    with pytest.raises(ValueError, match="ref"):
        dpo_flow(vector([0.5, 0.5, 0.0]), PAIR, beta=1.0, step_size=0.1, steps=1)
