"""Out of memory: a step that does not fit is taken in smaller parts, with the same result."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
import torch

from trueline.errors import RunError
from trueline.models.fingerprints import fingerprint
from trueline.training import experience, policies, policy_gradient, ppo, preference, reward, sft
from trueline.training.memory import Part, Room, each, is_out_of_memory
from trueline.training.step import make_optimizer, optimize

from .small import rows, run_small

CPU_WORDS = "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried ..."


def test_what_is_out_of_memory() -> None:
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert is_out_of_memory(RuntimeError(CPU_WORDS)) and is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("shapes do not match")) and not is_out_of_memory(
        ValueError("out of memory")
    )


def test_rows_that_do_not_fit_are_halved_until_they_do_and_each_is_done_once() -> None:
    done: list[int] = []

    def work(group: np.ndarray) -> None:
        if len(group) > 3:
            raise torch.OutOfMemoryError
        done.extend(group.tolist())

    each([np.arange(10), np.arange(10, 12)], work, Room())
    assert done == list(range(12))
    with pytest.raises(torch.OutOfMemoryError):
        each([np.arange(1)], lambda group: work(np.arange(4)), Room())
    with pytest.raises(RuntimeError, match="other"):
        each([np.arange(9)], lambda group: (_ for _ in ()).throw(RuntimeError("other")), Room())


def test_a_step_in_smaller_parts_is_the_same_step() -> None:
    torch.manual_seed(0)
    data, seen = torch.randn(12, 4), {"mean": 0.0}
    most, calls = 12, []

    def loss_of(micro) -> torch.Tensor:
        group = micro.rows if isinstance(micro, Part) else micro
        calls.append(len(group))
        value = model(data[group]).square().sum() / 12
        seen["mean"] += float(value.detach())
        if len(group) > most:  # after its metrics were added: the attempt must leave nothing behind
            raise RuntimeError(CPU_WORDS)
        return value

    def step(room: Room | None):
        torch.manual_seed(1)
        nonlocal model
        model = torch.nn.Linear(4, 1)
        micros = [torch.arange(7), Part(lambda _: torch.zeros(()), torch.arange(7, 12))]
        optimizer = make_optimizer(model, 1e-2)
        result = optimize(
            model,
            optimizer,
            micros,
            loss_of,
            learning_rate=1e-2,
            max_grad_norm=1.0,
            what="test",
            sums=[seen],
            room=room,
        )
        return result, dict(seen), model.weight.detach().clone()

    model = torch.nn.Linear(4, 1)
    whole, sums, weight = step(None)
    most, room = 2, Room()
    parts, part_sums, part_weight = step(room)
    assert room.parts == 4
    torch.testing.assert_close(part_weight, weight, rtol=1e-6, atol=1e-7)
    assert parts.loss == pytest.approx(whole.loss, rel=1e-6) and part_sums["mean"] == pytest.approx(sums["mean"])
    calls.clear()
    step(room)
    assert max(calls) == 2  # what did not fit once is not tried again
    most = 0
    with pytest.raises(RunError, match="one row at a time"):
        step(Room())


@pytest.mark.integration
@pytest.mark.parametrize("method", ["sft", "reward", "dpo", "ppo", "rloo"])
def test_a_method_that_runs_out_of_memory_trains_the_same_model(method, tiny_world, tmp_path, monkeypatch) -> None:
    steps = {"settings": {"critic_warmup": 0}} if method == "ppo" else {}
    run_small(tiny_world, method, tmp_path / "whole", **steps)
    failures = []

    def limited(function, position):
        def limit(*args, **more):
            if args[position].shape[0] > 3:
                failures.append(args[position].shape[0])
                raise torch.OutOfMemoryError("CUDA out of memory")
            return function(*args, **more)

        return limit

    for module in (sft, preference, policy_gradient, experience):
        monkeypatch.setattr(module, "response_logprobs", limited(module.response_logprobs, 1))
    monkeypatch.setattr(ppo, "response_values", limited(ppo.response_values, 1))
    monkeypatch.setattr(reward, "last_scores", limited(reward.last_scores, 1))
    run_small(tiny_world, method, tmp_path / "parts", **steps)
    assert failures
    whole, parts = (rows(tmp_path / name) for name in ("whole", "parts"))
    assert len(whole) == len(parts) > 0
    for one, other in zip(whole, parts):
        for key, value in one.items():
            if key == "rewards/accuracies":  # at the start policy and reference are equal: rounding decides
                continue
            assert other[key] == pytest.approx(value, rel=2e-3, abs=2e-4), key


@pytest.mark.integration
def test_a_model_that_is_lent_is_the_same_model_and_is_not_kept(tiny_world, tmp_path, monkeypatch) -> None:
    stage = tiny_world.stage("ppo", tmp_path / "stage")
    kept = policies.lent_policy(stage, "sft")
    with kept.here() as one, kept.here() as other:
        assert one is other  # a small one stays
    monkeypatch.setattr(policies, "LENT_FROM", 0)
    lent = policies.lent_policy(stage, "sft")
    with lent.here() as one, lent.here() as other:
        assert one is not other and fingerprint(one) == fingerprint(other) == fingerprint(kept._kept)
    held = weakref.ref(one)
    del one, other
    reward, _ = policies.lent_reward_model(stage)
    with reward.here() as model:
        assert model.parameter_count == reward.parameter_count and not reward.stays
    scorer = weakref.ref(model)
    del model
    gc.collect()
    assert scorer() is None
    gc.collect()
    assert held() is None


@pytest.mark.integration
def test_lending_changes_no_figure(tiny_world, tmp_path, monkeypatch) -> None:
    settings = {"critic_warmup": 0, "ema_eta": 0.2}
    kept = rows(run_small(tiny_world, "ppo", tmp_path / "kept", settings=settings))
    monkeypatch.setattr(policies, "LENT_FROM", 0)
    assert rows(run_small(tiny_world, "ppo", tmp_path / "lent", settings=settings)) == kept
