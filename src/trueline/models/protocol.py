"""What scoring, sampling and training ask of a model, whoever wrote its layers.

`decoder.Decoder` is our own and the fastest, `foreign.ForeignDecoder` is any causal model of transformers,
`adapters.AdapterDecoder` a LoRA adapter on a base that several models share.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from trueline.models.decoder import Precision

__all__ = ["Backbone", "Cache", "Shape"]


class Shape(Protocol):
    """The facts of a model that do not depend on its layers; `end_id` is its `eos_token_id`, one or several."""

    family: str
    vocab_size: int
    hidden_size: int
    max_positions: int
    parameter_count: int
    pad_id: int | None
    end_id: int | tuple[int, ...] | None
    bos_id: int | None


class Cache(Protocol):
    """Keys and values of rows that are being sampled."""

    def keep(self, rows: Tensor) -> None: ...


class Backbone(Protocol):
    """A trunk: tokens [B, T], right-padded -> hidden states [B, T, d] after the last norm."""

    config: Shape
    precision: Precision

    @property
    def parameter_count(self) -> int: ...

    def __call__(self, tokens: Tensor) -> Tensor: ...

    def cache(self, rows: int, positions: int) -> Cache: ...

    def prefill(self, tokens: Tensor, lengths: Tensor, cache: Cache) -> Tensor: ...

    def decode(self, tokens: Tensor, at: Tensor, cache: Cache) -> Tensor: ...

    def compute_again(self) -> None: ...

    def twin(self) -> Backbone: ...

    def check_length(self, length: int) -> None: ...
