"""Tasks on real comparisons from files: `pairs`, and what `hh-rlhf` (a file of its own) shares with it.

No judge is embedded: gold is learned on a split of its own. Conversations are split by their first user turn into
training, selection and gold, so that the same dialogue cut at another turn never leaks. A tenth of the gold split's
pairs measures the gold model's accuracy and lends the test prompts.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import PurePath
from typing import Any

from trueline.data.loading import load_pairs
from trueline.data.splits import partition
from trueline.errors import InputError
from trueline.seeds import generator
from trueline.tasks.task import PairSources, Sampler
from trueline.types import Demonstration, Judgement, Pair, Prompt

__all__ = ["TASKS", "Preferences"]

_FRACTIONS = {"training": 0.55, "selection": 0.15, "gold": 0.30}
_TEST_SHARE = 0.3
"""Of the gold split's pairs: held out of the gold model's training.

They measure its accuracy and give the test prompts.
"""
_LEAST = 60
_ELSEWHERE = 400
"""At most so many pairs of kinds that were left out: enough to know an accuracy to 0.05."""


class Preferences:
    """Comparisons from files; the members are those of `tasks.task.Task`.

    `kind_of` gives a prompt's kind from the place of its row. `kinds` are those that occur, sorted.
    """

    learned_gold = True
    verified = False
    full_reward = math.inf
    eval_splits: tuple[str, ...] = ()

    def __init__(self, name: str, data: Any, formats: str, kind_of: Callable[[str], str] | None = None) -> None:
        self.name = name
        self.description = f"real comparisons from {data.path}"
        self.strict_prompts = data.long_prompts == "error" or (data.long_prompts == "auto" and name != "hh-rlhf")
        if not data.path:
            raise InputError(
                "no preference file is named",
                where="command line",
                field="data.path",
                remedy=f"trueline study {name} data.path=FILE.jsonl",
            )
        if data.test_path:
            raise InputError(
                "test comparisons are drawn from the same files",
                where="command line",
                field="data.test_path",
                remedy="leave it out: problems alone may have test files of their own",
            )
        first = data.path if isinstance(data.path, str) else data.path[0]
        self.place = f"the comparisons of {PurePath(first).name}"
        loaded = load_pairs(
            data.path,
            format=formats if data.format == "auto" else data.format,
            columns=data.columns,
            on_bad_row="drop" if name == "hh-rlhf" else data.on_bad_row,
            limit=data.limit or None,
        )
        self.check = loaded.check
        pairs = [_of_kind(p, kind_of(p.prompt.meta["where"])) for p in loaded.pairs] if kind_of else loaded.pairs
        self._coverage: tuple[str, ...] | None = None
        self._keep: Callable[[Pair], bool] = lambda pair: True
        self._counts = Counter(p.prompt.kind for p in pairs)
        self.kinds = tuple(sorted(self._counts))
        parts = partition(pairs, _FRACTIONS, salt="trueline")
        self._parts = {
            key: _shuffled(key, [p for p in parts.get(key, []) if p.chosen != p.rejected]) for key in _FRACTIONS
        }
        if data.everything:
            self._parts["training"] = [p for part in self._parts.values() for p in part]
        if len(loaded.pairs) < _LEAST:
            raise InputError(
                f"{len(loaded.pairs)} usable pairs",
                where=str(data.path),
                field="rows",
                remedy=f"a study needs at least {_LEAST}: a judge of its own is trained on part of them",
            )

    def restricted(self, kinds: Sequence[str]) -> Preferences:
        """The same task whose learners get the comparisons and prompts of these kinds alone.

        What SFT imitates, the judges' splits and all test prompts stay as they are.
        """
        task = copy.copy(self)
        task._coverage = tuple(kinds)
        return task

    def filtered(self, keep: Callable[[Pair], bool]) -> Preferences:
        """The same task whose learners get only the comparisons that `keep` keeps; their prompts stay as they are."""
        task = copy.copy(self)
        task._keep = keep
        return task

    def _covers(self, prompt: Prompt) -> bool:
        return self._coverage is None or prompt.kind in self._coverage

    @cached_property
    def _test_pairs(self) -> list[Pair]:
        gold = self._parts["gold"]
        return gold[: max(1, round(_TEST_SHARE * len(gold)))]

    def texts(self) -> list[str]:
        texts = []
        for pair in self._parts["training"]:
            texts += [m.content for m in pair.prompt.messages] + [pair.chosen, pair.rejected]
        return texts

    def prompts(self, split: str) -> list[Prompt]:
        source = {"train": "training", "selection": "selection"}.get(split)
        pairs = self._test_pairs if source is None else self._parts[source]
        if split == "train":
            pairs = [p for p in pairs if self._covers(p.prompt)]
        unique = list({p.prompt.id: p.prompt for p in pairs}.values())
        order = generator(0, f"preferences/{split}").permutation(len(unique))
        return [unique[i] for i in order]

    def demonstrations(self, seed: int) -> list[Demonstration]:
        # Either side: SFT learns to talk like the file, and what is better is left to the methods that are compared.
        rng = generator(seed, "preferences/demonstrations")
        out = []
        for pair in self._parts["training"]:
            out.append(Demonstration(pair.prompt, pair.chosen if rng.random() < 0.5 else pair.rejected))
            out += _earlier_turns(pair.prompt)
        return out

    def pairs(self, seed: int, sample: Sampler) -> PairSources:
        order = generator(seed, "preferences/pairs").permutation(len(self._parts["training"]))
        pairs = [self._parts["training"][i] for i in order]
        covered = [p for p in pairs if self._covers(p.prompt) and self._keep(p)]
        left_out = [p for p in pairs if not self._covers(p.prompt)][:_ELSEWHERE]
        return PairSources(covered, self._parts["selection"], self._parts["gold"], left_out)

    def judge_many(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[Judgement]:
        raise InputError(
            "this task has no embedded judge",
            where="settings",
            field="study.feedback",
            remedy="use study.feedback=learned",
        )

    def rewards(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        raise InputError(
            "no test can judge these responses",
            where="settings",
            field="study.feedback",
            remedy="use study.feedback=learned",
        )

    def reference(self, prompt: Prompt) -> str | None:
        return None

    def structure(self, prompt: Prompt, response: str) -> frozenset[str] | None:
        return None

    def machinery(self) -> Mapping[str, object]:
        return {}

    def threats(self) -> list[str]:
        return [
            "Gold is itself a learned model, trained on a split that no arm sees: linear in how the text reads and in "
            "its words, so of another family than the reward model, but far from a human's judgement. "
            "Its accuracy on held-out comparisons bounds what may be claimed, and much of it goes with length: "
            "read its accuracy on sides of equal length beside it.",
            "Without model.path the policy is small and was trained from nothing on this file's own dialogues.",
            "Checkpoints are selected with a judge learned on the selection split alone.",
        ]

    def describe(self) -> Mapping[str, object]:
        counts = {key: len(pairs) for key, pairs in self._parts.items()} | {"test_prompts": len(self.prompts("test"))}
        kinds = {"subsets": {kind or "unknown": self._counts[kind] for kind in self.kinds}} if any(self.kinds) else {}
        return kinds | {
            "pairs": counts,
            "format": self.check.format,
            "mapping": self.check.mapping,
            "rows": self.check.rows,
            "quirks": dict(self.check.counts),
        }


def _of_kind(pair: Pair, kind: str) -> Pair:
    return replace(pair, prompt=replace(pair.prompt, kind=kind))


def _shuffled(part: str, pairs: list[Pair]) -> list[Pair]:
    """A fixed random order: files lie one behind the other, and what is held out must be of all of them."""
    return [pairs[i] for i in generator(0, f"preferences/parts/{part}").permutation(len(pairs))]


def _earlier_turns(prompt: Prompt) -> Sequence[Demonstration]:
    """The assistant's earlier turns, each with the turns before it: more text to learn the language from."""
    out = []
    for index, message in enumerate(prompt.messages):
        if message.role == "assistant" and index > 0:
            out.append(Demonstration(Prompt(prompt.messages[:index]), message.content))
    return out


TASKS = {"pairs": lambda sections: Preferences("pairs", sections["data"], "auto")}
