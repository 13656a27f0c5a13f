"""The embedded code world: specifications of small Python functions, imperfect programs for them, hidden tests.

A specification is 1 to 4 list operations of different families and what is returned. One, two and three operations are
the tiers introductory, interview and competition; four are the tier hard, of which nothing is learnt from. About half
of the kinds of operation carry a slip in most of their demonstrations: an imitator that decodes greedily repeats it, so
that greedy decoding is no better than sampling, and only a verifier can tell.

Expected values and whether a program is right are computed from the meaning of its lines (`code_grammar`). No program
is run here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import Literal

import numpy as np
from pydantic import Field

from trueline.config import Section
from trueline.data.code_formats import Problem
from trueline.data.splits import assign
from trueline.errors import InputError
from trueline.seeds import generator
from trueline.tasks import code_grammar as grammar
from trueline.tasks.code_grammar import FAMILIES, KINDS, OPERATIONS, REDUCERS, Operation, Program, Reducer, Step
from trueline.tasks.task import OF_PAIRS
from trueline.types import CallTest, Demonstration, Pair, Prompt

__all__ = ["ENTRY", "SPLITS", "TIERS", "CodeWorld", "Dials", "Specification"]

ENTRY = "f"
TIERS = ("introductory", "interview", "competition", "hard")
SPLITS = ("train", "selection", "test", "hard")
HIDDEN_TESTS = 6
"""For evaluation; and as many others for the reward."""

_FRACTIONS = {"train": 0.7, "selection": 0.1, "test": 0.2}
# Specifications per split and tier; of the first tier there are no more than the language has (about 300 in all).
_COUNTS = {
    "train": {"introductory": 400, "interview": 1000, "competition": 1400},
    "selection": {"introductory": 40, "interview": 60, "competition": 60},
    "test": {"introductory": 100, "interview": 120, "competition": 120},
    "hard": {"hard": 120},
}
_TIER_SHARE = (0.3, 0.35, 0.35)  # of demonstrations and pairs
_WRONG_RETURN = 0.03
_KINDS_OF_FAULT = (("syntax", 0.12), ("name", 0.10), ("omitted", 0.28), ("other", 0.50))
_EDGES = ((), (0,), (3, 3, 3), (-4, -1, -1, 2), (1, 2, 3, 4, 5, 6), (6, 5, 5, 0, -2), (-7, 7, 0, 0, 1))
_TRIES = 200_000


class Dials(Section):
    """`world.*`: what may be turned. Each moves one thing."""

    seed: int = Field(0, ge=0, description="fixes specifications, tests and splits; not varied between study seeds")
    demonstrations: int = Field(8000, ge=1, description="how many demonstrations SFT sees")
    pairs_from: Literal["samples", "people"] = Field(
        "samples",
        description="samples: of this SFT model, judged by running them; people: right against wrong ones",
        json_schema_extra=OF_PAIRS,
    )
    pairs: int = Field(
        800, ge=1, description="prompts that are sampled; of pairs_from=people: pairs", json_schema_extra=OF_PAIRS
    )
    samples_per_prompt: int = Field(
        5, ge=2, description="samples of each of these prompts, all of them run", json_schema_extra=OF_PAIRS
    )
    fallback: bool = Field(
        True,
        description="where no sample passes, the reference solution is the chosen side",
        json_schema_extra=OF_PAIRS,
    )
    slip: float = Field(0.6, ge=0, le=1, description="share of a slipping kind's demonstrations that carry its slip")
    fault: float = Field(0.12, ge=0, le=1, description="chance of any other fault in a demonstration's line")
    shift: float = Field(
        0.0, ge=0, le=1, description="of pairs_from=people: share in the foreign style", json_schema_extra=OF_PAIRS
    )
    hard: float = Field(0.0, ge=0, le=1, description="share of demonstrations of the hard tier; 0: none is learnt from")


@dataclass(frozen=True)
class Specification:
    """Operations in order and what is returned. Its `id` says nothing of the words it is put in."""

    operations: tuple[Operation, ...]
    reducer: Reducer

    @property
    def id(self) -> str:
        return " | ".join([*(op.name for op in self.operations), self.reducer.name])

    @property
    def tier(self) -> str:
        return TIERS[len(self.operations) - 1]

    @classmethod
    def parse(cls, text: str) -> Specification:
        """The inverse of `id`."""
        *names, reducer = text.split(" | ")
        operations = (name.split(" ") for name in names)
        return cls(tuple(Operation(kind, int(k)) for kind, k in operations), REDUCERS[reducer])

    def right(self, style: str = "plain") -> Program:
        """The reference solution."""
        return grammar.program([grammar.right(op) for op in self.operations], self.reducer, style)

    def mutants(self) -> list[Program]:
        """What the hidden tests must tell from the reference where any input does.

        One line omitted, slipped or with another number; another thing returned; every line slipped.
        """
        steps = [grammar.right(op) for op in self.operations]
        found = []
        for i, op in enumerate(self.operations):
            others = [grammar.right(Operation(op.kind, k)) for k in KINDS[op.kind].params if k != op.k]
            for wrong in (grammar.omitted(), grammar.slip(op), *others):
                found.append(grammar.program([*steps[:i], wrong, *steps[i + 1 :]], self.reducer))
        found += [grammar.program(steps, reducer) for reducer in REDUCERS.values() if reducer is not self.reducer]
        return [*found, grammar.program([grammar.slip(op) for op in self.operations], self.reducer)]


class CodeWorld:
    """Prompts, demonstrations, pairs and problems, each a function of the dials and of the seed it is asked for."""

    def __init__(self, dials: Dials | None = None) -> None:
        self.dials = dials or Dials()
        self.slipping = _slipping_kinds(self.dials.seed)

    # prompts

    def prompts(self, split: str) -> list[Prompt]:
        """`train`, `selection`, `test` hold three tiers each, `hard` the fourth; a prompt's `kind` is its tier.

        The split is a hash of the specification, so no test specification is trained on in other words either.
        """
        if split not in SPLITS:
            raise InputError(f"unknown split {split!r}", field="split", remedy=f"known: {', '.join(SPLITS)}")
        return list(_splits(self.dials.seed)[split])

    def texts(self) -> list[str]:
        """What a tokenizer is trained on: training prompts, and every line the language has in both styles."""
        texts = [message.content for prompt in _splits(self.dials.seed)["train"] for message in prompt.messages]
        for op in OPERATIONS:
            lines = (grammar.right(op), grammar.slip(op), grammar.unclosed(op), grammar.mis_named(op))
            for reducer, style in ((r, s) for r in REDUCERS.values() for s in ("plain", "foreign")):
                texts += [grammar.program([line], reducer, style).text for line in lines]
        return texts

    def specification(self, prompt: Prompt) -> Specification:
        """Raises InputError for a prompt that is not of this world."""
        found = prompt.meta.get("specification")
        if not isinstance(found, str):
            raise InputError("the prompt is not of the code world", field="prompt", remedy="take it from prompts()")
        return Specification.parse(found)

    def problem_of(self, prompt: Prompt) -> Problem:
        """The prompt with its hidden tests and its public one, which is the example in its text.

        The reward's tests and those of evaluation have no input in common.
        """
        specification = self.specification(prompt)
        tests = _hidden_tests(specification.id, self.dials.seed)
        return Problem(
            task_id=prompt.id,
            prompt=prompt.messages[-1].content,
            entry=ENTRY,
            tests=tests[:HIDDEN_TESTS],
            reward_tests=tests[HIDDEN_TESTS:],
            public_tests=(_test(specification.right(), _example(specification, self.dials.seed)),),
            solutions=(specification.right().text,),
            tier=specification.tier,
            format="code-world",
        )

    def reference(self, prompt: Prompt) -> str:
        """A program that passes all tests."""
        return self.specification(prompt).right().text

    # what the learners see

    def demonstrations(self, seed: int) -> list[Demonstration]:
        """Programs to imitate, right or wrong as people's are; prompts are drawn with repetition."""
        rng = generator(seed, "code/demonstrations")
        count = self.dials.demonstrations
        hard = _hard_training(self.dials.seed) if self.dials.hard else []
        found = []
        for prompt, is_hard in zip(self._draw(count, rng), rng.random(count) < self.dials.hard):
            prompt = hard[rng.integers(len(hard))] if is_hard else prompt
            found.append(Demonstration(prompt, self.write(prompt, rng).text))
        return found

    def pairs(self, seed: int) -> list[Pair]:
        """A right program against a wrong one for the same prompt, both in one style; wrong as demonstrations are."""
        rng, writer = generator(seed, "code/pair-prompts"), generator(seed, "code/pair-texts")
        foreign = generator(seed, "code/pair-styles").random(self.dials.pairs) < self.dials.shift
        found = []
        for prompt, shifted in zip(self._draw(self.dials.pairs, rng), foreign):
            style = "foreign" if shifted else "plain"
            chosen = self.specification(prompt).right(style)
            found.append(Pair(prompt, chosen.text, self._wrong(prompt, writer, style).text))
        return found

    def write(self, prompt: Prompt, rng: np.random.Generator, style: str = "plain") -> Program:
        """One demonstration's program: each line slips, or is faulty otherwise, independently of the others."""
        specification = self.specification(prompt)
        reducer = specification.reducer
        steps = [self._line(op, rng) for op in specification.operations]
        if rng.random() < _WRONG_RETURN:
            others = [other for other in REDUCERS.values() if other is not reducer]
            reducer = others[rng.integers(len(others))]
        return grammar.program(steps, reducer, style)

    def majority(self, prompt: Prompt) -> Program:
        """What a perfect imitator writes when it decodes greedily: for each line, the commonest."""
        specification, slips = self.specification(prompt), self.dials.slip > 0.5
        steps = [
            grammar.slip(op) if slips and op.kind in self.slipping else grammar.right(op)
            for op in specification.operations
        ]
        return grammar.program(steps, specification.reducer)

    def is_right(self, prompt: Prompt, program: Program) -> bool:
        """Whether the program, by the meaning of its lines, gives the expected value in all tests of evaluation."""
        if program.broken:
            return False
        tests = _hidden_tests(self.specification(prompt).id, self.dials.seed)[:HIDDEN_TESTS]
        return all(program.value(test.args[0]) == test.expected for test in tests)

    def _line(self, op: Operation, rng: np.random.Generator) -> Step:
        if op.kind in self.slipping and rng.random() < self.dials.slip:
            return grammar.slip(op)
        if rng.random() >= self.dials.fault:
            return grammar.right(op)
        names, shares = zip(*_KINDS_OF_FAULT)
        fault = names[rng.choice(len(names), p=shares)]
        if fault in ("syntax", "name"):
            return grammar.unclosed(op) if fault == "syntax" else grammar.mis_named(op)
        others = [k for k in KINDS[op.kind].params if k != op.k]
        if fault == "omitted":
            return grammar.omitted()
        return grammar.right(Operation(op.kind, others[rng.integers(len(others))])) if others else grammar.slip(op)

    def _wrong(self, prompt: Prompt, rng: np.random.Generator, style: str) -> Program:
        for _ in range(100):
            found = self.write(prompt, rng, style)
            if not self.is_right(prompt, found):
                return found
        operations = self.specification(prompt).operations  # the dials leave almost no fault to draw
        steps = [*map(grammar.right, operations[:-1]), grammar.unclosed(operations[-1])]
        return grammar.program(steps, self.specification(prompt).reducer, style)

    def _draw(self, count: int, rng: np.random.Generator) -> list[Prompt]:
        training = _splits(self.dials.seed)["train"]
        by_tier = [[p for p in training if p.kind == tier] for tier in TIERS[:3]]
        tiers = rng.choice(3, size=count, p=_TIER_SHARE)
        return [by_tier[t][rng.integers(len(by_tier[t]))] for t in tiers]


