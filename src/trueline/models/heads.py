"""A trunk with a scalar head: one value per token. A reward model is read at the last real token, a critic at all."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from trueline.models.decoder import Decoder, DecoderConfig, Trunk

__all__ = ["ScalarModel", "last_values", "scalar_from"]


class ScalarModel(nn.Module):
    """tokens [B, T] (right-padded) -> one scalar per token [B, T].

    A reward model has no bias and is saved as a one-label sequence classifier; a critic has one and is saved as a
    one-label token classifier: the two layouts that transformers loads.
    """

    def __init__(self, config: DecoderConfig, *, bias: bool) -> None:
        super().__init__()
        self.config = config
        self.trunk = Trunk(config)
        self.score = nn.Linear(config.hidden_size, 1, bias=bias)
        nn.init.zeros_(self.score.weight)
        if bias:
            nn.init.zeros_(self.score.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.score(self.trunk(tokens)).squeeze(-1)

    @property
    def parameter_count(self) -> int:
        """Number of parameters: the N of the FLOP accounting."""
        return sum(p.numel() for p in self.parameters())


def scalar_from(source: Decoder | ScalarModel, *, bias: bool, keep_head: bool = False) -> ScalarModel:
    """A scalar model whose trunk is a copy of `source`'s. The head starts at zero unless `keep_head` copies it."""
    model = ScalarModel(source.config, bias=bias)
    model.trunk.load_state_dict(copy.deepcopy(source.trunk.state_dict()))
    if keep_head:
        if not isinstance(source, ScalarModel):
            raise TypeError("keep_head needs a scalar model to copy the head from")
        with torch.no_grad():
            model.score.weight.copy_(source.score.weight)
    return model


def last_values(values: Tensor, lengths: Tensor) -> Tensor:
    """The value at each row's last real token: values [B, T], lengths [B] -> [B]."""
    return values.gather(1, (lengths - 1)[:, None]).squeeze(1)
