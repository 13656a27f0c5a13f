"""Problems and samples from files: each format's rows, its quirks, and every way in which a row can be bad."""

from __future__ import annotations

import json
import warnings
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from trueline.data.code_files import Sample, load_problems, load_samples, match_samples
from trueline.data.code_prompts import STOPS, extract_code, program_of, prompt_of, stop_completion
from trueline.data.code_rows import PROBLEM_FORMATS
from trueline.errors import InputError
from trueline.types import AssertTest, CallTest, StdioTest

OWN = Path(__file__).resolve().parents[1] / "data"
REAL = Path(__file__).resolve().parents[2] / ".." / "shared" / "data"


def own(name: str):
    return load_problems(OWN / name)


def real(name: str) -> Path:
    path = REAL / name
    if not path.is_file():
        pytest.skip(f"no {name} beside the checkout")
    return path


def write(tmp_path: Path, *rows, name: str = "rows.jsonl") -> Path:
    path = tmp_path / name
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


# --- formats -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["code_humaneval.jsonl", "code_humaneval.jsonl.gz"])
def test_humaneval(name) -> None:
    first, second = own(name).problems
    assert (first.entry, first.continues, first.starter) == ("twice", True, first.prompt)
    # What stands before the function is trusted and serves both the program and its tests.
    assert first.prelude == "from typing import List\n\n\ndef helper(x):\n    return x + 1"
    assert second.prelude == ""
    assert second.solutions == ("def one():\n    return 1",)
    assert first.tests == (AssertTest("def check(candidate):\n    assert candidate([1, 2]) == [2, 4]\n"),)


def test_mbpp_sets_up_after_the_program_and_finds_the_function() -> None:
    loaded = own("code_mbpp.jsonl")
    plus, value = loaded.problems
    assert (plus.task_id, plus.entry, value.entry) == ("1", "plus", "value")  # not `int`, though it is called first
    assert plus.solutions == ("def plus(a, b):\n  return a + b",)
    assert plus.public_tests == plus.tests[:1]
    assert value.tests == (AssertTest("import math\nroot = Node(1) \nother = Node(2)\nassert value (root) == 1"),)
    assert loaded.notes == {"crlf": 2, "set_up_code": 1, "challenge_tests_left_out": 1}


def test_apps_reads_nested_texts_and_both_styles() -> None:
    loaded = own("code_apps.jsonl")
    script, call = loaded.problems
    assert (script.task_id, script.tier, script.entry) == ("7", "interview", "")
    # A tolerance only where decimals are expected: 1e-6 relative would let 10**9 + 1 pass for 10**9.
    assert script.tests == (StdioTest("1\n", "2\n"), StdioTest("2\n3", "0.5", 1e-6))
    assert call.tests == (
        CallTest("count", [{1: 2}], 1, as_json=True),
        CallTest("count", [{3: 4}], 1.5, 1e-6, as_json=True),
    )
    assert script.solutions == ("print(int(input()) + 1)",)
    assert call.solutions == ()
    assert loaded.notes == {"listed_lines": 1, "unwrapped_values": 1, "whole_number_keys": 1}


def test_verl_has_its_tests_in_the_ground_truth_and_its_number_in_extra_info(tmp_path) -> None:
    script, call = own("code_verl.jsonl").problems
    assert (script.task_id, script.prompt, script.tier) == ("taco/3", "Read n, print n + 1.", "easy")
    assert script.tests == (StdioTest("1\n", "2\n"), StdioTest("4\n", "5\n"))
    assert call.tests == (CallTest("add", [1, 2], 3, as_json=True),) and call.entry == "add"
    row = json.loads((OWN / "code_verl.jsonl").read_text().splitlines()[0])
    for change, field in (
        ({"extra_info": {}}, "extra_info.index"),
        ({"reward_model": {"ground_truth": "42"}}, "ground_truth"),
        ({"prompt": ["text"]}, "prompt"),
    ):
        (tmp_path / "rows.jsonl").write_text(json.dumps(row | change) + "\n")
        with pytest.raises(InputError) as caught:
            load_problems(tmp_path / "rows.jsonl")
        assert caught.value.field == field


