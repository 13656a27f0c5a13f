"""Hugging Face folders: what is written here `transformers` loads with equal numbers, and the other way round.

A policy is a causal language model, a reward model a one-label sequence classifier, a critic a one-label token
classifier. Only safetensors are read; code that comes with a model is never run.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

from trueline.errors import InputError
from trueline.models.adapters import (
    AdapterDecoder,
    AdapterTrunk,
    Quantize,
    adapter_base,
    adapter_scalar_parts,
    load_adapter,
    save_adapter,
    save_adapter_scalar,
)
from trueline.models.decoder import Decoder, DecoderConfig
from trueline.models.folders import (
    StoredRows,
    check_folder,
    check_size,
    is_adapter,
    read_end_ids,
    read_object,
)
from trueline.models.foreign import (
    ForeignConfig,
    ForeignDecoder,
    ForeignTrunk,
    foreign_config,
    load_foreign,
    load_foreign_scalar_parts,
    save_foreign,
    save_foreign_scalar,
)
from trueline.models.heads import ScalarModel

__all__ = ["Stored", "hub_pieces", "load_decoder", "load_scalar", "read_config", "save_model", "shape_from"]

FAMILIES = {"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3"}
Policy = Decoder | ForeignDecoder | AdapterDecoder


def save_model(
    model: Policy | ScalarModel, folder: Path, *, generation: dict[str, Any] | None = None, pad_id: int | None = None
) -> None:
    """Write `config.json` and `model.safetensors` (and `generation_config.json` for a policy) to `folder`.

    Of a model on a shared base the adapter is written, as peft does. `pad_id` is the tokenizer's where the model's own
    configuration names none: a classifier of transformers finds the last token of padded rows by it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not isinstance(model, ScalarModel):
        settings = _generation(model.config) | (generation or {})
        if isinstance(model, AdapterDecoder):
            return save_adapter(model, folder, settings)
        if isinstance(model, ForeignDecoder):
            return save_foreign(model, folder, settings)
    elif isinstance(model.trunk, AdapterTrunk):
        return save_adapter_scalar(model.trunk, model.score, folder)
    elif isinstance(model.trunk, ForeignTrunk):
        pad_id = model.config.pad_id if pad_id is None else pad_id
        return save_foreign_scalar(model.trunk.base, model.score, folder, pad_id)
    (folder / "config.json").write_text(json.dumps(_to_hub_config(model, pad_id), indent=2) + "\n")
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in _to_hub(model).items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    if isinstance(model, Decoder):
        (folder / "generation_config.json").write_text(json.dumps(settings, indent=2) + "\n")


def _generation(config: DecoderConfig | ForeignConfig) -> dict[str, Any]:
    """Plain sampling, as the policy was trained to be sampled."""
    ends = {"eos_token_id": config.end_id, "pad_token_id": config.pad_id}
    return ends | {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}


def shape_from(values: dict[str, Any]) -> DecoderConfig | ForeignConfig:
    """A shape from its fields, as JSON keeps them."""
    return (ForeignConfig if "described" in values else DecoderConfig)(**values)


def read_config(folder: Path) -> DecoderConfig | ForeignConfig:
    """The shape of the model in a Hugging Face folder; an InputError where it is not one that runs here.

    A `DecoderConfig` where our own decoder has that variant, otherwise transformers' modules are used.
    """
    if is_adapter(folder):
        folder = adapter_base(folder)
    check_folder(folder)
    path = folder / "config.json"
    raw = read_object(path)
    if any((folder / name).is_file() for name in ("model.safetensors", "model.safetensors.index.json")):
        check_size(folder, raw)
    family = raw.get("model_type")
    if family not in FAMILIES or not _is_plain(raw):
        return foreign_config(folder, raw)
    rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
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


def _is_plain(raw: dict[str, Any]) -> bool:
    """Whether our own decoder has this variant of a family."""
    rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    return (
        rope.get("rope_type", rope.get("type", "default")) == "default"
        and raw.get("hidden_act", "silu") == "silu"
        and not any(raw.get(key) for key in ("attention_bias", "mlp_bias", "use_sliding_window", "quantization_config"))
        and set(raw.get("layer_types") or ()) <= {"full_attention"}
    )


def load_decoder(folder: Path, dtype: torch.dtype = torch.float32, *, quantize: Quantize = "none") -> Policy:
    """The policy in a Hugging Face folder (safetensors, one file or shards), or an adapter on its base."""
    if is_adapter(folder):
        return load_adapter(folder, dtype, quantize)
    config = read_config(folder)
    if isinstance(config, ForeignConfig):
        return load_foreign(folder, config, dtype)
    with torch.device("meta"):
        model = Decoder(config)
    _fill(model, StoredRows(folder), folder, dtype)
    return model.eval()


def load_scalar(
    folder: Path, *, bias: bool, dtype: torch.dtype = torch.float32, quantize: Quantize = "none"
) -> ScalarModel:
    """The reward model (`bias=False`) or critic (`bias=True`) in a Hugging Face folder."""
    if is_adapter(folder):
        trunk, score = adapter_scalar_parts(folder, bias, dtype, quantize)
        return _scalar(trunk, score)
    config = read_config(folder)
    if isinstance(config, ForeignConfig):
        base, score = load_foreign_scalar_parts(folder, bias, dtype)
        return _scalar(ForeignTrunk(base, config), score)
    with torch.device("meta"):
        model = ScalarModel(config, bias=bias)
    _fill(model, StoredRows(folder), folder, dtype)
    return model.eval()


