"""Hugging Face folders: what is written here `transformers` loads with equal numbers, and the other way round.

A policy is a causal language model, a reward model a one-label sequence classifier, a critic a one-label token
classifier. Only safetensors are read; code that comes with a model is never run.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from trueline.errors import InputError
from trueline.models.decoder import Decoder, DecoderConfig
from trueline.models.folders import check_folder, read_end_ids, read_object, read_tensors
from trueline.models.heads import ScalarModel

__all__ = ["load_decoder", "load_scalar", "read_config", "save_model"]

FAMILIES = {"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3"}


def save_model(model: Decoder | ScalarModel, folder: Path, *, generation: dict[str, Any] | None = None) -> None:
    """Write `config.json` and `model.safetensors` (and `generation_config.json` for a policy) to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(_to_hub_config(model), indent=2) + "\n")
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in _to_hub(model).items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    if isinstance(model, Decoder):
        config = model.config
        settings = {"eos_token_id": config.end_id, "pad_token_id": config.pad_id, "do_sample": True, "temperature": 1.0}
        settings |= {"top_k": 0, "top_p": 1.0} | (generation or {})
        (folder / "generation_config.json").write_text(json.dumps(settings, indent=2) + "\n")


def read_config(folder: Path) -> DecoderConfig:
    """The shape of the model in a Hugging Face folder; an InputError where it is not one that runs here."""
    check_folder(folder)
    path = folder / "config.json"
    raw = read_object(path)
    family = raw.get("model_type")
    if family not in FAMILIES:
        raise InputError(
            f"model type {family!r} is not supported",
            where=str(path),
            field="model_type",
            remedy=f"use one of {', '.join(FAMILIES)}",
        )
    rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    checks = {
        "rope_parameters": kind == "default",
        "hidden_act": raw.get("hidden_act", "silu") == "silu",
        "attention_bias": not raw.get("attention_bias", False),
        "mlp_bias": not raw.get("mlp_bias", False),
        "use_sliding_window": not raw.get("use_sliding_window", False),
        "layer_types": set(raw.get("layer_types") or ()) <= {"full_attention"},
        "quantization_config": not raw.get("quantization_config"),
    }
    for field, fine in checks.items():
        if not fine:
            value = kind if field == "rope_parameters" else raw[field]
            raise InputError(f"{value!r} is not supported", where=str(path), field=field, remedy="use a plain variant")
    try:
        heads = raw["num_attention_heads"]
        return DecoderConfig(
            vocab_size=raw["vocab_size"],
            hidden_size=raw["hidden_size"],
            intermediate_size=raw["intermediate_size"],
            num_layers=raw["num_hidden_layers"],
            num_heads=heads,
            num_kv_heads=raw.get("num_key_value_heads") or heads,
            head_dim=raw.get("head_dim") or raw["hidden_size"] // heads,
            max_positions=raw["max_position_embeddings"],
            family=family,
            rope_theta=float(rope.get("rope_theta", raw.get("rope_theta", 10000.0))),
            norm_eps=raw.get("rms_norm_eps", 1e-6),
            tied=bool(raw.get("tie_word_embeddings", False)),
            pad_id=raw.get("pad_token_id"),
            end_id=read_end_ids(folder, raw),
            bos_id=raw.get("bos_token_id"),
        )
    except KeyError as error:
        raise InputError("missing", where=str(path), field=str(error.args[0]), remedy="save the model again") from None


def load_decoder(folder: Path, dtype: torch.dtype = torch.float32) -> Decoder:
    """The policy in a Hugging Face folder (safetensors, one file or shards)."""
    model = Decoder(read_config(folder))
    _fill(model, read_tensors(folder), folder)
    return model.to(dtype).eval()


def load_scalar(folder: Path, *, bias: bool, dtype: torch.dtype = torch.float32) -> ScalarModel:
    """The reward model (`bias=False`) or critic (`bias=True`) in a Hugging Face folder."""
    model = ScalarModel(read_config(folder), bias=bias)
    _fill(model, read_tensors(folder), folder)
    return model.to(dtype).eval()


def _fill(model: Decoder | ScalarModel, tensors: dict[str, Tensor], folder: Path) -> None:
    own = _from_hub(tensors, model.config)
    if isinstance(model, Decoder) and model.config.tied and "trunk.embed.weight" in own:
        own["head.weight"] = own["trunk.embed.weight"]
    wanted = model.state_dict()
    missing = sorted(set(wanted) - set(own))
    surplus = sorted(set(own) - set(wanted))
    wrong = sorted(name for name in set(wanted) & set(own) if wanted[name].shape != own[name].shape)
    problems = {"missing weights": missing, "weights that nothing reads": surplus, "wrong shapes": wrong}
    for reason, names in problems.items():
        if names:
            raise InputError(f"{reason}: {', '.join(names[:3])}", where=str(folder), remedy="check the kind of model")
    model.load_state_dict(own)


