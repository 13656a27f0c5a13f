"""The published problem sets, one raw row to the fields of a `Problem`, with the quirks of the real files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from trueline.data.code_fields import (
    Row,
    an_object,
    column,
    kind_of,
    nested,
    python_name,
    seconds,
    task_id,
    texts,
    tolerance,
    unix,
)
from trueline.data.formats.rows import RowProblem
from trueline.types import AssertTest, CallTest, StdioTest, Test

__all__ = ["apps", "codecontests", "codecontests_files", "codejam", "humaneval", "mbpp", "verl"]

_MARGIN = 1e-6
_DECIMAL = re.compile(r"(?<!\S)[+-]?\d*\.\d+(?:[eE][+-]?\d+)?(?!\S)")
"""Sets without a tolerance of their own have one where a number with decimals is expected, and none elsewhere: the
published judges' np.allclose lets a wrong large whole number pass."""

# --- HumanEval and MBPP --------------------------------------------------------------------------------------------


def humaneval(row: Row, notes: list[str]) -> dict[str, Any]:
    prompt, entry = column(row, "prompt", str), python_name(column(row, "entry_point", str), "entry_point")
    test = column(row, "test", str)
    if not re.search(r"^def check\(", test, re.MULTILINE):
        raise RowProblem("no_check", "test", "does not define check(candidate)")
    header = re.search(rf"^(?:async )?def {re.escape(entry)}\b", prompt, re.MULTILINE)
    if header is None:
        raise RowProblem("no_entry", "prompt", f"does not begin the function {entry}", "check entry_point")
    solution = column(row, "canonical_solution", str, default="")
    return {
        "task_id": task_id(row), "prompt": prompt, "entry": entry, "starter": prompt, "continues": True,
        "tests": (AssertTest(test),),
        "solutions": (prompt + solution,) if solution.strip() else (),
        "prelude": prompt[: header.start()].strip("\n"),
    }  # fmt: skip


def mbpp(row: Row, notes: list[str]) -> dict[str, Any]:
    text = column(row, "text" if "text" in row else "prompt", str)  # the sanitized file says prompt
    code = unix(column(row, "code", str, default=""), notes)
    asserts = [unix(item, notes) for item in texts(row, "test_list")]
    # The set-up uses what the program defines (tasks 367 and 927), so that it belongs to the tests, after the program.
    setup = "\n".join([*texts(row, "test_imports", required=False), column(row, "test_setup_code", str, default="")])
    setup = unix(setup, notes).strip()
    notes += ["set_up_code"] * bool(setup)
    notes += ["challenge_tests_left_out"] * bool(texts(row, "challenge_test_list", required=False))
    tests = tuple(AssertTest(f"{setup}\n{item}".strip()) for item in asserts)
    return {
        "task_id": task_id(row), "prompt": text, "entry": _called(asserts, code), "tests": tests,
        "public_tests": tuple(AssertTest(item) for item in asserts[:1]), "solutions": (code,) if code.strip() else (),
    }  # fmt: skip


def _called(asserts: Sequence[str], code: str) -> str:
    """The function of the program that the first test calls; without a program, the first name that is called."""
    calls = re.findall(r"(?<![\w.])([A-Za-z_]\w*)\s*\(", asserts[0] if asserts else "")
    calls = [name for name in calls if name not in ("assert", "not", "and", "or", "in")]
    defined = set(re.findall(r"^def\s+(\w+)", code, re.MULTILINE))
    return next((name for name in calls if name in defined), calls[0] if calls and not defined else "")


# --- APPS ----------------------------------------------------------------------------------------------------------


def apps(row: Row, notes: list[str]) -> dict[str, Any]:
    io = nested(row, "input_output", dict)
    starter = column(row, "starter_code", str, default="")
    function = column(io, "fn_name", str, default="")
    public = nested(row, "example_input_output", dict, default={})
    metadata = nested(row, "metadata", dict, default={})
    return {
        "task_id": task_id(row, next((name for name in ("task_id", "problem_id", "id") if name in row), "task_id")),
        "prompt": column(row, "question", str), "entry": function, "starter": starter,
        "tests": _apps_tests(io, function, notes, "input_output"),
        "public_tests": _apps_tests(public, function, notes, "example_input_output") if public else (),
        "solutions": tuple(texts({"solutions": nested(row, "solutions", list, [])}, "solutions")),
        "tier": str(row.get("difficulty") or metadata.get("difficulty") or ""),
    }  # fmt: skip