def _stacked(shapes: list[list[int]]) -> list[int] | None:
    """The shape of tensors one below the other; None where they are not of one width."""
    if len(shapes) == 1:
        return shapes[0]
    alike = len({tuple(shape[1:]) for shape in shapes}) == 1
    return [sum(shape[0] for shape in shapes), *shapes[0][1:]] if alike else None


class Stored:
    """The weights of our own decoder's folder, of which a process reads the rows that it keeps.

    `model` has its weights on no device. Raises InputError where the folder's weights are not this model's.
    """

    def __init__(self, folder: Path, kind: Literal["policy", "reward"]) -> None:
        config = read_config(folder)
        with torch.device("meta"):
            self.model = (Decoder(config) if kind == "policy" else ScalarModel(config, bias=False)).eval()
        self._stored = StoredRows(folder)
        self._sources = _checked(self.model, self._stored.shapes, folder)

    @staticmethod
    def has(folder: Path) -> bool:
        """Whether the folder's model is one that can be read so: other architectures and adapters are read whole."""
        return not is_adapter(folder) and isinstance(read_config(folder), DecoderConfig)

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows `start` to `stop` of the model's weight `name`, in fp32."""
        parts, first = [], 0
        for source in self._sources[name]:
            size = self._stored.shapes[source][0]
            low, high = max(start, first), min(stop, first + size)
            if low < high:
                parts.append(self._stored.read(source, low - first, high - first))
            first += size
        if not parts:
            parts = [self._stored.read(self._sources[name][0], 0, 0)]
        return torch.cat(parts).float()


def _scalar(trunk: ForeignTrunk, score: torch.nn.Linear) -> ScalarModel:
    model = ScalarModel(trunk.config, bias=score.bias is not None, trunk=trunk)
    model.score = score
    return model.eval()


def _fill(model: Decoder | ScalarModel, stored: StoredRows, folder: Path, dtype: torch.dtype) -> None:
    """Give a model whose weights are on no device those of a folder, one after the other."""
    sources, made = _checked(model, stored.shapes, folder), {}
    for own, names in sources.items():
        if own != "head.weight" or names != sources.get("trunk.embed.weight"):
            made[own] = torch.cat([stored.read(name) for name in names]).to(dtype)
    if "head.weight" in sources:
        made.setdefault("head.weight", made["trunk.embed.weight"])
    model.load_state_dict(made, assign=True)
    if isinstance(model, Decoder) and model.config.tied:
        model.head.weight = model.trunk.embed.weight


def _checked(model: Decoder | ScalarModel, shapes: Mapping[str, list[int]], folder: Path) -> dict[str, list[str]]:
    """The stored tensors that make up each weight of a model, one below the other; InputError where they do not."""
    own = _sources(shapes, model.config)
    if isinstance(model, Decoder) and model.config.tied and "trunk.embed.weight" in own:
        own["head.weight"] = own["trunk.embed.weight"]
    wanted = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: _stacked([shapes[part] for part in parts]) for name, parts in own.items()}
    missing = sorted(set(wanted) - set(own))
    surplus = sorted(set(own) - set(wanted))
    wrong = sorted(name for name in set(wanted) & set(own) if wanted[name] != found[name])
    problems = {"missing weights": missing, "weights that nothing reads": surplus, "wrong shapes": wrong}
    for reason, names in problems.items():
        if names:
            raise InputError(f"{reason}: {', '.join(names[:3])}", where=str(folder), remedy="check the kind of model")
    return own


def _to_hub_config(model: Decoder | ScalarModel, pad_id: int | None) -> dict[str, Any]:
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
        "pad_token_id": c.pad_id if pad_id is None else pad_id,
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
    out: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        out |= hub_pieces(model.config, name, tensor)
    return out


def hub_pieces(config: DecoderConfig, name: str, tensor: Tensor) -> dict[str, Tensor]:
    """What a weight of our decoder, whole, is in a Hugging Face folder; nothing where it is tied to another."""
    if name == "head.weight":
        return {} if config.tied else {"lm_head.weight": tensor}
    if name.startswith("score."):
        return {name: tensor}
    if ".qkv." in name:
        keys = config.num_kv_heads * config.head_dim
        pieces = tensor.split((config.num_heads * config.head_dim, keys, keys))
        return {_hub_name(name).replace("qkv", f"{part}_proj"): piece for part, piece in zip("qkv", pieces)}
    if ".gate_up." in name:
        pieces = tensor.chunk(2)
        return {_hub_name(name).replace("gate_up", f"mlp.{part}_proj"): p for part, p in zip(("gate", "up"), pieces)}
    return {_hub_name(name): tensor}


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


def _sources(stored: Collection[str], config: DecoderConfig) -> dict[str, list[str]]:
    """Our weights by name, and the stored tensors that each is made of; one that lacks any of them is left out."""
    own: dict[str, list[str]] = {}
    for name in stored:
        if "q_proj" in name:
            parts = [name.replace("q_proj", f"{part}_proj") for part in "qkv"]
            joined = _own_name(name.replace("q_proj", "qkv"))
        elif "gate_proj" in name:
            parts = [name, name.replace("gate_proj", "up_proj")]
            joined = _own_name(name.replace("mlp.gate_proj", "gate_up"))
        elif any(part in name for part in ("k_proj", "v_proj", "up_proj", "rotary_emb.inv_freq")):
            continue
        else:
            parts, joined = [name], _own_name(name)
        if all(part in stored for part in parts):  # what is left out here is reported as missing
            own[joined] = parts
    return {name: parts for name, parts in own.items() if not (config.tied and name == "head.weight")}


def _own_name(name: str) -> str:
    if name.startswith("lm_head."):
        return name.replace("lm_head", "head")
    for own, hub in _NAMES.items():
        name = name.replace(hub, own)
    return name
