"""Any other causal language model of transformers, behind the surface of `decoder.Decoder`.

The modules are transformers' own. What is ours: batches are padded on the right where they are scored, so that no mask
is needed; prompts are moved to the right edge for the key-value cache, as every architecture there expects; the head is
applied apart from the trunk, so that `models.scoring` never keeps full logits. A model whose logits are not its head on
its last hidden states is refused when it is loaded.
"""

from __future__ import annotations

import copy
import inspect
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trueline.errors import InputError
from trueline.models.decoder import Headed, Precision, in_precision
from trueline.models.folders import check_weights, read_end_ids

__all__ = [
    "ForeignConfig",
    "ForeignDecoder",
    "ForeignTrunk",
    "LeftCache",
    "SoftcapHead",
    "foreign_config",
    "load_foreign",
    "load_foreign_scalar_parts",
    "quiet",
    "save_foreign",
    "save_foreign_scalar",
]

_PROBE = (3, 1, 4, 1, 5)
_KINDS = {False: "ForSequenceClassification", True: "ForTokenClassification"}


@dataclass(frozen=True)
class ForeignConfig:
    """What the rest of trueline asks of a shape, and the model's own configuration as its folder has it."""

    family: str
    vocab_size: int
    hidden_size: int
    max_positions: int
    parameter_count: int
    pad_id: int | None = None
    end_id: int | tuple[int, ...] | None = None
    bos_id: int | None = None
    described: Mapping[str, Any] = field(default_factory=dict, compare=False, hash=False)


class SoftcapHead(nn.Module):
    """A language-model head whose logits are bent: cap tanh(logits / cap) (Gemma 2)."""

    def __init__(self, linear: nn.Linear, cap: float) -> None:
        super().__init__()
        self.linear, self.cap = linear, cap

    @property
    def weight(self) -> Tensor:
        return self.linear.weight

    def forward(self, hidden: Tensor) -> Tensor:
        return self.cap * torch.tanh(self.linear(hidden) / self.cap)


class LeftCache:
    """Keys and values of rows that end together: transformers' cache, and which of its places are real [B, S]."""

    def __init__(self, held: Any) -> None:
        self.held = held
        self.real: Tensor | None = None

    def keep(self, rows: Tensor) -> None:
        """Drop every row that is not in `rows` (indices)."""
        self.held.batch_select_indices(rows)
        self.real = self.real[rows]


class ForeignTrunk(nn.Module):
    """Tokens [B, T], right-padded -> hidden states [B, T, hidden_size] after the last norm."""

    precision: Precision = "fp32"
    recomputed: tuple[nn.Module, ...] = ()

    def __init__(self, base: nn.Module, config: ForeignConfig) -> None:
        super().__init__()
        self.base, self.config = base, config
        self.takes_positions = "position_ids" in inspect.signature(base.forward).parameters

    @property
    def parameter_count(self) -> int:
        """Without heads."""
        return sum(p.numel() for p in self.base.parameters())

    @in_precision
    def forward(self, tokens: Tensor) -> Tensor:
        """Hidden states of right-padded `tokens`; those at padding are meaningless and must not be read."""
        self.check_length(tokens.shape[1])
        # a mask of ones, and not none: padding on the right needs no mask, and some warn where they see none
        return self.run(input_ids=tokens, attention_mask=torch.ones_like(tokens), use_cache=False)

    def cache(self, rows: int, positions: int) -> LeftCache:
        """An empty cache; it grows with what is written."""
        from transformers import DynamicCache

        return LeftCache(DynamicCache(config=self.base.config))

    @in_precision
    def prefill(self, tokens: Tensor, lengths: Tensor, cache: LeftCache) -> Tensor:
        """Hidden states [B, hidden_size] at the last of each row's `lengths` [B] tokens; fills the cache."""
        self.check_length(tokens.shape[1])
        index = torch.arange(tokens.shape[1], device=tokens.device) - (tokens.shape[1] - lengths)[:, None]
        cache.real = index >= 0
        at = index.clamp(min=0)
        return self._cached(tokens.gather(1, at), at, cache)

    @in_precision
    def decode(self, tokens: Tensor, at: Tensor, cache: LeftCache) -> Tensor:
        """Hidden states [B, hidden_size] of one new token a row, `tokens` [B] at index `at` [B]."""
        cache.real = torch.nn.functional.pad(cache.real, (0, 1), value=True)
        return self._cached(tokens[:, None], at[:, None], cache)

    def _cached(self, tokens: Tensor, at: Tensor, cache: LeftCache) -> Tensor:
        where = {"position_ids": at} if self.takes_positions else {}
        mask = cache.real.long()
        hidden = self.run(input_ids=tokens, attention_mask=mask, past_key_values=cache.held, use_cache=True, **where)
        return hidden[:, -1]

    def run(self, **inputs: Any) -> Tensor:
        """The last hidden states of transformers' module."""
        for layer in self.recomputed:  # the layer's own switch: what is in it stays in evaluation mode, without dropout
            layer.training = torch.is_grad_enabled() and not inputs["use_cache"]
        return self.base(**inputs).last_hidden_state

    def compute_again(self) -> None:
        """From now on keep each layer's input alone for the backward pass, which computes the layer again."""
        from transformers.modeling_layers import GradientCheckpointingLayer

        layers = [module for module in self.base.modules() if isinstance(module, GradientCheckpointingLayer)]
        if not layers:
            raise InputError(
                f"transformers cannot checkpoint models of type {self.config.family!r}",
                where="settings",
                field="train.gradient_checkpointing",
                remedy="leave it off",
            )
        enable = getattr(self.base, "activation_checkpointing_enable", None) or self.base.gradient_checkpointing_enable
        enable({"use_reentrant": False})
        self.recomputed = tuple(layers)

    def twin(self) -> ForeignTrunk:
        """A trunk of its own with equal weights."""
        made = ForeignTrunk(copy.deepcopy(self.base), self.config)
        made.precision = self.precision
        if self.recomputed:
            made.compute_again()
        return made

    def check_length(self, length: int) -> None:
        """Raises ValueError for a row that is longer than the context."""
        if length > self.config.max_positions:
            raise ValueError(f"{length} tokens exceed the model's context of {self.config.max_positions}")


