"""Checkpoints: bit-exact, damage is found, older state goes only when the new one is whole."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from torch import nn

from trueline.errors import RunError
from trueline.models.fingerprints import fingerprint, fingerprint_tensors
from trueline.runs import checkpoint, durable
from trueline.runs.checkpoint import ModuleState, OptimizerState, latest_step, read_policy, restore, retain, save, steps
from trueline.runs.meter import BudgetMeter
from trueline.training.step import make_optimizer

FILES = ("policy.safetensors", "state.safetensors", "state.json", "MANIFEST.json")


class Run:
    """A small training run: two networks, AdamW, a meter; `step` is deterministic."""

    def __init__(self, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.policy, self.critic = nn.Linear(6, 4), nn.Linear(6, 1)
        self.critic.register_buffer("seen", torch.zeros(2, dtype=torch.int64))
        self.optimizer, self.meter = make_optimizer(self.policy, 0.01), BudgetMeter()
        self.registry = {
            "policy": ModuleState(self.policy), "critic": ModuleState(self.critic),
            "optimizer": OptimizerState(self.optimizer), "meter": self.meter,
        }  # fmt: skip

    def step(self, number: int) -> None:
        x = torch.randn(5, 6, generator=torch.Generator().manual_seed(number))
        self.optimizer.zero_grad()
        self.policy(x).square().sum().backward()
        self.optimizer.step()
        self.critic.seen += 1
        self.meter.train(28, 30)
        self.meter.seconds += 0.1

    def digest(self) -> tuple:
        moments = {f"{i}.{k}": v for i, s in enumerate(self.optimizer.state.values()) for k, v in s.items()}
        state = fingerprint(self.policy), fingerprint(self.critic), fingerprint_tensors(moments)
        return (*state, self.critic.seen.tolist(), self.meter.state())


@pytest.fixture
def saved(tmp_path) -> Path:
    """Checkpoints of steps 2, 4 and 6."""
    run = Run()
    for number in range(6):
        run.step(number)
        if number % 2:
            save(tmp_path, number + 1, run.registry)
    return tmp_path


def flip(path: Path, place: float) -> None:
    data = bytearray(path.read_bytes())
    data[min(int(len(data) * place), len(data) - 1)] ^= 0x01
    path.write_bytes(data)


def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(tmp_path) -> None:
    whole = Run()
    for number in range(7):
        whole.step(number)
        if number == 3:
            at_save = whole.digest()
            save(tmp_path, 4, whole.registry)
    resumed = Run(seed=99)
    assert resumed.digest() != at_save
    restore(tmp_path, latest_step(tmp_path), resumed.registry)
    assert resumed.digest() == at_save
    for number in range(4, 7):
        resumed.step(number)
    assert resumed.digest() == whole.digest()
    assert whole.digest() != at_save


def test_restoring_copies(tmp_path) -> None:
    """Going on after a save does not change what was saved, nor what another run restored."""
    run, other = Run(), Run(seed=1)
    run.step(0)
    save(tmp_path, 1, run.registry)
    restore(tmp_path, 1, run.registry)
    restore(tmp_path, 1, other.registry)
    before = other.digest()
    run.step(1)
    assert other.digest() == before != run.digest()


def test_a_tied_weight_stays_tied(tmp_path) -> None:
    one, two = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
    two.weight = one.weight
    model = nn.Sequential(one, two)
    save(tmp_path, 1, {"policy": ModuleState(model)})
    expected = one.weight.detach().clone()
    with torch.no_grad():
        one.weight.zero_()
    restore(tmp_path, 1, {"policy": ModuleState(model)})
    assert (one.weight == expected).all() and one.weight is two.weight


def test_an_optimizer_without_moments_and_a_registry_without_policy(tmp_path) -> None:
    """Before the first step AdamW holds nothing; a reward model's run has no policy."""
    run = Run()
    registry = {"optimizer": run.registry["optimizer"]}
    save(tmp_path, 0, registry)
    run.step(0)
    restore(tmp_path, 0, registry)
    assert not run.optimizer.state
    assert read_policy(tmp_path, 0) == {}


def test_names_that_are_ends_of_other_names_do_not_mix(tmp_path) -> None:
    a, b = nn.Linear(2, 2), nn.Linear(2, 2)
    registry = {"optimizer": ModuleState(a), "critic_optimizer": ModuleState(b)}
    save(tmp_path, 1, registry)
    expected = fingerprint(a), fingerprint(b)
    nn.init.zeros_(a.weight), nn.init.zeros_(b.weight)
    restore(tmp_path, 1, registry)
    assert (fingerprint(a), fingerprint(b)) == expected


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("place", [0.0, 0.02, 0.3, 0.5, 0.77, 1.0])
def test_one_flipped_bit_is_found_and_the_one_before_is_used(saved, name, place) -> None:
    assert latest_step(saved) == 6
    flip(saved / "step-00000006" / name, place)
    assert latest_step(saved) == 4
    run = Run(seed=5)
    before = run.digest()
    with pytest.raises(RunError, match=r"step-00000006.*delete this folder"):
        restore(saved, 6, run.registry)
    assert run.digest() == before  # nothing was loaded halfway
    with pytest.raises(RunError, match="step-00000006"):
        read_policy(saved, 6)
    restore(saved, 4, run.registry)
    assert run.critic.seen.tolist() == [4, 4]