# --- specifications ------------------------------------------------------------------------------------------------


@lru_cache(maxsize=4)
def _splits(seed: int) -> dict[str, tuple[Prompt, ...]]:
    found: dict[str, list[Prompt]] = {name: [] for name in SPLITS}
    for size, tier in enumerate(TIERS, 1):
        wanted = {split: counts[tier] for split, counts in _COUNTS.items() if tier in counts}
        for specification in _specifications(size, seed):
            split = _split_of(specification, seed)
            if wanted.get(split, 0):
                wanted[split] -= 1
                found[split].append(_prompt(specification, seed))
            if not any(wanted.values()):
                break
    shuffled = {}
    for name, prompts in found.items():
        order = generator(seed, f"code/{name}").permutation(len(prompts))
        shuffled[name] = tuple(prompts[i] for i in order)
    return shuffled


def _split_of(specification: Specification, seed: int) -> str:
    split = assign(specification.id, _FRACTIONS, salt=f"code/{seed}")
    return split if len(specification.operations) < 4 else {"test": "hard"}.get(split, split)


@lru_cache(maxsize=4)
def _hard_training(seed: int) -> tuple[Prompt, ...]:
    """Specifications of four operations that `hard` cannot hold, by their hash."""
    training = (s for s in _specifications(4, seed) if _split_of(s, seed) == "train")
    return tuple(_prompt(specification, seed) for specification in islice(training, 400))


