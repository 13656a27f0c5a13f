"""Every architecture of the table: transformers' numbers, our sampler's own numbers, saved and loaded there."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    GraniteConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    Olmo2Config,
    Phi3Config,
    PhiConfig,
    Qwen2Config,
    Qwen3Config,
)

from trueline.errors import InputError
from trueline.models.checkpoints import load_decoder, load_scalar, read_config, save_model
from trueline.models.decoder import Decoder
from trueline.models.foreign import ForeignDecoder, quiet
from trueline.models.heads import last_scores, scalar_from
from trueline.models.scoring import Sampling, response_logprobs
from trueline.rollout.native import NativeEngine
from trueline.seeds import uniforms

BOS, END, PAD, VOCAB, ROWS, WIDTH = 0, 1, 2, 97, 4, 20
SHAPE = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.3,
    "bos_token_id": BOS, "eos_token_id": END, "pad_token_id": PAD,
}  # fmt: skip
LONG = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32}  # fmt: skip
MAKERS = {
    "llama": lambda: LlamaConfig(**SHAPE),
    "llama-3": lambda: LlamaConfig(**SHAPE | {"rope_parameters": LONG}),
    "llama-bias": lambda: LlamaConfig(**SHAPE | {"attention_bias": True, "mlp_bias": True}),
    "mistral": lambda: MistralConfig(**SHAPE | {"sliding_window": 8}),
    "qwen2": lambda: Qwen2Config(**SHAPE),
    "qwen2-sliding": lambda: Qwen2Config(**SHAPE | {"use_sliding_window": True, "sliding_window": 8,
                                                    "max_window_layers": 1}),
    "qwen3": lambda: Qwen3Config(**SHAPE | {"head_dim": 8}),
    "gemma2": lambda: Gemma2Config(**SHAPE | {"head_dim": 8, "sliding_window": 8}),
    "gemma3": lambda: Gemma3TextConfig(**SHAPE | {"head_dim": 8, "sliding_window": 8}),
    "phi": lambda: PhiConfig(**SHAPE),
    "phi3": lambda: Phi3Config(**SHAPE),
    "olmo2": lambda: Olmo2Config(**SHAPE),
    "gpt2": lambda: GPT2Config(vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=64, initializer_range=0.3,
                               bos_token_id=BOS, eos_token_id=END, pad_token_id=PAD),
    "gpt_neox": lambda: GPTNeoXConfig(**{k: v for k, v in SHAPE.items() if k != "num_key_value_heads"}),
}  # fmt: skip
OURS = {"llama", "qwen2", "qwen3"}


@pytest.fixture(params=MAKERS)
def name(request) -> str:
    return request.param


def theirs(name: str):
    torch.manual_seed(0)
    with quiet():
        return AutoModelForCausalLM.from_config(MAKERS[name]()).eval()


def written(name: str, folder):
    model = theirs(name)
    with quiet():
        model.save_pretrained(folder)
    return model


def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Right-padded tokens, their lengths, what is real."""
    tokens = torch.randint(3, VOCAB, (ROWS, WIDTH), generator=torch.Generator().manual_seed(1))
    lengths = torch.tensor([20, 13, 7, 17])
    real = torch.arange(WIDTH) < lengths[:, None]
    return tokens.where(real, PAD), lengths, real


@torch.no_grad()
def test_logits_are_those_of_transformers(name, tmp_path) -> None:
    model, (tokens, _, real) = written(name, tmp_path), batch()
    loaded = load_decoder(tmp_path)
    assert isinstance(loaded, Decoder if name in OURS else ForeignDecoder)
    expected = model(input_ids=tokens, attention_mask=real.long()).logits.log_softmax(-1)
    assert (loaded(tokens).log_softmax(-1) - expected)[real].abs().max() < 1e-5
    assert loaded.parameter_count == read_config(tmp_path).parameter_count == model.num_parameters()


@torch.no_grad()
def test_sampled_log_probs_are_the_scored_ones(name, tmp_path) -> None:
    """Prompts of different lengths, rows that end early, windows shorter than the sequence."""
    written(name, tmp_path)
    policy, (tokens, lengths, _) = load_decoder(tmp_path), batch()
    engine = NativeEngine(pad_id=PAD, end_id=[END, *range(3, 12)])
    engine.load_weights(policy, 0)
    prompts = [row[:n].tolist() for row, n in zip(tokens, lengths)]
    rollout = engine.generate(prompts, uniforms(0, "x", 0, range(ROWS), 24), max_new_tokens=24, sampling=Sampling())
    assert len(set(rollout.response_lengths.tolist())) > 1  # some rows were dropped from the cache before others
    again, entropy = response_logprobs(policy, rollout.tokens, rollout.response_mask, Sampling(), entropy=True)
    assert (again - rollout.logprobs).abs().max() < 2e-5
    assert (entropy[rollout.response_mask] > 0).all()


