"""Sampling among the processes of a run: each draws for its part of the prompts, or one asks for all; all get every
response."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from trueline.distributed.world import World
from trueline.models.decoder import Decoder
from trueline.models.scoring import Sampling
from trueline.rollout.engine import Rollout, RolloutEngine

__all__ = ["LedEngine", "SharedEngine", "on_cpu", "put_together"]


class SharedEngine:
    """An engine of each process behind one face. Draws belong to prompts, so who samples changes nothing."""

    def __init__(self, engine: RolloutEngine, world: World, pad_id: int) -> None:
        self._engine, self._world, self._pad_id = engine, world, pad_id

    def load_weights(self, policy: Decoder, version: int) -> None:
        """Sample from `policy`, in one piece, from now on."""
        self._engine.load_weights(policy, version)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        uniforms: np.ndarray | None,
        *,
        max_new_tokens: int,
        sampling: Sampling,
    ) -> Rollout:
        """One response per prompt, in the prompts' order. Long and short prompts are spread evenly."""
        order = np.argsort([len(prompt) for prompt in prompts], kind="stable")
        mine = self._world.part(order)
        drawn = None
        if len(mine):
            draws = None if uniforms is None else uniforms[mine]
            drawn = self._engine.generate(
                [prompts[i] for i in mine], draws, max_new_tokens=max_new_tokens, sampling=sampling
            )
        pieces = [piece for piece in self._world.everyone(drawn and on_cpu(drawn)) if piece is not None]
        return put_together(pieces, order, self._world.size, self._pad_id, self._world.device)


class LedEngine:
    """An engine that the leader alone speaks to; every process gets the responses."""

    def __init__(self, engine: RolloutEngine | None, world: World) -> None:
        self._engine, self._world = engine, world

    def load_weights(self, policy: Decoder, version: int) -> None:
        """The leader's engine samples from `policy`, in one piece, from now on."""
        if self._engine is not None:
            self._engine.load_weights(policy, version)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        uniforms: np.ndarray | None,
        *,
        max_new_tokens: int,
        sampling: Sampling,
    ) -> Rollout:
        """One response per prompt."""
        drawn = None
        if self._engine is not None:
            rollout = self._engine.generate(prompts, uniforms, max_new_tokens=max_new_tokens, sampling=sampling)
            drawn = (*on_cpu(rollout), rollout.version)
        *parts, version = self._world.from_leader(drawn)
        return Rollout(*(part.to(self._world.device) for part in parts), version)


def on_cpu(rollout: Rollout) -> tuple[torch.Tensor, ...]:
    """A rollout's tensors as they travel, in the order that `put_together` reads."""
    parts = (rollout.tokens, rollout.response_mask, rollout.logprobs, rollout.lengths, rollout.prompt_lengths)
    return tuple(part.cpu() for part in (*parts, rollout.ended))


def put_together(
    pieces: list, order: np.ndarray, size: int, pad_id: int, device: torch.device, version: int = 0
) -> Rollout:
    """The rollout of all rows; piece k of `size` holds rows order[k::size]: tokens, mask, log-probs, lengths, prompt
    lengths, ended."""
    width = max(piece[0].shape[1] for piece in pieces)
    rows = np.concatenate([order[rank::size] for rank in range(size)])
    back = torch.from_numpy(np.argsort(rows))

    def joined(index: int, value: float = 0) -> torch.Tensor:
        parts = [piece[index] for piece in pieces]
        if parts[0].dim() == 2:
            parts = [torch.nn.functional.pad(part, (0, width - part.shape[1]), value=value) for part in parts]
        return torch.cat(parts)[back].to(device)

    tokens, mask, logprobs, lengths, prompts, ended = (joined(i, pad_id if i == 0 else 0) for i in range(6))
    return Rollout(tokens, mask, logprobs, lengths, prompts, ended, version)
