"""Tasks on files of problems: splits, what learners see, what judges, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxed import need_sandbox
from trueline.commands.resolve import resolve
from trueline.data.chat import ChatTokenizer
from trueline.data.code_files import Sample, load_problems
from trueline.data.code_prompts import extract_code, program_of
from trueline.errors import InputError
from trueline.study.design import variants
from trueline.study.execute import prepare_base
from trueline.study.settings import Data, shipped
from trueline.tasks.execution import Execution
from trueline.tasks.program_text import fenced, pieces_of
from trueline.tasks.programs import FORMATS, Dials, Programs
from trueline.tasks.registry import is_embedded, make_task, task_names, world_type
from trueline.tasks.task import Sampled
from trueline.types import Prompt

SMALL = Path(__file__).resolve().parents[1] / "data" / "code_small.jsonl"
SPLITS = ("train", "selection", "test")


def small(world: Dials | None = None, **data: object) -> Programs:
    return make_task("problems", {"data": Data(**{"path": str(SMALL)} | data), "world": world or Dials()})


def row(i: int, **more: object) -> dict:
    return {"task_id": f"p{i}", "prompt": f"Return {i} more than x.", "entry": "f",
            "tests": [f"assert f(1) == {i + 1}"], "solutions": [f"def f(x):\n    return x + {i}"]} | more  # fmt: skip


def write(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return str(path)


def of(path: str, name: str = "problems", world: Dials | None = None, **data: object) -> Programs:
    return make_task(name, {"data": Data(path=path, **data), "world": world or Dials()})


def ids(task: Programs, split: str) -> set[str]:
    return {prompt.meta["task_id"] for prompt in task.prompts(split)}


# --- splits --------------------------------------------------------------------------------------------------------


def statement(text: str) -> str:
    return " ".join(text.split()).casefold()


def test_no_statement_lies_in_two_splits_in_whatever_case_and_spacing(tmp_path) -> None:
    words = ("Return {} more than x.", "return {}  MORE than x.", "\n Return {} more\nthan x.\n")
    rows = [row(i, task_id=f"{i}-{k}", prompt=text.format(i)) for i in range(40) for k, text in enumerate(words)]
    task = of(write(tmp_path / "a.jsonl", rows))
    sides = {name: {found.split("-")[0] for found in ids(task, name)} for name in SPLITS}
    assert not sides["train"] & sides["selection"] | sides["train"] & sides["test"] | sides["selection"] & sides["test"]
    assert set().union(*sides.values()) == {str(i) for i in range(40)}
    assert sum(map(len, (task.prompts(name) for name in SPLITS))) == 120  # other words of a statement are kept


def test_a_split_depends_on_nothing_but_the_statement(tmp_path) -> None:
    rows = [row(i) for i in range(60)]
    task = of(write(tmp_path / "a.jsonl", rows))
    others = [row(i, tests=["assert True"], tier="hard", solutions=[]) for i in reversed(range(40))]
    fewer = of(write(tmp_path / "b.jsonl", others))
    for name in SPLITS:
        assert ids(fewer, name) == {f"p{i}" for i in range(40)} & ids(task, name)
    shares = [len(ids(task, name)) / 60 for name in SPLITS]
    assert shares == pytest.approx([0.55, 0.15, 0.30], abs=0.12)


def test_prompts_of_a_split_are_not_in_file_order(tmp_path) -> None:
    task = of(write(tmp_path / "a.jsonl", [row(i) for i in range(60)]))
    numbers = [int(p.meta["task_id"][1:]) for p in task.prompts("train")]
    assert numbers != sorted(numbers)
    assert task.prompts("train") == of(str(tmp_path / "a.jsonl")).prompts("train")


def test_of_equal_prompts_the_first_is_taken(tmp_path) -> None:
    rows = [row(i) for i in range(30)] + [row(i, task_id=f"again-{i}") for i in range(30)]
    task = of(write(tmp_path / "a.jsonl", rows))
    assert set().union(*(ids(task, name) for name in SPLITS)) == {f"p{i}" for i in range(30)}


def test_test_problems_may_come_from_files_of_their_own(tmp_path) -> None:
    own = write(tmp_path / "own.jsonl", [row(i) for i in range(30)])
    apart = [row(i, task_id=f"p{i - 20}", prompt=f"return {i} MORE than x.") for i in range(20, 50)]
    task = of(own, test_path=write(tmp_path / "apart.jsonl", apart))
    trained = ids(task, "train") | ids(task, "selection")
    assert trained == {f"p{i}" for i in range(20)}  # 20 to 29 are asked in the test file, in other letters
    assert task.describe()["in_test_file_too"] == 10
    # An id that both files use is two problems: each prompt finds its own.
    assert ids(task, "test") == {f"test: p{i}" for i in range(20)} | {f"p{i}" for i in range(20, 30)}
    assert all(statement(task._problem_of(p).prompt) in statement(p.text) for n in SPLITS for p in task.prompts(n))
    # Without it, thirty test problems would be nine.
    assert len(task.prompts("test")) == 30 > len(of(own).prompts("test"))
    assert len(task.prompts("train")) > len(task.prompts("selection")) > 0


def test_the_test_file_may_be_of_another_format(tmp_path) -> None:
    both = Path(__file__).resolve().parents[1] / "data" / "code_humaneval.jsonl"
    task = of(write(tmp_path / "a.jsonl", [row(i) for i in range(20)]), test_path=str(both))
    assert task.describe()["formats"] == "problems, humaneval"
    assert len(task.prompts("test")) == len(both.read_text().splitlines())


def test_the_limit_takes_the_first_rows_and_everything_trains_on_all(tmp_path) -> None:
    path = write(tmp_path / "a.jsonl", [row(i) for i in range(60)])
    limited = of(path, limit=30)
    assert set().union(*(ids(limited, name) for name in SPLITS)) == {f"p{i}" for i in range(30)}
    whole = of(path, everything=True)
    assert ids(whole, "train") == {f"p{i}" for i in range(60)}
    assert ids(whole, "test") == ids(of(path), "test")


# --- what learners see ---------------------------------------------------------------------------------------------


@given(st.one_of(st.text("ab =:()#`~\n\t'\"\\", max_size=60), st.text(max_size=30)))
def test_a_program_is_taken_out_of_its_block_as_it_was_put_in(program) -> None:
    program = program.replace("\r", "").replace("\x0b", "").replace("\x0c", "")
    assert extract_code(fenced(program)).strip("\n").rstrip() == program.strip("\n").rstrip()


def test_a_program_is_put_into_the_block_that_the_prompt_asks_for() -> None:
    assert fenced("\ndef f():\n    pass\n\n") == "```python\ndef f():\n    pass\n```"
    assert fenced("x = '```'\n") == "````python\nx = '```'\n````"


def test_demonstrations_are_the_first_solutions_of_training_problems() -> None:
    task = small(Dials(solutions=1))
    assert [d.prompt for d in task.demonstrations(0)] == task.prompts("train")
    for found in task.demonstrations(0):
        problem = task._problem_of(found.prompt)
        assert program_of(problem, Sample("", 0, found.response, "response")).strip() == problem.solutions[0].strip()
        assert task.reference(found.prompt) == found.response
    both = small(Dials(solutions=2)).demonstrations(0)
    functions = [p for p in task.prompts("train") if task._problem_of(p).entry]
    assert len(both) == len(task.prompts("train")) + len(functions)  # the others have one solution


def test_the_tokenizer_sees_training_problems_alone() -> None:
    task = small()
    seen = " ".join(task.texts())
    assert all(p.messages[-1].content in seen for p in task.prompts("train"))
    assert not any(p.messages[-1].content in seen for name in ("selection", "test") for p in task.prompts(name))


def test_prompts_are_small_and_can_be_written_down() -> None:
    for prompt in small().prompts("train"):
        assert list(prompt.meta) == ["task_id"] and prompt.kind in ("easy", "hard")
        assert Prompt(prompt.messages, prompt.kind, json.loads(json.dumps(dict(prompt.meta)))) == prompt


def test_hidden_tests_stand_in_no_prompt() -> None:
    for prompt in small().prompts("train"):
        problem = small()._problem_of(prompt)
        assert not any(repr(test.expected) in prompt.text for test in problem.tests if hasattr(test, "args")
                       and len(repr(test.expected)) > 4)  # fmt: skip


def test_pairs_of_people_are_right_against_wrong_programs() -> None:
    task = small(Dials(pairs_from="people"))
    found = task.pairs(0, None)
    assert len(found.training) == len(task.prompts("train")) == task.describe()["people_pairs"]
    assert found.executions is None  # labels, then
    for pair in found.training:
        problem = task._problem_of(pair.prompt)
        assert pair.chosen in map(fenced, problem.solutions) and pair.rejected in map(fenced, problem.incorrect)
    few = small(Dials(pairs_from="people", pairs=5))
    assert len({p.prompt.id for p in few.pairs(0, None).training}) == 5
    assert few.pairs(0, None) == few.pairs(0, None) != few.pairs(1, None)


# --- what judges ---------------------------------------------------------------------------------------------------


def test_every_solution_passes_and_every_incorrect_program_fails() -> None:
    need_sandbox()
    task = small()
    prompts = [p for name in SPLITS for p in task.prompts(name)]
    wrong = [fenced(task._problem_of(p).incorrect[0]) for p in prompts]
    right = [task.reference(p) for p in prompts]
    assert [j.score for j in task.judge_many(prompts, right)] == [1.0] * 24
    assert [j.score for j in task.judge_many(prompts, wrong)] == [0.0] * 24
    assert task.rewards(prompts[:3], right[:3]) == [10.0] * 3 and task.rewards(prompts[:3], wrong[:3]) == [0.0] * 3
    assert task.machinery()["executions"] > 0 and task.full_reward == 10.0


def test_pairs_of_samples_stay_responses() -> None:
    """What is learned from is what the model said, words around the code included; programs are taken out to run."""
    need_sandbox()

    def sample(prompts, n, purpose):
        said = [f"Sure:\n\n{task.reference(p)}\n\nDone." for p in prompts]
        return [[Sampled(text), Sampled("I do not know."), Sampled(text, ended=False)][:n] for text in said]

    task = small(Dials(samples_per_prompt=2, pairs=4))
    found = task.pairs(0, sample)
    assert len(found.training) == 4 and found.executions == 8
    assert all(p.chosen.startswith("Sure:") and p.rejected == "I do not know." for p in found.training)


def test_where_no_sample_passes_the_files_solution_stands_in_unless_it_may_not() -> None:
    need_sandbox()

    def silent(prompts, n, purpose):
        return [[Sampled("pass")] * n for _ in prompts]

    task = small(Dials(samples_per_prompt=2, pairs=3))
    assert [p.chosen for p in task.pairs(0, silent).training] == [
        task.reference(p.prompt) for p in task.pairs(0, silent).training
    ]
    assert len(task.pairs(0, silent).training) == 3
    assert small(Dials(samples_per_prompt=2, pairs=3, fallback=False)).pairs(0, silent).training == []


def test_pairs_of_every_training_problem_once_unless_told_otherwise() -> None:
    def cut(prompts, n, purpose):
        asked.extend(p.id for p in prompts)
        return [[Sampled("def", ended=False)] * n for _ in prompts]

    need_sandbox()
    asked: list[str] = []
    task = small()
    task.pairs(0, cut)
    assert sorted(asked) == sorted(p.id for p in task.prompts("train"))


def test_a_prompt_of_another_task_is_refused() -> None:
    with pytest.raises(InputError, match="no problem here"):
        small().reference(Prompt.ask("write f", meta={"task_id": "nothing"}))


# --- structure -----------------------------------------------------------------------------------------------------

PIECES = [
    ("```python\ndef f(x):\n    return x\n```", {"def", "return"}),
    ("```\nfor x in y:\n    print(x)\n```", {"for", "print"}),
    ("```\nx = [a for a in b if a]\n```", {"comprehension", "condition within"}),
    ("```\nimport numpy.linalg as la\nfrom math import pi\n```", {"import numpy", "from math"}),
    ("```\nn = int(input())\n```", {"input"}),
    ("```\n# for while\nx = 'if lambda'  # print\n```", set()),  # comments and texts hold no statements
    ('```\n"""\nfor x in y:\nimport os\n"""\nwhile True:\n    pass\n```', {"while", "pass"}),
    ("def f(): pass", {"no code block", "def"}),
    ("```python\nx = 1", {"unclosed block"}),
    ("```\nx =", {"unclosed block"}),
    ("I do not know.", {"no code block"}),
    ("", {"no code block"}),
]


@pytest.mark.parametrize(("response", "expected"), PIECES)
def test_pieces_by_hand(response, expected) -> None:
    assert pieces_of(response) == expected


def test_pieces_do_not_tell_names_numbers_and_order() -> None:
    one = "```\ndef f(x):\n    if x > 1:\n        return x\n    return 2\n```"
    other = "```\ndef solve(n):\n    return 5\n    if n > 77:\n        return n\n```"
    assert pieces_of(one) == pieces_of(other) != pieces_of(one.replace("return 2", "raise ValueError"))


@given(st.text("\"'\\#`~\n fori", max_size=200))
def test_pieces_of_broken_programs_are_found_too(text) -> None:
    assert isinstance(pieces_of(text), frozenset)


# --- what is refused -----------------------------------------------------------------------------------------------

PAIRS = [{"prompt": f"Question {i}?", "chosen": "Yes.", "rejected": "No."} for i in range(20)]
MBPP = [{"task_id": i, "text": f"Add {i}.", "code": "", "test_list": ["assert f(1) == 2"]} for i in range(20)]
REFUSED = {
    # name: (rows, task, data, world, field, what is said)
    "no file": (None, "mbpp", {}, {}, "data.path", "no file of problems"),
    "preferences": (PAIRS, "problems", {}, {}, "", "no known format of problems has the columns 'prompt', 'chosen'"),
    "preferences as mbpp": (PAIRS, "mbpp", {"format": "mbpp"}, {}, "test_list", "missing"),
    "preferences by name": (PAIRS, "problems", {"format": "pairs"}, {}, "data.format", "unknown format 'pairs'"),
    "another set": (MBPP, "humaneval", {}, {}, "TASK", "trueline study mbpp"),
    "ours as a set": ([row(i) for i in range(20)], "apps", {}, {}, "TASK", "trueline study problems"),
    "too few": ([row(i) for i in range(8)], "problems", {}, {}, "rows", "8 usable problems .* at least 12"),
    "an empty split": ([row(i) for i in range(60)], "problems", {"limit": 3}, {}, "rows", "3 usable problems"),
    "one statement": ([row(i, prompt="Go.", starter=f"# {i}") for i in range(20)], "problems", {}, {}, "rows", "train"),
    "nothing incorrect": ([row(i) for i in range(30)], "problems", {}, {"pairs_from": "people"}, "world.pairs_from",
                          "world.pairs_from=samples"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_used_is_refused_in_a_line(name, tmp_path) -> None:
    rows, task, data, world, field, said = REFUSED[name]
    path = write(tmp_path / "a.jsonl", rows) if rows else ""
    with pytest.raises(InputError, match=said) as error:
        of(path, task, Dials(**world), **data)
    assert error.value.field == field and "\n" not in str(error.value)
    assert not path or path in str(error.value) or field == "data.format"


def test_without_solutions_there_is_nothing_to_imitate(tmp_path) -> None:
    """Checkpoints can be evaluated on such a file; what is trained needs solutions, and is told before a cell runs."""
    from rich.console import Console

    from trueline.commands.run import run_stage, run_study

    path = write(tmp_path / "a.jsonl", [row(i, solutions=[]) for i in range(30)])
    task = of(path)
    assert task.reference(task.prompts("train")[0]) is None
    with pytest.raises(InputError, match=r"nothing to imitate.*data\.test_path"):
        task.demonstrations(0)
    _, sections, task = resolve("problems", [f"data.path={path}"], False)
    for run in (run_study, lambda *given, **more: run_stage("sft", *given, **more)):
        with pytest.raises(InputError, match="nothing to imitate"):
            run(task, sections, tmp_path / "out", "", console=Console(quiet=True))
    assert not (tmp_path / "out").exists()


def test_a_problem_without_solutions_is_a_prompt_all_the_same(tmp_path) -> None:
    rows = [row(i, solutions=[] if i % 2 else row(i)["solutions"]) for i in range(40)]
    task = of(write(tmp_path / "a.jsonl", rows))
    shown = {d.prompt.meta["task_id"] for d in task.demonstrations(0)}
    assert shown == {name for name in ids(task, "train") if int(name[1:]) % 2 == 0} < ids(task, "train")
    assert sum(task.describe()["without_solution"].values()) == 20


def test_a_bad_row_can_be_dropped_and_is_counted(tmp_path) -> None:
    path = write(tmp_path / "a.jsonl", [row(i) for i in range(30)] + [{"task_id": "x"}, row(3)])
    with pytest.raises(InputError, match="1 more bad rows"):
        of(path)
    found = of(path, on_bad_row="drop").describe()
    assert (found["rows"], found["dropped_rows"], sum(found["problems"].values())) == (32, 2, 30)


def test_a_file_that_changed_is_read_again(tmp_path) -> None:
    path = write(tmp_path / "a.jsonl", [row(i) for i in range(30)])
    assert sum(of(path).describe()["problems"].values()) == 30
    write(tmp_path / "a.jsonl", [row(i) for i in range(31)])
    assert sum(of(path).describe()["problems"].values()) == 31


def test_prompts_that_do_not_fit_are_an_error_that_names_the_problem(tmp_path) -> None:
    rows = [row(i, prompt=f"Return {i} more than x. " + "why? " * (300 * (i == 7))) for i in range(30)]
    path = write(tmp_path / "a.jsonl", rows)
    _, sections, task = resolve("problems", [f"data.path={path}"], False)
    with pytest.raises(InputError, match=r"a\.jsonl, p7: prompt: .* data\.long_prompts=cut"):
        prepare_base(tmp_path / "run", task, sections)
    _, sections, task = resolve("problems", [f"data.path={path}", "data.long_prompts=cut"], False)
    assert (prepare_base(tmp_path / "run", task, sections) / "shape.json").exists()


# --- settings ------------------------------------------------------------------------------------------------------


def test_contests_alone_are_cut_where_nothing_is_said() -> None:
    strict = {}
    for name in FORMATS:
        task = Programs.__new__(Programs)
        with pytest.raises(InputError):  # no file is named; what was set before stays
            task.__init__(name, Data(), Dials(), Execution())
        strict[name] = task.strict_prompts
    assert {name for name, is_strict in strict.items() if not is_strict} == {"apps", "codecontests", "codejam"}


@pytest.mark.parametrize("name", FORMATS)
def test_every_task_has_settings_for_both_kinds_of_model(name) -> None:
    assert name in task_names() and world_type(name) is Dials and not is_embedded(name)
    assert shipped(name, "tiny", quick=False, given_model=True)["model"] == {
        "max_prompt_tokens": 1024,
        "max_new_tokens": 512,
    }
    own, quick = (shipped(name, "tiny", quick=quick, given_model=False) for quick in (False, True))
    assert own["study"]["feedback"] == "verifier" and quick["study"]["seeds"] == [0]
    assert quick["ppo"]["steps"] < own["ppo"]["steps"] and quick["model"] == own["model"]


def test_the_files_of_comparisons_keep_their_limits_for_a_given_model() -> None:
    assert shipped("pairs", "tiny", quick=False, given_model=True)["model"]["max_prompt_tokens"] == 256


def test_rows_with_peoples_programs_are_there_where_files_have_them(tmp_path) -> None:
    without = write(tmp_path / "a.jsonl", [row(i) for i in range(30)])
    for path, names in ((str(SMALL), ["main", "people"]), (without, ["main"])):
        _, sections, _ = resolve("problems", [f"data.path={path}"], False)
        assert [v.name for v in variants(sections["study"], sections["world"])] == names


def test_test_files_are_for_problems_alone(tmp_path) -> None:
    path = write(tmp_path / "a.jsonl", PAIRS)
    with pytest.raises(InputError, match="problems alone"):
        make_task("pairs", {"data": Data(path=path, test_path=path)})


# --- published files -----------------------------------------------------------------------------------------------

SHARED = Path(__file__).resolve().parents[2] / ".." / "shared" / "data"
FILES = {
    "humaneval": "humaneval/HumanEval.jsonl.gz",
    "mbpp": "mbpp/mbpp.jsonl",
    "codecontests": "codecontests/codecontests_clusters0-6.jsonl",
    "codejam": "codejam/codejam_kickstart_2020_2021.jsonl",
}


@pytest.mark.parametrize("name", FILES)
def test_published_files_become_tasks(name) -> None:
    path = SHARED / FILES[name]
    if not path.is_file():
        pytest.skip(f"{path.name} is not here")
    task, problems = of(str(path), name), load_problems(str(path)).problems
    assert all(len(task.prompts(split)) >= 2 for split in SPLITS)
    assert sum(len(task.prompts(split)) for split in SPLITS) >= len(problems) - 1  # MBPP has one prompt twice
    for split in SPLITS:
        for prompt in task.prompts(split):
            problem, response = task._problem_of(prompt), task.reference(prompt)
            if response is not None:
                found = program_of(problem, Sample("", 0, response, "response"))
                assert found.strip() == problem.solutions[0].strip()
    tokenizer, response = ChatTokenizer.train(task.texts()[:50], vocab_size=512), task.texts()[-1]
    assert tokenizer.decode(tokenizer.encode_response(response)[:-1]) == response