def test_every_byte_of_the_manifest_is_watched(saved) -> None:
    path = saved / "step-00000006" / "MANIFEST.json"
    good = path.read_bytes()
    for place in range(len(good)):
        data = bytearray(good)
        data[place] ^= 0x01
        path.write_bytes(data)
        assert latest_step(saved) == 4, place
    path.write_bytes(good)
    assert latest_step(saved) == 6


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("keep", [0, 9, -1])
def test_a_file_that_was_cut_off_is_found(saved, name, keep) -> None:
    path = saved / "step-00000006" / name
    path.write_bytes(path.read_bytes()[:keep])
    assert latest_step(saved) == 4


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_gone_is_found(saved, name) -> None:
    (saved / "step-00000006" / name).unlink()
    assert latest_step(saved) == 4
    with pytest.raises(RunError, match="step-00000006"):
        restore(saved, 6, Run().registry)


def test_nothing_to_resume_from(tmp_path, saved) -> None:
    assert latest_step(tmp_path / "absent") is None
    assert steps(tmp_path / "absent") == []
    for step in (4, 6):
        flip(saved / f"step-{step:08d}" / "state.json", 0.5)
    assert latest_step(saved) is None


def test_policies_stay_and_the_state_of_the_newest_two(saved) -> None:
    assert steps(saved) == [2, 4, 6]
    held = [(saved / f"step-{s:08d}" / "state.safetensors").exists() for s in (2, 4, 6)]
    assert held == [False, True, True]
    run = Run()
    for number in range(6):
        run.step(number)
        if number % 2:
            policy = read_policy(saved, number + 1)
            assert fingerprint_tensors(policy) == fingerprint(run.policy)
    with pytest.raises(RunError, match="dropped"):
        restore(saved, 2, run.registry)


@pytest.mark.parametrize("call", ["save_file", "sync", "_sha256"])
def test_a_crash_while_saving_leaves_the_older_ones_whole(saved, monkeypatch, call) -> None:
    before = {path: path.read_bytes() for path in saved.rglob("*") if path.is_file()}
    monkeypatch.setattr(checkpoint, call, lambda *a, **k: (_ for _ in ()).throw(OSError("disk full")))
    run = Run()
    with pytest.raises(RunError, match=r"disk full.*bytes needed"):
        save(saved, 8, run.registry)
    monkeypatch.undo()
    assert all(path.read_bytes() == data for path, data in before.items())
    assert (steps(saved), latest_step(saved)) == ([2, 4, 6], 6)
    save(saved, 8, run.registry)  # what the crash left behind is not in the way
    assert latest_step(saved) == 8 and not list(saved.glob(".tmp*"))


def test_a_crash_before_the_older_state_was_dropped(saved, monkeypatch) -> None:
    """The rename is the moment that counts: a checkpoint that is in place is resumed from, whatever was not cleaned."""
    monkeypatch.setattr(Path, "unlink", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        save(saved, 8, Run().registry)
    monkeypatch.undo()
    assert latest_step(saved) == 8 and (saved / "step-00000004" / "state.safetensors").exists()
    retain(saved, 8)  # as a run that goes on does
    assert [s for s in steps(saved) if (saved / f"step-{s:08d}" / "state.safetensors").exists()] == [6, 8]


def test_a_step_that_was_run_again_replaces_its_checkpoint(saved) -> None:
    """A run that fell back to 4 comes to 6 again; the later folder of the damaged run is not counted as newer state."""
    flip(saved / "step-00000006" / "state.safetensors", 0.9)
    run = Run()
    restore(saved, 4, run.registry)
    run.step(4)
    save(saved, 5, run.registry)
    assert latest_step(saved) == 5
    assert (saved / "step-00000004" / "state.safetensors").exists()
    run.step(5)
    save(saved, 6, run.registry)
    assert latest_step(saved) == 6


def test_another_registry_is_refused(saved) -> None:
    registry = Run().registry
    with pytest.raises(RunError, match="reference"):
        restore(saved, 6, registry | {"reference": registry["policy"]})
    del registry["critic"]
    with pytest.raises(RunError, match="critic"):
        restore(saved, 6, registry)


def test_folders_of_other_names_are_no_checkpoints(saved) -> None:
    for name in ("step-final", "step-", ".tmp-step-00000009", "notes"):
        (saved / name).mkdir()
    assert (steps(saved), latest_step(saved)) == ([2, 4, 6], 6)


def test_there_is_no_pickle(saved) -> None:
    """Safetensors start with the length of a JSON header, everything else is JSON."""
    for path in (p for p in saved.rglob("*") if p.is_file()):
        data = path.read_bytes()
        if path.suffix == ".safetensors":
            size = int.from_bytes(data[:8], "little")
            assert json.loads(data[8 : 8 + size])
        else:
            assert isinstance(json.loads(data), dict)


def test_the_files_are_synced_before_the_rename(tmp_path, monkeypatch) -> None:
    events: list[str] = []
    sync, replace = checkpoint.sync, os.replace
    for module in (checkpoint, durable):
        monkeypatch.setattr(module, "sync", lambda path: events.append(path.name) or sync(path))
    monkeypatch.setattr(os, "replace", lambda a, b: events.append("rename") or replace(a, b))
    save(tmp_path, 3, Run().registry)
    before, after = events[: events.index("rename")], events[events.index("rename") + 1 :]
    assert set(FILES) | {".tmp-step-00000003"} <= set(before)
    assert after == [tmp_path.name]
