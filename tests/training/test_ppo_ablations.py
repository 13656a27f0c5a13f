"""What the ablations of PPO switch: the reward's offset, and a critic that shares the policy's trunk."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from .small import contents, cost, rows, run_small

pytestmark = pytest.mark.integration
PLAIN = {"critic_warmup": 0, "batch_size": 16, "samples_per_prompt": 1, "ema_eta": 0.0}


def _run(tiny_world, folder, *, max_steps=2, **settings):
    return run_small(tiny_world, "ppo", folder, settings=PLAIN | settings, max_steps=max_steps)


def test_the_offset_moves_every_score_that_is_paid_and_none_that_is_reported(tiny_world, tmp_path) -> None:
    plain, lower = (rows(_run(tiny_world, tmp_path / str(s), reward_shift=s))[0] for s in (0.0, -10.0))
    assert plain["objective/scores"] == lower["objective/scores"]
    paid = plain["val/num_eos_tokens"] / 16
    assert 0.5 < paid <= 1 and plain["objective/returns"] - lower["objective/returns"] > 10 * paid * 0.5


def test_normalised_advantages_do_not_feel_the_offset_while_the_critic_knows_nothing(tiny_world, tmp_path) -> None:
    """gamma = lambda = 1 and values of zero: every token's advantage is its sequence's return, and a constant that is
    added to all of them is taken off again. Responses that were cut off are not paid, so all must have ended."""
    settings = {"kl_coef": 0.0, "critic_from": "policy", "value_norm": False, "learning_rate": 1e-3}
    plain, moved = (_run(tiny_world, tmp_path / str(s), reward_shift=s, max_steps=1, **settings) for s in (0.0, 3.0))
    if rows(plain)[0]["val/num_eos_tokens"] < 16:
        pytest.skip("a response of this small model was cut off")
    a, b = (load_file(cell / "model" / "model.safetensors") for cell in (plain, moved))
    assert all(torch.allclose(a[name], b[name], atol=1e-5) for name in a)


class TestSharedTrunk:
    def test_one_trunk_is_trained_and_both_folders_hold_it(self, tiny_world, tmp_path) -> None:
        cell = _run(tiny_world, tmp_path / "shared", critic_trunk="shared")
        policy = load_file(cell / "model" / "model.safetensors")
        critic = load_file(cell / "critic" / "model.safetensors")
        shared = [name for name in critic if name in policy]
        assert len(shared) > 5 and all(torch.equal(policy[name], critic[name]) for name in shared)

    def test_the_value_loss_moves_the_trunk_as_far_as_its_weight_says(self, tiny_world, tmp_path) -> None:
        """With weight 0 the policy is the one that a critic of its own, that knows nothing, would give."""
        same = {"critic_from": "policy", "value_norm": False, "max_grad_norm": 0.0, "max_steps": 1}
        apart = _run(tiny_world, tmp_path / "apart", critic_learning_rate=1e-30, **same)
        found = {}
        for weight in (0.0, 1.0):
            cell = _run(tiny_world, tmp_path / str(weight), critic_trunk="shared", value_coef=weight, **same)
            found[weight] = load_file(cell / "model" / "model.safetensors")
        base = load_file(apart / "model" / "model.safetensors")
        assert all(torch.allclose(base[name], found[0.0][name], atol=1e-6) for name in base)
        assert any(not torch.allclose(base[name], found[1.0][name], atol=1e-5) for name in base)

    def test_both_passes_are_booked(self, tiny_world, tmp_path) -> None:
        apart, shared = (
            cost(_run(tiny_world, tmp_path / kind, critic_trunk=kind, max_steps=1))["trained_tokens"]
            for kind in ("separate", "shared")
        )
        assert shared == apart

    def test_a_resumed_run_is_the_uninterrupted_one(self, tiny_world, tmp_path) -> None:
        settings = PLAIN | {"critic_trunk": "shared", "ema_eta": 0.01}
        whole = run_small(tiny_world, "ppo", tmp_path / "whole", settings=settings)

        def stop(progress) -> None:
            if progress.step == 3:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run_small(tiny_world, "ppo", tmp_path / "again", settings=settings, report=stop)
        again = run_small(tiny_world, "ppo", tmp_path / "again", settings=settings)
        assert contents(again) == contents(whole)