def _to_hub_config(model: Decoder | ScalarModel) -> dict[str, Any]:
    c = model.config
    kind = "ForCausalLM"
    if isinstance(model, ScalarModel):
        kind = "ForTokenClassification" if model.score.bias is not None else "ForSequenceClassification"
    config = {
        "architectures": [FAMILIES[c.family] + kind],
        "model_type": c.family,
        "dtype": _dtype_name(model),
        "vocab_size": c.vocab_size,
        "hidden_size": c.hidden_size,
        "intermediate_size": c.intermediate_size,
        "num_hidden_layers": c.num_layers,
        "num_attention_heads": c.num_heads,
        "num_key_value_heads": c.num_kv_heads,
        "head_dim": c.head_dim,
        "max_position_embeddings": c.max_positions,
        "rms_norm_eps": c.norm_eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": c.rope_theta},
        "rope_theta": c.rope_theta,
        "tie_word_embeddings": c.tied,
        "hidden_act": "silu",
        "attention_dropout": 0.0,
        "pad_token_id": c.pad_id,
        "eos_token_id": c.end_id,
        "bos_token_id": c.bos_id,
        "use_cache": True,
    }
    if c.family in ("llama", "qwen3"):
        config["attention_bias"] = False
    if c.family == "llama":
        config["mlp_bias"] = False
    if kind != "ForCausalLM":
        config |= {"id2label": {"0": "score"}, "label2id": {"score": 0}, "classifier_dropout": 0.0}
        config["tie_word_embeddings"] = False
    return config


def _dtype_name(model: Decoder | ScalarModel) -> str:
    return str(model.trunk.embed.weight.dtype).removeprefix("torch.")


def _to_hub(model: Decoder | ScalarModel) -> dict[str, Tensor]:
    c = model.config
    sizes = (c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim, c.num_kv_heads * c.head_dim)
    out: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        if name == "head.weight":
            if not c.tied:
                out["lm_head.weight"] = tensor
        elif name.startswith("score."):
            out[name] = tensor
        elif ".qkv." in name:
            for part, piece in zip("qkv", tensor.split(sizes)):
                out[_hub_name(name).replace("qkv", f"{part}_proj")] = piece
        elif ".gate_up." in name:
            for part, piece in zip(("gate", "up"), tensor.chunk(2)):
                out[_hub_name(name).replace("gate_up", f"mlp.{part}_proj")] = piece
        else:
            out[_hub_name(name)] = tensor
    return out


_NAMES = {
    "trunk.embed": "model.embed_tokens",
    "trunk.norm": "model.norm",
    "trunk.blocks": "model.layers",
    "attention.out": "self_attn.o_proj",
    "attention.q_norm": "self_attn.q_norm",
    "attention.k_norm": "self_attn.k_norm",
    "attention.qkv": "self_attn.qkv",
    "attention_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm",
    ".down.": ".mlp.down_proj.",
}


def _hub_name(name: str) -> str:
    for own, hub in _NAMES.items():
        name = name.replace(own, hub)
    return name


def _from_hub(tensors: dict[str, Tensor], config: DecoderConfig) -> dict[str, Tensor]:
    own: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if "q_proj" in name:
            parts = [tensors.get(name.replace("q_proj", f"{p}_proj")) for p in "qkv"]
            joined = _own_name(name.replace("q_proj", "qkv"))
        elif "gate_proj" in name:
            parts = [tensor, tensors.get(name.replace("gate_proj", "up_proj"))]
            joined = _own_name(name.replace("mlp.gate_proj", "gate_up"))
        elif any(part in name for part in ("k_proj", "v_proj", "up_proj", "rotary_emb.inv_freq")):
            continue
        else:
            parts, joined = [tensor], _own_name(name)
        if all(part is not None for part in parts):  # what is left out here is reported as missing
            own[joined] = torch.cat(parts) if len(parts) > 1 else tensor
    return {name: tensor for name, tensor in own.items() if not (config.tied and name == "head.weight")}


def _own_name(name: str) -> str:
    if name.startswith("lm_head."):
        return name.replace("lm_head", "head")
    for own, hub in _NAMES.items():
        name = name.replace(hub, own)
    return name