def test_values_that_are_not_all_wrapped_stay_as_they_are(tmp_path) -> None:
    io = {"fn_name": "f", "inputs": [[1], [2]], "outputs": [[1], [1, 2]]}
    (problem,) = load_problems(write(tmp_path, {"id": 1, "question": "q", "input_output": io})).problems
    assert [test.expected for test in problem.tests] == [[1], [1, 2]]


def test_codecontests_keeps_python_3_and_counts_the_rest() -> None:
    loaded = own("code_contests.jsonl")
    (problem,) = loaded.problems
    assert problem.tests == (StdioTest("5 5\n", "10\n"), StdioTest("0 0\n", "0\n"))
    assert problem.public_tests == (StdioTest("1 2\n", "3\n"),)
    assert problem.solutions == ("print(sum(map(int, input().split())))",)
    assert problem.incorrect == ("print(0)",)
    assert (problem.time_limit, problem.tier) == (1.5, "7")
    assert loaded.notes == {"other_language": 2}


def test_codecontests_as_files_tells_shown_tests_from_hidden_ones() -> None:
    loaded = own("code_contests_files.jsonl")
    right, wrong = loaded.problems
    assert right.public_tests == (StdioTest("1 2\n", "3\n"),)
    assert right.tests == (StdioTest("5 5", "10"),)
    assert (right.solutions, wrong.solutions) == (("print(sum(map(int, input().split())))",), ())
    assert loaded.notes == {"no_public_tests": 1, "unverified_solution": 1}


def test_codejam_takes_its_tolerance_and_verified_programs_alone() -> None:
    loaded = own("code_jam.jsonl")
    (problem,) = loaded.problems
    assert problem.tests == (StdioTest("3\n", "1.5\n", 1e-6),)
    assert problem.public_tests == (StdioTest("1\n", "0.5\n", 1e-6),)
    assert problem.solutions == ("print(int(input()) / 2)",)
    assert loaded.notes == {"tests_left_out_by_source": 1, "unverified_solution": 1}


def test_the_generic_format_has_every_kind_of_test() -> None:
    add, echo, inc = own("code_problems.jsonl").problems
    assert add.tests == (
        CallTest("add", [1, 2], 3, as_json=True),
        CallTest("add", [0.1, 0.2], 0.3, 1e-9, as_json=True),
        AssertTest("assert add(2, 2) == 4"),
        AssertTest("assert add(0, 0) == 0"),
    )
    assert (add.tier, add.time_limit, add.prelude, len(add.incorrect)) == ("easy", 2.0, "import math", 1)
    assert echo.tests == (StdioTest("a\n", "a\n"),)
    assert inc.tests == (CallTest("inc", [1], [2]),)
    assert add.where.endswith("code_problems.jsonl:1")


def test_a_format_that_is_named_is_read_as_that(tmp_path) -> None:
    path = write(tmp_path, {"task_id": 1, "prompt": "p", "test_list": ["assert f() == 1"], "tests": []})
    assert load_problems(path).formats == ("mbpp",)
    with pytest.raises(InputError, match=r"test_list: unknown column"):
        load_problems(path, format="problems")
    with pytest.raises(InputError, match=r"unknown format 'codex'.*humaneval"):
        load_problems(path, format="codex")


# --- bad rows ------------------------------------------------------------------------------------------------------

