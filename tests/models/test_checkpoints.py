"""What is written here `transformers` loads with the same numbers, and the other way round."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from trueline.errors import InputError
from trueline.models.checkpoints import load_decoder, load_scalar, read_config, save_model
from trueline.models.fingerprints import fingerprint
from trueline.models.heads import last_values

from .small import END, FAMILIES, PAD, ragged, small_config, small_decoder, small_scalar

SHAPES = [(family, tied, kv) for family in FAMILIES for tied, kv in ((False, 2), (True, 4), (False, 1))]


def hub_model(folder, family: str, *, tied: bool, kv_heads: int):
    """A model that `transformers` made from nothing, with biases and norms that are not at their neutral start."""
    config = AutoConfig.for_model(
        family, vocab_size=37, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=kv_heads, head_dim=8, max_position_embeddings=64, tie_word_embeddings=tied,
        rope_parameters={"rope_type": "default", "rope_theta": 500.0}, rms_norm_eps=1e-5, pad_token_id=PAD,
        eos_token_id=END, bos_token_id=2,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.3 * noise if "norm" in name else 0.2 * noise)
    return model


def logprobs_of(model, tokens, **kwargs):
    with torch.no_grad():
        out = model(tokens, **kwargs)
    return (out if isinstance(out, torch.Tensor) else out.logits).log_softmax(-1)


@pytest.mark.parametrize(("family", "tied", "kv_heads"), SHAPES)
def test_a_saved_policy_is_a_causal_language_model(tmp_path, family, tied, kv_heads) -> None:
    model = small_decoder(family, tied=tied, kv_heads=kv_heads, rope_theta=300.0, norm_eps=1e-5)
    save_model(model, tmp_path)
    theirs, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert theirs.dtype == torch.float32
    tokens, lengths = ragged()
    real = torch.arange(tokens.shape[1]) < lengths[:, None]
    ours, expected = logprobs_of(model, tokens), logprobs_of(theirs.eval(), tokens, attention_mask=real.long())
    gap = (ours - expected)[real].abs() / expected[real].abs().clamp(min=1.0)
    assert gap.max() < 1e-5  # of their scale: one rounding of a log-prob of 8 is 1e-6
    assert expected[real].std() > 0.3  # a test on a flat distribution would not see a difference


@pytest.mark.parametrize(("family", "tied", "kv_heads"), SHAPES)
@pytest.mark.parametrize("shard", ["5GB", "20KB"])
def test_a_policy_of_transformers_loads(tmp_path, family, tied, kv_heads, shard) -> None:
    theirs = hub_model(tmp_path, family, tied=tied, kv_heads=kv_heads)
    theirs.save_pretrained(tmp_path, max_shard_size=shard)
    assert (tmp_path / "model.safetensors.index.json").exists() == (shard == "20KB")
    ours = load_decoder(tmp_path)
    assert ours.config == small_config(family, tied=tied, kv_heads=kv_heads, rope_theta=500.0, norm_eps=1e-5, bos_id=2)
    tokens = torch.randint(2, 37, (3, 64), generator=torch.Generator().manual_seed(0))
    assert (logprobs_of(ours, tokens) - logprobs_of(theirs, tokens)).abs().max() < 1e-5
    assert ours.parameter_count == sum(p.numel() for p in theirs.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_reward_model_is_a_sequence_classifier(tmp_path, family) -> None:
    model = small_scalar(family, bias=False)
    save_model(model, tmp_path)
    theirs, report = AutoModelForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    tokens, lengths = ragged()
    mask = (torch.arange(tokens.shape[1]) < lengths[:, None]).long()
    with torch.no_grad():
        ours = last_values(model(tokens), lengths)
        expected = theirs.eval()(tokens, attention_mask=mask).logits
    assert expected.shape == (5, 1)
    assert (ours - expected.squeeze(-1)).abs().max() < 1e-5
    assert ours.std() > 0.1
    assert fingerprint(load_scalar(tmp_path, bias=False)) == fingerprint(model)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_critic_is_a_token_classifier(tmp_path, family) -> None:
    model = small_scalar(family, bias=True)
    save_model(model, tmp_path)
    theirs, report = AutoModelForTokenClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    tokens, lengths = ragged()
    real = torch.arange(tokens.shape[1]) < lengths[:, None]
    with torch.no_grad():
        ours = model(tokens)
        expected = theirs.eval()(tokens, attention_mask=real.long()).logits.squeeze(-1)
    gap = (ours - expected)[real].abs() / expected[real].abs().clamp(min=1.0)
    assert gap.max() < 1e-5  # of their scale: one rounding of a log-prob of 8 is 1e-6
    assert fingerprint(load_scalar(tmp_path, bias=True)) == fingerprint(model)


@pytest.mark.parametrize("tied", [False, True])
def test_saving_and_loading_changes_no_bit(tmp_path, tied) -> None:
    model = small_decoder("qwen2", tied=tied)
    save_model(model, tmp_path, generation={"max_new_tokens": 9})
    again = load_decoder(tmp_path)
    assert again.config == model.config
    assert fingerprint(again) == fingerprint(model)
    assert (again.head.weight is again.trunk.embed.weight) == tied
    settings = json.loads((tmp_path / "generation_config.json").read_text())
    assert (settings["eos_token_id"], settings["max_new_tokens"]) == (END, 9)


def test_the_dtype_of_the_weights_is_recorded(tmp_path) -> None:
    model = small_decoder().bfloat16()
    save_model(model, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"
    assert fingerprint(load_decoder(tmp_path, torch.bfloat16)) == fingerprint(model)


def test_a_folder_of_links_loads(tmp_path) -> None:
    """As in the hub's cache, where a snapshot holds links to blobs."""
    model = small_decoder()
    save_model(model, tmp_path / "blobs")
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for path in (tmp_path / "blobs").iterdir():
        (snapshot / path.name).symlink_to(path)
    assert fingerprint(load_decoder(snapshot)) == fingerprint(model)


