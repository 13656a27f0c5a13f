"""Checkpoints of weights that lie in parts: each process writes its own, any number of processes reads them."""

from __future__ import annotations

import errno
import os
import random
import time
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from tests.distributed.together import join_all, run_together, start_all, together
from tests.training.small import small

from trueline.errors import RunError
from trueline.models.decoder import DecoderConfig
from trueline.models.fingerprints import fingerprint_tensors
from trueline.models.tiny import make_decoder
from trueline.runs import checkpoint
from trueline.runs.checkpoint import ModuleState, OptimizerState
from trueline.runs.meter import BudgetMeter
from trueline.training.step import make_optimizer

pytestmark = pytest.mark.integration

SHAPE = DecoderConfig(vocab_size=50, hidden_size=16, intermediate_size=24, num_layers=2, num_heads=2, num_kv_heads=1,
                      head_dim=8, max_positions=32, tied=True)  # fmt: skip


class Run:
    """A policy, its AdamW after `steps` steps, and a meter."""

    def __init__(self, seed: int, place=lambda model: model) -> None:
        self.policy = place(make_decoder(SHAPE, seed))
        self.optimizer, self.meter = make_optimizer(self.policy, 0.01), BudgetMeter()
        self.registry = {
            "policy": ModuleState(self.policy), "optimizer": OptimizerState(self.optimizer), "meter": self.meter,
        }  # fmt: skip

    def step(self, number: int) -> None:
        tokens = torch.randint(0, 50, (3, 9), generator=torch.Generator().manual_seed(number))
        self.optimizer.zero_grad()
        self.policy(tokens).square().mean().backward()
        self.optimizer.step()
        self.meter.train(1, 27)

    def digest(self) -> str:
        tensors = dict(self.policy.named_parameters())
        tensors |= {f"{i}.{name}": t for i, slot in self.optimizer.state.items() for name, t in slot.items()}
        return fingerprint_tensors(tensors) + str(self.meter.state())


def _saving(folder: str, digests: str, fault: str) -> None:
    """What each of the processes does: two checkpoints, the second of which meets a fault."""
    from trueline.distributed.sharding import shard
    from trueline.distributed.world import current
    from trueline.runs import parts

    world = current()
    run = Run(0, lambda model: shard(model, world))
    run.step(0)
    checkpoint.save(Path(folder), 1, run.registry)
    run.step(1)
    write, seal, message = parts.write, checkpoint._seal, ""
    if fault == "disk" and world.rank == 1:
        import torch.distributed.checkpoint.filesystem as filesystem

        filesystem._write_item = _full
    if fault == "leader" and world.leads:
        checkpoint._seal = _full
    if fault == "death" and world.rank == 1:
        parts.write = lambda *a: os._exit(9)
    try:
        checkpoint.save(Path(folder), 2, run.registry)
    except RunError as error:
        message = str(error)
    parts.write, checkpoint._seal = write, seal
    if fault == "death":
        assert "another process of this run is gone" in message, message
        os._exit(0)  # the group cannot be left in order
    assert bool(message) == bool(fault) and (not fault or "No space left on device" in message), message
    held = run.digest()
    if world.leads:
        Path(digests).write_text(held)


def _restoring(folder: str, digests: str) -> None:
    from trueline.distributed.sharding import shard
    from trueline.distributed.world import current

    world = current()
    run = Run(7, lambda model: shard(model, world))
    found = checkpoint.newest(Path(folder))
    checkpoint.restore(Path(folder), found.step, run.registry)
    assert found.step == 2 and run.digest() == Path(digests).read_text()
    assert run.policy.head.weight is run.policy.trunk.embed.weight
    later = Run(9, lambda model: shard(model, world))
    checkpoint.put_policy(Path(folder), 2, later.policy)
    assert all(torch.equal(a.full_tensor(), b.full_tensor()) for a, b in
               zip(run.policy.parameters(), later.policy.parameters()))  # fmt: skip