HUMANEVAL = {"task_id": "a", "prompt": "def f():\n", "entry_point": "f", "test": "def check(c):\n    assert c() == 1"}
MBPP = {"task_id": 1, "text": "t", "code": "def f(): pass", "test_list": ["assert f() is None"]}
APPS = {"id": "a", "question": "q", "input_output": {"inputs": ["1"], "outputs": ["2"]}}
CONTESTS = {"name": "a", "description": "d", "private_tests": {"input": ["1"], "output": ["2"]}}
FILES = {"id": "a", "statement_md": "s", "solution": "x", "tests": [{"input": "1", "output": "2"}]}
JAM = {"id": "a", "statement": "s", "tests": [{"kind": "secret", "input": "1", "output": "2"}]}
OURS = {"task_id": "a", "prompt": "p", "entry": "f", "tests": [{"args": [1], "expected": 2}]}

BAD = [
    (HUMANEVAL | {"prompt": None}, "prompt: expected a text, got null"),
    (HUMANEVAL | {"entry_point": "1f"}, "entry_point: '1f' is no name"),
    (HUMANEVAL | {"entry_point": "g"}, "prompt: does not begin the function g; check entry_point"),
    (HUMANEVAL | {"test": "assert f() == 1"}, "test: does not define check"),
    (HUMANEVAL | {"task_id": " "}, "task_id: is empty"),
    (HUMANEVAL | {"task_id": True}, "task_id: expected a text or a whole number, got bool"),
    (MBPP | {"test_list": []}, "tests: there is no hidden test"),
    (MBPP | {"test_list": ["assert f()", 3]}, r"test_list\[1\]: expected a text, got int"),
    ({**MBPP, "txt": "t"} | {"text": " "}, "prompt: is empty"),
    (APPS | {"input_output": "{"}, "input_output: the text is no JSON"),
    (APPS | {"input_output": "[]"}, "input_output: expected an object, got list"),
    (APPS | {"input_output": ""}, "input_output: the text is no JSON"),
    (APPS | {"input_output": {"inputs": ["1"], "outputs": []}}, "input_output: 1 inputs but 0 outputs"),
    (APPS | {"input_output": {"inputs": [1], "outputs": ["2"]}}, "input_output: expected a text or lines"),
    (APPS | {"input_output": {"fn_name": "f", "inputs": [1], "outputs": [2]}}, r"inputs\[0\]: expected a list of arg"),
    (APPS | {"solutions": [1]}, r"solutions\[0\]: expected a text"),
    (CONTESTS | {"input_file": "in.txt"}, "input_file: the problem reads or writes the file 'in.txt'"),
    (CONTESTS | {"private_tests": {"input": ["1"], "output": []}}, "private_tests: 1 inputs but 0 outputs"),
    (CONTESTS | {"private_tests": {"inputs": ["1"]}}, "input: missing; rename 'inputs'"),
    (CONTESTS | {"time_limit": {"seconds": 0, "nanos": 0}}, "time_limit: expected a positive number"),
    (CONTESTS | {"time_limit": {"seconds": "2"}}, "time_limit: expected a positive number"),
    (CONTESTS | {"solutions": {"language": [3], "solution": []}}, "solutions: 1 languages but 0 programs"),
    (FILES | {"tests": [7]}, r"tests\[0\]: expected an object, got int"),
    (FILES | {"verified": "yes"}, "verified: expected true or false, got str"),
    (JAM | {"float_tolerance": -1}, "float_tolerance: expected a number of at least 0"),
    (JAM | {"tests": [{"kind": "extra", "input": "1", "output": "2"}]}, r"tests\[0\].kind: unknown: 'extra'"),
    (JAM | {"tests": [{"kind": "sample", "input": "1", "output": "2"}]}, "tests: there is no hidden test"),
    (OURS | {"entri": "f"}, "entri: unknown column; did you mean entry"),
    (OURS | {"tests": [{"arguments": [1]}]}, r"tests\[0\]: neither code, nor stdin, nor args"),
    (OURS | {"tests": [{"args": [1]}]}, r"tests\[0\].expected: missing"),
    (OURS | {"tests": [{"args": 1, "expected": 2}]}, r"tests\[0\].args: expected a list, got int"),
    (OURS | {"tests": [{"args": [1], "expected": 2, "tolerence": 1}]}, r"tests\[0\].tolerence: .* mean tolerance"),
    (OURS | {"tests": [{"args": [1], "expected": 2, "tolerance": "x"}]}, r"tests\[0\].tolerance: expected a number"),
    (OURS | {"tests": [{"stdin": "1", "expected": 2}]}, r"tests\[0\].expected: expected a text, got int"),
    (OURS | {"entry": "", "tests": [{"args": [], "expected": 2}]}, r"tests\[0\].function: '' is no name"),
    (OURS | {"continues": True}, "continues: there is no starter"),
    (OURS | {"time_limit": True}, "time_limit: expected a positive number"),
    (OURS | {"solutions": "x"}, "solutions: expected a list, got str"),
    ({"question": "q"}, "no known format of problems has the columns 'question'"),
    ("[1]", "the row is a list, not an object"),
    ("{", "broken JSON"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "reason"), BAD)