# folders that cannot be used


@pytest.fixture
def folder(tmp_path):
    save_model(small_decoder("qwen3"), tmp_path)
    return tmp_path


def change(folder, **values) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def refused(folder, load=load_decoder) -> str:
    with pytest.raises(InputError) as caught:
        load(folder)
    assert caught.value.remedy
    assert str(folder) in caught.value.where
    return str(caught.value)


def test_the_good_folder_of_these_tests_loads(folder) -> None:
    load_decoder(folder)


def test_no_config(tmp_path) -> None:
    assert "no config.json" in refused(tmp_path)
    assert "no such folder" in refused(tmp_path / "absent")


def test_a_directory_of_checkpoints_names_them(tmp_path) -> None:
    """As a trainer leaves it, with the models one level below."""
    for step in (1, 2):
        save_model(small_decoder(), tmp_path / f"checkpoint-{step}")
    assert "give one of the folders in it: checkpoint-1, checkpoint-2" in refused(tmp_path)
    load_decoder(tmp_path / "checkpoint-2")


@pytest.mark.parametrize("with_config", [False, True])
def test_an_adapter_needs_its_base(folder, with_config) -> None:
    gone = str(folder / "gone")
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": gone, "r": 4}))
    load_decoder(folder)  # beside the model's own weights an adapter's configuration is no matter
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    if not with_config:
        (folder / "config.json").unlink()
    said = refused(folder)
    assert f"adapter_config.json: base_model_name_or_path: no such folder: {gone}" in said


@pytest.mark.parametrize(
    ("config", "generation", "expected"),
    [(7, None, 7), ([7], None, 7), ([7, 9], None, (7, 9)), (7, [5, 6], (5, 6)), ([7, 9], 5, 5), (None, None, None),
     ([], None, None)],
)  # fmt: skip
def test_what_ends_a_response(folder, config, generation, expected) -> None:
    """The generation configuration comes first, as in transformers; several ids stay several."""
    change(folder, eos_token_id=config)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": generation}))
    assert read_config(folder).end_id == expected
    (folder / "generation_config.json").unlink()
    if generation is None:
        assert read_config(folder).end_id == expected


@pytest.mark.parametrize("text", ["{", "\xff", "[1]", ""])
def test_a_config_that_is_no_object(folder, text) -> None:
    (folder / "config.json").write_bytes(text.encode("latin-1"))
    assert "config.json" in refused(folder)


