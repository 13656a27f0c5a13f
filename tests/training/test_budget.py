"""What a run says it spent, against tokens counted apart from the pages: from the data, and at the engine."""

from __future__ import annotations

import pytest

from trueline.models.checkpoints import load_decoder, load_scalar
from trueline.rollout.native import NativeEngine
from trueline.training.pairs import read_pairs
from trueline.training.stage import Stage

from .small import STEPS, cost, run_small

pytestmark = pytest.mark.integration


@pytest.fixture
def sizes(tiny_world) -> tuple[int, int]:
    """Parameters of the policy and of the reward model."""
    policy = load_decoder(tiny_world.cells["sft"] / "model")
    reward = load_scalar(tiny_world.cells["reward"] / "reward_model", bias=False)
    return sum(p.numel() for p in policy.parameters()), sum(p.numel() for p in reward.parameters())


@pytest.fixture
def sampled(monkeypatch) -> list:
    """The rollouts of the method itself: those that are shown on the way are not part of its cost."""
    kept, quiet = [], []
    generate, show = NativeEngine.generate, Stage._sample

    def recorded(self, *args, **more):
        rollout = generate(self, *args, **more)
        if not quiet:
            kept.append(rollout)
        return rollout

    def shown(self, *args):
        quiet.append(True)
        try:
            return show(self, *args)
        finally:
            quiet.pop()

    monkeypatch.setattr(NativeEngine, "generate", recorded)
    monkeypatch.setattr(Stage, "_sample", shown)
    return kept


@pytest.fixture
def counted(tiny_world):
    """`counted(prompt, response)`: the real tokens of a row."""
    from trueline.data.chat import ChatTokenizer

    tokenizer = ChatTokenizer.load(tiny_world.base / "tokenizer")
    return lambda p, r: len(tokenizer.encode_prompt(p)[-24:]) + len(tokenizer.encode_response(r)[:40])


def test_sft_trains_on_the_tokens_of_its_demonstrations(tiny_world, sizes, counted, tmp_path) -> None:
    """One epoch that is one batch: every demonstration once. 6 FLOP per parameter and token."""
    rows = tiny_world.task.demonstrations(0)
    cell = run_small(tiny_world, "sft", tmp_path / "sft", settings={"batch_size": len(rows)}, max_steps=1)
    tokens = sum(counted(d.prompt, d.response) for d in rows)
    assert cost(cell) == {"flops": 6.0 * sizes[0] * tokens, "trained_tokens": tokens, "sampled_tokens": 0,
                          "reward_calls": 0, "labels": 0, "prompts": 0}  # fmt: skip


def test_dpo_scores_the_reference_once_and_trains_on_both_sides(tiny_world, sizes, counted, tmp_path) -> None:
    pairs = read_pairs(tiny_world.cells["pairs"]).training
    cell = run_small(tiny_world, "dpo", tmp_path / "dpo", settings={"batch_size": len(pairs)}, max_steps=2)
    tokens = sum(counted(p.prompt, p.chosen) + counted(p.prompt, p.rejected) for p in pairs)
    assert cost(cell)["trained_tokens"] == 2 * tokens
    assert cost(cell)["flops"] == (2.0 + 6.0 * 2) * sizes[0] * tokens


def test_a_moving_reference_is_scored_at_every_step(tiny_world, sizes, counted, tmp_path) -> None:
    pairs = read_pairs(tiny_world.cells["pairs"]).training
    settings = {"batch_size": len(pairs), "ema_eta": 0.1}
    cell = run_small(tiny_world, "dpo", tmp_path / "dpo", settings=settings, max_steps=2)
    tokens = sum(counted(p.prompt, p.chosen) + counted(p.prompt, p.rejected) for p in pairs)
    assert cost(cell)["flops"] == (2.0 + 6.0) * 2 * sizes[0] * tokens


def test_simpo_pays_for_no_reference(tiny_world, sizes, counted, tmp_path) -> None:
    pairs = read_pairs(tiny_world.cells["pairs"]).training
    cell = run_small(tiny_world, "simpo", tmp_path / "simpo", settings={"batch_size": len(pairs)}, max_steps=2)
    tokens = sum(counted(p.prompt, p.chosen) + counted(p.prompt, p.rejected) for p in pairs)
    assert cost(cell)["flops"] == 6.0 * 2 * sizes[0] * tokens


@pytest.mark.parametrize("eta", [0.0, 0.1])
def test_kto_pays_for_its_mismatched_pairs(eta, tiny_world, sizes, counted, tmp_path) -> None:
    """All pairs in one batch: the mismatched ones have the same prompts and the same responses, so the same tokens.
    Both models score them at each step; the pairs themselves are scored by the reference once, or at each step."""
    pairs = read_pairs(tiny_world.cells["pairs"]).training
    settings = {"batch_size": len(pairs), "ema_eta": eta}
    cell = run_small(tiny_world, "kto", tmp_path / "kto", settings=settings, max_steps=2)
    tokens = sum(counted(p.prompt, p.chosen) + counted(p.prompt, p.rejected) for p in pairs)
    assert cost(cell)["trained_tokens"] == 2 * tokens
    assert cost(cell)["flops"] == (2.0 * (2 if eta else 1) + (4.0 + 6.0) * 2) * sizes[0] * tokens