def verl(row: Row, notes: list[str]) -> dict[str, Any]:
    """Prompts with a ground truth that is the tests of a program, as verl's preprocessing of code sets writes them."""
    reward, extra = nested(row, "reward_model", dict), nested(row, "extra_info", dict, default={})
    truth = nested(reward, "ground_truth", dict)
    function = column(truth, "fn_name", str, default="")
    turns = column(row, "prompt", list)
    if not turns or not all(isinstance(turn, dict) and isinstance(turn.get("content"), str) for turn in turns):
        raise RowProblem("wrong_type", "prompt", 'expected a list of {"role": text, "content": text}')
    asked = [turn["content"] for turn in turns if turn.get("role") == "user"]
    number = extra.get("index", row.get("index"))
    if number is None:
        raise RowProblem("missing_field", "extra_info.index", "missing", "problems are told apart by it")
    return {
        "task_id": f"{row.get('data_source') or 'verl'}/{number}",
        "prompt": "\n\n".join(asked),
        "entry": function,
        "tests": _apps_tests(truth, function, notes, "reward_model.ground_truth"),
        "tier": str(extra.get("difficulty") or ""),
    }


def _apps_tests(io: Row, function: str, notes: list[str], field: str) -> tuple[Test, ...]:
    inputs, outputs = column(io, "inputs", list), column(io, "outputs", list)
    if len(inputs) != len(outputs):
        raise RowProblem("unequal_tests", field, f"{len(inputs)} inputs but {len(outputs)} outputs")
    if not function:
        return tuple(_run(_lines(i, field, notes), _lines(o, field, notes)) for i, o in zip(inputs, outputs))
    for i, args in enumerate(inputs):
        if not isinstance(args, list):
            raise RowProblem("wrong_type", f"{field}.inputs[{i}]", f"expected a list of arguments, got {kind_of(args)}")
    # Codewars' values are wrapped in a list; the published judge takes either. Where not all are, none is.
    if outputs and all(isinstance(value, list) and len(value) == 1 for value in outputs):
        outputs = [value[0] for value in outputs]
        notes.append("unwrapped_values")
    tests = [_call(function, [_whole_keys(a) for a in args], _whole_keys(o)) for args, o in zip(inputs, outputs)]
    if any([*t.args, t.expected] != [*i, o] for t, i, o in zip(tests, inputs, outputs)):
        notes.append("whole_number_keys")
    return tuple(tests)


def _call(function: str, args: list[Any], expected: Any) -> CallTest:
    return CallTest(function, args, expected, _MARGIN if _holds_float(expected) else 0.0, as_json=True)


def _run(stdin: str, expected: str) -> StdioTest:
    return StdioTest(stdin, expected, _MARGIN if _DECIMAL.search(expected) else 0.0)


def _holds_float(value: Any) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return isinstance(value, float) or any(map(_holds_float, inner))


def _whole_keys(value: Any) -> Any:
    """JSON turned the whole-number keys of a mapping to text; the published judge turns them back."""
    if isinstance(value, dict) and value and all(re.fullmatch(r"-?\d+", key) for key in value):
        return {int(key): item for key, item in value.items()}
    return value


def _lines(value: Any, field: str, notes: list[str]) -> str:
    if isinstance(value, list) and all(isinstance(line, str) for line in value):
        notes.append("listed_lines")
        return "\n".join(value)
    if not isinstance(value, str):
        raise RowProblem("wrong_type", field, f"expected a text or lines of text, got {kind_of(value)}")
    return value


# --- CodeContests and Code Jam -------------------------------------------------------------------------------------

_PYTHON3 = (3, "PYTHON3")
_EXAMPLE = re.compile(r"\*\*Input\*\*:\n```\n(.*?)\n?```\s*\*\*Output\*\*:\n```\n(.*?)\n?```", re.DOTALL)


def codecontests(row: Row, notes: list[str]) -> dict[str, Any]:
    for name in ("input_file", "output_file"):
        if row.get(name):
            reason, remedy = (
                f"the problem reads or writes the file {row[name]!r}",
                "leave it out: stdin alone is judged",
            )
            raise RowProblem("file_io", name, reason, remedy)
    names = ("public", "private", "generated")
    public, private, generated = _one_margin([_stdio(row, f"{name}_tests") for name in names])
    return {
        "task_id": task_id(row, "task_id" if "task_id" in row else "name"), "prompt": column(row, "description", str),
        "tests": private + generated, "public_tests": public, "tier": str(row.get("difficulty") or ""),
        "solutions": _python(row, "solutions", notes), "incorrect": _python(row, "incorrect_solutions", notes),
        "time_limit": seconds(row.get("time_limit"), "time_limit"),
    }  # fmt: skip


