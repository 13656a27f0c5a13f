"""Parts of a cell that run on other machines of a cluster: samplers, scorers and judges.

Each computes a function of what it is given: a sample hangs on its own draw, a score and a verdict on their own row.
Who computes a row, how many there are, and how often one was lost changes nothing but the time.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from trueline.distributed.cluster import ActorPool, Actors
from trueline.distributed.settings import ClusterSettings
from trueline.distributed.sharding import emptied
from trueline.models.decoder import Decoder
from trueline.models.heads import ScalarModel
from trueline.models.scoring import Sampling
from trueline.rewards.learned import Described, LearnedReward
from trueline.rollout.engine import Rollout
from trueline.rollout.native import NativeEngine
from trueline.sandbox import Pool, Program, Verdict
from trueline.training.together import on_cpu, put_together

__all__ = ["ClusterEngine", "ClusterJudges", "ClusterReward"]

_PROGRAMS = 16  # of a judge's call: a lost one repeats so many


@dataclass(frozen=True)
class _Sent:
    """A model on its way: its modules without weights, and the bytes, kinds and shapes of its tensors."""

    empty: nn.Module
    tensors: Mapping[str, tuple[np.ndarray, torch.dtype, tuple[int, ...]]]

    @staticmethod
    def of(model: nn.Module) -> _Sent:
        held = {name: t.detach().cpu().contiguous() for name, t in model.state_dict().items()}
        packed = {name: (t.view(-1).view(torch.uint8).numpy(), t.dtype, tuple(t.shape)) for name, t in held.items()}
        return _Sent(emptied(model), packed)

    def model(self) -> Any:
        made = copy.deepcopy(self.empty)
        tensors = {n: torch.from_numpy(b.copy()).view(d).view(s) for n, (b, d, s) in self.tensors.items()}
        made.load_state_dict(tensors, assign=True)
        if getattr(made.config, "tied", False):
            made.head.weight = made.trunk.embed.weight
        made.trunk.precision = self.empty.trunk.precision
        return made.to("cuda" if torch.cuda.is_available() else "cpu").eval()


class _Sampler:
    def __init__(self, pad_id: int, end_ids: Sequence[int]) -> None:
        torch.set_num_threads(1)
        self._engine = NativeEngine(pad_id=pad_id, end_id=end_ids)

    def load(self, sent: _Sent, version: int) -> None:
        self._engine.load_weights(sent.model(), version)

    def generate(self, prompts, uniforms, max_new_tokens: int, sampling: Sampling) -> tuple[Tensor, ...]:
        return on_cpu(self._engine.generate(prompts, uniforms, max_new_tokens=max_new_tokens, sampling=sampling))


class ClusterEngine:
    """An engine whose samplers are elsewhere, with the draws of the native one."""

    def __init__(
        self, settings: ClusterSettings, *, pad_id: int, end_ids: Sequence[int], tell: Callable[[str], None]
    ) -> None:
        actors = Actors(_Sampler, pad_id, tuple(end_ids), cpus=settings.cpus, gpus=settings.gpus)
        self._pool = ActorPool(actors, settings.samplers, name="sampler", tell=tell)
        self._pad_id, self._device, self._version = pad_id, torch.device("cpu"), -1

    def load_weights(self, policy: Decoder, version: int) -> None:
        """Send the policy, in one piece, to every sampler; one that comes later gets it first."""
        import ray

        self._device, self._version = policy.head.weight.device, version
        sent = ray.put(_Sent.of(policy))
        self._pool.bring(lambda actor: actor.load.remote(sent, version))

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        uniforms: np.ndarray | None,
        *,
        max_new_tokens: int,
        sampling: Sampling,
    ) -> Rollout:
        """One response per prompt, in the prompts' order; long and short prompts are spread evenly."""
        order = np.argsort([len(prompt) for prompt in prompts], kind="stable")
        count = min(len(self._pool), len(order))
        on_cpu = Sampling(
            sampling.temperature, sampling.top_k, sampling.top_p,
            None if sampling.forbidden is None else sampling.forbidden.cpu(),
        )  # fmt: skip

        def part(rank: int) -> Callable[[Any], Any]:
            rows = order[rank::count]
            asked, draws = [prompts[i] for i in rows], None if uniforms is None else uniforms[rows]
            return lambda actor: actor.generate.remote(asked, draws, max_new_tokens, on_cpu)

        pieces = self._pool.each([part(rank) for rank in range(count)])
        return put_together(pieces, order, count, self._pad_id, self._device, self._version)

    def close(self) -> None:
        """End the samplers."""
        self._pool.close()


