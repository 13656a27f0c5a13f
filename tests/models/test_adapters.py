"""LoRA: one base in memory, an adapter each, peft's files."""

from __future__ import annotations

import gc
import json
import warnings

import pytest
import torch
from transformers import AutoModelForCausalLM

from trueline.errors import InputError
from trueline.models.adapters import AdapterTrunk, LoraSettings, check_quantize, fresh_adapter, merged
from trueline.models.checkpoints import load_decoder, load_scalar, read_config, save_model
from trueline.models.fingerprints import fingerprint
from trueline.models.foreign import quiet
from trueline.models.heads import last_scores, scalar_from
from trueline.models.scoring import Sampling, response_logprobs
from trueline.rollout.native import NativeEngine
from trueline.seeds import uniforms
from trueline.training.step import make_optimizer, optimize

from .test_architectures import VOCAB, batch, written

LORA = LoraSettings(4, 8.0)


def stepped(policy, steps: int = 3):
    """A few steps of likelihood, so that the adapter says something."""
    tokens, _, real = batch()
    real[:, 0] = False
    optimizer = make_optimizer(policy, 0.02)

    def loss(_):
        return -response_logprobs(policy, tokens, real, Sampling())[0].sum() / real.sum()

    for _ in range(steps):
        optimize(policy, optimizer, [0], loss, learning_rate=0.02, max_grad_norm=1.0, what="test")
    return policy


@pytest.fixture(params=["llama", "gpt2", "gemma2"])
def base(request, tmp_path):
    written(request.param, tmp_path / "base")
    return tmp_path / "base"


@torch.no_grad()
def test_a_fresh_adapter_says_what_its_base_says(base) -> None:
    tokens, _, real = batch()
    whole, policy = load_decoder(base), fresh_adapter(base, LORA, seed=1)
    assert (policy(tokens) - whole(tokens))[real].abs().max() < 1e-5
    same, other = (fresh_adapter(base, LORA, seed=seed) for seed in (1, 2))
    assert fingerprint(policy) == fingerprint(same) != fingerprint(other)
    trained = sum(p.numel() for p in policy.parameters())
    assert 0 < trained < 0.5 * whole.parameter_count and policy.parameter_count == whole.parameter_count + trained


def test_models_on_one_base_share_it_and_train_apart(base) -> None:
    tokens, lengths, real = batch()
    policy, reference = (fresh_adapter(base, LORA, seed=1) for _ in range(2))
    frozen = {key: p.clone() for key, p in policy.trunk.base.named_parameters() if ".lora_" not in key}
    before = reference(tokens).detach()
    stepped(policy)
    reward = scalar_from(policy, bias=False)
    with torch.no_grad():
        reward.score.weight.fill_(0.1)
    scores = last_scores(reward, tokens, lengths).detach()
    after = policy(tokens).detach()
    stepped(policy, 1)
    assert policy.trunk.base is reference.trunk.base is reward.trunk.base
    assert torch.equal(reference(tokens)[real], before[real])  # neither the policy's steps nor their order moved it
    assert torch.equal(last_scores(reward, tokens, lengths), scores)
    assert not torch.equal(policy(tokens)[real], after[real])
    named = dict(policy.trunk.base.named_parameters())
    assert all(torch.equal(named[key], tensor) for key, tensor in frozen.items())


def test_interleaved_passes_keep_their_gradients(base) -> None:
    """A graph that was made through one adapter is walked after another was used."""
    tokens, _, real = batch()
    real[:, 0] = False
    policy, other = fresh_adapter(base, LORA, seed=1), fresh_adapter(base, LORA, seed=2)
    stepped(policy, 1).zero_grad()
    response_logprobs(policy, tokens, real, Sampling())[0].sum().backward()
    wanted = [p.grad.clone() for p in policy.parameters()]
    for parameter in policy.parameters():
        parameter.grad = None
    loss = response_logprobs(policy, tokens, real, Sampling())[0].sum()
    with torch.no_grad():
        other(tokens)
    loss.backward()
    assert all(torch.equal(p.grad, grad) for p, grad in zip(policy.parameters(), wanted))
    assert all(p.grad is None for p in other.parameters())


def test_sampled_log_probs_are_the_scored_ones(base) -> None:
    policy, (tokens, lengths, _) = stepped(fresh_adapter(base, LORA, seed=1)), batch()
    engine = NativeEngine(pad_id=2, end_id=1)
    engine.load_weights(policy, 0)
    prompts = [row[:n].tolist() for row, n in zip(tokens, lengths)]
    rollout = engine.generate(prompts, uniforms(0, "x", 0, range(4), 16), max_new_tokens=16, sampling=Sampling())
    with torch.no_grad():
        again, _ = response_logprobs(policy, rollout.tokens, rollout.response_mask, Sampling())
    assert (again - rollout.logprobs).abs().max() < 2e-5


