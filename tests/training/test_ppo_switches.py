"""PPO's keys that are off in the paper's recipe: passes, entropy bonus, samples per prompt, adaptive coefficient."""

from __future__ import annotations

import pytest

from trueline.config import load
from trueline.errors import InputError
from trueline.rollout.native import NativeEngine
from trueline.training import ppo

from .small import cost, rows, run_small

pytestmark = pytest.mark.integration
PLAIN = {"critic_warmup": 0, "batch_size": 16, "samples_per_prompt": 1}


def _run(tiny_world, folder, *, max_steps=4, **settings):
    return run_small(tiny_world, "ppo", folder, settings=PLAIN | settings, max_steps=max_steps)


def test_the_adaptive_coefficient_follows_its_recursion(tiny_world, tmp_path) -> None:
    """coef <- coef (1 + clip(KL / target - 1, -0.2, 0.2) n / horizon), on the KL that the row shows; n responses."""
    cell = _run(tiny_world, tmp_path / "run", kl_target=0.05, kl_horizon=64.0, learning_rate=5e-3, ema_eta=0.0)
    expected, factors = 0.1, []
    for row in rows(cell):
        error = min(max(row["objective/kl_reference"] / 0.05 - 1, -0.2), 0.2)
        factors.append(1 + error * 16 / 64)
        expected *= factors[-1]
        assert row["objective/kl_coef"] == pytest.approx(expected)
    assert factors[0] == pytest.approx(0.95)  # no KL yet: the coefficient is lowered as fast as the clip allows
    assert max(factors) == pytest.approx(1.05)  # above the target it rises


def test_a_target_without_a_coefficient_to_adapt_is_refused() -> None:
    with pytest.raises(InputError, match="kl_coef, which is 0"):
        load({"ppo": ppo.Config}, overrides=["ppo.kl_target=1", "ppo.kl_coef=0"])
    load({"ppo": ppo.Config}, overrides=["ppo.kl_coef=0"])


def test_a_longer_horizon_moves_the_coefficient_less(tiny_world, tmp_path) -> None:
    once = {"kl_target": 0.05, "max_steps": 1}
    short, long = (rows(_run(tiny_world, tmp_path / str(h), kl_horizon=h, **once))[0] for h in (64.0, 640.0))
    assert short["objective/kl_coef"] == pytest.approx(0.1 * (1 - 0.2 * 16 / 64))
    assert long["objective/kl_coef"] == pytest.approx(0.1 * (1 - 0.2 * 16 / 640))
    fixed = rows(_run(tiny_world, tmp_path / "fixed", kl_horizon=64.0, max_steps=2))
    assert all(row["objective/kl_coef"] == 0.1 for row in fixed)


def test_the_adapted_coefficient_is_the_one_that_trains(tiny_world, tmp_path) -> None:
    """Same draws and same first update; from the second batch on the penalty in the returns is another one."""
    settings = {"learning_rate": 5e-3, "kl_coef": 1.0, "ema_eta": 0.0}
    fixed = rows(_run(tiny_world, tmp_path / "fixed", **settings))
    adaptive = rows(_run(tiny_world, tmp_path / "adaptive", kl_target=1e-4, kl_horizon=8.0, **settings))
    assert fixed[1]["objective/kl_reference"] == adaptive[1]["objective/kl_reference"] > 1e-3
    assert adaptive[1]["objective/returns"] != fixed[1]["objective/returns"]
    assert adaptive[3]["objective/kl_coef"] > adaptive[1]["objective/kl_coef"]  # KL above the target


def test_two_passes_are_twice_the_training_on_the_same_samples(tiny_world, tmp_path) -> None:
    one, two = (_run(tiny_world, tmp_path / str(n), epochs=n, max_steps=1) for n in (1, 2))
    first = [rows(cell)[0] for cell in (one, two)]
    before = ("objective/scores", "objective/kl", "objective/returns", "spent/sampled_tokens")
    assert {k: first[0][k] for k in before} == {k: first[1][k] for k in before}
    assert first[1]["spent/trained_tokens"] == 2 * first[0]["spent/trained_tokens"]
    # a second pass starts from a policy that has moved: the mean ratio over the minibatches is further from 1
    assert abs(first[1]["policy/ratio"] - 1) > abs(first[0]["policy/ratio"] - 1)
    assert first[1]["policy/approx_kl"] > first[0]["policy/approx_kl"]


def test_four_samples_a_prompt_take_a_quarter_of_the_prompts(tiny_world, tmp_path, monkeypatch) -> None:
    asked: list[list[tuple[int, ...]]] = []
    generate = NativeEngine.generate

    def recorded(self, prompts, *args, **more):
        asked.append([tuple(p) for p in prompts])
        return generate(self, prompts, *args, **more)

    monkeypatch.setattr(NativeEngine, "generate", recorded)
    one = _run(tiny_world, tmp_path / "one")
    single = [prompts for prompts in asked if len(prompts) == 16]
    asked.clear()
    four = _run(tiny_world, tmp_path / "four", samples_per_prompt=4)
    grouped = [prompts for prompts in asked if len(prompts) == 16]
    assert cost(one)["prompts"] == 4 * cost(four)["prompts"] == 64
    assert cost(one)["reward_calls"] == cost(four)["reward_calls"] == 64
    assert all(len(set(prompts[i : i + 4])) == 1 for prompts in grouped for i in range(0, 16, 4))
    assert [prompts[::4] for prompts in grouped] == [single[0][i : i + 4] for i in range(0, 16, 4)]
    assert rows(four)[-1]["objective/kl"] != rows(one)[-1]["objective/kl"]


def test_the_entropy_bonus_raises_entropy(tiny_world, tmp_path) -> None:
    """The bonus alone: no KL, and advantages that the scale makes nothing of. Without it the policy stands still."""
    settings = {"kl_coef": 0.0, "reward_scale": 1e-9, "advantage_norm": False, "learning_rate": 3e-3, "batch_size": 64,
                "value_norm": False, "critic_from": "policy", "critic_learning_rate": 1e-9}  # fmt: skip
    plain = rows(_run(tiny_world, tmp_path / "plain", **settings))
    bonus = rows(_run(tiny_world, tmp_path / "bonus", entropy_coef=0.5, **settings))
    assert plain[0]["objective/entropy"] == bonus[0]["objective/entropy"]
    assert bonus[-1]["objective/entropy"] > plain[-1]["objective/entropy"] + 0.2
    assert bonus[-1]["policy/entropy"] > bonus[0]["policy/entropy"] and "policy/entropy" not in plain[0]
