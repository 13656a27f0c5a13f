"""The optimiser step: the grouping cannot change it, and a bad one is never applied."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from trueline.errors import NumericsError
from trueline.training.step import learning_rate_at, make_optimizer, optimize

ROWS = 12
ONE = torch.zeros(1, dtype=torch.long)
GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(ROWS, 5, generator=GENERATOR, dtype=torch.float64)
Y = torch.randn(ROWS, generator=GENERATOR, dtype=torch.float64)


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 1)).double()


def loss_over(model):
    return lambda rows: (model(X[rows]).squeeze(-1) - Y[rows]).square().sum() / ROWS


def weights(model) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()]).clone()


def gradient(model) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def step(model, optimizer, groups, loss=None, **changes):
    settings = {"learning_rate": 0.01, "max_grad_norm": 0.0, "what": "test"} | changes
    return optimize(model, optimizer, groups, loss or loss_over(model), **settings)


@pytest.mark.parametrize("cuts", [[12], [6, 6], [1] * 12, [5, 1, 4, 2]])
def test_the_partition_changes_nothing(cuts) -> None:
    model, whole = network(), network()
    result = step(model, make_optimizer(model, 0.01), torch.randperm(ROWS, generator=GENERATOR).split(cuts))
    expected = step(whole, make_optimizer(whole, 0.01), [torch.arange(ROWS)])
    assert result.loss == pytest.approx(expected.loss, abs=1e-12)
    assert result.grad_norm == pytest.approx(expected.grad_norm, abs=1e-12)
    torch.testing.assert_close(gradient(model), gradient(whole), rtol=0, atol=1e-12)


def test_a_step_is_adamw_by_hand() -> None:
    """First step of AdamW: m = (1 - b1) g and v = (1 - b2) g^2, bias-corrected to g and g^2, so the weight w first
    shrinks to w (1 - lr wd), then moves by lr g / (|g| + eps)."""
    model = nn.Linear(1, 1, bias=False).double()
    with torch.no_grad():
        model.weight.fill_(2.0)
    optimizer = make_optimizer(model, 123.0, weight_decay=0.5)
    result = step(
        model, optimizer, [torch.zeros(1, dtype=torch.long)], lambda _: 3.0 * model.weight.sum(), learning_rate=0.1
    )
    assert (result.loss, result.grad_norm) == (6.0, 3.0)
    assert model.weight.item() == pytest.approx(2.0 * (1 - 0.1 * 0.5) - 0.1 * 3 / (3 + 1e-8), abs=1e-12)
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.95)


def test_the_norm_is_clipped_and_reported_before_clipping() -> None:
    model = network()
    result = step(model, make_optimizer(model, 0.01), [torch.arange(ROWS)], max_grad_norm=1e-3)
    assert result.grad_norm > 0.1
    assert float(gradient(model).norm()) == pytest.approx(1e-3, rel=1e-3)


def test_a_new_step_forgets_the_old_gradient() -> None:
    model = network()
    optimizer = make_optimizer(model, 0.01)
    frozen = [step(model, optimizer, [torch.arange(ROWS)], accept=lambda: False) for _ in range(2)]
    assert frozen[0] == frozen[1]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_not_applied(bad) -> None:
    model = network()
    optimizer = make_optimizer(model, 0.01)
    step(model, optimizer, [torch.arange(ROWS)])
    before, moments = weights(model), [s["exp_avg"].clone() for s in optimizer.state.values()]
    groups = [torch.arange(6), torch.arange(6, ROWS)]
    with pytest.raises(NumericsError, match=f"dpo seed 3: loss {bad}.*not applied"):
        step(model, optimizer, groups, lambda g: loss_over(model)(g) * (bad if 6 in g else 1.0), what="dpo seed 3")
    assert (weights(model) == before).all()
    assert all((s["exp_avg"] == m).all() for s, m in zip(optimizer.state.values(), moments))
    assert all(p.grad is None for p in model.parameters())
    step(model, optimizer, [torch.arange(ROWS)])  # the run can go on from here
    assert (weights(model) != before).any()


def test_a_gradient_that_is_not_finite_is_not_applied() -> None:
    """sqrt has an infinite derivative at 0, where its value is finite."""
    model = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.zero_()
    with pytest.raises(NumericsError, match="gradient norm"):
        step(model, make_optimizer(model, 0.1), [ONE], lambda _: model.weight.sum().sqrt())
    assert model.weight.item() == 0.0


def test_a_step_that_is_not_accepted_leaves_everything() -> None:
    model = network()
    optimizer = make_optimizer(model, 0.01)
    before, asked = weights(model), []
    result = step(model, optimizer, torch.arange(ROWS).split(4), accept=lambda: asked.append(1) is not None)
    assert (weights(model) == before).all() and not optimizer.state
    assert (len(asked), result.loss > 0) == (1, True)


def test_accept_is_asked_after_the_last_micro_batch() -> None:
    model, seen = network(), []

    def loss_of(rows):
        seen.append(len(rows))
        return loss_over(model)(rows)

    step(model, make_optimizer(model, 0.01), torch.arange(ROWS).split(4), loss_of, accept=lambda: seen == [4, 4, 4])
    assert (weights(model) != weights(network())).any()


@pytest.mark.parametrize(
    ("step", "schedule", "expected"),
    [
        # peak 1, warm-up 4 of 14 steps: (step + 1) / 4 while warming up
        (0, "constant", 0.25),
        (3, "linear", 1.0),
        (4, "constant", 1.0),
        (13, "constant", 1.0),
        # then 10 steps from 1 to a tenth: share s = (step - 4) / 10, linear 1 - 0.9 s
        (4, "linear", 1.0),
        (9, "linear", 0.55),
        (14, "linear", 0.1),
        (99, "linear", 0.1),
        # cosine 1 - 0.9 (1 - cos(pi s)) / 2: s = 1/2 gives 0.55, s = 1 gives 0.1
        (4, "cosine", 1.0),
        (9, "cosine", 0.55),
        (14, "cosine", 0.1),
    ],
)
def test_schedules_by_hand(step, schedule, expected) -> None:
    assert learning_rate_at(step, peak=1.0, total=14, warmup=4, schedule=schedule) == pytest.approx(expected)
    assert learning_rate_at(step, peak=3e-5, total=14, warmup=4, schedule=schedule) == pytest.approx(3e-5 * expected)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_schedules_without_room(schedule) -> None:
    """No warm-up starts at the peak; a plan that is all warm-up never divides by zero."""
    assert learning_rate_at(0, peak=2.0, total=1, warmup=0, schedule=schedule) == 2.0
    assert learning_rate_at(2, peak=2.0, total=2, warmup=2, schedule=schedule) == 2.0