def _slipping_kinds(seed: int) -> frozenset[str]:
    """Half of the kinds of each family, so that every tier has its share."""
    rng, found = generator(seed, "code/slips"), []
    for family in FAMILIES:
        names = [kind.name for kind in KINDS.values() if kind.family == family]
        found += [names[i] for i in rng.permutation(len(names))[: (len(names) + 1) // 2]]
    return frozenset(found)


def _specifications(size: int, seed: int) -> Iterator[Specification]:
    """Sensible specifications without repeats: all of one operation in a shuffled order, of more as they are drawn."""
    rng, reducers = generator(seed, "code/specifications", size), tuple(REDUCERS.values())
    if size == 1:
        everything = [Specification((op,), reducer) for op in OPERATIONS for reducer in reducers]
        yield from (everything[i] for i in rng.permutation(len(everything)) if _sensible(everything[i], seed))
        return
    by_family = [[op for op in OPERATIONS if KINDS[op.kind].family == family] for family in FAMILIES]
    seen = set()
    for _ in range(_TRIES):
        families = rng.permutation(len(FAMILIES))[:size]
        operations = tuple(by_family[f][rng.integers(len(by_family[f]))] for f in families)
        found = Specification(operations, reducers[rng.integers(len(reducers))])
        if found.id not in seen and _sensible(found, seed):
            seen.add(found.id)
            yield found


def _sensible(specification: Specification, seed: int) -> bool:
    """Whether the values vary with the input and every operation matters: none can be left out unnoticed."""
    inputs, right = _shared_inputs(seed), specification.right()
    expected = [right.value(xs) for xs in inputs]
    if len({str(value) for value in expected}) < 4:
        return False
    steps = right.steps
    for i in range(len(steps)):
        shorter = Program("", (*steps[:i], *steps[i + 1 :]), specification.reducer)
        differing = (xs for xs, value in zip(inputs, expected) if shorter.value(xs) != value)
        if len(list(islice(differing, 2))) < 2:
            return False
    return True


# --- inputs and tests ----------------------------------------------------------------------------------------------


@lru_cache(maxsize=8)
def _shared_inputs(seed: int) -> tuple[tuple[int, ...], ...]:
    return (*_EDGES, *_inputs(generator(seed, "code/inputs"), 9))


def _inputs(rng: np.random.Generator, count: int) -> list[tuple[int, ...]]:
    """Lists of 1 to 8 numbers between -7 and 9."""
    return [tuple(int(x) for x in rng.integers(-7, 10, size=rng.integers(1, 9))) for _ in range(count)]


@lru_cache(maxsize=8192)
def _hidden_tests(name: str, seed: int) -> tuple[CallTest, ...]:
    """Those of evaluation, then those of the reward: each the inputs that kill the most mutants not yet killed, one
    after the other; among equals random ones before edges.

    They are of 33 candidates of the specification's own; the example in the prompt is none of them.
    """
    specification = Specification.parse(name)
    right, rng = specification.right(), generator(seed, f"code/tests/{name}")
    public = _example(specification, seed)
    candidates = [xs for xs in dict.fromkeys((*_EDGES, *_inputs(rng, 26))) if xs != public]
    expected = [right.value(xs) for xs in candidates]
    kills = [
        {i for i, xs in enumerate(candidates) if mutant.value(xs) != expected[i]} for mutant in specification.mutants()
    ]
    chosen: list[int] = []
    for _ in ("evaluation", "reward"):
        chosen += _killers(kills, [i for i in range(len(candidates)) if i not in chosen])
    return tuple(_test(right, candidates[i]) for i in chosen)


def _killers(kills: Sequence[set[int]], left: list[int]) -> list[int]:
    """Of the candidates `left`, the first `HIDDEN_TESTS` of a greedy cover; `kills` holds who kills each mutant."""
    alive, chosen = [kill for kill in kills if kill], []
    while len(chosen) < HIDDEN_TESTS:
        best = max((i for i in left if i not in chosen), key=lambda i: (sum(i in kill for kill in alive), i))
        chosen.append(best)
        alive = [kill for kill in alive if best not in kill]
    return chosen


def _example(specification: Specification, seed: int) -> tuple[int, ...]:
    """A short input for the prompt's example, not among the edges."""
    rng = generator(seed, f"code/example/{specification.id}")
    while True:
        found = tuple(int(x) for x in rng.integers(-3, 10, size=3))
        if found not in _EDGES:
            return found


def _test(right: Program, xs: Sequence[int]) -> CallTest:
    return CallTest(ENTRY, [list(xs)], right.value(xs))


def _prompt(specification: Specification, seed: int) -> Prompt:
    rng = generator(seed, f"code/words/{specification.id}")
    words = grammar.reads(specification.operations, specification.reducer, rng.integers(0, 2, size=5).tolist())
    example = _example(specification, seed)
    text = f"{words} {ENTRY}({list(example)}) == {specification.right().value(example)}"
    return Prompt.ask(text, specification.tier, {"specification": specification.id})
