"""Tasks on problems from files: programs that hidden tests judge. `humaneval`, `mbpp`, `apps`, `codecontests`,
`codejam`, and `problems` for every format.

Problems are split by a hash of their statement. SFT imitates the files' own solutions; rewards, labels and gold come
from the sandbox alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import PurePath
from typing import Any, Literal

from pydantic import Field

from trueline.config import Section
from trueline.data.code_files import LoadedProblems, Sample, load_problems
from trueline.data.code_formats import Problem
from trueline.data.code_prompts import program_of, prompt_of
from trueline.data.code_rows import PROBLEM_FORMATS
from trueline.data.sources import expand
from trueline.data.splits import assign, conversation_id
from trueline.errors import InputError
from trueline.seeds import generator
from trueline.tasks.code_pairs import pairs_of_people
from trueline.tasks.execution import Execution, Judge, sampled_pairs
from trueline.tasks.program_text import fenced, pieces_of
from trueline.tasks.task import PairSources, Sampler
from trueline.types import Demonstration, Judgement, Pair, Prompt

__all__ = ["TASKS", "WORLDS", "Dials", "Programs"]

FORMATS: Mapping[str, tuple[str, ...]] = {
    "humaneval": ("humaneval",),
    "mbpp": ("mbpp",),
    "apps": ("apps",),
    "codecontests": ("codecontests", "codecontests-files"),
    "codejam": ("codejam",),
    "problems": PROBLEM_FORMATS,
}
"""The formats that the rows of a task may have."""
_FRACTIONS = {"train": 0.55, "selection": 0.15, "test": 0.30}
_SALT = "trueline"
_LEAST = 12
_CONTESTS = ("apps", "codecontests", "codejam")
"""Statements of contests are long: what does not fit is cut unless the user says otherwise."""


class Dials(Section):
    """`world.*` of tasks on files of problems."""

    solutions: int = Field(4, ge=1, description="of a problem, at most so many that SFT imitates, or pairs of people's")
    pairs_from: Literal["samples", "people"] = Field(
        "samples", description="samples: of this SFT model, judged by running them; people: the files' own programs"
    )
    pairs: int = Field(0, ge=0, description="problems that pairs are made of; 0: every training problem once")
    samples_per_prompt: int = Field(5, ge=2, description="samples of each of these problems, all of them run")
    fallback: bool = Field(True, description="where no sample passes, the file's solution is the chosen side")


class Programs:
    """Problems from files; the members are those of `tasks.task.Task`."""

    learned_gold = False
    verified = True
    eval_splits: tuple[str, ...] = ()

    def __init__(self, name: str, data: Any, dials: Dials, execution: Execution) -> None:
        self.name, self.dials = name, dials
        self.description = f"programming problems from {data.path}, judged by running programs"
        self.strict_prompts = data.long_prompts == "error" or (data.long_prompts == "auto" and name not in _CONTESTS)
        if not data.path:
            raise InputError(
                "no file of problems is named",
                where="command line",
                field="data.path",
                remedy=f"trueline study {name} data.path=FILE.jsonl",
            )
        self._file = str(data.path)
        first = data.path if isinstance(data.path, str) else data.path[0]
        self.place = f"the problems of {PurePath(first).name}"
        self.full_reward = execution.full_reward
        self._read(data)
        self.judging = Judge(execution, self._problem_of, _source_of)
        if dials.pairs_from == "people" and not self._comparable:
            raise InputError(
                "no training problem has both a solution and an incorrect program",
                where=self._file,
                field="world.pairs_from",
                remedy="use world.pairs_from=samples, or give rows their programs (docs/code.md)",
            )

    # what is in the files

    def _read(self, data: Any) -> None:
        loaded = _loaded(data.path, data.format, data.on_bad_row)
        if wrong := sorted(set(loaded.formats) - set(FORMATS[self.name])):
            raise InputError(
                f"the problems are of the format {wrong[0]}",
                where=self._file,
                field="TASK",
                remedy=f"trueline study {wrong[0] if wrong[0] in FORMATS else 'problems'} data.path=...",
            )
        self._loads = [loaded]
        own, tests, self._in_both = loaded.problems[: data.limit or None], [], 0
        if data.test_path:
            self._loads.append(_loaded(data.test_path, "auto", data.on_bad_row))
            known = {_statement(problem) for problem in self._loads[1].problems}
            kept = [problem for problem in own if _statement(problem) not in known]
            own, self._in_both = kept, len(own) - len(kept)
            taken = {problem.task_id for problem in own}
            tests = [_renamed(problem, taken) for problem in self._loads[1].problems]
        self._parts = _split(own, tests, everything=data.everything)
        counts = {split: len(part) for split, part in self._parts.items()}
        if sum(counts.values()) < _LEAST or not all(counts.values()):
            listed = ", ".join(f"{split} {count}" for split, count in counts.items())
            raise InputError(
                f"{sum(counts.values())} usable problems ({listed})",
                where=self._file,
                field="rows",
                remedy=f"a study needs at least {_LEAST} in all, and one in each split; "
                "data.test_path=FILE names test problems of their own",
            )
        self._by_id = {problem.task_id: problem for part in self._parts.values() for problem in part}
        self._prompts = {split: [_asked(problem) for problem in part] for split, part in self._parts.items()}
        self._comparable = [p for p in self._prompts["train"] if all(self._sides(p))]

    def _problem_of(self, prompt: Prompt) -> Problem:
        found = self._by_id.get(prompt.meta.get("task_id", ""))
        if found is None:
            raise InputError("the prompt is of no problem here", field="prompt", remedy="take it from prompts()")
        return found

    def _sides(self, prompt: Prompt) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The first solutions and the first incorrect programs of a problem, as responses."""
        problem = self._problem_of(prompt)
        return tuple(
            tuple(map(fenced, programs[: self.dials.solutions])) for programs in (problem.solutions, problem.incorrect)
        )

    # what learners see

    def texts(self) -> list[str]:
        prompts = self._prompts["train"]
        return [text for p in prompts for text in (p.messages[-1].content, *self._sides(p)[0])]

    def prompts(self, split: str) -> list[Prompt]:
        return list(self._prompts[split])

    def demonstrations(self, seed: int) -> list[Demonstration]:
        """The first solutions of each training problem, the same for every seed. InputError where there is none."""
        found = [Demonstration(p, solution) for p in self._prompts["train"] for solution in self._sides(p)[0]]
        if not found:
            raise InputError(
                f"none of {len(self._prompts['train'])} training problems has a solution: SFT has nothing to imitate",
                where=self._file,
                field="solutions",
                remedy="give rows their solutions (docs/code.md), or name a file that has them as data.path and this "
                "one as data.test_path",
            )
        return found

    def pairs(self, seed: int, sample: Sampler) -> PairSources:
        """Correct samples of this SFT model against its incorrect ones; or people's programs, with no execution."""
        dials = self.dials
        if dials.pairs_from == "people":
            return PairSources(self._pairs_of_people(seed))
        return sampled_pairs(
            self.judging,
            self._prompts["train"],
            seed,
            sample,
            prompts=dials.pairs or len(self._prompts["train"]),
            samples=dials.samples_per_prompt,
            reference=self.reference if dials.fallback else lambda prompt: None,
        )

    def _pairs_of_people(self, seed: int) -> list[Pair]:
        order = generator(seed, "programs/people").permutation(len(self._comparable))
        asked = [self._comparable[i] for i in order][: self.dials.pairs or None]
        return [pair for p in asked for pair in pairs_of_people(p, *self._sides(p), most=self.dials.solutions)]

    # what judges

    def judge_many(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[Judgement]:
        return self.judging.judgements(prompts, responses)

    def rewards(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        return self.judging.rewards(prompts, responses)

    def reference(self, prompt: Prompt) -> str | None:
        return next(iter(self._sides(prompt)[0]), None)

    def structure(self, prompt: Prompt, response: str) -> frozenset[str] | None:
        return pieces_of(response, self._problem_of(prompt).entry)

    def machinery(self) -> Mapping[str, object]:
        return self.judging.facts()

    # what the report says

    def threats(self) -> list[str]:
        shown = any(problem.public_tests for problem in self._parts["test"])
        return [
            "The tests are the files': a program that passes them may still be wrong, and a policy that is paid by "
            "tests finds what they let through.",
            "Training and test problems have different statements, but one problem told in other words may be on both "
            "sides. A model that was given may have seen the problems, and their solutions, before.",
            "Without model.path the policy is small and was made from nothing on these problems' own solutions: it "
            "will solve next to none, and a difference between shares near zero says little.",
            *([] if shown else ["No test stands in the prompts: best-of-n has nothing to choose by."]),
            "Checkpoints are selected by the hidden tests of problems of their own.",
        ]

    def describe(self) -> Mapping[str, object]:
        parts, notes = self._parts, Counter[str]()
        for loaded in self._loads:
            notes.update(loaded.notes)
        tiers = {name: dict(sorted(Counter(p.kind for p in found).items())) for name, found in self._prompts.items()}
        return {
            "problems": {split: len(part) for split, part in parts.items()},
            **({"tiers": tiers} if any(any(found) for found in tiers.values()) else {}),
            "formats": ", ".join(dict.fromkeys(name for loaded in self._loads for name in loaded.formats)),
            "rows": sum(loaded.rows for loaded in self._loads),
            "dropped_rows": sum(len(loaded.dropped) for loaded in self._loads),
            "in_test_file_too": self._in_both,
            "without_solution": {split: sum(not p.solutions for p in part) for split, part in parts.items()},
            "people_pairs": sum(min(map(len, self._sides(p))) for p in self._comparable),
            "quirks": dict(notes),
        }


def _asked(problem: Problem) -> Prompt:
    """The prompt; of a tier that is a path (Code Jam's "kickstart/2021/round_a") the first part is its kind."""
    prompt = prompt_of(problem)
    return replace(prompt, kind=prompt.kind.partition("/")[0])


def _source_of(problem: Problem, response: str) -> str:
    """The program that a response stands for."""
    return program_of(problem, Sample(problem.task_id, 0, response, "response"))


def _statement(problem: Problem) -> str:
    """A hash of the statement, case and white space aside."""
    return conversation_id(Prompt.ask(problem.prompt))


def _split(own: Sequence[Problem], tests: Sequence[Problem], *, everything: bool) -> dict[str, list[Problem]]:
    """Problems by split, each in a fixed random order; of problems with one prompt the first alone.

    `tests` are the test split where there are any. With `everything` all of `own` are trained on, whatever else they
    are.
    """
    whole = _FRACTIONS["train"] + _FRACTIONS["selection"]
    fractions = {name: _FRACTIONS[name] / whole for name in ("train", "selection")} if tests else _FRACTIONS
    parts: dict[str, list[Problem]] = {name: [] for name in _FRACTIONS}
    for problem in own:
        parts[assign(_statement(problem), fractions, _SALT)].append(problem)
    parts["test"] += tests
    if everything:
        parts["train"] = list(own)
    unique = {name: _first_of_each_prompt(part) for name, part in parts.items()}
    orders = {name: generator(0, f"programs/{name}").permutation(len(part)) for name, part in unique.items()}
    return {name: [part[i] for i in orders[name]] for name, part in unique.items()}


def _first_of_each_prompt(problems: Sequence[Problem]) -> list[Problem]:
    found: dict[str, Problem] = {}
    for problem in problems:
        found.setdefault(prompt_of(problem).id, problem)
    return list(found.values())


def _renamed(problem: Problem, taken: set[str]) -> Problem:
    """A test problem whose id is also one of a training problem's gets a name of its own."""
    return replace(problem, task_id=f"test: {problem.task_id}") if problem.task_id in taken else problem


def _loaded(paths: str | Sequence[str], format: str, on_bad_row: str) -> LoadedProblems:
    """The files' problems. Every cell of a run makes its task anew; files that did not change are not read again."""
    listed = (paths,) if isinstance(paths, str) else tuple(paths)
    state = tuple((str(path), path.stat().st_mtime_ns, path.stat().st_size) for path in expand(listed))
    return _kept(listed, format, on_bad_row, state)


@lru_cache(maxsize=2)
def _kept(paths: tuple[str, ...], format: str, on_bad_row: Any, state: tuple) -> LoadedProblems:
    return load_problems(paths, format=format, on_bad_row=on_bad_row)


def _make(name: str, sections: Mapping[str, Any]) -> Programs:
    return Programs(name, sections["data"], sections.get("world") or Dials(), sections.get("verifier") or Execution())


WORLDS = dict.fromkeys(FORMATS, Dials)
TASKS = {name: partial(_make, name) for name in FORMATS}