class ForeignDecoder(Headed):
    """A trunk with a language-model head; `causal` is transformers' model that both belong to."""

    def __init__(self, causal: nn.Module, config: ForeignConfig) -> None:
        super().__init__()
        self.config = config
        self.trunk = ForeignTrunk(causal.base_model, config)
        self.head = _head(causal)
        self._held = (causal,)  # not registered: trunk and head are its parameters

    @property
    def causal(self) -> nn.Module:
        return self._held[0]

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits [B, T, V] of right-padded tokens [B, T]. `models.scoring` keeps no such tensor and is what trains."""
        return self.head(self.trunk(tokens))

    @property
    def parameter_count(self) -> int:
        """Number of parameters, a tied head counted once: the N of the FLOP accounting."""
        return sum(p.numel() for p in self.parameters())


def foreign_config(folder: Path, raw: Mapping[str, Any]) -> ForeignConfig:
    """The shape of a folder's model by transformers' own reading of its `config.json`, `raw`.

    `InputError` where transformers knows no such causal model, where it needs code of its own, or is quantised.
    """
    where = str(folder / "config.json")
    if raw.get("auto_map") and raw.get("model_type") not in _families():
        raise InputError(
            "the model brings code of its own, which is never run",
            where=where,
            field="auto_map",
            remedy="use a model that transformers has itself",
        )
    if raw.get("quantization_config"):
        raise InputError(
            "already quantised weights cannot be trained",
            where=where,
            field="quantization_config",
            remedy="give the full model; model.quantize=4bit loads it in 4 bits, for LoRA",
        )
    family = raw.get("model_type")
    if family not in _families():
        raise InputError(
            f"transformers has no causal language model of type {family!r}",
            where=where,
            field="model_type",
            remedy="use a causal language model; for one with a vision part, its text-only folder",
        )
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (ValueError, TypeError, KeyError, OSError) as error:
        raise InputError(f"transformers cannot read it ({error})", where=where, remedy="save the model again") from None
    model = AutoModelForCausalLM._model_mapping[type(config)]
    if "past_key_values" not in inspect.signature(model.forward).parameters:
        raise InputError(
            f"models of type {family!r} have no key-value cache to sample with",
            where=where,
            field="model_type",
            remedy="use a transformer",
        )
    text = config.get_text_config()
    positions = getattr(text, "max_position_embeddings", None) or getattr(text, "n_positions", None)
    return ForeignConfig(
        family=family,
        vocab_size=text.vocab_size,
        hidden_size=text.hidden_size,
        max_positions=positions or 1 << 20,  # some have no limit of their own
        parameter_count=_count(folder),
        pad_id=text.pad_token_id,
        end_id=read_end_ids(folder, dict(raw)),
        bos_id=text.bos_token_id,
        described=dict(raw),
    )


def load_foreign(folder: Path, config: ForeignConfig, dtype: torch.dtype, **options: Any) -> ForeignDecoder:
    """The policy in a Hugging Face folder, through transformers."""
    from transformers import AutoModelForCausalLM

    model = ForeignDecoder(_load(AutoModelForCausalLM, folder, dtype, **options), config).eval()
    _check_head(model, folder)
    return model


def load_foreign_scalar_parts(folder: Path, bias: bool, dtype: torch.dtype) -> tuple[nn.Module, nn.Linear]:
    """The trunk's module and the head of a one-label classifier: of sequences (`bias=False`), or of tokens."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    if config.num_labels != 1:
        raise InputError(
            f"{config.num_labels} labels, one is needed",
            where=str(folder / "config.json"),
            field="num_labels",
            remedy="give a reward model: a sequence classifier of one label",
        )
    model = _load(_scalar_class(config, bias), folder, dtype)
    return model.base_model, getattr(model, _head_name(model))


