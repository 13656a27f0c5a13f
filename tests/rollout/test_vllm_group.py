"""Weights to a server over a process group: what arrives, and what happens where it does not."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.distributed.together import run_together
from tests.training.small import rows, small

from trueline.distributed.sharding import each_whole
from trueline.errors import InputError, NumericsError, RunError
from trueline.models.decoder import DecoderConfig
from trueline.models.tiny import make_decoder
from trueline.rollout.vllm import VllmEngine, probe_logprobs
from trueline.rollout.vllm_client import VllmServer

from .protocol import ProtocolServer

SHAPE = DecoderConfig(vocab_size=41, hidden_size=16, intermediate_size=24, num_layers=2, num_heads=4, num_kv_heads=2,
                      head_dim=4, max_positions=48, pad_id=0, end_id=2)  # fmt: skip


def _engine(server: ProtocolServer, timeout: float = 20.0) -> VllmEngine:
    return VllmEngine(VllmServer(server.url, timeout=timeout), pad_id=0, end_id=2, group=True)


@pytest.mark.parametrize("shape", [SHAPE, replace(SHAPE, family="qwen3", tied=True), replace(SHAPE, family="qwen2")])
def test_every_weight_arrives_each_time(shape) -> None:
    with ProtocolServer(make_decoder(shape, 9)) as server, _engine(server) as engine:
        for version in (1, 2, 3):
            policy = make_decoder(shape, version)
            engine.load_weights(policy, version)
            assert engine.proof.gap < 1e-6 and engine.proof.nearer and (engine.proof.moved > 0) == (version > 1)
            taken = server.model.state_dict()
            assert all(torch.equal(taken[name], tensor) for name, tensor in policy.state_dict().items())
        joins = [body for body in server.bodies if body.get("method") == "trueline_join"]
        assert len(joins) == 1 and server.paths.count("/reset_prefix_cache") == 3
        assert not any("weights_path" in body.get("kwargs", {}) for body in server.bodies)


def test_weights_may_come_one_at_a_time() -> None:
    policy = make_decoder(SHAPE, 1)
    with ProtocolServer(make_decoder(SHAPE, 9)) as server, _engine(server) as engine:
        engine.hand_over(policy, 1, probe_logprobs(policy), each_whole(policy))
        assert engine.proof.gap < 1e-6


def test_a_server_that_keeps_its_weights_is_found() -> None:
    with ProtocolServer(make_decoder(SHAPE, 9), stale=True) as server, _engine(server) as engine:
        with pytest.raises(NumericsError, match="does not hold the policy's weights"):
            engine.load_weights(_far(), 1)


def _far():
    policy = make_decoder(SHAPE, 1)
    with torch.no_grad():
        policy.head.weight.mul_(200)
    return policy


@pytest.mark.parametrize("limit", [0, 5, 13])
def test_workers_that_fail_on_the_way_end_the_run_at_once(limit) -> None:
    began = time.monotonic()
    with ProtocolServer(make_decoder(SHAPE, 9), limit=limit) as server, _engine(server) as engine:
        with pytest.raises(RunError, match=r"HTTP 500 .*no room for more weights"):
            engine.load_weights(make_decoder(SHAPE, 1), 1)
    assert time.monotonic() - began < 15


def test_a_server_without_a_receiver(monkeypatch) -> None:
    began = time.monotonic()
    with ProtocolServer(make_decoder(SHAPE, 9)) as server, _engine(server) as engine:
        monkeypatch.setattr(server, "worker", object())
        with pytest.raises(InputError, match=r"takes no weights over a group.*worker-extension-cls") as told:
            engine.load_weights(make_decoder(SHAPE, 1), 1)
        assert told.value.field == "rollout.transfer"
    assert time.monotonic() - began < 15


@pytest.mark.parametrize("ranks", [(0, 0), (1,), (0, 2)])
def test_a_server_of_several_engines(ranks) -> None:
    with ProtocolServer(make_decoder(SHAPE, 9), ranks=ranks) as server, _engine(server) as engine:
        with pytest.raises(RunError, match="takes weights as files only"):
            engine.load_weights(make_decoder(SHAPE, 1), 1)


def test_workers_that_do_not_come(monkeypatch) -> None:
    monkeypatch.setattr("trueline.rollout.vllm_group._SECONDS", 1.0)
    began = time.monotonic()
    with ProtocolServer(make_decoder(SHAPE, 9)) as server, _engine(server) as engine:
        monkeypatch.setattr(server.worker, "trueline_join", lambda **arguments: None)
        with pytest.raises(RunError, match="did not come"):
            engine.load_weights(make_decoder(SHAPE, 1), 1)
    assert time.monotonic() - began < 15


@pytest.mark.integration
def test_a_server_that_hangs_does_not_hold_the_process(monkeypatch) -> None:
    monkeypatch.setattr("trueline.rollout.vllm_group._SECONDS", 1.0)
    before = set(threading.enumerate())
    with ProtocolServer(make_decoder(SHAPE, 9)) as server, _engine(server) as engine:
        monkeypatch.setattr(server.worker, "trueline_join", lambda **arguments: time.sleep(9))
        with pytest.raises(RunError, match="did not come"):
            engine.load_weights(make_decoder(SHAPE, 1), 1)
        assert all(thread.daemon for thread in set(threading.enumerate()) - before)


@pytest.mark.integration
@pytest.mark.parametrize("transfer", ["group", pytest.param("files", marks=pytest.mark.nightly)])
def test_a_policy_in_parts_goes_over_tensor_by_tensor(transfer, tiny_world, tmp_path) -> None:
    """Two processes that train one policy hand it to a server; the steps are those of one process that does."""
    from trueline.models.checkpoints import load_decoder

    found = []
    for size in (1, 2):
        with ProtocolServer(load_decoder(tiny_world.cells["sft"] / "model")) as server:
            settings = {"engine": "vllm", "url": (server.url,), "transfer": transfer}
            run_together(size, "rloo", tmp_path / str(size), tiny_world, small("rloo"), rollout=settings, max_steps=2,
                         double=False)  # fmt: skip
            assert sum(body.get("method") == "trueline_receive" for body in server.bodies) >= 2 or transfer == "files"
        found.append(rows(Path(tmp_path / str(size))))
    one, two = found
    assert len(one) == len(two) == 2
    assert max(abs(a["loss"] - b["loss"]) for a, b in zip(one, two)) < 1e-4