def test_a_gradient_reaches_every_weight(name, tmp_path) -> None:
    written(name, tmp_path)
    policy, (tokens, _, real) = load_decoder(tmp_path), batch()
    real[:, 0] = False
    response_logprobs(policy, tokens, real, Sampling())[0].sum().backward()
    assert [key for key, p in policy.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


@torch.no_grad()
def test_saved_policies_load_in_transformers(name, tmp_path) -> None:
    model, (tokens, _, real) = written(name, tmp_path / "given"), batch()
    save_model(load_decoder(tmp_path / "given"), tmp_path / "saved")
    with quiet():
        again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved").eval()
    assert type(again) is type(model)
    mask = real.long()
    left, right = (m(input_ids=tokens, attention_mask=mask).logits[real] for m in (model, again))
    assert torch.equal(left, right)
    assert again.generation_config.temperature == 1.0 and again.generation_config.eos_token_id == END


@torch.no_grad()
def test_reward_models_and_critics_load_in_transformers(name, tmp_path) -> None:
    written(name, tmp_path / "given")
    (tokens, lengths, real), generator = batch(), torch.Generator().manual_seed(3)
    reward = scalar_from(load_decoder(tmp_path / "given"), bias=False)
    reward.score.weight.normal_(generator=generator)
    critic = scalar_from(reward, bias=True, keep_head=True)
    critic.score.bias.fill_(0.5)
    save_model(reward, tmp_path / "reward")
    save_model(critic, tmp_path / "critic")
    with quiet():
        classifier = AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward").eval()
    scores = classifier(input_ids=tokens, attention_mask=real.long()).logits[:, 0]
    assert (scores - last_scores(reward, tokens, lengths)).abs().max() < 1e-4
    assert torch.equal(load_scalar(tmp_path / "reward", bias=False)(tokens)[real], reward(tokens)[real])
    values = critic(tokens)
    assert torch.equal(load_scalar(tmp_path / "critic", bias=True)(tokens)[real], values[real])
    if name in ("gemma3", "olmo2"):  # transformers has no token classifier of these: the trunk alone loads there
        with quiet():
            trunk = AutoModel.from_pretrained(tmp_path / "critic").eval()
        hidden = trunk(input_ids=tokens, attention_mask=real.long()).last_hidden_state
        assert (critic.score(hidden)[..., 0] - values)[real].abs().max() < 1e-4
        return
    with quiet():
        labels = AutoModelForTokenClassification.from_pretrained(tmp_path / "critic").eval()
    assert (labels(input_ids=tokens, attention_mask=real.long()).logits[..., 0] - values)[real].abs().max() < 1e-4


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2"])
def test_computing_again_changes_no_gradient(name, tmp_path) -> None:
    written(name, tmp_path)
    (tokens, _, real), found = batch(), []
    real[:, 0] = False
    for again in (False, True):
        policy = load_decoder(tmp_path)
        if again:
            policy.trunk.compute_again()
        calls = []
        inner = next(
            m for m in policy.trunk.modules() if type(m).__name__ in ("Attention", "Gemma2Attention", "GPT2Attention")
        )
        inner.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        response_logprobs(policy, tokens, real, Sampling())[0].sum().backward()
        found.append({key: p.grad for key, p in policy.named_parameters()})
        assert len(calls) == 1 + again
    for key, grad in found[0].items():
        assert torch.allclose(grad, found[1][key], rtol=1e-4, atol=1e-5), key


@pytest.mark.parametrize(
    ("config", "named"),
    [
        (lambda: GraniteConfig(**SHAPE | {"logits_scaling": 8.0}), "not its head on its hidden states"),
        (lambda: Gemma3TextConfig(**SHAPE | {"head_dim": 8, "use_bidirectional_attention": True}), "is not causal"),
        (
            lambda: MambaConfig(vocab_size=VOCAB, hidden_size=32, state_size=8, num_hidden_layers=2),
            "no key-value cache",
        ),
    ],
)
def test_what_does_not_fit_the_protocol_is_refused(config, named, tmp_path) -> None:
    with quiet():
        AutoModelForCausalLM.from_config(config()).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=named):
        load_decoder(tmp_path)