def test_an_adapter_is_saved_loaded_and_merged(base, tmp_path) -> None:
    policy, (tokens, _, real) = stepped(fresh_adapter(base, LORA, seed=1)), batch()
    save_model(policy, tmp_path / "adapter")
    size = sum(path.stat().st_size for path in (tmp_path / "adapter").iterdir())
    assert size < (base / "model.safetensors").stat().st_size
    again = load_decoder(tmp_path / "adapter")
    assert fingerprint(again) == fingerprint(policy) and read_config(tmp_path / "adapter").vocab_size == VOCAB
    wanted = policy(tokens).detach()
    assert torch.equal(again(tokens)[real], wanted[real])
    merged(policy, tmp_path / "merged")
    assert (load_decoder(tmp_path / "merged")(tokens) - wanted)[real].abs().max() < 1e-4


@torch.no_grad()
def test_peft_loads_policy_reward_model_and_critic(base, tmp_path) -> None:
    with torch.enable_grad():
        policy = stepped(fresh_adapter(base, LORA, seed=1))
    tokens, lengths, real = batch()
    reward = scalar_from(policy, bias=False)
    reward.score.weight.normal_(generator=torch.Generator().manual_seed(0))
    critic = scalar_from(reward, bias=True, keep_head=True)
    critic.score.bias.fill_(0.5)
    for name, model in (("policy", policy), ("reward", reward), ("critic", critic)):
        save_model(model, tmp_path / name)
    assert torch.equal(load_scalar(tmp_path / "reward", bias=False)(tokens)[real], reward(tokens)[real])
    assert torch.equal(load_scalar(tmp_path / "critic", bias=True)(tokens)[real], critic(tokens)[real])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft and transformers on each other's deprecations
        from peft import AutoPeftModelForCausalLM, AutoPeftModelForSequenceClassification

        theirs = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "policy").eval()
        scored = AutoPeftModelForSequenceClassification.from_pretrained(tmp_path / "reward", num_labels=1).eval()
        mask = real.long()
        assert (theirs(input_ids=tokens, attention_mask=mask).logits - policy(tokens))[real].abs().max() < 1e-4
        scores = scored(input_ids=tokens, attention_mask=mask).logits[:, 0]
    assert (scores - last_scores(reward, tokens, lengths)).abs().max() < 1e-4


def test_adapters_nobody_holds_are_dropped(base) -> None:
    policy = fresh_adapter(base, LORA, seed=1)
    for seed in range(2, 6):
        fresh_adapter(base, LORA, seed=seed)
        gc.collect()
    assert len(policy.trunk.shared.parameters) <= 2
    assert isinstance(policy.trunk, AdapterTrunk)


def test_what_cannot_be_adapted_is_refused(base, tmp_path) -> None:
    with pytest.raises(InputError, match="lora_targets"):
        fresh_adapter(base, LoraSettings(4, 8.0, ("no_such_layer",)), seed=1)
    with pytest.raises(InputError, match="need a CUDA GPU"):
        check_quantize("4bit")
    save_model(fresh_adapter(base, LORA, seed=1), tmp_path / "a")
    path = tmp_path / "a" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": str(tmp_path / "gone")}))
    with pytest.raises(InputError, match="no such folder"):
        load_decoder(tmp_path / "a")
    with pytest.raises(InputError, match=r"no score\.weight"):
        save_model(fresh_adapter(base, LORA, seed=1), tmp_path / "b")
        load_scalar(tmp_path / "b", bias=False)
    (tmp_path / "b" / "adapter_model.safetensors").write_bytes(b"12345678")
    with pytest.raises(InputError, match="damaged weights"):
        load_decoder(tmp_path / "b")


def test_the_recommended_adapter_is_merged_beside_it(base, tmp_path) -> None:
    """What `trueline train` leaves of an adapter: a folder that needs neither peft nor the base, with its tokenizer."""
    from foreign import other_tokenizer
    from trueline.commands.recommend import _merge

    policy, (tokens, _, real) = stepped(fresh_adapter(base, LORA, seed=1)), batch()
    save_model(policy, tmp_path / "adapter")
    other_tokenizer().save_pretrained(tmp_path / "adapter")
    wanted = policy(tokens).detach()
    folder = _merge(tmp_path / "adapter", tmp_path / "merged")
    assert not (folder / "adapter_config.json").exists() and (folder / "tokenizer.json").is_file()
    with quiet():
        whole = AutoModelForCausalLM.from_pretrained(folder).eval()
    assert (whole(input_ids=tokens, attention_mask=real.long()).logits - wanted)[real].abs().max() < 1e-4
    assert whole.generation_config.temperature == 1.0
