"""LoRA (Hu et al. 2021, arXiv 2106.09685) by peft: policy, reference, critic and reward model on one base in memory.

A folder with `adapter_config.json` names its base. Every model that is loaded on the same base in one process shares
the base's weights, which stay as they are, and has an adapter of its own: only the adapter (and a scalar head) is
trained, saved, averaged and fingerprinted. So a reference is the adapter of SFT, never the bare base.
"""

from __future__ import annotations

import json
import warnings
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from trueline.errors import InputError
from trueline.models.decoder import Headed
from trueline.models.folders import PEFT, check_folder, read_object
from trueline.models.foreign import ForeignConfig, ForeignTrunk, foreign_config, load_foreign, quiet
from trueline.models.hub import local_folder

__all__ = [
    "AdapterDecoder",
    "AdapterTrunk",
    "LoraSettings",
    "Quantize",
    "adapter_base",
    "adapter_scalar_parts",
    "check_quantize",
    "fresh_adapter",
    "load_adapter",
    "merged",
    "save_adapter",
    "save_adapter_scalar",
]

Quantize = Literal["none", "8bit", "4bit"]
_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_bases: dict[tuple[str, str], _Base] = {}


@dataclass(frozen=True)
class LoraSettings:
    """Rank, scale (alpha / rank multiplies the update), the layers that get an adapter, how the base is held."""

    rank: int
    alpha: float
    targets: str | tuple[str, ...] = "all-linear"
    quantize: Quantize = "none"


class _Base:
    """One frozen model and the adapters on it, by name."""

    def __init__(self, folder: Path, dtype: torch.dtype, quantize: Quantize) -> None:
        options = _quantized(quantize)
        self.folder, self.quantize = folder, quantize
        raw = read_object(folder / "config.json")
        self.decoder = load_foreign(folder, foreign_config(folder, raw), dtype, **options)
        self.decoder.requires_grad_(False)
        self.peft: Any = None
        self.parameters: dict[str, dict[str, nn.Parameter]] = {}
        self.dropped: list[str] = []
        self.active = ""
        self._made = 0

    def add(self, config: Any) -> str:
        """A new adapter that changes nothing yet (B is zero); its random half is drawn from torch's generator."""
        import peft

        name, self._made = f"adapter{self._made}", self._made + 1
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # peft calls what transformers is about to rename
            if self.peft is None:
                self.peft = peft.PeftModel(self.decoder.causal, config, adapter_name=name)
            else:
                self.peft.add_adapter(name, config)
        mark = f".{name}."
        named = self.peft.base_model.model.named_parameters()
        self.parameters[name] = {key.replace(mark, "."): p for key, p in named if mark in f"{key}."}
        self.active = ""
        self.use(name)
        for old in self.dropped:
            self.peft.delete_adapter(old)
            del self.parameters[old]
        self.dropped.clear()
        return name

    def use(self, name: str) -> None:
        """Make `name` the adapter that the next pass goes through. Gradients stay on for all: peft turns them off."""
        if self.active == name:
            return
        self.peft.base_model.set_adapter(name)
        self.active = name
        for parameters in self.parameters.values():
            for parameter in parameters.values():
                parameter.requires_grad_(True)

    def config_of(self, name: str) -> Any:
        return self.peft.peft_config[name]


class AdapterTrunk(ForeignTrunk):
    """The shared base seen through one adapter; its parameters are the adapter's."""

    def __init__(self, shared: _Base, name: str) -> None:
        nn.Module.__init__(self)
        self.__dict__["shared"] = shared  # not registered: its weights are nobody's to train
        self.config, self.takes_positions, self.adapter = (
            shared.decoder.config,
            shared.decoder.trunk.takes_positions,
            name,
        )
        held = {key.replace(".", "/"): parameter for key, parameter in shared.parameters[name].items()}
        self.lora = nn.ParameterDict(held)
        weakref.finalize(self, shared.dropped.append, name)

    @property
    def base(self) -> nn.Module:
        return self.shared.decoder.trunk.base

    @property
    def parameter_count(self) -> int:
        """Of base and adapter, without heads."""
        return _weights_of(self.base) + sum(p.numel() for p in self.parameters())

    def run(self, **inputs: Any) -> Tensor:
        self.shared.use(self.adapter)
        return super().run(**inputs)

    def twin(self) -> AdapterTrunk:
        """An adapter of its own with equal weights on the same base."""
        made = AdapterTrunk(self.shared, self.shared.add(_like(self.shared.config_of(self.adapter))))
        made.load_state_dict(self.state_dict())
        made.precision, made.recomputed = self.precision, self.recomputed
        return made

    def _apply(self, fn: Any, recurse: bool = True) -> AdapterTrunk:
        self.shared.decoder._apply(fn, recurse)
        return super()._apply(fn, recurse)


