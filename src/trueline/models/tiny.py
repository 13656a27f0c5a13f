"""Small decoders made from nothing: sizes by name, and one way to initialise them."""

from __future__ import annotations

import math

import torch
from torch import nn

from trueline.errors import InputError
from trueline.models.decoder import Decoder, DecoderConfig

__all__ = ["SIZES", "initialize", "make_decoder", "sized"]

# hidden, intermediate, layers, heads, kv heads. Parameters with the vocabularies of the shipped dialogue worlds (768,
# 768, 1481, 1785): 172,352, 713,600, 3,513,088 and 30,346,752.
SIZES = {
    "tiny": (64, 128, 2, 4, 2),
    "mini": (128, 320, 3, 4, 2),
    "small": (256, 640, 4, 8, 4),
    "medium": (512, 1344, 10, 8, 4),
}


def sized(size: str, *, vocab_size: int, max_positions: int, pad_id: int, end_id: int, width: int = 0) -> DecoderConfig:
    """The shape of a named size; with a `width` of its own the same layers and heads, as much wider or narrower."""
    hidden, intermediate, layers, heads, kv_heads = SIZES[size]
    if width:
        hidden, intermediate = width, width * intermediate // hidden
        if width % (2 * heads):
            raise InputError(
                f"{width} is no multiple of {2 * heads}, twice the heads of size {size}",
                where="settings",
                field="model.width",
                remedy="give one that is",
            )
    return DecoderConfig(
        vocab_size=vocab_size,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=hidden // heads,
        max_positions=max_positions,
        pad_id=pad_id,
        end_id=end_id,
    )


def initialize(model: nn.Module, seed: int) -> None:
    """Normal weights: 1/sqrt(fan in) for projections, the ones that write to the residual stream divided by
    sqrt(2 layers) (Radford et al. 2019), 0.02 for embeddings and head."""
    generator = torch.Generator().manual_seed(seed)
    layers = model.config.num_layers
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2:
            continue
        if name.startswith(("trunk.embed", "head")):
            std = 0.02
        else:
            std = 1.0 / math.sqrt(parameter.shape[1])
            if name.endswith(("out.weight", "down.weight")):
                std /= math.sqrt(2 * layers)
        with torch.no_grad():
            parameter.normal_(0.0, std, generator=generator)


def make_decoder(config: DecoderConfig, seed: int) -> Decoder:
    """A decoder with fresh weights that are a function of `seed`."""
    model = Decoder(config)
    initialize(model, seed)
    return model.eval()
