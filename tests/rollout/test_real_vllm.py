"""The real vLLM, where TRUELINE_TEST_VLLM names its command (docs/vllm.md says how to install it for a CPU)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from program import ENVIRONMENT
from trueline.data.chat import ChatTokenizer
from trueline.errors import InputError, RunError
from trueline.models.checkpoints import load_decoder, load_scalar, save_model
from trueline.models.heads import ScalarModel
from trueline.models.scoring import Sampling, forbidden_mask, response_logprobs
from trueline.models.tiny import make_decoder, sized
from trueline.rollout.native import NativeEngine
from trueline.rollout.vllm import VllmEngine
from trueline.rollout.vllm_client import VllmServer
from trueline.rollout.vllm_launch import served
from trueline.runs.cell import read_json, read_jsonl
from trueline.seeds import uniforms

COMMAND = os.environ.get("TRUELINE_TEST_VLLM", "")
pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not COMMAND, reason="TRUELINE_TEST_VLLM names no vllm command"),
]

TEXTS = ["how do i brew tea ?", "with hot water .", "no , not in here ."] * 20
LIMIT, POSITIONS = 24, 64
STAGE = (
    "ppo", "dialogue", "--quick", "model.width=128", "world.pairs=120", "ppo.batch_size=64", "ppo.steps=48",
    "train.max_steps=48", "rollout.engine=vllm",
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A model of a head width that vLLM's attention on a CPU knows, with its tokenizer; a reward model beside it."""
    folder = tmp_path_factory.mktemp("models")
    tokenizer = ChatTokenizer.train(TEXTS, vocab_size=300)
    shape = sized(
        "tiny", vocab_size=tokenizer.vocab_size, max_positions=POSITIONS, pad_id=tokenizer.pad_id,
        end_id=tokenizer.end_id, width=128,
    )  # fmt: skip
    save_model(make_decoder(shape, 0), folder / "policy")
    tokenizer.save(folder / "policy")
    reward = ScalarModel(shape, bias=False)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in reward.named_parameters():
            parameter.fill_(1.0) if "norm" in name else parameter.normal_(0.0, 0.05, generator=generator)
    pad = next(i for i in (tokenizer.pad_id, *tokenizer.forbidden_ids) if i not in tokenizer.end_ids)
    save_model(reward, folder / "reward", pad_id=pad)
    tokenizer.save(folder / "reward", pad_id=pad)
    return folder


@pytest.fixture(scope="module")
def server(folder) -> VllmServer:
    options = (f"--max-model-len={POSITIONS}", "--dtype=float32")
    with served(COMMAND, folder / "policy", folder / "vllm.log", options) as url:
        client = VllmServer(url, timeout=120)
        assert client.check()
        yield client


@pytest.fixture(scope="module")
def tokenizer(folder) -> ChatTokenizer:
    return ChatTokenizer.load(folder / "policy")


def _moved(policy, size: float):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))
    return policy


def test_hand_overs_are_proved_and_log_probs_are_the_trainers(server, folder, tokenizer) -> None:
    policy = load_decoder(folder / "policy")
    sampling = Sampling(forbidden=forbidden_mask(tokenizer.vocab_size, tokenizer.forbidden_ids))
    prompts = [[5 + i % 7, 6, 7, 8 + i % 3][: 2 + i % 3] for i in range(48)]
    draws = uniforms(0, "rollout", 0, range(len(prompts)), LIMIT)
    native = NativeEngine(pad_id=tokenizer.pad_id, end_id=tokenizer.end_ids)
    with VllmEngine(server, pad_id=tokenizer.pad_id, end_id=tokenizer.end_ids) as engine:
        for version, size in ((1, 0.0), (2, 0.02), (3, 0.001)):
            engine.load_weights(_moved(policy, size), version)
            assert engine.proof.largest < 1e-4 and engine.proof.nearer
            assert (engine.proof.moved > 1e-3) == (version > 1)
            drawn = engine.generate(prompts, draws, max_new_tokens=LIMIT, sampling=sampling)
            with torch.no_grad():
                own, _ = response_logprobs(policy, drawn.tokens, drawn.response_mask, sampling)
            assert float((own - drawn.logprobs).abs().max()) < 1e-4
            assert not sampling.forbidden[drawn.tokens[drawn.response_mask]].any()
            backwards = engine.generate(prompts[::-1], draws[::-1], max_new_tokens=LIMIT, sampling=sampling)
            assert backwards.responses()[::-1] == drawn.responses()
        native.load_weights(policy, 0)
        greedy = [
            one.generate(prompts, None, max_new_tokens=LIMIT, sampling=sampling).responses() for one in (engine, native)
        ]
        assert greedy[0] == greedy[1]


