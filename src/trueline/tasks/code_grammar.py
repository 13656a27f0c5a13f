"""The language of the code world: list operations in words, as lines of Python, and as functions of ours on lists.

An operation has one right line and one slip, a wrong line that a careless programmer would write in just that way. What
a line does is stated beside it as a function, so that the values a program returns are computed here, from the meaning
of its lines; no program text is ever run in this process.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import MappingProxyType

__all__ = [
    "FAMILIES", "KINDS", "OPERATIONS", "REDUCERS", "Kind", "Operation", "Program", "Reducer", "Step", "Value",
    "mis_named", "omitted", "program", "reads", "right", "slip", "unclosed",
]  # fmt: skip

Value = int | list[int]
Effect = Callable[[list[int]], list[int]]

FAMILIES = ("filter", "map", "order", "slice", "extend")
"""A specification takes each family at most once, which bounds the length of its programs."""


@dataclass(frozen=True)
class Kind:
    """One sort of operation. `{k}` in phrases and lines is its number; `params` are the numbers it takes.

    `effect(xs, k)` is the meaning of `line`, `slip_effect(xs, k)` that of `slip`.
    """

    name: str
    family: str
    params: tuple[int, ...]
    phrases: tuple[str, str]
    line: str
    effect: Callable[[list[int], int], list[int]]
    slip: str
    slip_effect: Callable[[list[int], int], list[int]]


@dataclass(frozen=True)
class Operation:
    """A kind with its number: "above 3". Kinds without a number carry 0."""

    kind: str
    k: int

    @property
    def name(self) -> str:
        return f"{self.kind} {self.k}"

    def phrase(self, which: int) -> str:
        """One of its two phrases in English."""
        return KINDS[self.kind].phrases[which].format(k=self.k)


@dataclass(frozen=True)
class Reducer:
    """What is returned in the end."""

    name: str
    phrases: tuple[str, str]
    line: str
    effect: Callable[[list[int]], Value]


@dataclass(frozen=True)
class Step:
    """A line of a program and what it does to the list; `effect` None: it cannot run. An empty line is left out."""

    line: str
    effect: Effect | None


@dataclass(frozen=True)
class Program:
    """The text of a function `f` of one list, and the steps it was written from."""

    text: str
    steps: tuple[Step, ...]
    reducer: Reducer

    @property
    def broken(self) -> bool:
        """Whether it fails on every input: a line that does not parse, or a name that does not exist."""
        return any(step.effect is None for step in self.steps)

    def value(self, xs: Sequence[int]) -> Value:
        """f(xs), from the meaning of the lines. Raises ValueError for a broken program, which returns nothing."""
        found = list(xs)
        for step in self.steps:
            if step.effect is None:
                raise ValueError("a broken program returns nothing")
            found = step.effect(found)
        return self.reducer.effect(found)


# name, family, numbers, two phrases, line, meaning, slip, meaning of the slip
_TABLE = (
    Kind("above", "filter", (1, 2, 3, 4), ("keep numbers above {k}", "drop all up to {k}"),
         "xs = [x for x in xs if x > {k}]", lambda xs, k: [x for x in xs if x > k],
         "xs = [x for x in xs if x >= {k}]", lambda xs, k: [x for x in xs if x >= k]),
    Kind("below", "filter", (3, 4, 5, 6), ("keep numbers below {k}", "drop all from {k}"),
         "xs = [x for x in xs if x < {k}]", lambda xs, k: [x for x in xs if x < k],
         "xs = [x for x in xs if x <= {k}]", lambda xs, k: [x for x in xs if x <= k]),
    Kind("multiples", "filter", (2, 3, 4), ("keep multiples of {k}", "keep what {k} divides"),
         "xs = [x for x in xs if x % {k} == 0]", lambda xs, k: [x for x in xs if x % k == 0],
         "xs = [x for x in xs if x % {k}]", lambda xs, k: [x for x in xs if x % k]),
    Kind("others", "filter", (2, 3, 5), ("drop multiples of {k}", "drop what {k} divides"),
         "xs = [x for x in xs if x % {k}]", lambda xs, k: [x for x in xs if x % k],
         "xs = [x for x in xs if x // {k}]", lambda xs, k: [x for x in xs if x // k]),
    Kind("unequal", "filter", (0, 1, 2, 3), ("drop every {k}", "remove each {k}"),
         "xs = [x for x in xs if x != {k}]", lambda xs, k: [x for x in xs if x != k],
         "xs = [x for x in xs if x > {k}]", lambda xs, k: [x for x in xs if x > k]),
    Kind("add", "map", (2, 3, 5), ("add {k} to each", "increase each by {k}"),
         "xs = [x + {k} for x in xs]", lambda xs, k: [x + k for x in xs],
         "xs = [x * {k} for x in xs]", lambda xs, k: [x * k for x in xs]),
    Kind("subtract", "map", (1, 2, 4), ("subtract {k} from each", "lower each by {k}"),
         "xs = [x - {k} for x in xs]", lambda xs, k: [x - k for x in xs],
         "xs = [{k} - x for x in xs]", lambda xs, k: [k - x for x in xs]),
    Kind("times", "map", (2, 3), ("multiply each by {k}", "scale each by {k}"),
         "xs = [x * {k} for x in xs]", lambda xs, k: [x * k for x in xs],
         "xs = [x ** {k} for x in xs]", lambda xs, k: [x**k for x in xs]),
    Kind("absolute", "map", (0,), ("take absolute values", "remove the signs"),
         "xs = [abs(x) for x in xs]", lambda xs, k: [abs(x) for x in xs],
         "xs = [-x for x in xs]", lambda xs, k: [-x for x in xs]),
    Kind("square", "map", (0,), ("square each", "take the squares"),
         "xs = [x * x for x in xs]", lambda xs, k: [x * x for x in xs],
         "xs = [x + x for x in xs]", lambda xs, k: [x + x for x in xs]),
    Kind("divide", "map", (2, 3), ("floor divide each by {k}", "divide by {k} and floor"),
         "xs = [x // {k} for x in xs]", lambda xs, k: [x // k for x in xs],
         "xs = [x % {k} for x in xs]", lambda xs, k: [x % k for x in xs]),
    Kind("modulo", "map", (3, 5, 7), ("take each modulo {k}", "keep remainders by {k}"),
         "xs = [x % {k} for x in xs]", lambda xs, k: [x % k for x in xs],
         "xs = [x // {k} for x in xs]", lambda xs, k: [x // k for x in xs]),
    Kind("reverse", "order", (0,), ("reverse", "turn around"),
         "xs = xs[::-1]", lambda xs, k: xs[::-1], "xs = xs[:-1]", lambda xs, k: xs[:-1]),
    Kind("ascending", "order", (0,), ("sort ascending", "order small to large"),
         "xs = sorted(xs)", lambda xs, k: sorted(xs), "xs = sorted(set(xs))", lambda xs, k: sorted(set(xs))),
    Kind("descending", "order", (0,), ("sort descending", "order large to small"),
         "xs = sorted(xs)[::-1]", lambda xs, k: sorted(xs)[::-1], "xs = sorted(xs)", lambda xs, k: sorted(xs)),
    Kind("unique", "order", (0,), ("sort without repeats", "order each number once"),
         "xs = sorted(set(xs))", lambda xs, k: sorted(set(xs)), "xs = sorted(xs)", lambda xs, k: sorted(xs)),
    Kind("rotate", "order", (0,), ("move the first last", "rotate left"),
         "xs = xs[1:] + xs[:1]", lambda xs, k: xs[1:] + xs[:1],
         "xs = xs[-1:] + xs[:-1]", lambda xs, k: xs[-1:] + xs[:-1]),
    Kind("size", "order", (0,), ("sort by absolute value", "order by size unsigned"),
         "xs = sorted(xs, key=abs)", lambda xs, k: sorted(xs, key=abs), "xs = sorted(xs)", lambda xs, k: sorted(xs)),
    Kind("first", "slice", (2, 3, 4), ("take the first {k}", "keep only the first {k}"),
         "xs = xs[:{k}]", lambda xs, k: xs[:k], "xs = xs[{k}:]", lambda xs, k: xs[k:]),
    Kind("last", "slice", (2, 3, 4), ("take the last {k}", "keep only the last {k}"),
         "xs = xs[-{k}:]", lambda xs, k: xs[-k:], "xs = xs[:-{k}]", lambda xs, k: xs[:-k]),
    Kind("skip", "slice", (1, 2, 3), ("skip the first {k}", "leave out the first {k}"),
         "xs = xs[{k}:]", lambda xs, k: xs[k:], "xs = xs[-{k}:]", lambda xs, k: xs[-k:]),
    Kind("cut", "slice", (1, 2, 3), ("skip the last {k}", "leave out the last {k}"),
         "xs = xs[:-{k}]", lambda xs, k: xs[:-k], "xs = xs[:{k}]", lambda xs, k: xs[:k]),
    Kind("every", "slice", (2, 3), ("take one in {k}", "keep one in {k}"),
         "xs = xs[::{k}]", lambda xs, k: xs[::k], "xs = xs[{k}::{k}]", lambda xs, k: xs[k::k]),
    Kind("twice", "extend", (0,), ("repeat the list", "add the list to itself"),
         "xs = xs + xs", lambda xs, k: xs + xs, "xs = [x + x for x in xs]", lambda xs, k: [x + x for x in xs]),
    Kind("sum", "extend", (0,), ("append the sum", "put the sum last"),
         "xs = xs + [sum(xs)]", lambda xs, k: [*xs, sum(xs)],
         "xs = [sum(xs)] + xs[1:]", lambda xs, k: [sum(xs), *xs[1:]]),
    Kind("length", "extend", (0,), ("append the length", "put the length last"),
         "xs = xs + [len(xs)]", lambda xs, k: [*xs, len(xs)],
         "xs = xs + [len(xs) - 1]", lambda xs, k: [*xs, len(xs) - 1]),
    Kind("front", "extend", (1, 5, 9), ("put {k} in front", "begin with {k}"),
         "xs = [{k}] + xs", lambda xs, k: [k, *xs], "xs = [{k}] + xs[1:]", lambda xs, k: [k, *xs[1:]]),
    Kind("append", "extend", (1, 5, 9), ("append {k}", "put {k} last"),
         "xs = xs + [{k}]", lambda xs, k: [*xs, k], "xs = xs + [{k} + 1]", lambda xs, k: [*xs, k + 1]),
)  # fmt: skip

KINDS = MappingProxyType({kind.name: kind for kind in _TABLE})
OPERATIONS = tuple(Operation(kind.name, k) for kind in _TABLE for k in kind.params)
REDUCERS = MappingProxyType(
    {
        reducer.name: reducer
        for reducer in (
            Reducer("list", ("return the list", "return what is left"), "return xs", list),
            Reducer("sum", ("return the sum", "return the total"), "return sum(xs)", sum),
            Reducer("length", ("return the length", "return how many"), "return len(xs)", len),
            Reducer(
                "distinct",
                ("count distinct numbers", "return how many differ"),
                "return len(set(xs))",
                lambda xs: len(set(xs)),
            ),
            Reducer(
                "largest",
                ("return the largest or 0", "return the maximum or 0"),
                "return max(xs + [0])",
                lambda xs: max([*xs, 0]),
            ),
            Reducer(
                "smallest",
                ("return the smallest or 0", "return the minimum or 0"),
                "return min(xs + [0])",
                lambda xs: min([*xs, 0]),
            ),
        )
    }
)


def right(operation: Operation) -> Step:
    """The line that does what the operation says."""
    kind, k = KINDS[operation.kind], operation.k
    return Step(kind.line.format(k=k), lambda xs: kind.effect(xs, k))


def slip(operation: Operation) -> Step:
    """The wrong line that belongs to the operation."""
    kind, k = KINDS[operation.kind], operation.k
    return Step(kind.slip.format(k=k), lambda xs: kind.slip_effect(xs, k))


def omitted() -> Step:
    """The operation forgotten."""
    return Step("", list)


def unclosed(operation: Operation) -> Step:
    """The right line without its last bracket: no Python."""
    line = right(operation).line
    return Step(line[:-1] if line[-1] in ")]" else f"{line} +", None)


def mis_named(operation: Operation) -> Step:
    """The right line with a list that does not exist: a NameError on every input."""
    left, line = right(operation).line.split(" = ", 1)
    return Step(f"{left} = {re.sub(r'xs(?!.*xs)', 'ys', line)}", None)


def program(steps: Sequence[Step], reducer: Reducer, style: str = "plain") -> Program:
    """The function's text. Lines are indented by one space, which is one token less each.

    The style "foreign" names the list `vs` and its numbers `v`; nothing else differs.
    """
    lines = ["def f(xs):", *(f" {step.line}" for step in steps if step.line), f" {reducer.line}"]
    text = "\n".join(lines)
    if style == "foreign":
        text = re.sub(r"\bx(s?)\b", r"v\1", text)
    return Program(text, tuple(steps), reducer)


def reads(operations: Sequence[Operation], reducer: Reducer, which: Sequence[int]) -> str:
    """The specification in words; `which` picks a phrase for each operation and for what is returned."""
    phrases = [op.phrase(i) for op, i in zip(operations, which)] + [reducer.phrases[which[len(operations)]]]
    return " , ".join(phrases) + " ."
