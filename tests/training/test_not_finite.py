"""A number that is not finite stops the run before its step, and the rows that it comes from are named."""

from __future__ import annotations

import math
import pickle

import pytest
import torch
from torch import nn

from trueline.errors import NumericsError
from trueline.models.fingerprints import fingerprint
from trueline.training import feedback
from trueline.training.memory import Part
from trueline.training.step import make_optimizer, optimize

from .small import run_small

POISON = (math.nan, math.inf, -math.inf)


def _step(poison: dict[int, float], *, through: str = "loss", parts: bool = False, names=str):
    """One step of a linear model on six rows, in two micro-batches; returns the model and what was raised."""
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    optimizer = make_optimizer(model, 0.1)
    x = torch.randn(6, 3)

    def loss_of(rows):
        loss = model(x[rows]).square().sum() / 6
        for row in rows.tolist():
            if row in poison and through == "loss":
                loss = loss * poison[row]
            elif row in poison:  # the loss is finite, its gradient is not
                loss = loss + (model.weight.sum() * 0).sqrt() * 0
        return loss

    groups = [torch.arange(3), torch.arange(3, 6)]
    work = [Part(loss_of, rows) for rows in groups] if parts else groups
    before = fingerprint(model)
    with pytest.raises(NumericsError) as caught:
        optimize(
            model, optimizer, work, (lambda micro: micro()) if parts else loss_of,
            learning_rate=0.1, max_grad_norm=1.0, what="dpo seed 0", name_of=names,
        )  # fmt: skip
    assert fingerprint(model) == before and not optimizer.state_dict()["state"]
    assert all(p.grad is None for p in model.parameters())
    return caught.value


@pytest.mark.parametrize("value", POISON)
@pytest.mark.parametrize("parts", [False, True])
def test_the_rows_of_a_loss_that_is_not_finite(value, parts) -> None:
    error = _step({1: value, 4: value}, parts=parts, names=lambda row: f"prompt-{row}")
    assert error.rows == ("prompt-1", "prompt-4")
    assert "2 of 6 rows give no finite number: prompt-1, prompt-4; " in str(error) and "was not applied" in str(error)


def test_the_rows_of_a_gradient_that_is_not_finite() -> None:
    error = _step({2: 1.0}, through="gradient")
    assert error.rows == ("2",) and "gradient norm nan" in str(error)


def test_where_every_row_is_it_the_weights_are_told() -> None:
    error = _step(dict.fromkeys(range(6), math.nan))
    assert "all 6 rows give no finite number: the weights do not" in str(error) and len(error.rows) == 6


def test_the_rows_survive_the_way_out_of_a_worker() -> None:
    error = pickle.loads(pickle.dumps(NumericsError("loss nan", rows=("a", "b"))))
    assert (str(error), error.rows) == ("loss nan", ("a", "b"))


@pytest.mark.integration
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("method", ["ppo", "rloo", "dpo-iter"])
def test_a_reward_model_that_gives_no_finite_score_stops_the_run(method, value, tiny_world, tmp_path, monkeypatch):
    learned = feedback._learned

    def broken(stage):
        score = learned(stage)

        def with_one_broken(prompts, rollout):
            found = score(prompts, rollout)
            found[3] = torch.inf if math.isnan(value) else value
            return found

        return with_one_broken

    monkeypatch.setattr(feedback, "_learned", broken)
    with pytest.raises(NumericsError, match=r"not finite for 1 of .* responses.*nothing was trained") as caught:
        run_small(tiny_world, method, tmp_path / method)
    assert len(caught.value.rows) == 1
    assert not list((tmp_path / method).glob("checkpoints/step-*"))
