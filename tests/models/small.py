"""Small random decoders for the tests."""

from __future__ import annotations

import torch

from trueline.models.decoder import Decoder, DecoderConfig
from trueline.models.heads import ScalarModel
from trueline.models.tiny import make_decoder

VOCAB, PAD, END = 37, 0, 1
FAMILIES = ("llama", "qwen2", "qwen3")


def small_config(family: str = "llama", *, tied: bool = False, kv_heads: int = 2, **changes) -> DecoderConfig:
    settings = {
        "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_layers": 2, "num_heads": 4,
        "num_kv_heads": kv_heads, "head_dim": 8, "max_positions": 64, "family": family, "tied": tied,
        "pad_id": PAD, "end_id": END,
    }  # fmt: skip
    return DecoderConfig(**settings | changes)


def randomized(model):
    """Every parameter random, biases and norms too, and large enough that each one shows in the output."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name:
                parameter.copy_(1 + 0.3 * noise)
            else:
                parameter.copy_(0.25 * noise)
    return model.eval()


def small_decoder(family: str = "llama", **changes) -> Decoder:
    return randomized(make_decoder(small_config(family, **changes), 0))


def small_scalar(family: str = "llama", *, bias: bool, **changes) -> ScalarModel:
    return randomized(ScalarModel(small_config(family, **changes), bias=bias))


def ragged(rows: int = 5, width: int = 17, seed: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Right-padded tokens [rows, width] that never hold the pad id inside, and their lengths; the first row is full."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(2, VOCAB, (rows, width), generator=generator)
    lengths = torch.randint(4, width + 1, (rows,), generator=generator)
    lengths[0] = width
    tokens[torch.arange(width) >= lengths[:, None]] = PAD
    return tokens, lengths
