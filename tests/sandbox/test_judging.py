"""Programs of known verdict, through a real worker: the three kinds of test, every error, every limit."""

from __future__ import annotations

import pytest

from trueline.errors import InputError
from trueline.sandbox import AssertTest, CallTest, Pool, Program, StdioTest, Verdict

DOUBLE = "def f(x):\n    return 2 * x\n"


def judged(pool: Pool, source: str, *tests, **more) -> Verdict:
    (verdict,) = pool.judge([Program(source, tests, **more)])
    return verdict


def test_calls_pass_with_their_values(pool) -> None:
    verdict = judged(pool, DOUBLE, CallTest("f", [2], 4), CallTest("f", ["a"], "aa"), CallTest("f", [[1]], [1, 1]))
    assert (verdict.outcome, verdict.error, verdict.first_failing) == ("pass", "", None)
    assert verdict.outputs == ("4", '"aa"', "[1,1]") and verdict.passed == (True, True, True)
    assert 0 < verdict.seconds < 10


def test_the_first_failing_call_is_named_and_the_rest_still_run(pool) -> None:
    verdict = judged(pool, DOUBLE, CallTest("f", [1], 2), CallTest("f", [2], 5), CallTest("f", [3], 6))
    assert (verdict.outcome, verdict.error, verdict.first_failing) == ("fail", "wrong", 1)
    assert verdict.passed == (True, False, True) and "4" in verdict.detail


@pytest.mark.parametrize(
    ("body", "expected", "tolerance", "as_json", "passes"),
    [
        ("True", 1, 0.0, False, False),
        ("1", True, 0.0, False, False),
        ("1.0", 1, 0.0, False, False),
        ("1.0", 1, 1e-9, False, True),
        ("(1, 2)", [1, 2], 0.0, False, False),
        ("(1, 2)", [1, 2], 0.0, True, True),
        ("{1: (2,)}", {"1": [2]}, 0.0, True, True),
        ("0.1 + 0.2", 0.3, 0.0, False, False),
        ("0.1 + 0.2", 0.3, 1e-9, False, True),
        ("float('nan')", 0.3, 1e-9, False, False),
        ("__import__('collections').Counter('aab')", {"a": 2, "b": 1}, 0.0, False, True),
        ("10 ** 5000", 10**5000, 0.0, False, True),
        ("'\\ud800'", "\ud800", 0.0, False, True),
    ],
    ids=range(13),
)
def test_types_and_tolerance(pool, body, expected, tolerance, as_json, passes) -> None:
    test = CallTest("f", [], expected, tolerance, as_json)
    assert (judged(pool, f"def f():\n    return {body}\n", test).outcome == "pass") is passes


def test_each_call_gets_arguments_of_its_own(pool) -> None:
    source = "def f(x):\n    x.append(1)\n    return len(x)\n"
    shared = [1, 2]
    assert judged(pool, source, CallTest("f", [shared], 3), CallTest("f", [shared], 3)).outcome == "pass"
    assert shared == [1, 2]


def test_a_method_of_solution_is_a_function(pool) -> None:
    source = "class Solution:\n    def f(self, x):\n        return x + 1\n"
    assert judged(pool, source, CallTest("f", [1], 2)).outcome == "pass"


def stopped(pool: Pool, source: str, *tests, **more) -> Verdict:
    return judged(pool, source, *tests, stop_at_failure=True, **more)


def test_stop_at_failure_counts_the_rest_as_failed(pool) -> None:
    tests = CallTest("f", [1], 2), CallTest("f", [2], 5), CallTest("f", [3], 6)
    verdict = stopped(pool, DOUBLE, *tests)
    assert (verdict.outcome, verdict.error, verdict.first_failing) == ("fail", "wrong", 1)
    assert verdict.passed == (True, False, False) and verdict.outputs == ("2", "4", None)
    assert stopped(pool, DOUBLE, tests[0], tests[2]).passed == (True, True)