class AdapterDecoder(Headed):
    """The shared base with its own language-model head, seen through one adapter."""

    def __init__(self, trunk: AdapterTrunk) -> None:
        super().__init__()
        self.config: ForeignConfig = trunk.config
        self.trunk = trunk

    @property
    def head(self) -> nn.Module:
        return self.trunk.shared.decoder.head

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits [B, T, V] of right-padded tokens [B, T]."""
        return self.head(self.trunk(tokens))

    @property
    def parameter_count(self) -> int:
        """Of base, head and adapter: the N of the FLOP accounting."""
        return self.config.parameter_count + sum(p.numel() for p in self.trunk.parameters())


def adapter_base(folder: Path) -> Path:
    """The folder of the base that an adapter was trained on. `InputError` where it is not on this machine."""
    path = folder / _CONFIG
    settings, field = read_object(path), "base_model_name_or_path"
    if not isinstance(settings.get(field), str):
        raise InputError("missing", where=str(path), field=field, remedy="save the adapter again")
    base = local_folder(settings[field], settings.get("revision") or "main", where=str(path), field=field)
    check_folder(base)
    return base


def fresh_adapter(base: Path, lora: LoraSettings, seed: int, dtype: torch.dtype = torch.float32) -> AdapterDecoder:
    """A policy that says what its base says, with an adapter to train; the adapter is a function of `seed`."""
    shared = _shared(base, dtype, lora.quantize)
    targets: Any = lora.targets if isinstance(lora.targets, str) else list(lora.targets)
    config = _peft().LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=0.0,
        target_modules=targets,
        task_type="CAUSAL_LM",
        fan_in_fan_out=_transposed(shared.decoder),
        base_model_name_or_path=str(base.resolve()),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            name = shared.add(config)
        except ValueError as error:
            raise InputError(str(error).splitlines()[0], where="settings", field="model.lora_targets",
                             remedy="name linear layers of this model, or all-linear") from None  # fmt: skip
    return AdapterDecoder(AdapterTrunk(shared, name)).eval()


def load_adapter(folder: Path, dtype: torch.dtype = torch.float32, quantize: Quantize = "none") -> AdapterDecoder:
    """The policy of an adapter's folder; `quantize` says how the base is held where it is not in memory yet."""
    trunk, rest = _trunk(folder, dtype, quantize)
    _all_read(rest, folder)
    return AdapterDecoder(trunk).eval()


def adapter_scalar_parts(
    folder: Path, bias: bool, dtype: torch.dtype = torch.float32, quantize: Quantize = "none"
) -> tuple[AdapterTrunk, nn.Linear]:
    """Trunk and head of an adapter's folder that holds a reward model (`bias=False`) or a critic."""
    trunk, rest = _trunk(folder, dtype, quantize)
    score = nn.Linear(trunk.config.hidden_size, 1, bias=bias, dtype=dtype)
    with torch.no_grad():
        for name, parameter in score.named_parameters():
            found = rest.pop(f"score.{name}", None)
            if found is None:
                raise InputError(f"no score.{name}", where=str(folder / _WEIGHTS), remedy="check the kind of model")
            parameter.copy_(found)
    _all_read(rest, folder)
    return trunk, score


def save_adapter(model: AdapterDecoder, folder: Path, generation: Mapping[str, Any]) -> None:
    """The adapter as peft writes it, with `generation_config.json`."""
    _save(model.trunk, folder, {}, "CAUSAL_LM", [])
    (folder / "generation_config.json").write_text(json.dumps(dict(generation), indent=2) + "\n")


def save_adapter_scalar(trunk: AdapterTrunk, score: nn.Linear, folder: Path) -> None:
    """The adapter and its scalar head as peft writes a classifier of sequences, or of tokens where it has a bias."""
    kind = "SEQ_CLS" if score.bias is None else "TOKEN_CLS"
    _save(trunk, folder, {f"score.{name}": p.detach() for name, p in score.named_parameters()}, kind, ["score"])


def merged(model: AdapterDecoder, folder: Path) -> None:
    """Write base and adapter as one model that needs no peft; the model itself is used up."""
    shared = model.trunk.shared
    if shared.quantize != "none":
        raise InputError(
            "a base in 8 or 4 bits cannot take the adapter in",
            where=str(folder),
            field="model.quantize",
            remedy="merge with the base in full",
        )
    shared.use(model.trunk.adapter)
    whole = shared.peft.merge_and_unload(adapter_names=[model.trunk.adapter])
    with quiet():
        whole.save_pretrained(folder)
    for key in [key for key, base in _bases.items() if base is shared]:
        del _bases[key]