def _stdio(row: Row, name: str) -> tuple[StdioTest, ...]:
    """{"input": [...], "output": [...]} or a list of {"input": ..., "output": ...}."""
    value = column(row, name, dict, list, default=[])
    if isinstance(value, dict):
        inputs, outputs = (texts(value, key) for key in ("input", "output"))
        if len(inputs) != len(outputs):
            raise RowProblem("unequal_tests", name, f"{len(inputs)} inputs but {len(outputs)} outputs")
        return tuple(map(_run, inputs, outputs))
    tests = [an_object(item, f"{name}[{i}]") for i, item in enumerate(value)]
    return tuple(_run(column(test, "input", str), column(test, "output", str)) for test in tests)


def _one_margin(groups: list[tuple[StdioTest, ...]]) -> list[tuple[StdioTest, ...]]:
    """A problem that expects a number with decimals in one test expects numbers in all: there 2.0 is 2."""
    margin = max((test.tolerance for tests in groups for test in tests), default=0.0)
    return [tuple(replace(test, tolerance=margin) for test in tests) for tests in groups]


def _python(row: Row, name: str, notes: list[str]) -> tuple[str, ...]:
    """The Python 3 programs of {"language": [...], "solution": [...]}; 1 is Python 2, 2 C++, 4 Java."""
    value = column(row, name, dict, default={"language": [], "solution": []})
    languages, programs = column(value, "language", list), texts(value, "solution")
    if len(languages) != len(programs):
        raise RowProblem("unequal_lists", name, f"{len(languages)} languages but {len(programs)} programs")
    kept = tuple(text for language, text in zip(languages, programs) if language in _PYTHON3)
    notes += ["other_language"] * (len(programs) - len(kept))
    return kept


def codecontests_files(row: Row, notes: list[str]) -> dict[str, Any]:
    """A collection that keeps a problem, its tests and one person's program in files: the examples are tests too."""
    statement = column(row, "statement_md", str)
    shown = {(i.strip(), o.strip()) for i, o in _EXAMPLE.findall(statement)}
    (tests,) = _one_margin([_stdio(row, "tests")])
    public = tuple(test for test in tests if (test.stdin.strip(), test.expected.strip()) in shown)
    notes += ["no_public_tests"] * (not public)
    verified = column(row, "verified", bool, default=True)
    notes += ["unverified_solution"] * (not verified)
    return {
        "task_id": task_id(row, "id"), "prompt": statement, "public_tests": public,
        "tests": tuple(test for test in tests if test not in public),
        "solutions": (column(row, "solution", str),) if verified else (),
    }  # fmt: skip


def codejam(row: Row, notes: list[str]) -> dict[str, Any]:
    margin, tests = tolerance(row, "float_tolerance"), {"sample": [], "secret": []}
    for i, item in enumerate(column(row, "tests", list)):
        test = an_object(item, f"tests[{i}]")
        kind = column(test, "kind", str)
        if kind not in tests:
            raise RowProblem("unknown_kind", f"tests[{i}].kind", f"unknown: {kind[:40]!r}", "known: sample, secret")
        tests[kind].append(StdioTest(column(test, "input", str), column(test, "output", str), margin))
    notes += ["tests_left_out_by_source"] * bool(row.get("n_secret_tests_omitted_for_size"))
    programs = [an_object(item, f"solutions[{i}]") for i, item in enumerate(column(row, "solutions", list, default=[]))]
    verified = [item for item in programs if item.get("verified") is True]
    notes += ["unverified_solution"] * (len(programs) - len(verified))
    return {
        "task_id": task_id(row, "id"), "prompt": column(row, "statement", str), "tests": tuple(tests["secret"]),
        "public_tests": tuple(tests["sample"]), "solutions": tuple(column(item, "code", str) for item in verified),
        "tier": str(row.get("contest") or ""), "time_limit": seconds(row.get("time_limit_s"), "time_limit_s"),
    }  # fmt: skip
