"""Sampling by the compiled `generate`: every thread serves its own rows, and a freed place is refilled at once.

The same draws as the engine's plain loop, by the inverse of the cumulative distribution at a row's own uniforms: tokens
are equal but where a draw lies within rounding of a boundary, log-probs up to rounding.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from trueline.models import kernels
from trueline.models.decoder import Decoder
from trueline.models.packed_trunk import runs_packed
from trueline.models.scoring import Sampling

__all__ = ["Drawn", "can_generate", "generate"]

_PANEL = 16
_SLOTS = 32
"""Rows that a thread decodes together at most: more only widen the cache."""


@dataclass(frozen=True)
class Drawn:
    """Responses [n, limit] with their log-probs, lengths [n], and whether each ended by itself [n]."""

    tokens: Tensor
    logprobs: Tensor
    lengths: Tensor
    ended: Tensor


def can_generate(policy: Decoder, sampling: Sampling) -> bool:
    """Whether the trunk runs packed, sampling is plain or greedy, and the widths fill the kernels' panels."""
    if not (sampling.plain and runs_packed(policy.trunk)):
        return False
    config = policy.config
    widths = (
        config.hidden_size,
        2 * config.intermediate_size,
        (config.num_heads + 2 * config.num_kv_heads) * config.head_dim,
    )
    return all(width % _PANEL == 0 for width in widths)


def generate(
    policy: Decoder,
    prompts: Sequence[Sequence[int]],
    uniforms: np.ndarray | None,
    *,
    max_new_tokens: int,
    sampling: Sampling,
    end_ids: Sequence[int],
) -> Drawn:
    """One response per prompt; equal prompts are computed once where they are the same thread's."""
    order, request = _request(prompts, uniforms, max_new_tokens, sampling.covering(policy.config.vocab_size), end_ids)
    model = _model(policy)
    if kernels.library().generate(ctypes.byref(model), ctypes.byref(request), kernels.threads()):
        raise MemoryError(f"no memory to decode {request.slots} rows a thread of {request.longest} prompt tokens")
    back = torch.from_numpy(np.argsort(order))
    return Drawn(*(tensor[back] for tensor in request.results))


class _Model(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.POINTER(ctypes.c_void_p)) for name in (
            "attention_norm", "qkv", "qkv_bias", "out", "mlp_norm", "gate_up", "down"
        )),
        *((name, ctypes.c_void_p) for name in ("embed", "norm", "head", "cosines", "sines")),
        *((name, ctypes.c_int32) for name in (
            "layers", "width", "inner", "heads", "kv_heads", "dim", "vocabulary"
        )),
        ("eps", ctypes.c_float),
    ]  # fmt: skip


class _Request(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in (
            "tokens", "start", "length", "first_row", "uniforms", "forbidden", "ends", "response", "logprobs",
            "lengths", "ended",
        )),
        *((name, ctypes.c_int32) for name in ("prompts", "limit", "end_count", "longest", "slots")),
    ]  # fmt: skip


def _request(prompts, uniforms, limit: int, forbidden: Tensor | None, end_ids) -> tuple[np.ndarray, _Request]:
    """Rows with equal prompts side by side, long prompts first; what the results are written to."""
    rows: dict[tuple[int, ...], list[int]] = {}
    for row, prompt in enumerate(prompts):
        rows.setdefault(tuple(prompt), []).append(row)
    share = max(1, -(-len(prompts) // kernels.threads()))  # no thread waits for the many samples of another's prompt
    units = [
        (prompt, held[i : i + share])
        for prompt, held in sorted(rows.items(), key=lambda item: -len(item[0]))
        for i in range(0, len(held), share)
    ]
    order = np.array([row for _, held in units for row in held])
    lengths = np.array([len(prompt) for prompt, _ in units], dtype=np.int64)
    count = len(prompts)
    held = {
        "tokens": np.array([token for prompt, _ in units for token in prompt], dtype=np.int64),
        "start": np.concatenate(([0], lengths.cumsum()[:-1])),
        "length": lengths,
        "first_row": np.concatenate(([0], np.cumsum([len(held) for _, held in units]))).astype(np.int32),
        "uniforms": None if uniforms is None else np.ascontiguousarray(uniforms[order, :limit], dtype=np.float64),
        "forbidden": None if forbidden is None else forbidden.numpy(),
        "ends": np.array(end_ids, dtype=np.int64),
        "response": np.zeros((count, limit), dtype=np.int64),
        "logprobs": np.zeros((count, limit), dtype=np.float32),
        "lengths": np.zeros(count, dtype=np.int64),
        "ended": np.zeros(count, dtype=bool),
    }
    request = _Request(
        *(None if array is None else array.ctypes.data for array in held.values()),
        len(units), limit, len(held["ends"]), int(lengths.max()), min(_SLOTS, share),
    )  # fmt: skip
    request.held = held  # the addresses live as long as this does
    request.results = [torch.from_numpy(held[name]) for name in ("response", "logprobs", "lengths", "ended")]
    return order, request


def _model(policy: Decoder) -> _Model:
    """The policy's present weights, packed."""
    config, trunk = policy.config, policy.trunk
    alive: list[Tensor] = []

    def packed(weight: Tensor) -> int:
        outputs, inputs = weight.shape
        made = torch.empty(-(-outputs // _PANEL) * _PANEL * inputs)
        kernels.library().pack_weight(kernels.pointer(weight), kernels.pointer(made), outputs, inputs)
        alive.append(made)
        return made.data_ptr()

    def each(of, *, as_packed: bool):
        found = [of(block) for block in trunk.blocks]
        addresses = [packed(t) if as_packed else kernels.pointer(t) for t in found]
        return (ctypes.c_void_p * len(found))(*addresses)

    layers = [
        each(lambda b: b.attention_norm.weight, as_packed=False),
        each(lambda b: b.attention.qkv.weight, as_packed=True),
        each(lambda b: b.attention.qkv.bias, as_packed=False),
        each(lambda b: b.attention.out.weight, as_packed=True),
        each(lambda b: b.mlp_norm.weight, as_packed=False),
        each(lambda b: b.gate_up.weight, as_packed=True),
        each(lambda b: b.down.weight, as_packed=True),
    ]
    model = _Model(
        *(ctypes.cast(array, ctypes.POINTER(ctypes.c_void_p)) for array in layers),
        *map(kernels.pointer, (trunk.embed.weight, trunk.norm.weight)),
        packed(policy.head.weight),
        *map(kernels.pointer, (trunk.cos, trunk.sin)),
        config.num_layers, config.hidden_size, config.intermediate_size, config.num_heads, config.num_kv_heads,
        config.head_dim, config.vocab_size, config.norm_eps,
    )  # fmt: skip
    model.held = (alive, layers, policy)
    return model