def test_a_bad_row_is_named_with_its_line(tmp_path, row, reason) -> None:
    path = write(tmp_path, OURS | {"task_id": "good"}, row)
    with pytest.raises(InputError, match=rf"rows\.jsonl:2.*{reason}"):
        load_problems(path)
    kept = load_problems(path, on_bad_row="drop")
    assert ([problem.task_id for problem in kept.problems], kept.rows, len(kept.dropped)) == (["good"], 2, 1)


@pytest.mark.parametrize("row", [HUMANEVAL, MBPP, APPS, CONTESTS, FILES, JAM, OURS])
def test_the_rows_that_the_bad_ones_are_made_from_are_good(tmp_path, row) -> None:
    """The positive control of the table above."""
    assert len(load_problems(write(tmp_path, row)).problems) == 1


def test_all_bad_rows_are_listed_and_none_left_is_an_error(tmp_path) -> None:
    path = write(tmp_path, OURS, OURS | {"prompt": ""}, OURS, OURS | {"tests": []})
    with pytest.raises(InputError, match=r"rows\.jsonl:2: prompt: .*2 more bad rows: .*:3; .*:4.*on_bad_row=drop"):
        load_problems(path)
    with pytest.raises(InputError, match="no usable problem in 1 rows"):
        load_problems(write(tmp_path, OURS | {"prompt": ""}), on_bad_row="drop")


def test_two_problems_of_one_id_are_refused(tmp_path) -> None:
    with pytest.raises(InputError, match=r"rows\.jsonl:2: task_id: the task id 'a' is taken by .*:1"):
        load_problems(write(tmp_path, OURS, OURS))


# --- samples -------------------------------------------------------------------------------------------------------


def test_samples_of_each_kind_in_file_order() -> None:
    loaded = load_samples(OWN / "code_samples.jsonl")
    assert [(s.task_id, s.index, s.kind) for s in loaded.samples] == [
        ("Own/1", 0, "completion"), ("Own/0", 0, "completion"), ("Own/0", 1, "completion"), ("Own/1", 1, "response"),
        ("Own/1", 2, "solution"),
    ]  # fmt: skip
    problems = own("code_humaneval.jsonl").problems
    matched = match_samples(problems, loaded.samples)
    programs = [program_of(problem, sample) for problem, sample in zip(matched, loaded.samples)]
    assert programs[0] == "def one():\n    return 1"
    assert programs[2] == problems[0].solutions[0]
    assert programs[3:] == ["def one():\n    return 1\n", ""]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"task_id": "a"}, "completion: no text of a sample"),
        ({"task_id": "a", "completion": "x", "solution": "y"}, "completion: several texts: completion, solution"),
        ({"task_id": "a", "completion": None}, "completion: expected a text, got null"),
        ({"task_id": "a", "responses": ["x", 1]}, r"responses\[1\]: expected a text, got int"),
        ({"task_id": "a", "responses": []}, "responses: the list is empty"),
        ({"completion": "x"}, "task_id: missing"),
        ({"task_id": True, "completion": "x"}, "task_id: missing"),
    ],
)
def test_a_bad_sample_is_named(tmp_path, row, reason) -> None:
    path = write(tmp_path, {"task_id": "a", "completion": ""}, row)
    with pytest.raises(InputError, match=rf"rows\.jsonl:2: {reason}"):
        load_samples(path)
    assert len(load_samples(path, on_bad_row="drop").samples) == 1