def save_foreign(model: ForeignDecoder, folder: Path, generation: Mapping[str, Any]) -> None:
    """The policy as transformers writes it; `generation` goes to `generation_config.json`."""
    with quiet():
        model.causal.save_pretrained(folder)
    path = folder / "generation_config.json"
    path.write_text(json.dumps(dict(generation), indent=2) + "\n")


def save_foreign_scalar(base: nn.Module, score: nn.Linear, folder: Path, pad_id: int | None) -> None:
    """A one-label classifier as transformers writes it: of sequences, or of tokens where the head has a bias."""
    described = copy.deepcopy(base.config)
    described.num_labels, described.pad_token_id = 1, pad_id
    described.id2label, described.label2id = {0: "score"}, {"score": 0}
    described.classifier_dropout, described.tie_word_embeddings = 0.0, False
    with quiet(), torch.device("meta"):
        shell = _scalar_class(described, score.bias is not None)(described)
    name = _head_name(shell)
    setattr(shell, shell.base_model_prefix, base)
    setattr(shell, name, score)
    shell.config.architectures = [type(shell).__name__]
    with quiet():
        shell.save_pretrained(folder)


@contextmanager
def quiet() -> Iterator[None]:
    """transformers without its progress bars and advice."""
    from transformers.utils import logging

    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()


def _families() -> Mapping[str, str]:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as names

    return {family: name for family, name in names.items() if "Conditional" not in str(name)}


def _count(folder: Path) -> int:
    """Parameters by the files' headers: tied weights are written once."""
    return sum(prod(shape) for shape in check_weights(folder).values())


def _load(factory: Any, folder: Path, dtype: torch.dtype, **options: Any) -> nn.Module:
    check_weights(folder)
    try:
        with quiet():
            model, found = factory.from_pretrained(
                folder,
                dtype=dtype,
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
                **options,
            )
    except (ValueError, KeyError, OSError, RuntimeError) as error:
        reason = f"transformers cannot load it ({str(error).splitlines()[0]})"
        raise InputError(reason, where=str(folder), remedy="save the model again") from None
    problems = {
        "missing weights": found["missing_keys"],
        "weights that nothing reads": found["unexpected_keys"],
        "wrong shapes": [entry[0] for entry in found["mismatched_keys"]],
    }
    for reason, names in problems.items():
        if names:
            shown = ", ".join(sorted(names)[:3])
            raise InputError(f"{reason}: {shown}", where=str(folder), remedy="check the kind of model")
    return model.eval()


def _head(causal: nn.Module) -> nn.Module:
    head = causal.get_output_embeddings()
    cap = getattr(causal.config.get_text_config(), "final_logit_softcapping", None)
    return SoftcapHead(head, float(cap)) if cap else head


@torch.no_grad()
def _check_head(model: ForeignDecoder, folder: Path) -> None:
    tokens = torch.tensor([_PROBE], device=next(model.parameters()).device) % model.config.vocab_size
    theirs, ours = model.causal(input_ids=tokens, use_cache=False).logits.float(), model(tokens).float()
    shorter, size = model(tokens[:, :-1]).float(), theirs.abs().max().clamp(min=1e-6)
    gap, early = (float((a - b).abs().max() / size) for a, b in ((theirs, ours), (shorter, ours[:, :-1])))
    reason = ""
    if gap > 1e-3:
        reason = (
            f"the logits of this {model.config.family} model are not its head on its hidden states (off by {gap:.1e})"
        )
    elif early > 1e-3:
        reason = f"this {model.config.family} model is not causal: a later token changes what it says of earlier ones"
    if reason:
        raise InputError(reason, where=str(folder), field="model_type", remedy="use another architecture")


def _scalar_class(config: Any, bias: bool) -> Any:
    """transformers' classifier of this architecture; where it has none for tokens, the general one, made here."""
    from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification
    from transformers.modeling_layers import GenericForTokenClassification

    factory = AutoModelForTokenClassification if bias else AutoModelForSequenceClassification
    if type(config) in factory._model_mapping:
        found = factory._model_mapping[type(config)]
        return found[0] if isinstance(found, tuple) else found
    if not bias or type(config) not in AutoModelForSequenceClassification._model_mapping:
        raise InputError(
            f"transformers has no {_KINDS[bias]} of type {config.model_type!r}",
            field="model_type",
            remedy="use another architecture for reward models and critics",
        )
    other = AutoModelForSequenceClassification._model_mapping[type(config)]
    parent = next(c for c in other.__mro__ if c.__name__.endswith("PreTrainedModel") and c.config_class is not None)
    name = other.__name__.replace("ForSequenceClassification", "ForTokenClassification")
    return type(name, (GenericForTokenClassification, parent), {"config_class": type(config)})


def _head_name(model: nn.Module) -> str:
    return next(
        name for name, child in model.named_children() if isinstance(child, nn.Linear) and child.out_features == 1
    )