def _save(trunk: AdapterTrunk, folder: Path, more: Mapping[str, Tensor], kind: str, whole: Sequence[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {key.replace("/", "."): p.detach() for key, p in trunk.lora.items()} | dict(more)
    tensors = {PEFT + name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    save_file(tensors, folder / _WEIGHTS, metadata={"format": "pt"})
    config = _like(trunk.shared.config_of(trunk.adapter))
    config.task_type, config.modules_to_save, config.inference_mode = kind, list(whole) or None, True
    config.base_model_name_or_path = str(trunk.shared.folder.resolve())
    config.save_pretrained(str(folder))


def _trunk(folder: Path, dtype: torch.dtype, quantize: Quantize) -> tuple[AdapterTrunk, dict[str, Tensor]]:
    base, path = adapter_base(folder), folder / _WEIGHTS
    if not path.is_file():
        raise InputError("no adapter weights", where=str(folder), field=_WEIGHTS, remedy="save the adapter again")
    try:
        found = {name.removeprefix(PEFT): tensor for name, tensor in load_file(path).items()}
    except Exception as error:  # safetensors raises its own class, which is no subclass of a common one
        raise InputError(f"damaged weights ({error})", where=str(path), remedy="copy or save it again") from None
    config = _peft().LoraConfig.from_pretrained(str(folder))
    config.task_type, config.modules_to_save, config.inference_mode = "CAUSAL_LM", None, False
    shared = _shared(base, dtype, quantize)
    with torch.random.fork_rng(devices=[]):
        name = shared.add(config)
    trunk = AdapterTrunk(shared, name)
    wanted = trunk.state_dict()
    own = {key: found.pop(key.removeprefix("lora.").replace("/", "."), None) for key in wanted}
    missing = [key for key, tensor in own.items() if tensor is None]
    if missing:
        raise InputError(f"missing weights: {missing[0]}", where=str(path), remedy="save the adapter again")
    wrong = [key for key, tensor in own.items() if tensor.shape != wanted[key].shape]
    if wrong:
        raise InputError(f"wrong shapes: {wrong[0]}", where=str(path), remedy="give the base it was trained on")
    trunk.load_state_dict(own)
    return trunk, found


def _all_read(rest: Mapping[str, Tensor], folder: Path) -> None:
    if rest:
        reason = f"weights that nothing reads: {', '.join(sorted(rest)[:3])}"
        raise InputError(reason, where=str(folder / _WEIGHTS), remedy="check the kind of model")


def _shared(base: Path, dtype: torch.dtype, quantize: Quantize) -> _Base:
    """The base of that folder in this process; loaded once, whatever it is held in."""
    folder = str(base.resolve())
    key = folder, str(dtype)
    if key not in _bases:
        _bases[key] = _Base(Path(folder), dtype, quantize)
    return _bases[key]


def _like(config: Any) -> Any:
    return type(config)(**config.to_dict())


def _transposed(decoder: nn.Module) -> bool:
    from transformers.pytorch_utils import Conv1D

    return any(isinstance(module, Conv1D) for module in decoder.trunk.base.modules())


def _peft() -> Any:
    try:
        import peft
    except ImportError:
        raise InputError("LoRA needs peft, which is not installed", where="environment", field="peft",
                         remedy="pip install 'trueline[lora]'") from None  # fmt: skip
    return peft


def check_quantize(quantize: Quantize) -> None:
    """`InputError`, with the reason, where bitsandbytes cannot hold weights that way on this machine."""
    if quantize == "none":
        return
    remedy = "use model.quantize=none, or a machine with a CUDA GPU and pip install bitsandbytes"
    if not torch.cuda.is_available():
        raise InputError(
            f"{quantize} weights need a CUDA GPU, and there is none",
            where="settings",
            field="model.quantize",
            remedy=remedy,
        )
    if find_spec("bitsandbytes") is None:
        raise InputError("bitsandbytes is not installed", where="environment", field="model.quantize", remedy=remedy)


def _quantized(quantize: Quantize) -> dict[str, Any]:
    """Loading options of bitsandbytes."""
    check_quantize(quantize)
    if quantize == "none":
        return {}
    from transformers import BitsAndBytesConfig

    held = BitsAndBytesConfig(
        load_in_8bit=quantize == "8bit",
        load_in_4bit=quantize == "4bit",
        bnb_4bit_compute_dtype=torch.bfloat16,
        bnb_4bit_quant_type="nf4",
    )
    return {"quantization_config": held, "device_map": {"": 0}}


def _weights_of(base: nn.Module) -> int:
    """Parameters of the base alone, without the adapters that hang on its layers."""
    return sum(p.numel() for name, p in base.named_parameters() if ".lora_" not in name)