def test_a_sample_without_problem_is_an_error_and_mbpp_ids_have_prefixes() -> None:
    problems = own("code_mbpp.jsonl").problems
    samples = [Sample(name, 0, "x", "solution", "s:1") for name in ("2", "Mbpp/2", "MBPP/2")]
    assert {problem.task_id for problem in match_samples(problems, samples)} == {"2"}
    with pytest.raises(InputError, match="s:1: task_id: no problem has the task id 'Own/9'"):
        match_samples(problems, [replace(samples[0], task_id="Own/9")])


# --- code in responses ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("response", "code"),
    [
        ("def f(): return 1", "def f(): return 1"),
        ("Sure:\n```python\ndef f(): pass\n```\nDone.", "def f(): pass\n"),
        ("```\ndef f(): pass\n```", "def f(): pass\n"),
        ("~~~py\ndef f(): pass\n~~~", "def f(): pass\n"),
        ("```python\ndef f(): pass\n```\nUse:\n```python\nprint(f())\n```", "def f(): pass\n"),  # f is asked for
        ("```python\ndef g(): pass\n```\n```python\nx = 1\n```", "x = 1\n"),  # none defines f: the last
        ("```bash\npip list\n```\n```python\ndef f(): pass\n```", "def f(): pass\n"),
        ("```bash\npip list\n```", "```bash\npip list\n```"),  # no Python block
        ("```python\ndef f():\n    return 1", "def f():\n    return 1"),  # cut off
        ('```python\ndef f():\n    return "```"\n```', 'def f():\n    return "```"\n'),
        ("[BEGIN]\ndef f(): pass\n[DONE]\nmore", "def f(): pass\n"),
    ],
)
def test_code_is_taken_out_of_a_response(response, code) -> None:
    assert extract_code(response, "f") == code


def test_a_completion_ends_at_the_first_stop() -> None:
    assert stop_completion("    return 1\n\ndef g():\n    pass") == "    return 1\n"
    assert stop_completion("    return 1\n") == "    return 1\n"
    assert all(stop_completion(f"    x = 1{stop}rest") == "    x = 1" for stop in STOPS)


def test_the_body_of_a_function_in_a_response_continues_the_starter() -> None:
    problem = own("code_humaneval.jsonl").problems[1]
    sample = Sample("Own/1", 0, "```python\n    return 1\n```", "response")
    assert program_of(problem, sample) == "def one():\n    return 1\n"
    assert program_of(problem, replace(sample, kind="solution")) == sample.text


# --- prompts -------------------------------------------------------------------------------------------------------

FORMAT_FILES = {
    "humaneval": "code_humaneval.jsonl", "mbpp": "code_mbpp.jsonl", "apps": "code_apps.jsonl",
    "codecontests": "code_contests.jsonl", "codecontests-files": "code_contests_files.jsonl",
    "codejam": "code_jam.jsonl", "verl": "code_verl.jsonl", "problems": "code_problems.jsonl",
}  # fmt: skip


def test_every_format_has_a_file_of_our_own() -> None:
    assert set(FORMAT_FILES) == set(PROBLEM_FORMATS)