def _full(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """Checkpoints of steps 1 and 2, by two processes."""
    folder = tmp_path_factory.mktemp("parts")
    processes = start_all(2, _saving, str(folder / "checkpoints"), str(folder / "digest"), "")
    assert join_all(processes) == [0, 0]
    return folder


def _copied(saved: Path, to: Path) -> Path:
    import shutil

    return Path(shutil.copytree(saved / "checkpoints", to / "checkpoints"))


def test_one_process_goes_on_from_the_parts_of_two(saved) -> None:
    run = Run(5)
    checkpoint.restore(saved / "checkpoints", 2, run.registry)
    assert run.digest() == (saved / "digest").read_text()
    assert run.policy.head.weight is run.policy.trunk.embed.weight
    policy = checkpoint.read_policy(saved / "checkpoints", 2)
    assert all(torch.equal(policy[name], tensor) for name, tensor in run.policy.state_dict().items())


def test_three_processes_go_on_from_the_parts_of_two(saved) -> None:
    assert join_all(start_all(3, _restoring, str(saved / "checkpoints"), str(saved / "digest"))) == [0, 0, 0]


def test_no_process_writes_what_another_holds(saved) -> None:
    rows: dict[str, list[int]] = {}
    for path in sorted((saved / "checkpoints" / "step-00000002" / "policy").glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():
                rows.setdefault(name, []).append(file.get_slice(name).get_shape()[0])
    whole = {f"policy/{name}": len(tensor) for name, tensor in make_decoder(SHAPE, 0).state_dict().items()}
    assert set(rows) == set(whole)
    assert all(sum(rows[name]) == size and max(rows[name]) <= -(-size // 2) for name, size in whole.items())


@pytest.mark.parametrize("half", ["policy", "state"])
def test_damage_in_a_part_is_found_and_the_one_before_is_used(saved, half, tmp_path) -> None:
    folder = _copied(saved, tmp_path)
    part = sorted((folder / "step-00000002" / half).glob("*.safetensors"))[1]
    data = bytearray(part.read_bytes())
    data[-3] ^= 1
    part.write_bytes(data)
    found = checkpoint.newest(folder)
    assert found.step == 1 and f"{half}/{part.name} is damaged" in found.damaged[0]
    part.unlink()
    if half == "policy":
        assert "found nothing" in checkpoint.newest(folder).damaged[0]
    else:  # as where the clean-up after a newer checkpoint was cut short
        assert checkpoint.newest(folder) == checkpoint.Found(folder, 1, ())
        with pytest.raises(RunError, match="training state was dropped"):
            checkpoint.restore(folder, 2, Run(0).registry)


def test_older_training_state_is_dropped_part_by_part(saved, tmp_path) -> None:
    folder = _copied(saved, tmp_path)
    run = Run(0)
    for step in (3, 4):
        checkpoint.save(folder, step, run.registry)
    held = [bool(checkpoint._rest(folder / f"step-{step:08d}")) for step in checkpoint.steps(folder)]
    assert held == [False, False, True, True]
    assert checkpoint.read_policy(folder, 1)


@pytest.mark.parametrize("fault", ["disk", "leader"])
def test_a_disk_that_is_full_for_one_process_fails_all_and_loses_nothing(fault, tmp_path) -> None:
    processes = start_all(2, _saving, str(tmp_path / "checkpoints"), str(tmp_path / "digest"), fault)
    assert join_all(processes) == [0, 0]
    assert checkpoint.latest_step(tmp_path / "checkpoints") == 1
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000001"]
    checkpoint.save(tmp_path / "checkpoints", 2, Run(0).registry)
    assert checkpoint.latest_step(tmp_path / "checkpoints") == 2


def test_a_process_that_dies_while_all_write(tmp_path) -> None:
    processes = start_all(2, _saving, str(tmp_path / "checkpoints"), str(tmp_path / "digest"), "death")
    assert join_all(processes, 60) == [0, 9]
    assert checkpoint.latest_step(tmp_path / "checkpoints") == 1


@pytest.mark.nightly
@pytest.mark.parametrize("method", ["dpo", "ppo"])
def test_two_processes_that_are_killed_again_and_again_come_to_the_same_end(method, tiny_world, tmp_path) -> None:
    """Killed around the writing of every checkpoint: what is left is gone on from, to the same bits."""
    settings, more = small(method), {"max_steps": 8, "snapshots": 8, "double": False}
    run_together(2, method, tmp_path / "whole", tiny_world, settings, **more)
    cells = {name: str(cell) for name, cell in tiny_world.cells.items() if name != method}
    killed, draw, found, half = tmp_path / "killed", random.Random(method), [], 0
    while len(found) < 14 and not (killed / "done.json").exists():
        before = set((killed / "checkpoints").glob("*"))
        processes = together(2, method, killed, str(tiny_world.base), cells, settings, **more)
        while set((killed / "checkpoints").glob("*")) <= before and all(p.exitcode is None for p in processes):
            time.sleep(0.001)
        time.sleep(draw.choice([0, 0, 0.02, 0.05, 0.2]))
        for process in processes:
            process.kill()
        join_all(processes)
        half += any((killed / "checkpoints").glob(".tmp*"))
        found.append(checkpoint.latest_step(killed / "checkpoints"))
    run_together(2, method, killed, tiny_world, settings, **more)
    assert len(found) > 3 and half > 0, (found, half)
    for name in ("metrics.jsonl", "samples.jsonl", "model/model.safetensors"):
        assert (tmp_path / "whole" / name).read_bytes() == (killed / name).read_bytes(), name
    print(f"{method}: {len(found)} kills, {half} of them within a checkpoint")