def test_a_config_without_a_field(folder) -> None:
    config = json.loads((folder / "config.json").read_text())
    del config["hidden_size"]
    (folder / "config.json").write_text(json.dumps(config))
    assert "hidden_size" in refused(folder)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"model_type": "mamba"}, "no key-value cache"),
        ({"model_type": "no_such_model"}, "no causal language model of type 'no_such_model'"),
        ({"model_type": "gemma3"}, "its text-only folder"),
        ({"model_type": "t5"}, "no causal language model"),
        ({"model_type": "own", "auto_map": {"AutoModelForCausalLM": "modeling_own.Own"}}, "brings code of its own"),
        ({"attention_bias": True}, "missing weights"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
        ({"rope_parameters": {"rope_type": "nonsense", "rope_theta": 1e4}}, "transformers cannot"),
        ({"num_hidden_layers": 3}, "missing weights"),
        ({"num_hidden_layers": 1}, "weights that nothing reads"),
        ({"intermediate_size": 40}, "wrong shapes"),
        ({"model_type": "llama"}, "weights that nothing reads"),
    ],
)
def test_a_model_of_another_kind(folder, values, named) -> None:
    change(folder, **values)
    assert named in refused(folder)


def test_missing_weights(folder) -> None:
    (folder / "model.safetensors").unlink()
    assert "model.safetensors" in refused(folder)


def test_pickled_weights_are_never_read(folder) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "training_args.bin").write_bytes(b"")
    assert "pytorch_model.bin" not in refused(folder) and "training_args" not in refused(folder)
    torch.save(small_decoder("qwen3").state_dict(), folder / "pytorch_model.bin")
    said = refused(folder)
    assert "no safetensors weights, only pytorch_model.bin; pickled weights are never read" in said
    assert f"M.from_pretrained('{folder}').save_pretrained('{folder}-safetensors')" in said


@pytest.mark.parametrize("keep", [0, 7, 200, -1])
def test_a_weight_file_that_was_cut_off(folder, keep) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    assert "damaged weights" in refused(folder)


@pytest.mark.parametrize("name", ["k_proj", "v_proj", "q_proj", "up_proj", "gate_proj"])
def test_a_projection_that_is_missing(folder, name) -> None:
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    tensors = load_file(path)
    del tensors[next(key for key in tensors if name in key)]
    save_file(tensors, path)
    assert "missing weights" in refused(folder)


def test_a_tied_folder_without_embeddings(tmp_path) -> None:
    from safetensors.torch import load_file, save_file

    save_model(small_decoder(tied=True), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.embed_tokens.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    assert "missing weights: head.weight, trunk.embed.weight" in refused(tmp_path)


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"weight_map": {}}', '{"weight_map": []}', '{"weight_map": {"a": "gone.safetensors"}}']
)
def test_an_index_that_leads_nowhere(folder, text) -> None:
    (folder / "model.safetensors.index.json").write_text(text)
    refused(folder)


def test_an_index_cannot_lead_out_of_the_folder(folder, tmp_path_factory) -> None:
    outside = tmp_path_factory.mktemp("outside")
    (folder / "model.safetensors").rename(outside / "model.safetensors")
    index = {"weight_map": {"a": f"../{outside.name}/model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert (folder / index["weight_map"]["a"]).is_file()
    assert "no safetensors weights" in refused(folder)


def test_a_policy_is_not_a_reward_model(folder, tmp_path_factory) -> None:
    assert "score.weight" in refused(folder, lambda path: load_scalar(path, bias=False))
    reward = tmp_path_factory.mktemp("reward")
    save_model(small_scalar(bias=False), reward)
    assert "score.bias" in refused(reward, lambda path: load_scalar(path, bias=True))
    refused(reward)


def test_the_error_says_where(folder) -> None:
    change(folder, model_type="t5")
    with pytest.raises(InputError) as caught:
        read_config(folder)
    assert (caught.value.where, caught.value.field) == (str(folder / "config.json"), "model_type")
    assert "causal language model" in caught.value.remedy
