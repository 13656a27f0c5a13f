"""The start gates: what must be equal before the first update, and that a difference is told and not trained on."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from trueline.errors import NumericsError
from trueline.rollout.native import NativeEngine
from trueline.training import dpo, dpo_iter, kto, policy_gradient, ppo, preference
from trueline.training.preference import start_gate
from trueline.training.stage import Stage

from .small import rows, run_small

pytestmark = pytest.mark.integration


def _nudged(model, size: float = 0.02):
    """The same model with every matrix moved a little."""
    moved = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in moved.parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))
    return moved


def _scores_otherwise(model):
    """Equal parameters, so an equal fingerprint, but other log-probs: a fault that only the gate can see."""
    generator = torch.Generator().manual_seed(1)
    noise = 0.3 * torch.randn(model.config.hidden_size, generator=generator)
    model.trunk.register_forward_hook(lambda module, inputs, output: output + noise)
    return model


def _break_reference(module, monkeypatch) -> None:
    load, calls = module.load_policy, []

    def loaded(stage, name):
        calls.append(name)
        model = load(stage, name)
        first = 1 if module is ppo else 2  # PPO loads its start elsewhere, all others the policy before the reference
        return model if len(calls) < first else _scores_otherwise(model)

    monkeypatch.setattr(module, "load_policy", loaded)


@pytest.mark.parametrize(
    ("method", "module", "message"),
    [
        ("dpo", dpo, "the first loss/dpo, where .*, is .*, not 0.693147"),
        ("cdpo", preference, "the first loss/cdpo, where .*, is .*, not 0.693147"),
        ("dpo-positive", preference, "the first loss/dpo_positive, where .*, is .*, not 0.693147"),
        ("ln-dpo", preference, "the first loss/ln_dpo, where .*, is .*, not 0.693147"),
        ("ipo", preference, "the first loss/ipo, where .*, is .*, not 25"),
        ("kto", kto, "the first (loss/kto, where .*, is .*, not 0.5|rewards/chosen, where .*, is .*, not 0)"),
        ("dpo-iter", dpo_iter, "the first loss/dpo, where .*, is .*, not 0.693147"),
        ("ppo", ppo, "KL to the reference"),
    ],
)
def test_a_reference_that_scores_otherwise_is_refused(
    method, module, message, tiny_world, tmp_path, monkeypatch
) -> None:
    _break_reference(module, monkeypatch)
    with pytest.raises(NumericsError, match=message):
        run_small(tiny_world, method, tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.parametrize("method", ["ppo", "rloo"])
def test_an_engine_with_other_weights_is_refused(method, tiny_world, tmp_path, monkeypatch) -> None:
    def stale(self, policy):
        engine = NativeEngine(pad_id=self.tokenizer.pad_id, end_id=self.tokenizer.end_id)
        engine.load_weights(_nudged(policy), 0)
        return engine

    monkeypatch.setattr(Stage, "engine", stale)
    with pytest.raises(NumericsError, match="gap of sampled and recomputed"):
        run_small(tiny_world, method, tmp_path / "run")


@pytest.mark.parametrize("method", ["ppo", "rloo"])
def test_a_policy_that_moved_since_it_sampled_is_refused(method, tiny_world, tmp_path, monkeypatch) -> None:
    update, done = policy_gradient.update_policy, []

    def late(stage, policy, *args, **more):
        if not done:
            done.append(True)
            policy.load_state_dict(_nudged(policy, 1e-3).state_dict())
        return update(stage, policy, *args, **more)

    monkeypatch.setattr(f"trueline.training.{method}.update_policy", late)
    settings = {"critic_warmup": 0} if method == "ppo" else {}
    with pytest.raises(NumericsError, match="first ratio"):
        run_small(tiny_world, method, tmp_path / "run", settings=settings)


@pytest.mark.parametrize("method", ["ppo", "rloo"])
def test_the_ratio_is_one_at_the_first_minibatch_whatever_the_micro_batches(method, tiny_world, tmp_path) -> None:
    """One minibatch: its mean ratio is all that `policy/ratio` shows. Re-scored in other groups than trained in."""
    settings = {"minibatches": 1, "batch_size": 32} | ({"critic_warmup": 0} if method == "ppo" else {})
    booked = rows(run_small(tiny_world, method, tmp_path / "run", settings=settings, micro_tokens=100))
    assert all(abs(row["policy/ratio"] - 1) < 1e-6 for row in booked)
    assert all(row["objective/engine_gap"] < 1e-4 for row in booked)


def test_good_runs_pass_with_room(finished) -> None:
    """DPO: ln 2 and no implicit reward at all. PPO: no KL. That the gates are asked is shown by the refusals above."""
    first = rows(finished("dpo"))[0]
    assert first["loss/dpo"] == pytest.approx(0.6931472, abs=1e-6) and abs(first["rewards/margins"]) < 1e-5
    for row in rows(finished("dpo-iter"))[::2]:  # each round's reference is its start
        assert row["loss/dpo"] == pytest.approx(0.6931472, abs=1e-6)
    for method in ("ppo", "rloo"):
        assert abs(rows(finished(method))[0]["objective/kl"]) < 1e-5


def test_the_gate_looks_at_the_sigmoid_term_alone(tiny_world, tmp_path) -> None:
    stage = tiny_world.stage("dpo", tmp_path)
    start_gate(stage, {"loss": 3.0, "loss/dpo": 0.69315}, "loss/dpo", math.log(2))
    with pytest.raises(NumericsError, match=r"is 0\.7, not"):
        start_gate(stage, {"loss": 0.6931472, "loss/dpo": 0.7}, "loss/dpo", math.log(2))


def test_in_bf16_the_gate_is_as_wide_as_its_rounding(tiny_world, tmp_path) -> None:
    """300 times 1e-4: 0.7 is within 0.03 of ln 2, 0.73 is not."""
    stage = tiny_world.stage("dpo", tmp_path, precision="bf16")
    start_gate(stage, {"loss/dpo": 0.7}, "loss/dpo", math.log(2))
    with pytest.raises(NumericsError, match=r"is 0\.73, not"):
        start_gate(stage, {"loss/dpo": 0.73}, "loss/dpo", math.log(2))


@pytest.mark.parametrize(
    ("method", "settings", "name", "expected"),
    [
        ("cdpo", {"label_smoothing": 0.3}, "loss/cdpo", math.log(2)),
        ("dpo-positive", {"penalty": 500.0}, "loss/dpo_positive", math.log(2)),
        ("ln-dpo", {"beta": 20.0}, "loss/ln_dpo", math.log(2)),
        ("ipo", {"beta": 0.5}, "loss/ipo", 1.0),
        ("ipo", {"beta": 0.01}, "loss/ipo", 2500.0),
        ("kto", {"desirable_weight": 1.0, "undesirable_weight": 3.0}, "loss/kto", 1.0),
    ],
)
def test_each_loss_starts_where_its_formula_says(method, settings, name, expected, tiny_world, tmp_path) -> None:
    """ln 2; (1 / (2 beta))^2; half the mean weight: 0.5 (1 + 3) / 2. Rewards are 0, the NLL term is not looked at."""
    settings = settings | {"nll_coef": 1.0}
    first = rows(run_small(tiny_world, method, tmp_path / "run", settings=settings, max_steps=1))[0]
    assert first[name] == pytest.approx(expected, rel=1e-5)
    assert abs(first["rewards/margins"]) < 1e-4 and first["loss"] > first[name] + 0.1


def test_dpo_with_the_nll_term_passes_its_gate(tiny_world, tmp_path) -> None:
    first = rows(run_small(tiny_world, "dpo", tmp_path / "run", settings={"nll_coef": 1.0}, max_steps=1))[0]
    assert first["loss"] > first["loss/dpo"] + 0.1


def test_a_start_that_is_not_the_reference_has_no_gate(tiny_world, finished, tmp_path) -> None:
    """`both` with the reference SFT: the policy starts from DPO, KL is not 0, and that is right."""
    more = {"inputs": {"start": finished("dpo")}, "max_steps": 1, "micro_tokens": 1536}
    from_sft = rows(run_small(tiny_world, "ppo", tmp_path / "sft", settings={"reference": "sft"}, **more))[0]
    from_start = rows(run_small(tiny_world, "ppo", tmp_path / "start", settings={"reference": "start"}, **more))[0]
    assert abs(from_sft["objective/kl_reference"]) > 1e-3 > abs(from_start["objective/kl_reference"])
    # The KL that is reported is to the original SFT, whatever the reference.
    assert from_start["objective/kl"] == pytest.approx(from_sft["objective/kl"], abs=1e-3)
