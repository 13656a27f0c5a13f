"""What a task is: the world that prompts, demonstrations, pairs and judgements come from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from trueline.types import Demonstration, Judgement, Pair, Prompt

__all__ = ["OF_PAIRS", "PairSources", "Sampled", "Sampler", "Task"]

OF_PAIRS = {"moves": "pairs"}
"""Marks a dial of a world that moves the pairs alone (`Field(json_schema_extra=OF_PAIRS)`): SFT is the same whatever it
is, and its cell is shared."""


@dataclass(frozen=True)
class Sampled:
    """A sampled response; `ended` is False where the length limit cut it off."""

    text: str
    ended: bool = True


Sampler = Callable[[Sequence[Prompt], int, str], list[list[Sampled]]]
"""(prompts, n, purpose) -> n sampled responses per prompt, from the policy that the caller holds."""


@dataclass(frozen=True)
class PairSources:
    """The comparisons of one seed: `training` for every learner, `selection` and `gold` where judges are learned.

    `elsewhere` are of a kind that no learner is given: what the reward model's accuracy out of distribution is
    measured on. `executions` is how many programs were run to make them, None where people labelled them.
    """

    training: list[Pair]
    selection: list[Pair] = field(default_factory=list)
    gold: list[Pair] = field(default_factory=list)
    elsewhere: list[Pair] = field(default_factory=list)
    executions: int | None = None


class Task(Protocol):
    """One world. Prompts and test splits are fixed by the world; a seed varies demonstrations, pairs and labels."""

    name: str
    description: str
    place: str
    """What a sentence calls the world: "the embedded dialogue world"."""
    learned_gold: bool
    """True where no judge is embedded: one is trained on the gold split, which no arm sees."""
    verified: bool
    """True where responses are programs that tests judge: gold is 1 or 0, and rewards come by execution."""
    full_reward: float
    """What a right response is paid where tests judge; infinite elsewhere."""
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

    def judge_many(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[Judgement]:
        """The embedded gold judge. Called for evaluation, and for selection on the selection split, alone.

        A score is NaN where the judge's machinery failed.
        """
        ...

    def rewards(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        """What learners are paid where tests judge (`verified`), by tests that evaluation does not use; NaN where the
        machinery failed."""
        ...

    def reference(self, prompt: Prompt) -> str | None:
        """A response that is right, where the task has one."""
        ...

    def structure(self, prompt: Prompt, response: str) -> frozenset[str] | None:
        """The pieces of structure of a response to that kind of prompt; None where the task has no such notion."""
        ...

    def machinery(self) -> Mapping[str, object]:
        """Of the judge's machinery in this process: the sandbox's tier, what broke, how many programs it ran."""
        ...

    def threats(self) -> list[str]:
        """What a sceptic should know first."""
        ...

    def describe(self) -> Mapping[str, object]:
        """Counts and settings for the run record."""
        ...