def test_stop_at_failure_runs_nothing_more(pool) -> None:
    """What follows the failure would take 0.15 s of processor time in each test: three of them show in the time."""
    burn = "import time\nend = time.process_time() + 0.15\nwhile time.process_time() < end: pass\n"
    script = f"n = int(input())\nif n == 0:\n    raise ValueError\n{burn}print(n)\n"
    calls = (
        f"def f(n):\n    if n == 0:\n        raise ValueError\n    {burn.replace(chr(10), chr(10) + '    ')}return n\n"
    )
    cases = [
        (script, StdioTest("0\n", "0"), StdioTest("1\n", "1")),
        (calls, CallTest("f", [0], 0), CallTest("f", [1], 1)),
    ]
    cases.append((calls, AssertTest("assert f(0) == 0"), AssertTest("assert f(1) == 1")))
    for source, bad, good in cases:
        verdict = stopped(pool, source, bad, good, good, good)
        assert (verdict.error, verdict.first_failing) == ("runtime", 0) and verdict.passed == (False,) * 4
        assert verdict.seconds < 0.45
        full = judged(pool, source, bad, good, good, good)
        assert full.passed == (False, True, True, True) and full.seconds > 0.45


def test_the_prelude_is_explicit(pool) -> None:
    source = "def f(x: List[int]) -> float:\n    return math.sqrt(x[0])\n"
    test = CallTest("f", [[4]], 2.0)
    assert judged(pool, source, test).error == "runtime"
    assert judged(pool, source, test, prelude="import math\nfrom typing import List\n").outcome == "pass"


def test_scripts_read_and_write(pool) -> None:
    source = "import sys\nfor line in sys.stdin:\n    print(sum(map(int, line.split())))\n"
    verdict = judged(pool, source, StdioTest("1 2\n3 4\n", "3\n7\n"), StdioTest("5", "6"))
    assert (verdict.outcome, verdict.first_failing, verdict.outputs) == ("fail", 1, ("3\n7\n", "5\n"))


@pytest.mark.parametrize(
    ("source", "outcome", "error"),
    [
        ("print(input())", "pass", ""),
        ("import sys\nprint(sys.stdin.readline())\nsys.exit()", "pass", ""),
        ("import os\nprint(open(0).read())", "pass", ""),
        ("import os\nos.write(1, os.read(0, 100))\nos._exit(0)", "pass", ""),
        ("import sys\nsys.stdout.buffer.write(sys.stdin.buffer.read())", "pass", ""),
        ("if __name__ == '__main__':\n    print(input())", "pass", ""),
        ("print(input())\nraise SystemExit(3)", "fail", "runtime"),
        ("print(input())\n1 / 0", "fail", "runtime"),
        ("print(input(), 'more')", "fail", "wrong"),
        ("", "fail", "wrong"),
        ("print(input()", "fail", "syntax"),
        ("while True: print('x' * 9999)", "limit", "output"),
        ("while True: pass", "limit", "timeout"),
    ],
    ids=range(13),
)
def test_script_verdicts(pool, source, outcome, error) -> None:
    verdict = judged(pool, source, StdioTest("ä word\n", "ä word"))
    assert (verdict.outcome, verdict.error) == (outcome, error), verdict.detail


FAST = """
import atexit, os, sys
from io import BytesIO
assert ("r" in sys.stdin.mode, "w" in sys.stdout.mode) == (True, True)
out, sys.stdout = sys.stdout, BytesIO()
write = sys.stdout.write
sys.stdout.write = lambda text: write(text.encode())
atexit.register(lambda: os.write(1, sys.stdout.getvalue()))
print(os.read(0, os.fstat(0).st_size).decode())
"""
OWN = """
import io, os
class Late(io.IOBase):
    def __init__(self):
        self.buffer = io.BytesIO()
        self.write = lambda text: self.buffer.write(text.encode())
    def flush(self):
        os.write(1, self.buffer.getvalue())
        self.buffer.truncate(0)
late = Late()
late.write(input()[1:])
print(7, end="")
"""


@pytest.mark.parametrize(
    "source",
    [
        FAST,  # quick reading and writing, as contest programs have it
        OWN,
        "import threading, time\nthreading.Thread(target=lambda: (time.sleep(0.05), print(input()))).start()",
        "print(input())\nexit()\nprint('more')",
        "print(input())\nquit(0)\nprint('more')",
    ],
    ids=["atexit", "own stream", "thread", "exit", "quit"],
)
def test_a_script_ends_as_an_interpreter_ends(pool, source) -> None:
    verdict = judged(pool, source, StdioTest("7\n", "7"), StdioTest("789\n", "789"))
    assert verdict.outcome == "pass", verdict.detail