def test_samples_end_where_the_policy_ends_them(server, folder, tokenizer) -> None:
    policy = load_decoder(folder / "policy")
    with torch.no_grad():
        policy.head.weight[tokenizer.end_id] += 0.3 * policy.head.weight[20] + 0.05
    sampling = Sampling()
    draws = uniforms(0, "rollout", 1, range(256), LIMIT)
    with VllmEngine(server, pad_id=tokenizer.pad_id, end_id=tokenizer.end_ids) as engine:
        engine.load_weights(policy, 1)
        drawn = engine.generate([[5, 6, 7]] * 256, draws, max_new_tokens=LIMIT, sampling=sampling)
    native = NativeEngine(pad_id=tokenizer.pad_id, end_id=tokenizer.end_ids)
    native.load_weights(policy, 0)
    own = native.generate([[5, 6, 7]] * 256, draws, max_new_tokens=LIMIT, sampling=sampling)
    ends = [float(one.ended.double().mean()) for one in (drawn, own)]
    assert 0.02 < ends[0] < 0.98
    assert abs(ends[0] - ends[1]) < 4 * (2 * 0.25 / 256) ** 0.5  # two samples of one share
    for row, ended in zip(drawn.responses(), drawn.ended.tolist()):
        assert (row[-1] == tokenizer.end_id) == ended and tokenizer.end_id not in row[:-1]


def test_a_reward_models_server_scores_as_the_model_does(folder) -> None:
    model = load_scalar(folder / "reward", bias=False)
    rows = [[5, 6, 7, 8, 1], [9, 10, 11, 1], [100, 5, 6, 200, 201, 1]]
    options = ("--runner", "pooling", f"--max-model-len={POSITIONS}", "--dtype=float32")
    from trueline.models.heads import last_scores

    with served(COMMAND, folder / "reward", folder / "reward.log", options) as url:
        client = VllmServer(url, timeout=120)
        client.check(sampling=False)
        found = client.rewards(rows)
    with torch.no_grad():
        own = [float(last_scores(model, torch.tensor([row]), torch.tensor([len(row)]))) for row in rows]
    assert found == pytest.approx(own, abs=1e-5)


def _program(folder: Path, *arguments: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "trueline", *STAGE, *arguments]
    return subprocess.Popen(command, cwd=folder, env=ENVIRONMENT, stdout=-1, stderr=-1, text=True)


def _ppo(run: Path) -> list[dict]:
    for path in run.glob("cells/*/metrics.jsonl"):
        if json.loads((path.parent / "config.json").read_text())["method"] == "ppo":
            return list(read_jsonl(path))
    return []


def _servers() -> list[str]:
    found = subprocess.run(["pgrep", "-f", "served-model-name policy"], capture_output=True, text=True).stdout
    return found.split()


@contextmanager
def _no_new_servers():
    before = set(_servers())
    yield
    until = time.monotonic() + 30
    while set(_servers()) - before and time.monotonic() < until:
        time.sleep(0.1)
    assert not set(_servers()) - before


