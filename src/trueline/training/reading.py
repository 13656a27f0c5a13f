"""Texts in another model's tokens: a reward model or a judge may read with a tokenizer and a template of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from trueline.data.batches import Tokenized, collate
from trueline.data.chat import ChatTokenizer
from trueline.models.heads import ScalarModel
from trueline.rewards.learned import Described, LearnedReward
from trueline.rollout.engine import Rollout
from trueline.training.elsewhere import ClusterReward
from trueline.training.policies import Lent, lent_reward_model, load_reward_model
from trueline.training.served_reward import served_reward
from trueline.training.stage import Stage, batch_on
from trueline.types import Prompt

__all__ = ["RewardReader", "rendered", "tokenizer_of"]


class RewardReader:
    """The reward model of an input, and how it reads: the study's ids as they are, or, where its tokenizer or template
    is another, the texts written out again in its own."""

    def __init__(self, stage: Stage, name: str = "reward") -> None:
        self.reward = _reward(stage, name)
        self._stage = stage
        self.tokenizer = tokenizer_of(stage, name)

    @property
    def is_foreign(self) -> bool:
        """Whether texts are written out again for it."""
        return self.tokenizer is not self._stage.tokenizer

    def rows(self, prompts: Sequence[Prompt], rollout: Rollout, texts: Sequence[str] | None = None) -> Rollout:
        """The samples in the model's own ids; `texts` saves decoding them."""
        if not self.is_foreign:
            return rollout
        if texts is None:
            texts = [self._stage.tokenizer.decode(response) for response in rollout.responses()]
        return self._again(prompts, texts, rollout.ended)

    def written(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> Rollout:
        """Complete responses in the model's own ids, within the study's limits where it reads the study's."""
        if self.is_foreign:
            return self._again(prompts, texts, torch.ones(len(texts), dtype=torch.bool))
        items = [self._stage.tokenize(prompt, text) for prompt, text in zip(prompts, texts)]
        return _rollout(self._stage, self.tokenizer, items, torch.ones(len(texts), dtype=torch.bool))

    def _again(self, prompts: Sequence[Prompt], texts: Sequence[str], ended: Tensor) -> Rollout:
        room = self.reward.model.config.max_positions
        return rendered(self._stage, self.tokenizer, prompts, texts, ended, room=room)

    def standardized(self, rows: Rollout) -> Tensor:
        """Scores in units of the calibration, [B]; `rows` are of `rows` or `written`."""
        return self.reward.standardized(rows.tokens, rows.lengths, rows.prompt_lengths)


class _LentReward(LearnedReward):
    """Scores of a model that comes for each call: it need not lie beside a training step."""

    def __init__(self, lent: Lent[ScalarModel], calibration: Mapping[str, float], *, token_limit: int) -> None:
        super().__init__(Described(lent.config, lent.parameter_count), calibration, token_limit=token_limit)
        self._lent = lent

    def scores(self, tokens: Tensor, lengths: Tensor, prompt_lengths: Tensor | None = None) -> Tensor:
        """Raw scores [B]."""
        with self._lent.here() as model:
            here = LearnedReward(model, token_limit=self.token_limit)
            return here.scores(tokens, lengths, prompt_lengths)


def _reward(stage: Stage, name: str) -> LearnedReward:
    """The model's scores, computed here, at a server, or on a cluster."""
    limit = 2 * stage.limits.micro_tokens
    if stage.rollout.reward_url:
        return served_reward(stage, *load_reward_model(stage, name))
    if stage.cluster.scorers and stage.world.size == 1:
        reward = ClusterReward(stage.cluster, *load_reward_model(stage, name), token_limit=limit, tell=stage.warn)
        stage.engines.until_closed(reward.close)
        return reward
    lent, calibration = lent_reward_model(stage, name)
    if not lent.stays:
        return _LentReward(lent, calibration, token_limit=limit)
    with lent.here() as model:
        return LearnedReward(model, calibration, token_limit=limit)


def tokenizer_of(stage: Stage, name: str = "reward") -> ChatTokenizer:
    """What the reward model of an input reads with: the study's own tokenizer itself where both encode alike."""
    folder = stage.inputs[name] / "reward_model"
    own = ChatTokenizer.load(folder) if (folder / "tokenizer.json").is_file() else stage.tokenizer
    return stage.tokenizer if own.fingerprint == stage.tokenizer.fingerprint else own


def rendered(
    stage: Stage,
    tokenizer: ChatTokenizer,
    prompts: Sequence[Prompt],
    texts: Sequence[str],
    ended: Tensor,
    *,
    room: int | None = None,
) -> Rollout:
    """Texts in a tokenizer's ids, without log-probs; one that was cut off (`ended` False) gets no end token.

    A prompt loses its oldest part beyond the study's limit or, with `room`, where it and the response would not fit in
    so many tokens: how many tokens the study's own tokenizer allows says nothing of another one.
    """
    items = []
    for prompt, ids, done in zip(prompts, map(tokenizer.encode_response, texts), ended.tolist()):
        response = tuple(ids if done or len(ids) == 1 else ids[:-1])
        limit = stage.limits.max_prompt_tokens if room is None else max(1, room - len(response))
        items.append(Tokenized(tuple(tokenizer.encode_prompt(prompt)[-limit:]), response))
    return _rollout(stage, tokenizer, items, ended)


def _rollout(stage: Stage, tokenizer: ChatTokenizer, items: Sequence[Tokenized], ended: Tensor) -> Rollout:
    batch = batch_on(collate(items, tokenizer.pad_id), stage)
    asked = torch.tensor([len(item.prompt) for item in items], device=batch.tokens.device)
    nothing = torch.zeros(batch.tokens.shape, device=batch.tokens.device)
    return Rollout(batch.tokens, batch.response_mask, nothing, batch.lengths, asked, ended.to(asked.device), 0)
