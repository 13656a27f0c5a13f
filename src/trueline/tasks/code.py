"""The task `code`: small Python functions from a specification and an example, judged by running them.

The world is `code_world`; here it becomes a task. Rewards, labels and gold come from the sandbox alone: what the world
knows of its own programs' meaning is never asked about a model's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from trueline.errors import InputError
from trueline.tasks.code_world import CodeWorld, Dials
from trueline.tasks.execution import Execution, Judge, sampled_pairs
from trueline.tasks.task import PairSources, Sampler
from trueline.types import Demonstration, Judgement, Prompt

__all__ = ["TASKS", "WORLDS", "Code"]

_NUMBER = re.compile(r"\d+")


class Code:
    """See the module docstring; the members are those of `tasks.task.Task`."""

    name = "code"
    description = "an embedded world of small Python functions, judged by running them"
    place = "the embedded code world"
    learned_gold = False
    verified = True
    eval_splits: tuple[str, ...] = ("hard",)
    strict_prompts = True

    def __init__(self, world: Dials, execution: Execution) -> None:
        if world.shift and world.pairs_from == "samples":
            raise InputError(
                "the style of the model's own samples cannot be shifted",
                where="settings",
                field="world.shift",
                remedy="add world.pairs_from=people",
            )
        self.world = CodeWorld(world)
        self.full_reward = execution.full_reward
        self.judging = Judge(execution, self.world.problem_of)

    def texts(self) -> list[str]:
        return self.world.texts()

    def prompts(self, split: str) -> list[Prompt]:
        return self.world.prompts(split)

    def demonstrations(self, seed: int) -> list[Demonstration]:
        return self.world.demonstrations(seed)

    def pairs(self, seed: int, sample: Sampler) -> PairSources:
        """Correct samples of this SFT model against its incorrect ones; or people's programs, with no execution."""
        dials = self.world.dials
        if dials.pairs_from == "people":
            return PairSources(self.world.pairs(seed))
        return sampled_pairs(
            self.judging,
            self.prompts("train"),
            seed,
            sample,
            prompts=dials.pairs,
            samples=dials.samples_per_prompt,
            reference=self.reference if dials.fallback else lambda prompt: None,
        )

    def judge_many(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[Judgement]:
        return self.judging.judgements(prompts, responses)

    def rewards(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        return self.judging.rewards(prompts, responses)

    def reference(self, prompt: Prompt) -> str | None:
        return self.world.reference(prompt)

    def structure(self, prompt: Prompt, response: str) -> frozenset[str] | None:
        """The lines of the program, numbers aside."""
        return frozenset(_NUMBER.sub("#", line) for line in response.split("\n"))

    def machinery(self) -> Mapping[str, object]:
        return self.judging.facts()

    def threats(self) -> list[str]:
        return [
            "We made this world: the language of its programs and the faults of its demonstrations are ours, and they "
            "were chosen so that most demonstrations of many operations are wrong in the same way. "
            "It is an instrument, not evidence about your model.",
            "The verifier is exact here: six hidden calls tell nearly every wrong program. Real tests let wrong "
            "programs through, and a policy that is paid by them finds those.",
            "The policy is made from nothing and writes a language of a few dozen lines; nothing here is known to "
            "transfer to larger models.",
            "Checkpoints are selected by the hidden tests of prompts of their own.",
        ]

    def describe(self) -> Mapping[str, object]:
        counts = {name: len(self.prompts(name)) for name in ("train", "selection", "test", *self.eval_splits)}
        return {"prompts": counts, "world": self.world.dials.model_dump(mode="json")}


def _make(sections: Mapping[str, Any]) -> Code:
    return Code(sections.get("world") or Dials(), sections.get("verifier") or Execution())


WORLDS = {"code": Dials}
EMBEDDED = {"code": Code.place}
TASKS = {"code": _make}