def test_a_program_starts_afresh_for_each_script_run(pool) -> None:
    source = "import builtins\nprint(getattr(builtins, 'mark', 0))\nbuiltins.mark = 1\n"
    assert judged(pool, source, *[StdioTest("", "0")] * 3).outcome == "pass"


OPEN = """
import os
def f():
    found = []
    for number in range(2000):
        try:
            os.fstat(number)
        except OSError:
            continue
        found.append(number)
    return found
"""


def test_a_run_holds_no_descriptors_but_its_own(pool) -> None:
    """Standard streams and the way to its keeper; where a checker asks, the link to it."""
    tests = CallTest("f", [], [0, 1, 2, 3]), AssertTest("assert f() == [0, 1, 2, 3, 4]")
    assert judged(pool, OPEN, *tests).outcome == "pass"
    assert judged(pool, f"{OPEN}print(*f())", StdioTest("", "0 1 2 3")).outcome == "pass"
    script = OPEN.replace("return found", "return found == [0, 1, 2, 3, 4]") + "assert f()\n"
    assert judged(pool, "f = 1", AssertTest(script)).outcome == "pass"


def test_chance_starts_alike_in_every_run(pool) -> None:
    source = "import random\ndef f():\n    return [random.random(), list({'a', 'b', 'c', 'd'})]\n"
    one, other = (judged(pool, source, CallTest("f", [], 0), CallTest("f", [], 0)).outputs for _ in range(2))
    assert one == other and one[0] != one[1]


def test_tests_after_a_limit_are_not_run(pool) -> None:
    source = "n = int(input())\nwhile n == 2:\n    pass\nprint(n)\n"
    verdict = judged(pool, source, *(StdioTest(str(n), str(n)) for n in range(1, 5)))
    assert (verdict.outcome, verdict.error, verdict.first_failing) == ("limit", "timeout", 1)
    assert verdict.passed == (True, False, False, False)


def test_time_limits_hold_for_each_call(pool) -> None:
    """Three calls of 0.3 s each stay within 0.5 s each."""
    loop = "    end = time.process_time() + 0.3\n    while time.process_time() < end: pass\n"
    source = f"import time\ndef f(x):\n{loop}    return x\n"
    assert judged(pool, source, *(CallTest("f", [n], n) for n in range(3))).outcome == "pass"


@pytest.mark.parametrize(
    ("body", "outcome", "error"),
    [
        ("return 1 / 0", "fail", "runtime"),
        ("raise SystemExit(0)", "fail", "runtime"),
        ("import os; os._exit(0)", "fail", "runtime"),
        ("return object()", "fail", "wrong"),
        ("return bytearray(1 << 40)", "limit", "memory"),
        ("while True: pass", "limit", "timeout"),
        ("import time; time.sleep(60)", "limit", "timeout"),
        ("return 'x' * (1 << 22)", "limit", "output"),
        ("return f()", "fail", "runtime"),
        ("return (", "fail", "syntax"),
    ],
)
def test_call_errors(pool, body, outcome, error) -> None:
    verdict = judged(pool, f"def f():\n    {body}\n", CallTest("f", [], 1))
    assert (verdict.outcome, verdict.error, verdict.first_failing) == (outcome, error, 0), verdict.detail


CHECK = "def check(candidate):\n    assert candidate(2) == 4\n    assert candidate([1]) == [1, 1], 'lists'\n"


def test_assert_scripts(pool) -> None:
    assert judged(pool, DOUBLE, AssertTest(CHECK), entry="f").outcome == "pass"
    verdict = judged(pool, "def f(x):\n    return x + 2\n", AssertTest(CHECK), entry="f")
    assert (verdict.outcome, verdict.error, verdict.first_failing) == ("fail", "runtime", 0)
    verdict = judged(pool, "def f(x):\n    return 4\n", AssertTest("assert f(2) == 4"), AssertTest("assert f(3) == 6"))
    assert (verdict.outcome, verdict.error, verdict.first_failing) == ("fail", "wrong", 1)