def test_the_online_kl_is_paid_for(tiny_world, sizes, counted, sampled, tmp_path) -> None:
    """Per step of L real tokens: sampling 2NL, the reference 2NL, training 6NL; beside DPO's own cost."""
    pairs = read_pairs(tiny_world.cells["pairs"]).training
    settings = {"batch_size": len(pairs), "online_kl_coef": 0.1, "online_batch": 8}
    cell = run_small(tiny_world, "dpo", tmp_path / "dpo", settings=settings, max_steps=2)
    tokens = sum(counted(p.prompt, p.chosen) + counted(p.prompt, p.rejected) for p in pairs)
    assert [len(rollout) for rollout in sampled] == [8, 8]
    fresh = sum(int(rollout.lengths.sum()) for rollout in sampled)
    assert cost(cell)["trained_tokens"] == 2 * tokens + fresh
    assert cost(cell)["flops"] == ((2.0 + 6.0 * 2) * tokens + (2.0 + 2.0 + 6.0) * fresh) * sizes[0]
    assert cost(cell)["sampled_tokens"] == sum(rollout.sampled_tokens for rollout in sampled)
    assert cost(cell)["prompts"] == 16 and cost(cell)["reward_calls"] == cost(cell)["labels"] == 0


def test_pairs_are_counted_as_labels(tiny_world) -> None:
    assert cost(tiny_world.cells["pairs"])["labels"] == len(read_pairs(tiny_world.cells["pairs"]).training) > 100


def test_reward_trains_on_its_part_and_pays_for_calibration(tiny_world, sizes, counted, sampled, tmp_path) -> None:
    """held_out 0.25 of the pairs, the first ones: scored once after training; the rest trained on in one batch. The
    samples that its accuracy out of distribution is measured on are no part of the method and are not booked."""
    pairs = read_pairs(tiny_world.cells["pairs"]).training
    held = round(0.25 * len(pairs))
    settings = {"batch_size": len(pairs) - held, "held_out": 0.25}
    cell = run_small(tiny_world, "reward", tmp_path / "reward", settings=settings, max_steps=1)
    tokens = [counted(p.prompt, p.chosen) + counted(p.prompt, p.rejected) for p in pairs]
    samples, measured = sampled
    assert len(measured) > 0
    real = int(samples.lengths.sum())
    assert cost(cell)["trained_tokens"] == sum(tokens[held:])
    assert cost(cell)["sampled_tokens"] == int((samples.lengths - samples.prompt_lengths).sum())
    expected = (
        6.0 * sizes[1] * sum(tokens[held:]) + 2.0 * sizes[1] * (sum(tokens[:held]) + real) + 2.0 * sizes[0] * real
    )
    assert cost(cell)["flops"] == expected


@pytest.mark.parametrize("eta", [0.0, 0.1])
def test_ppo_pays_for_four_models(eta, tiny_world, sizes, sampled, tmp_path) -> None:
    """Per batch of L real tokens, N the policy's parameters, R the reward model's (the critic has one more, its bias):
    sampling 2NL, scoring 2RL, old and reference log-probs 2NL each, values 2(R+1)L; the probe is an eighth of the rows,
    P tokens: 2 * 2NP for the exact KL and, under a moving reference, 2NP for SFT; training 6(R+1)L for the critic a
    step, 6NL for the policy after the first (critic_warmup 1), both twice: two epochs."""
    settings = {"batch_size": 32, "ema_eta": eta, "epochs": 2, "critic_warmup": 1}
    cell = run_small(tiny_world, "ppo", tmp_path / "ppo", settings=settings)
    n, r, c = sizes[0], sizes[1], sizes[1] + 1
    flops, trained = 0.0, 0
    assert len(sampled) == STEPS
    for step, rollout in enumerate(sampled):
        tokens = int(rollout.lengths.sum())
        probed = int(rollout.lengths[:4].sum())
        flops += 2.0 * tokens * (n + r + n + n + c) + 6.0 * tokens * c * 2
        flops += 2.0 * probed * (2 * n + (n if eta else 0))
        trained += tokens * 2
        if step >= 1:
            flops, trained = flops + 6.0 * tokens * n * 2, trained + tokens * 2
    assert cost(cell)["flops"] == flops
    assert cost(cell)["trained_tokens"] == trained
    assert cost(cell)["sampled_tokens"] == sum(int((x.lengths - x.prompt_lengths).sum()) for x in sampled)
    assert cost(cell)["reward_calls"] == 32 * STEPS


def test_dpo_iter_samples_once_per_round(tiny_world, sizes, sampled, tmp_path) -> None:
    """rounds 2, sync_every 2, batch 16, passes 2: 16 prompts a round, 3 samples each."""
    settings = {"samples_per_prompt": 3, "passes": 2.0}
    cell = run_small(tiny_world, "dpo-iter", tmp_path / "iter", settings=settings)
    assert [len(rollout) for rollout in sampled] == [48, 48]
    assert cost(cell)["prompts"] == 32 and cost(cell)["reward_calls"] == 96 and cost(cell)["labels"] == 0
    assert cost(cell)["sampled_tokens"] == sum(rollout.sampled_tokens for rollout in sampled)
    tokens = sum(int(rollout.lengths.sum()) for rollout in sampled)
    least = 2.0 * (sizes[0] + sizes[1]) * tokens + 6.0 * sizes[0] * cost(cell)["trained_tokens"]
    assert (
        least < cost(cell)["flops"] < least + 2.0 * sizes[0] * tokens
    )  # the rest: the reference on the labelled pairs
