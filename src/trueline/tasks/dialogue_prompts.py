"""The prompts of the dialogue world and their splits: topics under conditions, forms, contexts and earlier turns."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations, product

import numpy as np

from trueline.data.splits import assign
from trueline.seeds import generator
from trueline.tasks import dialogue_topics as lists
from trueline.tasks.dialogue_grammar import Language, language, write_help
from trueline.types import Message, Prompt

__all__ = ["held_out", "make_prompts"]

_FORMS = (
    "how do i {x} {c} ?",
    "tell me how to {x} {c} .",
    "i want to {x} {c} .",
    "can you explain how to {x} {c} ?",
    "steps to {x} {c} ?",
    "best way to {x} {c} ?",
    "help me {x} {c} .",
    "i need to {x} {c} .",
)
_CONTEXTS = (
    "",
    "today",
    "at home",
    "for a friend",
    "for my mother",
    "this weekend",
    "alone",
    "at school",
    "in the garden",
    "before dinner",
    "with my brother",
)
_SHIFTED_FORMS = (
    "for a friend i want to {x} {c} . best way ?",
    "can you help ? i need to {x} {c} .",
    "{x} {c} . how ? tell me .",
)
_SHIFTED_CONTEXTS = ("at school this weekend", "with my mother in the garden", "alone before dinner", "today at home")
_RICH_FORMS = (
    *_FORMS,
    "how would you {x} {c} ?",
    "show me how to {x} {c} .",
    "what do i do to {x} {c} ?",
    "i must {x} {c} .",
)
_RICH_CONTEXTS = (*_CONTEXTS, "after work", "next week", "with a neighbor", "at my house", "tonight")
_REMARKS = ("{k} , please .", "i want to do it {k} .", "it has to be {k} .", "{k} .")
"""What a user says when asked how it should be done."""
_QUESTIONS = ("how should it be done ?", "is there anything else ?", "what matters to you ?")
_MORE = ("go on .", "what comes next ?", "and then ?", "please continue .")
_PAUSES = ("shall i go on ?", "tell me when you are done .")


@dataclass(frozen=True)
class _Asking:
    """What the richness makes of prompts. `asks` and `shifted`: how many requests there are for a topic under 0, 1 and
    2 conditions; None: every form in every context. `two_turns`: how many of them open with an earlier turn."""

    forms: tuple[str, ...]
    contexts: tuple[str, ...]
    asks: tuple[int, ...] | None
    shifted: tuple[int, ...] | None
    two_turns: float = 0.0


_ASKING = {
    1: _Asking(_FORMS, _CONTEXTS, None, None),
    2: _Asking(_RICH_FORMS, _RICH_CONTEXTS, asks=(48, 20), shifted=(4, 2)),
    3: _Asking(_RICH_FORMS, _RICH_CONTEXTS, asks=(24, 10, 3), shifted=(3, 1, 1), two_turns=0.5),
}
_FRACTIONS = {"train": 0.7, "selection": 0.1, "test": 0.2}


def make_prompts(richness: int, seed: int) -> dict[str, list[Prompt]]:
    """Prompts by split, shuffled; a function of its arguments alone.

    A prompt's split is a hash of its first turn. Rare topics are in `train` and `hard` alone; from richness 2 on a
    request that carries a condition which its topic is never trained with (`held_out`) is in `unseen` alone.
    """
    said, asking, rare = language(richness), _ASKING[richness], lists.rare(richness)
    held = held_out(richness, seed)
    names = ("train", "selection", "test", "shifted", "hard", *(("unseen",) if held else ()))
    splits: dict[str, dict[str, Prompt]] = {name: {} for name in names}
    for prompt in _requests(said, asking.forms, asking.contexts, asking.asks, asking.two_turns, seed):
        split = assign(Prompt(prompt.messages[:1]).id, _FRACTIONS, salt=f"dialogue/{seed}")
        if _unseen(prompt, held):
            split = "unseen"
        elif prompt.meta["topic"] in rare and split != "train":
            split = "hard"
        splits[split][prompt.id] = prompt
    for prompt in _requests(said, _SHIFTED_FORMS, _SHIFTED_CONTEXTS, asking.shifted, asking.two_turns, seed):
        if prompt.meta["topic"] not in rare and not _unseen(prompt, held):
            splits["shifted"][prompt.id] = prompt
    shuffled = {}
    for name, found in splits.items():
        prompts = list(found.values())
        order = generator(seed, f"dialogue/{name}").permutation(len(prompts))
        shuffled[name] = [prompts[i] for i in order]
    return shuffled


def held_out(richness: int, seed: int) -> dict[str, str]:
    """Topic -> the one condition that it is never trained with.

    Within a group the conditions take turns, so that each of them is trained with other topics of that group, from
    which the step it asks for can be known. Rare topics have none.
    """
    conditions, rare = list(lists.conditions(richness)), lists.rare(richness)
    if not conditions:
        return {}
    order = generator(seed, "dialogue/held-out").permutation(len(conditions))
    turns: dict[str, int] = {}
    held = {}
    for name, topic in lists.topics(richness).items():
        if name not in rare:
            turn = turns[topic.group] = turns.get(topic.group, -1) + 1
            held[name] = conditions[order[turn % len(conditions)]]
    return held


def _unseen(prompt: Prompt, held: dict[str, str]) -> bool:
    return held.get(prompt.meta["topic"]) in prompt.meta.get("conditions", ())


def _requests(said: Language, forms, contexts, asks: tuple[int, ...] | None, two_turns: float, seed: int):
    """All requests: of each topic, under each set of conditions, as many as `asks` says."""
    rng = generator(seed, f"dialogue/asks/{len(forms)}")
    ways = list(product(forms, contexts))
    for topic in said.topics:
        for under in _condition_sets(said, 0 if asks is None else len(asks) - 1):
            count = len(ways) if asks is None else min(asks[len(under)], len(ways))
            picked = range(len(ways)) if asks is None else rng.choice(len(ways), size=count, replace=False)
            for form, context in (ways[i] for i in picked):
                if two_turns and rng.random() < two_turns:
                    yield _ask_twice(said, topic, under, form, context, rng)
                else:
                    yield _ask(said, topic, under, form, context)


def _condition_sets(said: Language, most: int) -> Iterator[tuple[str, ...]]:
    """Up to `most` conditions at once, which change different places of the steps."""
    for count in range(most + 1):
        for under in combinations(said.conditions, count):
            if len({said.conditions[c].place for c in under}) == count:
                yield under


def _ask(said: Language, topic: str, under: tuple[str, ...], form: str, context: str) -> Prompt:
    """A request of one turn."""
    meta = {"topic": topic} | ({"conditions": list(under), "given": 0} if said.conditions else {})
    return Prompt((_user(form, topic, under, context),), said.topics[topic].kind, meta)


def _ask_twice(said: Language, topic: str, under: tuple[str, ...], form: str, context: str, rng: np.random.Generator):
    """A request after an earlier turn.

    Either the last condition comes when the assistant asks for it, or the assistant has given the first one or two
    right steps and the user wants the others: each needs both turns to be read.
    """
    kind = said.topics[topic].kind
    if under and rng.random() < 0.5:
        first = _user(form, topic, under[:-1], context)
        remark = _pick(_REMARKS, rng).format(k=under[-1])
        turns = (first, Message("assistant", _pick(_QUESTIONS, rng)), Message("user", remark))
        return Prompt(turns, kind, {"topic": topic, "conditions": list(under), "given": 0})
    given = int(rng.integers(1, 3))
    begun = write_help(said.pools["plain"][0], said.wanted(topic, under)[:given], rng, closing=False)
    turns = (
        _user(form, topic, under, context),
        Message("assistant", f"{begun} {_pick(_PAUSES, rng)}"),
        Message("user", _pick(_MORE, rng)),
    )
    return Prompt(turns, kind, {"topic": topic, "conditions": list(under), "given": given})


def _user(form: str, topic: str, under: tuple[str, ...], context: str) -> Message:
    return Message("user", " ".join(form.format(x=topic, c=f"{' and '.join(under)} {context}").split()))


def _pick(phrases: tuple[str, ...], rng: np.random.Generator) -> str:
    return phrases[rng.integers(len(phrases))]