@pytest.mark.parametrize(
    ("source", "script", "outcome"),
    [
        (
            "class P:\n    def __init__(self, a):\n        self.a = a\ndef f(p):\n    return p.a",
            "assert f(P(3)) == 3",
            "pass",
        ),
        ("class P:\n    pass\ndef f(p):\n    return p.a", "p = P()\np.a = 5\nassert f(p) == 5 and p.a == 5", "pass"),
        ("def f(n):\n    yield from range(n)", "assert list(f(3)) == [0, 1, 2]", "pass"),
        ("def f(n):\n    return iter('ab')", "assert ''.join(f(3)) == 'ab' and set(f(0)) == {'a', 'b'}", "pass"),
        (
            "def f(n):\n    raise ValueError(n)",
            "try:\n    f(1)\nexcept ValueError:\n    pass\nelse:\n    assert 0",
            "pass",
        ),
        ("def f(n):\n    return (n, {n: {n}}, 1j, b'x')", "assert f(2) == (2, {2: {2}}, 1j, b'x')", "pass"),
        ("def f(*a, k=0):\n    return [a, k]", "assert f(1, (2,), k=3) == [(1, (2,)), 3]", "pass"),
        ("def f(t):\n    return t is int", "assert f(int)", "pass"),
        ("def sum(a, b):\n    return a * b", "assert sum([1, 2]) == 3", "pass"),  # the builtin: no entry of that name
        ("x = 1", "assert f(1) == 1", "fail"),
        ("def f(x):\n    return x", "assert g(1) == 1", "fail"),
        ("def f(x):\n    return x", "assert f(lambda: 0)", "fail"),  # a function of the script cannot leave its process
        ("def f(x):\n    return x", "exit(0)", "fail"),
        ("def f(x):\n    return x", "import os\nos._exit(0)", "fail"),
        ("def f(x):\n    return x", "print('passed')\nassert f(1) == 2", "fail"),
        ("def f(x):\n    raise StopIteration", "assert all(map(lambda x: f(x) == 1, [1]))", "fail"),
        ("def f(x):\n    return f", "assert f(1) == 1 or f(1) < 2", "fail"),
        ("def f(x):\n    while True: pass", "f(1)", "limit"),
        ("def f(x):\n    return 1", "while f(1): pass", "limit"),
    ],
    ids=range(19),
)
def test_what_assert_scripts_can_do(pool, source, script, outcome) -> None:
    verdict = judged(pool, source, AssertTest(script))
    assert verdict.outcome == outcome, verdict.detail


def test_an_entry_may_have_the_name_of_a_builtin(pool) -> None:
    source, script = "def sum(a, b):\n    return a + b", "assert sum(1, 2) == 3"
    assert judged(pool, source, AssertTest(script)).outcome == "fail"
    assert judged(pool, source, AssertTest(script), entry="sum").outcome == "pass"


def test_a_function_called_check_is_not_the_scripts(pool) -> None:
    """MBPP 56 asks for a function `check` and calls it in plain asserts."""
    source = "def check(n):\n    return n > 1\n"
    assert judged(pool, source, AssertTest("assert check(2)\nassert not check(0)"), entry="check").outcome == "pass"
    assert judged(pool, source, AssertTest("assert check(0)"), entry="check").error == "wrong"
    own = "def check(candidate):\n    assert candidate(0)"
    assert judged(pool, source, AssertTest(own), entry="check").error == "wrong"


def test_arguments_of_a_script_are_copies(pool) -> None:
    script = "x = [3, 1]\nassert f(x) == sorted(x)\nassert x == [3, 1]"
    assert judged(pool, "def f(x):\n    x.clear()\n    return x", AssertTest(script)).outcome == "fail"
    assert judged(pool, "def f(x):\n    x.sort()\n    return x", AssertTest(script)).outcome == "pass"


def test_kinds_of_test_may_be_mixed(pool) -> None:
    tests = CallTest("f", [1], 2), StdioTest("", ""), AssertTest("assert f(1) == 2"), CallTest("f", [1], 3)
    verdict = judged(pool, DOUBLE, *tests)
    assert verdict.passed == (True, True, True, False) and verdict.first_failing == 3


def test_details_are_printable(pool) -> None:
    verdict = judged(pool, "def f():\n    raise ValueError('\\x1b[31m\\x00\\ud800\\u202e')\n", CallTest("f", [], 1))
    assert verdict.detail.isascii() and verdict.detail.isprintable() and "ValueError" in verdict.detail


def test_what_cannot_be_judged_is_the_users_error(pool) -> None:
    for tests in ((), ("assert f",), (CallTest("f", [object()], 1),), (CallTest("f", [], object()),)):
        with pytest.raises(InputError):
            list(pool.judge([Program("", tests)]))
    assert judged(pool, DOUBLE, CallTest("f", [1], 2)).outcome == "pass"
