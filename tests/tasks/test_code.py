"""The task `code` on its world: what pays, what labels and what evaluates, run for real where it says so."""

from __future__ import annotations

import json

import pytest

from trueline.errors import InputError
from trueline.tasks.code import Code
from trueline.tasks.code_world import Dials
from trueline.tasks.execution import Execution
from trueline.tasks.registry import is_embedded, make_task, world_type
from trueline.tasks.task import Sampled


def _code(execution: Execution | None = None, **dials) -> Code:
    return Code(Dials(**{"demonstrations": 40, "pairs": 8} | dials), execution or Execution())


def test_the_registry_makes_it_from_its_sections() -> None:
    task = make_task("code", {"world": Dials(pairs=5), "verifier": Execution(reward="graded")})
    assert world_type("code") is Dials and is_embedded("code") and not is_embedded("mbpp")
    assert (task.name, task.verified, task.learned_gold, task.full_reward) == ("code", True, False, 1.0)
    assert task.describe()["world"]["pairs"] == 5 and json.dumps(task.describe())


def test_structure_is_the_lines_with_their_numbers_blanked_out() -> None:
    task = _code()
    prompt = task.prompts("train")[0]
    one, other = "def f(xs):\n xs = xs[:-3]\n return xs", "def f(xs):\n xs = xs[:-1]\n return xs"
    assert task.structure(prompt, one) == task.structure(prompt, other)
    assert task.structure(prompt, one) == {"def f(xs):", " xs = xs[:-#]", " return xs"}
    assert task.structure(prompt, one.replace("xs", "vs")) != task.structure(prompt, one)


def test_the_model_s_own_style_cannot_be_shifted() -> None:
    with pytest.raises(InputError, match=r"world\.shift.*pairs_from=people"):
        _code(shift=0.5)
    assert _code(shift=0.5, pairs_from="people").pairs(0, None).executions is None


def test_people_s_pairs_set_a_right_program_against_a_wrong_one() -> None:
    task = _code(pairs_from="people", pairs=30)
    pairs = task.pairs(1, None).training
    assert len(pairs) == 30 and all(p.chosen == task.reference(p.prompt) for p in pairs)


@pytest.mark.integration
def test_pairs_of_samples_by_hand() -> None:
    """Of each prompt: the reference, an unclosed program, one that was cut off, and nothing right for every third.

    A right and two wrong ones make one pair; where nothing is right the reference is the chosen side, or, without the
    fallback, there is no pair. What was cut off is not run and counts as wrong.
    """
    asked = []

    def sample(prompts, n, purpose):
        asked.extend(prompts)
        assert (n, purpose) == (3, "pairs")
        rows = []
        for i, prompt in enumerate(prompts):
            right = task.reference(prompt)
            first = Sampled("def f(xs): return None") if i % 3 == 0 else Sampled(right)
            rows.append([first, Sampled(right[:-1]), Sampled(right, ended=False)])
        return rows

    for fallback in (True, False):
        task = _code(pairs=6, samples_per_prompt=3, fallback=fallback)
        found = task.pairs(0, sample)
        assert found.executions == 12 and len(asked) == 6 and len({p.id for p in asked}) == 6
        assert [p.prompt for p in found.training] == [p for i, p in enumerate(asked) if fallback or i % 3]
        assert all(p.chosen == task.reference(p.prompt) for p in found.training)
        for i, prompt in enumerate(asked):
            rejected = [p.rejected for p in found.training if p.prompt == prompt]
            wrong = "def f(xs): return None" if i % 3 == 0 else task.reference(prompt)[:-1]
            assert rejected == ([wrong] if fallback or i % 3 else [])
        asked.clear()


@pytest.mark.integration
@pytest.mark.parametrize(("scale", "paid"), [("pass", [10, 0, 0]), ("graded", [1, -1, -0.6]), ("fraction", [1, 0, 0])])
def test_what_programs_are_paid(scale, paid) -> None:
    task = _code(Execution(reward=scale))
    prompt = task.prompts("train")[0]
    programs = [task.reference(prompt), "def f(xs:\n return xs", "def f(xs):\n return ys"]
    assert task.rewards([prompt] * 3, programs) == pytest.approx(paid)
    assert task.full_reward == paid[0]


@pytest.mark.integration
def test_the_sandbox_agrees_with_the_world_about_its_own_programs() -> None:
    """Every reference passes; what most demonstrators write passes exactly where the meaning of its lines does."""
    task = _code()
    prompts = [p for split in ("test", "hard") for p in task.prompts(split)[:30]]
    assert all(j.score == 1.0 for j in task.judge_many(prompts, [task.reference(p) for p in prompts]))
    written = [task.world.majority(p) for p in prompts]
    judged = task.judge_many(prompts, [program.text for program in written])
    right = [task.world.is_right(p, program) for p, program in zip(prompts, written)]
    assert [j.score == 1.0 for j in judged] == right and 3 < sum(right) < 57
    for j in judged:
        assert j.score + sum(j.parts[e] for e in ("syntax", "runtime", "wrong", "timeout", "memory", "output")) == 1.0
        assert j.note.startswith("passes all 6") == (j.score == 1.0)