class _Scorer:
    def __init__(self, sent: _Sent, token_limit: int) -> None:
        torch.set_num_threads(1)
        self._reward = LearnedReward(sent.model(), token_limit=token_limit)

    def scores(self, tokens: Tensor, lengths: Tensor, prompt_lengths: Tensor | None) -> Tensor:
        place = next(self._reward.model.parameters()).device
        rows = [None if held is None else held.to(place) for held in (tokens, lengths, prompt_lengths)]
        return self._reward.scores(*rows).cpu()


class ClusterReward(LearnedReward):
    """Scores of scorers that are elsewhere."""

    def __init__(
        self, settings: ClusterSettings, model: ScalarModel, calibration: Mapping[str, float] | None, *,
        token_limit: int, tell: Callable[[str], None],
    ) -> None:  # fmt: skip
        import ray

        super().__init__(Described(model.config, model.parameter_count), calibration, token_limit=token_limit)
        actors = Actors(_Scorer, ray.put(_Sent.of(model)), token_limit, cpus=settings.cpus, gpus=settings.gpus)
        self._pool = ActorPool(actors, settings.scorers, name="scorer", tell=tell)

    def scores(self, tokens: Tensor, lengths: Tensor, prompt_lengths: Tensor | None = None) -> Tensor:
        """Raw scores [B]; rows that share a prompt stay together."""
        parts = torch.arange(len(tokens)).tensor_split(min(len(self._pool), len(tokens)))
        held = [None if each is None else each.cpu() for each in (tokens, lengths, prompt_lengths)]

        def part(rows: Tensor) -> Callable[[Any], Any]:
            given = [None if each is None else each[rows].clone() for each in held]
            return lambda actor: actor.scores.remote(*given)

        return torch.cat(self._pool.each([part(rows) for rows in parts])).to(tokens.device)

    def close(self) -> None:
        """End the scorers."""
        self._pool.close()


class _Judge:
    def __init__(self, tier: str, unsafe: bool) -> None:
        self._pool = Pool(1, tier=tier, unsafe=unsafe)

    def tier(self) -> str:
        return self._pool.tier

    def judge(self, programs: Sequence[Program]) -> tuple[list[Verdict], list[str]]:
        """Verdicts, and what broke meanwhile."""
        before = len(self._pool.incidents)
        return list(self._pool.judge(programs)), self._pool.incidents[before:]


class ClusterJudges:
    """A sandbox pool whose workers are elsewhere, each in the sandbox of its own machine."""

    def __init__(self, settings: ClusterSettings, *, tier: str, unsafe: bool) -> None:
        self.incidents: list[str] = []
        actors = Actors(_Judge, tier, unsafe, cpus=settings.cpus)
        self._actors = ActorPool(actors, settings.judges, name="judge", tell=self.incidents.append)
        tiers = set(self._actors.each([lambda actor: actor.tier.remote()] * settings.judges))
        self.tier = "+".join(sorted(tiers))

    def judge(self, programs: Iterable[Program]) -> Iterator[Verdict]:
        """A verdict per program, in their order."""
        asked = list(programs)
        parts = [asked[i : i + _PROGRAMS] for i in range(0, len(asked), _PROGRAMS)]
        calls = [lambda actor, part=part: actor.judge.remote(part) for part in parts]
        for verdicts, incidents in self._actors.each(calls):
            self.incidents += incidents
            yield from verdicts

    def close(self) -> None:
        """End the judges."""
        self._actors.close()