@pytest.mark.parametrize("format", FORMAT_FILES)
@pytest.mark.parametrize("chat", [True, False])
def test_prompts_hold_the_statement_and_no_hidden_test(format, chat) -> None:
    for problem in own(FORMAT_FILES[format]).problems:
        assert problem.format == format
        prompt = prompt_of(problem, chat=chat)
        assert (problem.starter if problem.continues else problem.prompt).strip() in prompt.text
        assert (prompt.kind, prompt.meta) == (problem.tier, {"task_id": problem.task_id})
        hidden = [shown(test) for test in problem.tests if test not in problem.public_tests]
        assert not [text for text in hidden if text in prompt.text]


def shown(test) -> str:
    """How a prompt would show the test."""
    if isinstance(test, CallTest):
        return f"{test.function}({', '.join(map(repr, test.args))}) == {test.expected!r}"
    return test.code if isinstance(test, AssertTest) else f"Input:\n{test.stdin.strip()}"


def test_templates() -> None:
    (script, call), plus = own("code_apps.jsonl").problems, own("code_mbpp.jsonl").problems[0]
    assert prompt_of(script, chat=False).messages[0].content == (
        "\nQUESTION:\nRead n, print n + 1.\nUse Standard Input format\n\nANSWER:\n"
    )
    assert "Use Call-Based format" in prompt_of(call, chat=False).text
    assert "class Solution:\n    def count(self, d):" in prompt_of(call).text
    assert "assert int(plus(1, 2)) == 3" in prompt_of(plus).text
    assert "plus(0, 0)" not in prompt_of(plus).text
    add = own("code_problems.jsonl").problems[0]
    assert "assert add(1, 1) == 2" in prompt_of(add).text


# --- the real files ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "format", "problems", "hidden", "public", "solutions", "notes"),
    [
        ("humaneval/HumanEval.jsonl.gz", "humaneval", 164, 164, 0, 164, {}),
        ("mbpp/mbpp.jsonl", "mbpp", 974, 2922, 974, 974,
         {"crlf": 974, "challenge_tests_left_out": 11, "set_up_code": 2}),
        ("apps_sample/apps_train_5.jsonl", "apps", 5, 14, 0, 101, {"unwrapped_values": 1}),
        ("codecontests/codecontests_clusters0-6.jsonl", "codecontests-files", 210, 1457, 642, 181,
         {"unverified_solution": 29}),
        ("codejam/codejam_kickstart_2020_2021.jsonl", "codejam", 55, 90, 55, 65,
         {"unverified_solution": 13, "tests_left_out_by_source": 23}),
    ],
)  # fmt: skip
def test_the_real_files_are_read_whole(name, format, problems, hidden, public, solutions, notes) -> None:
    loaded = load_problems(real(name))
    assert loaded.formats == (format,)
    assert (loaded.rows, len(loaded.problems)) == (problems, problems)
    assert sum(len(problem.tests) for problem in loaded.problems) == hidden
    assert sum(len(problem.public_tests) for problem in loaded.problems) == public
    assert sum(len(problem.solutions) for problem in loaded.problems) == solutions
    assert {name: count for name, count in loaded.notes.items() if name != "crlf" or format == "mbpp"} == notes
    with warnings.catch_warnings():  # old programs hold escapes that Python now warns of
        warnings.simplefilter("ignore")
        for problem in loaded.problems:
            for solution in problem.solutions[:1]:
                compile(solution, problem.task_id, "exec")


def test_every_mbpp_problem_names_a_function_that_its_program_defines() -> None:
    problems = load_problems(real("mbpp/mbpp.jsonl")).problems
    assert not [p.task_id for p in problems if f"def {p.entry}" not in p.solutions[0].replace("def  ", "def ")]


def test_the_example_samples_of_humaneval() -> None:
    problems = load_problems(real("humaneval/example_problem.jsonl")).problems
    samples = load_samples(real("humaneval/example_samples.jsonl")).samples
    assert Counter(sample.task_id for sample in samples) == {"test/0": 6}
    programs = [program_of(p, s) for p, s in zip(match_samples(problems, samples), samples)]
    assert programs[3:] == ["def return1():\n" + body for body in ("    return 1", "  return 1", "\treturn 1")]