def test_ppo_trains_on_it_and_a_killed_server_loses_nothing(tmp_path) -> None:
    for name in ("a", "b"):  # apart, or the second run would take over the first one's cells
        (tmp_path / name).mkdir()
    with _no_new_servers(), _program(tmp_path / "a", f"rollout.command={COMMAND}", "-o", "whole") as process:
        said = process.communicate(timeout=400)
        assert process.returncode == 0, said
    whole = _ppo(tmp_path / "a" / "whole")
    assert len(whole) >= 4 and all(row["objective/engine_ratio"] < 1.001 for row in whole)
    with _no_new_servers(), _program(tmp_path / "b", f"rollout.command={COMMAND}", "-o", "lost") as process:
        before = set(_servers())
        while len(_ppo(tmp_path / "b" / "lost")) < 2:
            assert process.poll() is None
            time.sleep(0.02)
        for pid in set(_servers()) - before:
            os.kill(int(pid), signal.SIGKILL)
        began = time.monotonic()
        _, words = process.communicate(timeout=60)
        assert process.returncode == 1 and time.monotonic() - began < 30
        assert words.count("\n") == 1 and "it goes on from the last checkpoint" in words and "Traceback" not in words
    with _no_new_servers(), _program(tmp_path / "b", f"rollout.command={COMMAND}", "-o", "lost") as process:
        assert process.wait(400) == 0
    assert _ppo(tmp_path / "b" / "lost") == whole
    done = [read_json(path) for path in (tmp_path / "b" / "lost").glob("cells/*/done.json")]
    whole_done = [read_json(path) for path in (tmp_path / "a" / "whole").glob("cells/*/done.json")]
    assert {facts["fingerprint"] for facts in done if "fingerprint" in facts} == {
        facts["fingerprint"] for facts in whole_done if "fingerprint" in facts
    }


def test_weights_over_a_process_group(folder, tokenizer) -> None:
    """The workers take what is sent, each time; a server without the receiver says so and goes on serving."""
    options, policy = (f"--max-model-len={POSITIONS}", "--dtype=float32"), load_decoder(folder / "policy")
    prompts = [[5, 6, 7], [8, 9]]
    native = NativeEngine(pad_id=tokenizer.pad_id, end_id=tokenizer.end_ids)
    with served(COMMAND, folder / "policy", folder / "group.log", options, takes_group=True) as url:
        client = VllmServer(url, timeout=120)
        client.check()
        with VllmEngine(client, pad_id=tokenizer.pad_id, end_id=tokenizer.end_ids, group=True) as engine:
            for version, size in ((1, 0.0), (2, 0.02), (3, 0.001)):
                engine.load_weights(_moved(policy, size), version)
                assert engine.proof.largest < 1e-4 and engine.proof.nearer
                assert (engine.proof.moved > 1e-3) == (version > 1)
            native.load_weights(policy, 0)
            greedy = [one.generate(prompts, None, max_new_tokens=LIMIT, sampling=Sampling()).responses()
                      for one in (engine, native)]  # fmt: skip
            assert greedy[0] == greedy[1]
        with VllmEngine(client, pad_id=tokenizer.pad_id, end_id=tokenizer.end_ids, group=True) as engine:
            engine.load_weights(_moved(policy, 0.01), 4)  # a new run, a new group
            assert engine.proof.largest < 1e-4
            with pytest.raises(RunError, match="HTTP 500"):
                engine.load_weights(_wrong(policy), 5)


def _wrong(policy):
    """A policy of another width."""
    return make_decoder(replace(policy.config, intermediate_size=policy.config.intermediate_size // 2), 0)


def test_a_server_without_the_receiver_refuses_a_group(server, tokenizer, folder) -> None:
    policy = load_decoder(folder / "policy")
    with VllmEngine(server, pad_id=tokenizer.pad_id, end_id=tokenizer.end_ids, group=True) as engine:
        with pytest.raises(InputError, match="takes no weights over a group"):
            engine.load_weights(policy, 1)
    with VllmEngine(server, pad_id=tokenizer.pad_id, end_id=tokenizer.end_ids) as engine:
        engine.load_weights(policy, 1)
