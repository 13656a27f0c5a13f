"""Methods whose samples and scores come from a server: the same training, its gaps bounded, one run at a time."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from tests.rollout.protocol import ProtocolServer

from foreign import other_tokenizer
from trueline.commands.resolve import resolve
from trueline.distributed.world import World
from trueline.errors import InputError, NumericsError, RunError
from trueline.models.checkpoints import load_decoder, load_scalar
from trueline.models.foreign import quiet
from trueline.models.scoring import Sampling
from trueline.rollout.native import NativeEngine
from trueline.runs.cell import read_json
from trueline.training.policies import load_policy
from trueline.training.reading import RewardReader
from trueline.training.together import LedEngine

from .small import rows, run_small

FEW = {"batch_size": 8, "minibatches": 1, "critic_warmup": 0}


def _trained(world, server, directory, *, told=None, raw=False, **rollout):
    """PPO; `raw` leaves the advantages as they are: of normalised ones the first loss is 0."""
    settings = {"engine": "vllm", "url": (server.url,), "timeout": 30.0} | rollout
    report = (lambda p: told.append(p.warning)) if told is not None else None
    chosen = FEW | {"advantage_norm": not raw}
    return run_small(world, "ppo", directory, settings=chosen, rollout=settings, max_steps=2, report=report)


@pytest.fixture
def server(tiny_world):
    with ProtocolServer(load_decoder(tiny_world.cells["sft"] / "model")) as started:
        yield started


@pytest.mark.integration
@pytest.mark.parametrize("method", ["ppo", "rloo"])
def test_a_method_trains_on_what_a_server_draws(method, tiny_world, server, tmp_path) -> None:
    settings = FEW if method == "ppo" else {"batch_size": 8, "minibatches": 1, "samples_per_prompt": 2}
    cell = run_small(
        tiny_world, method, tmp_path / "run", settings=settings, max_steps=2,
        rollout={"engine": "vllm", "url": (server.url,)},
    )  # fmt: skip
    booked = rows(cell)
    assert len(booked) == 2 and all(abs(row["objective/engine_ratio"] - 1) < 1e-4 for row in booked)
    assert booked[0]["policy/ratio"] == pytest.approx(1, abs=1e-6)
    gates = {gate["name"]: gate for gate in read_json(cell / "gates.json")["gates"]}
    assert gates["engine = trainer"]["passed"] and gates["engine near trainer"]["passed"]
    assert "sampled = recomputed" not in gates
    assert gates["server has the weights"]["measured"] < 1e-5 and gates["server has the weights"]["high"] == 0.1
    # before each step, and for the samples that are looked at on the way
    assert server.paths.count("/collective_rpc") >= 3
    other = run_small(tiny_world, method, tmp_path / "native", settings=settings, max_steps=2)
    assert rows(other)[0]["objective/kl"] == pytest.approx(booked[0]["objective/kl"], abs=1e-5)  # 0 at the start


@pytest.mark.integration
def test_a_gap_is_told_and_a_large_one_ends_the_run(tiny_world, server, tmp_path) -> None:
    told: list[str] = []
    server.noise = 0.07
    cell = _trained(tiny_world, server, tmp_path / "near", told=told)
    assert any("is 1.07" in text and "rollout.gap_warn=1.05" in text for text in told)
    assert rows(cell)[0]["objective/engine_ratio"] == pytest.approx(math.exp(0.07), abs=1e-3)
    server.noise = 0.2
    with pytest.raises(NumericsError, match=r"gate 'engine near trainer'.* is 1.22.*at most 1.1 is allowed"):
        _trained(tiny_world, server, tmp_path / "far")
    assert not (tmp_path / "far" / "metrics.jsonl").exists()


@pytest.mark.integration
def test_importance_weights_are_factors_of_the_policys_loss(tiny_world, server, tmp_path) -> None:
    server.noise = 0.05  # every token less likely at the server: every weight is exp(0.05)
    plain = rows(_trained(tiny_world, server, tmp_path / "off", raw=True))[0]
    weighted = rows(_trained(tiny_world, server, tmp_path / "on", raw=True, importance="token"))[0]
    capped = rows(_trained(tiny_world, server, tmp_path / "cap", raw=True, importance="token", importance_cap=1.02))[0]
    assert abs(plain["policy/loss"]) > 1e-4
    assert weighted["policy/loss"] == pytest.approx(plain["policy/loss"] * math.exp(0.05), rel=1e-3)
    assert capped["policy/loss"] == pytest.approx(plain["policy/loss"] * 1.02, rel=1e-3)
    assert weighted["value/loss"] == pytest.approx(plain["value/loss"], rel=1e-6)


@pytest.mark.integration
def test_a_server_belongs_to_one_run_at_a_time(tiny_world, server, tmp_path) -> None:
    settings = {"engine": "vllm", "url": (server.url,)}
    first, second = (tiny_world.stage("ppo", tmp_path / name, rollout=settings) for name in ("one", "two"))
    policy = load_policy(first, "sft")
    first.engine(policy)
    with pytest.raises(RunError, match=r"every vLLM server is in use by another run: http://127"):
        _other_process(second, policy)
    with ProtocolServer(policy) as spare:
        third = tiny_world.stage("ppo", tmp_path / "three", rollout=settings | {"url": (server.url, spare.url)})
        _other_process(third, policy)  # takes the one that is free
        assert "/collective_rpc" in spare.paths
    first.engines.close()
    _other_process(second, policy)
    assert not list(tmp_path.glob("*/weights*"))


def _other_process(stage, policy) -> None:
    """As if another process asked: a lock of this one does not count for itself."""
    from trueline.runs import lock

    held, lock._ours = lock._ours, set()
    try:
        stage.engine(policy)
    finally:
        stage.engines.close()
        lock._ours = held


@pytest.mark.integration
def test_scores_of_a_server_are_the_reward_models(tiny_world, tmp_path) -> None:
    scorer = load_scalar(tiny_world.cells["reward"] / "reward_model", bias=False)
    prompts = tiny_world.task.prompts("train")[:12]
    with ProtocolServer(scorer=scorer) as server:
        own = RewardReader(tiny_world.stage("ppo", tmp_path / "own"))
        stage = tiny_world.stage("ppo", tmp_path / "there", rollout={"reward_url": server.url})
        served = RewardReader(stage)
        found = served.written(prompts, ["no ."] * len(prompts))
        assert torch.allclose(served.standardized(found), own.standardized(found), atol=1e-5)
        assert served.reward.model.parameter_count == own.reward.model.parameter_count
        assert not isinstance(served.reward.model, torch.nn.Module)  # its weights are given back
        assert {body["use_activation"] for body in server.bodies if "input" in body} == {False}
        with torch.no_grad():
            scorer.score.weight.mul_(1.5)
        with pytest.raises(NumericsError, match="gate 'served scores'"):
            RewardReader(tiny_world.stage("ppo", tmp_path / "other", rollout={"reward_url": server.url}))


@pytest.mark.parametrize("fault", [lambda a: {"data": [{"data": [0.1, 0.2]}]}, lambda a: {"data": []}, 500, "half"])
def test_a_score_that_is_none_is_not_invented(fault, tiny_world, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("trueline.rollout.vllm_client._FIRST_WAIT", 0.01)
    scorer = load_scalar(tiny_world.cells["reward"] / "reward_model", bias=False)
    with ProtocolServer(scorer=scorer, faults={"/pooling": fault}) as server, pytest.raises(RunError, match="/pooling"):
        RewardReader(tiny_world.stage("ppo", tmp_path / "run", rollout={"reward_url": server.url}))


class _Ear(World):
    """A process that hears what the leader said."""

    def __init__(self, said: list) -> None:
        super().__init__(1, 2)
        self.said = said

    def from_leader(self, value):
        assert value is None
        return self.said[-1]


class _Mouth(World):
    def __init__(self, said: list) -> None:
        super().__init__(0, 2)
        self.said = said

    def from_leader(self, value):
        self.said.append(value)
        return value


def test_one_process_asks_and_all_have_the_samples(tiny_world) -> None:
    policy, said = load_decoder(tiny_world.cells["sft"] / "model"), []
    engine = NativeEngine(pad_id=0, end_id=1)
    leader, follower = LedEngine(engine, _Mouth(said)), LedEngine(None, _Ear(said))
    for one in (leader, follower):
        one.load_weights(policy, 4)
    draws = np.random.default_rng(0).random((3, 6))
    drawn = [
        one.generate([[5, 6], [7], [8, 9, 10]], draws, max_new_tokens=6, sampling=Sampling())
        for one in (leader, follower)
    ]
    assert drawn[0].version == drawn[1].version == 4
    assert torch.equal(drawn[0].tokens, drawn[1].tokens) and torch.equal(drawn[0].logprobs, drawn[1].logprobs)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["rollout.engine=vllm"], r"rollout.url: needed is the address"),
        (["rollout.engine=vllm", "rollout.url=http://a:1", "rollout.command=vllm"], r"rollout.url: .* not both"),
        (["rollout.url=http://a:1"], r"rollout.url: is of a server.*rollout.engine=vllm"),
        (["rollout.sleep=true"], r"rollout.sleep: is of a server"),
        (["rollout.transfer=group"], r"rollout.transfer: is of a server"),
        (["rollout.engine=vllm", "rollout.url=http://a:1,http://a:1"], r"the same server twice"),
        (["rollout.engine=vllm", "rollout.url=http://a:1", "rollout.gap_stop=1.01"], r"gap_stop: is below"),
        (["rollout.reward_url=http://a:1"], r"rollout.reward_url: .*add reward.path=FOLDER"),
        (["rollout.engine=sglang"], r"rollout.engine"),
        (["rollout.importance_cap=0.5"], r"rollout.importance_cap"),
    ],
)
def test_settings_that_cannot_be_used(overrides, message) -> None:
    with pytest.raises(InputError, match=message):
        resolve("dialogue", overrides, quick=True)


def test_another_architecture_takes_files(tmp_path) -> None:
    from transformers import AutoModelForCausalLM, GPTNeoXConfig

    tokenizer = other_tokenizer()
    config = GPTNeoXConfig(vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=1,
                           num_attention_heads=4, max_position_embeddings=128)  # fmt: skip
    with quiet():
        AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "neox")
    tokenizer.save_pretrained(tmp_path / "neox")
    served = ("rollout.engine=vllm", "rollout.url=http://a:1", f"model.path={tmp_path / 'neox'}")
    lines = [json.dumps({"prompt": f"p {i}", "chosen": f"yes {i}", "rejected": "no"}) for i in range(80)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.raises(InputError, match=r"rollout.transfer: .*do not go over a group"):
        resolve("pairs", [f"data.path={tmp_path / 'pairs.jsonl'}", *served, "rollout.transfer=group"], quick=True)


def test_where_a_server_stands_is_no_part_of_a_runs_identity() -> None:
    from trueline.study.identity import identity_of

    def digest(*overrides: str) -> str:
        name, sections, task = resolve("dialogue", list(overrides), quick=True)
        return identity_of(name, sections, task.describe()).digest

    plain = digest()
    here = digest("rollout.engine=vllm", "rollout.url=http://here:1")
    assert here == digest("rollout.engine=vllm", "rollout.url=http://there:2", "rollout.timeout=5") != plain
    assert digest("rollout.importance=token") not in (plain, here)
