"""A reward model behind a vLLM server (`vllm serve FOLDER --runner pooling`): the same scores, computed there."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from trueline.models.heads import ScalarModel
from trueline.rewards.learned import Described, LearnedReward
from trueline.rollout.vllm_client import VllmServer
from trueline.training.preflight import slack
from trueline.training.stage import Stage

__all__ = ["served_reward"]

_ROWS, _TOKENS = 8, 24


class _ServedReward(LearnedReward):
    """Scores of a server; all but where they come from is as of a model in this process."""

    def __init__(self, server: VllmServer, model: ScalarModel, calibration: Mapping[str, float]) -> None:
        super().__init__(Described(model.config, model.parameter_count), calibration)
        self._server = server

    def scores(self, tokens: Tensor, lengths: Tensor, prompt_lengths: Tensor | None = None) -> Tensor:
        """Raw scores [B], as the server computes them."""
        lengths = lengths.clamp(max=self.model.config.max_positions)
        rows = [row[:length] for row, length in zip(tokens.tolist(), lengths.tolist())]
        return torch.tensor(self._server.rewards(rows), device=tokens.device)


def served_reward(stage: Stage, model: ScalarModel, calibration: Mapping[str, float]) -> LearnedReward:
    """The reward of the server at `rollout.reward_url`, once it scored a few rows as `model` does (a gate).

    A server that puts the raw score through a sigmoid, or serves another model, is found here.
    """
    server = VllmServer(stage.rollout.reward_url, timeout=stage.rollout.timeout)
    server.check(sampling=False)
    generator = torch.Generator().manual_seed(20240410)
    width = min(_TOKENS, model.config.max_positions)
    rows = torch.randint(model.config.vocab_size, (_ROWS, width), generator=generator).to(stage.device)
    lengths = torch.full((_ROWS,), width, device=stage.device)
    own, served = LearnedReward(model).scores(rows, lengths), _ServedReward(server, model, calibration)
    stage.gates.ask(
        "served scores",
        "the largest gap of a score of the reward model's server and of the model in reward.path, over their spread,",
        float((served.scores(rows, lengths) - own).abs().max() / own.std().clamp_min(1e-6)),
        high=1e-3 * slack(stage),
        remedy="serve the folder of reward.path, in the same precision: vllm serve FOLDER --runner pooling",
    )
    return served
