"""A trunk with a scalar head: one value per token. A reward model is read at the last real token, a critic at all."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trueline.models.decoder import Decoder, Headed, Trunk
from trueline.models.packed_trunk import hidden_at
from trueline.models.protocol import Backbone, Shape

__all__ = ["ScalarModel", "last_scores", "last_values", "response_values", "scalar_from"]


class ScalarModel(Headed):
    """tokens [B, T] (right-padded) -> one scalar per token [B, T].

    A reward model has no bias and is saved as a one-label sequence classifier; a critic has one and is saved as a
    one-label token classifier: the two layouts that transformers loads.
    """

    def __init__(self, config: Shape, *, bias: bool, trunk: Backbone | None = None) -> None:
        super().__init__()
        self.config = config
        self.trunk = Trunk(config) if trunk is None else trunk
        self.score = nn.Linear(config.hidden_size, 1, bias=bias)
        nn.init.zeros_(self.score.weight)
        if bias:
            nn.init.zeros_(self.score.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.score(self.trunk(tokens)).squeeze(-1)

    @property
    def parameter_count(self) -> int:
        """Number of parameters: the N of the FLOP accounting."""
        return self.trunk.parameter_count + sum(p.numel() for p in self.score.parameters())


def scalar_from(source: Decoder | ScalarModel, *, bias: bool, keep_head: bool = False) -> ScalarModel:
    """A scalar model whose trunk is a copy of `source`'s. The head starts at zero unless `keep_head` copies it."""
    model = ScalarModel(source.config, bias=bias, trunk=source.trunk.twin())
    model.to(next(source.parameters()))
    if keep_head:
        if not isinstance(source, ScalarModel):
            raise TypeError("keep_head needs a scalar model to copy the head from")
        with torch.no_grad():
            model.score.weight.copy_(source.score.weight)
    return model


def response_values(critic: ScalarModel, tokens: Tensor, response_mask: Tensor) -> Tensor:
    """The critic's value of the state **before** each response token, [B, T] with zeros elsewhere."""
    if bool(response_mask[:, 0].any()):
        raise ValueError("response_mask must be False at index 0: there is no state before the first token")
    return critic.with_weights(_response_values, tokens, response_mask)


def _response_values(critic: ScalarModel, tokens: Tensor, response_mask: Tensor) -> Tensor:
    values = critic.score(hidden_at(critic.trunk, tokens, F.pad(response_mask[:, 1:], (0, 1)))).squeeze(-1)
    return torch.zeros(tokens.shape, dtype=values.dtype, device=values.device).masked_scatter(response_mask, values)


def last_scores(model: ScalarModel, tokens: Tensor, lengths: Tensor, prompt_lengths: Tensor | None = None) -> Tensor:
    """The scalar at the last real token of each row of right-padded `tokens` [B, T], [B].

    Rows that agree on their first `prompt_lengths` [B] tokens share that computation.
    """
    wanted = torch.arange(tokens.shape[1], device=tokens.device) == (lengths - 1).unsqueeze(-1)
    if prompt_lengths is None:
        prompt_lengths = torch.zeros_like(lengths)
    return model.with_weights(_scores, tokens, wanted, prompt_lengths)


def _scores(model: ScalarModel, tokens: Tensor, wanted: Tensor, prompt_lengths: Tensor) -> Tensor:
    scores = model.score(hidden_at(model.trunk, tokens, wanted, prompt_lengths)).squeeze(-1)
    return scores.clone()  # no view: weights that lie in parts are put together again before its backward pass


def last_values(values: Tensor, lengths: Tensor) -> Tensor:
    """The value at each row's last real token: values [B, T], lengths [B] -> [B]."""
    return values.gather(1, (lengths - 1)[:, None]).squeeze(1)
