"""What a task is: the world that prompts, demonstrations, pairs and judgements come from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from trueline.types import Demonstration, Judgement, Pair, Prompt

__all__ = ["PairSources", "Sampler", "Task"]

Sampler = Callable[[Sequence[Prompt], int, str], list[list[str]]]
"""(prompts, n, purpose) -> n sampled responses per prompt, from the policy that the caller holds."""


@dataclass(frozen=True)
class PairSources:
    """The comparisons of one seed: `training` for every learner, `selection` and `gold` where judges are learned.

    `elsewhere` are of a kind that no learner is given: what the reward model's accuracy out of distribution is
    measured on.
    """

    training: list[Pair]
    selection: list[Pair] = field(default_factory=list)
    gold: list[Pair] = field(default_factory=list)
    elsewhere: list[Pair] = field(default_factory=list)


class Task(Protocol):
    """One world. Prompts and test splits are fixed by the world; a seed varies demonstrations, pairs and labels."""

    name: str
    description: str
    learned_gold: bool
    """True where no judge is embedded: one is trained on the gold split, which no arm sees."""
    eval_splits: tuple[str, ...]
    strict_prompts: bool
    """True where a prompt that does not fit is an error; False where it loses its oldest part."""

    def texts(self) -> list[str]:
        """The text that the embedded model's tokenizer is trained on."""
        ...

    def prompts(self, split: str) -> list[Prompt]:
        """The prompts of a split: train, selection, test, and those of `eval_splits`."""
        ...

    def demonstrations(self, seed: int) -> list[Demonstration]:
        """What SFT imitates."""
        ...

    def pairs(self, seed: int, sample: Sampler) -> PairSources:
        """The labelled comparisons; `sample` draws from this seed's SFT policy."""
        ...

    def judge(self, prompt: Prompt, response: str) -> Judgement:
        """The embedded gold judge. Called for evaluation, and for selection on the selection split, alone."""
        ...

    def signature(self, prompt: Prompt, response: str) -> str | None:
        """The task's notion of structure for that kind of prompt; None where it has none."""
        ...

    def behaviour(self, prompt: Prompt, response: str) -> str | None:
        """A name for what the response does ("help", "refusal", ...); None where the task cannot tell."""
        ...

    def threats(self) -> list[str]:
        """What a sceptic should know first."""
        ...

    def describe(self) -> Mapping[str, object]:
        """Counts and settings for the run record."""
        ...
