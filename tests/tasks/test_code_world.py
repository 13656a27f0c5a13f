"""The code world: programs mean what their lines say, tests tell right from wrong, no test specification is trained on.

No program is run here, not even a reference: `evaluate` walks the syntax tree of the few forms that the language has.
"""

from __future__ import annotations

import ast
import operator
from collections import Counter
from itertools import product

import numpy as np
import pytest

from trueline.config import load
from trueline.data.chat import ChatTokenizer
from trueline.errors import InputError
from trueline.tasks import code_grammar as grammar
from trueline.tasks.code_world import ENTRY, SPLITS, TIERS, CodeWorld, Dials, Specification
from trueline.types import Prompt

INPUTS = ((), (0,), (3,), (-4, -1, -1, 2), (1, 2, 3, 4, 5, 6), (6, 5, 5, 0, -2), (9, -7, 3, 3, 0, 2, 8))
BINARY = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod, ast.Pow: operator.pow,
}  # fmt: skip
COMPARE = {ast.Gt: operator.gt, ast.GtE: operator.ge, ast.Lt: operator.lt, ast.LtE: operator.le, ast.Eq: operator.eq,
           ast.NotEq: operator.ne}  # fmt: skip
CALLS = {f.__name__: f for f in (sum, len, max, min, abs, sorted, set)}


def evaluate(text: str, xs: tuple[int, ...]):
    """What the program returns, from its syntax tree: assignments, then a return. NameError for an unknown name."""
    (function,) = ast.parse(text).body
    names = {function.args.args[0].arg: list(xs)}
    for line in function.body:
        if isinstance(line, ast.Return):
            return value_of(line.value, names)
        assert isinstance(line, ast.Assign) and isinstance(line.targets[0], ast.Name)
        names[line.targets[0].id] = value_of(line.value, names)
    raise AssertionError("no return")


def value_of(node: ast.expr, names: dict):
    def of(other):
        return None if other is None else value_of(other, names)

    match node:
        case ast.Constant(value=value):
            return value
        case ast.Name(id=name):
            if name not in names | CALLS:
                raise NameError(name)
            return (names | CALLS)[name]
        case ast.List(elts=items):
            return [of(item) for item in items]
        case ast.UnaryOp(op=ast.USub(), operand=inner):
            return -of(inner)
        case ast.BinOp(left=left, op=op, right=right):
            return BINARY[type(op)](of(left), of(right))
        case ast.Compare(left=left, ops=[op], comparators=[right]):
            return COMPARE[type(op)](of(left), of(right))
        case ast.Subscript(value=inner, slice=ast.Slice(lower=low, upper=high, step=step)):
            return of(inner)[slice(of(low), of(high), of(step))]
        case ast.Call(func=ast.Name(id=name), args=args, keywords=keywords):
            return CALLS[name](*map(of, args), **{keyword.arg: of(keyword.value) for keyword in keywords})
        case ast.ListComp(elt=element, generators=[ast.comprehension(target=target, iter=source, ifs=tests)]):
            scopes = [names | {target.id: item} for item in of(source)]
            return [value_of(element, s) for s in scopes if all(value_of(test, s) for test in tests)]
    raise AssertionError(f"the language has no {ast.dump(node)}")


@pytest.fixture(scope="module")
def world() -> CodeWorld:
    return CodeWorld(Dials(demonstrations=1500, pairs=100))


# --- language ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", grammar.OPERATIONS, ids=lambda op: op.name)
@pytest.mark.parametrize("style", ["plain", "foreign"])
def test_lines_mean_what_is_said_beside_them(op, style) -> None:
    for step in (grammar.right(op), grammar.slip(op), grammar.omitted()):
        program = grammar.program([step], grammar.REDUCERS["list"], style)
        for xs in INPUTS:
            assert evaluate(program.text, xs) == program.value(xs)


@pytest.mark.parametrize("name", grammar.REDUCERS)
def test_what_is_returned_means_what_is_said(name) -> None:
    program = grammar.program([], grammar.REDUCERS[name])
    assert all(evaluate(program.text, xs) == program.value(xs) for xs in INPUTS)


@pytest.mark.parametrize("op", grammar.OPERATIONS, ids=lambda op: op.name)
def test_a_slip_differs_and_broken_lines_are_broken(op) -> None:
    right, slip = (grammar.program([step(op)], grammar.REDUCERS["list"]) for step in (grammar.right, grammar.slip))
    assert any(right.value(xs) != slip.value(xs) for xs in INPUTS)
    for reducer in grammar.REDUCERS.values():
        unclosed = grammar.program([grammar.unclosed(op)], reducer)
        with pytest.raises(SyntaxError):
            compile(unclosed.text, "program", "exec")
        named = grammar.program([grammar.mis_named(op)], reducer)
        compile(named.text, "program", "exec")
        with pytest.raises(NameError):
            evaluate(named.text, (1, 2))
        assert unclosed.broken and named.broken and not right.broken
        with pytest.raises(ValueError, match="broken"):
            named.value((1, 2))


def test_every_phrase_belongs_to_one_operation() -> None:
    phrases = Counter(op.phrase(i) for op, i in product(grammar.OPERATIONS, range(2)))
    phrases.update(phrase for reducer in grammar.REDUCERS.values() for phrase in reducer.phrases)
    assert set(phrases.values()) == {1}


def test_the_foreign_style_changes_names_alone() -> None:
    op = grammar.Operation("above", 3)
    program = grammar.program([grammar.right(op)], grammar.REDUCERS["largest"], "foreign")
    assert program.text == "def f(vs):\n vs = [v for v in vs if v > 3]\n return max(vs + [0])"


# --- prompts and splits --------------------------------------------------------------------------------------------


def test_tiers_and_sizes(world) -> None:
    counts = {split: Counter(prompt.kind for prompt in world.prompts(split)) for split in SPLITS}
    assert {split: set(found) for split, found in counts.items()} == {
        **{split: set(TIERS[:3]) for split in SPLITS[:3]}, "hard": {"hard"},
    }  # fmt: skip
    assert counts["train"]["interview"] == 1000 and counts["train"]["competition"] == 1400
    assert all(counts["test"][tier] >= 50 for tier in TIERS[:3])
    for split in SPLITS:
        for prompt in world.prompts(split):
            specification = world.specification(prompt)
            assert prompt.kind == specification.tier == TIERS[len(specification.operations) - 1]


def test_no_specification_stands_in_two_splits(world) -> None:
    ids = {split: [world.specification(p).id for p in world.prompts(split)] for split in SPLITS}
    assert all(len(set(found)) == len(found) for found in ids.values())
    for a, b in [(a, b) for a in SPLITS for b in SPLITS if a < b]:
        assert not set(ids[a]) & set(ids[b])
    texts = [p.text for split in SPLITS for p in world.prompts(split)]
    assert len(set(texts)) == len(texts)


@pytest.mark.parametrize("hard", [0.0, 0.2])
def test_nothing_of_the_evaluation_is_learnt_from(hard) -> None:
    world = CodeWorld(Dials(demonstrations=600, pairs=100, hard=hard))
    learnt = {world.specification(d.prompt).id for d in world.demonstrations(0)}
    learnt |= {world.specification(pair.prompt).id for pair in world.pairs(0)}
    for split in ("selection", "test", "hard"):
        assert not learnt & {world.specification(p).id for p in world.prompts(split)}
    # Four operations are outside what is learnt from, unless the dial says otherwise.
    share = np.mean([d.prompt.kind == "hard" for d in world.demonstrations(0)])
    assert share == 0 if hard == 0 else 0.15 < share < 0.25


def test_specifications_are_written_and_read_back(world) -> None:
    for prompt in world.prompts("hard")[:20]:
        specification = world.specification(prompt)
        assert Specification.parse(specification.id) == specification
    with pytest.raises(InputError, match="not of the code world"):
        world.specification(Prompt.ask("reverse"))
    with pytest.raises(InputError, match="unknown split 'dev'"):
        world.prompts("dev")


def test_families_are_taken_once(world) -> None:
    for split in SPLITS:
        for prompt in world.prompts(split):
            families = [grammar.KINDS[op.kind].family for op in world.specification(prompt).operations]
            assert len(set(families)) == len(families)


# --- tests of problems ---------------------------------------------------------------------------------------------


def test_expected_values_are_those_of_the_reference_text(world) -> None:
    """The oracle is the syntax tree of the reference program, which shares nothing with `Program.value`."""
    for split in ("test", "hard"):
        for prompt in world.prompts(split)[::4]:
            problem, reference = world.problem_of(prompt), world.reference(prompt)
            assert (problem.entry, problem.tier, problem.solutions) == (ENTRY, prompt.kind, (reference,))
            assert len(problem.tests) == 6
            for test in (*problem.tests, *problem.public_tests):
                assert evaluate(reference, tuple(test.args[0])) == test.expected
                assert type(test.expected) in (int, list)


def test_public_examples_stand_in_the_prompt_and_hidden_tests_do_not(world) -> None:
    for prompt in world.prompts("test") + world.prompts("hard"):
        problem = world.problem_of(prompt)
        (public,) = problem.public_tests
        assert prompt.messages[0].content.endswith(f"f({public.args[0]}) == {public.expected}")
        assert public.args not in [test.args for test in problem.tests]


def test_hidden_tests_tell_every_visible_fault(world) -> None:
    """Faulty programs that 60 other inputs tell from the reference are told by the six tests too."""
    rng = np.random.default_rng(0)
    inputs = [tuple(map(int, rng.integers(-7, 10, size=rng.integers(0, 9)))) for _ in range(60)]
    told = missed = 0
    for prompt in world.prompts("test")[:80] + world.prompts("hard")[:40]:
        right = world.specification(prompt).right()
        for program in [world.write(prompt, rng) for _ in range(5)]:
            if program.broken or all(program.value(xs) == right.value(xs) for xs in inputs):
                continue
            told += not world.is_right(prompt, program)
            missed += world.is_right(prompt, program)
    assert told > 200
    assert missed <= 0.01 * told


def test_the_reference_is_right_and_leaving_a_line_out_is_wrong(world) -> None:
    for prompt in world.prompts("test"):
        specification = world.specification(prompt)
        assert world.is_right(prompt, specification.right("foreign"))
        steps = [grammar.right(op) for op in specification.operations]
        for i in range(len(steps)):
            shorter = grammar.program([*steps[:i], *steps[i + 1 :]], specification.reducer)
            assert not world.is_right(prompt, shorter)


# --- what the learners see -----------------------------------------------------------------------------------------


def test_the_majority_of_some_kinds_slips(world) -> None:
    found = {kind: Counter() for kind in grammar.KINDS}
    for demonstration in world.demonstrations(0):
        lines = demonstration.response.split("\n")
        for op in world.specification(demonstration.prompt).operations:
            found[op.kind]["slip"] += f" {grammar.slip(op).line}" in lines
            found[op.kind]["all"] += 1
    assert 13 <= len(world.slipping) <= 17 and {grammar.KINDS[k].family for k in world.slipping} == set(
        grammar.FAMILIES
    )
    for kind, counts in found.items():
        share = counts["slip"] / counts["all"]
        assert counts["all"] > 20
        assert share > 0.5 if kind in world.slipping else share < 0.3, kind
    slipping = sum((found[kind] for kind in world.slipping), Counter())
    assert slipping["slip"] / slipping["all"] == pytest.approx(0.6, abs=0.05)


def test_greedy_imitation_is_no_better_than_sampling(world) -> None:
    """The trivial design of a world of code has greedy decoding at 0.9 where sampling is at 0.4."""
    rng = np.random.default_rng(0)
    # The last column: ten samples find a right program that often. A verifier has something to reward.
    table = [
        ("test", "introductory", 0.45, 0.7, 0.9),
        ("test", "interview", 0.2, 0.5, 0.75),
        ("test", "competition", 0.08, 0.3, 0.5),
        ("hard", "hard", 0.05, 0.25, 0.35),
    ]
    for split, tier, low, high, found in table:
        prompts = [prompt for prompt in world.prompts(split) if prompt.kind == tier]
        greedy = np.mean([world.is_right(p, world.majority(p)) for p in prompts])
        sampled = np.array([[world.is_right(p, world.write(p, rng)) for _ in range(10)] for p in prompts])
        assert low < sampled.mean() < high, tier
        assert greedy <= sampled.mean()
        assert sampled.any(axis=1).mean() > found


def test_without_slips_greedy_imitation_is_perfect() -> None:
    """The negative control: the same world with the dial at 0."""
    world = CodeWorld(Dials(slip=0.0))
    assert all(world.is_right(p, world.majority(p)) for p in world.prompts("test"))


def test_pairs_are_right_against_wrong_and_shift_is_style(world) -> None:
    shifted = CodeWorld(Dials(demonstrations=1, pairs=60, shift=1.0))
    for made, argument in ((world, "xs"), (shifted, "vs")):
        for pair in made.pairs(0):
            assert pair.chosen == made.specification(pair.prompt).right("plain" if argument == "xs" else "foreign").text
            assert pair.chosen.startswith(f"def f({argument}):") and pair.rejected.startswith(f"def f({argument}):")
            tests = made.problem_of(pair.prompt).tests
            assert not passes(pair.rejected, tests)
            assert passes(pair.chosen, tests)


def passes(text: str, tests) -> bool:
    try:
        return all(evaluate(text, tuple(test.args[0])) == test.expected for test in tests)
    except (SyntaxError, NameError):
        return False


def test_a_wrong_program_is_found_where_the_dials_leave_no_fault() -> None:
    world = CodeWorld(Dials(slip=0.0, fault=0.0, pairs=3))
    for pair in world.pairs(0):
        assert pair.chosen != pair.rejected


def test_seeds_and_dials(world) -> None:
    first = world.demonstrations(1)
    assert first == world.demonstrations(1) != world.demonstrations(2)
    assert world.pairs(1) == world.pairs(1) != world.pairs(2)
    other = CodeWorld(Dials(seed=1))
    assert other.slipping != world.slipping
    assert {p.id for p in other.prompts("test")} != {p.id for p in world.prompts("test")}
    # The shift moves the style of pairs and nothing else.
    pairs = CodeWorld(Dials(pairs=100, shift=0.5)).pairs(1)
    assert [pair.prompt for pair in pairs] == [pair.prompt for pair in world.pairs(1)]
    foreign = np.mean([pair.chosen.startswith("def f(vs)") for pair in pairs])
    assert 0.35 < foreign < 0.65


@pytest.mark.parametrize("dials", [{"slip": 1.5}, {"fault": -0.1}, {"demonstrations": 0}])
def test_dials_out_of_range_are_refused(dials) -> None:
    with pytest.raises(InputError, match=f"world.{next(iter(dials))}"):
        load({"world": Dials}, overrides=[f"world.{key}={value}" for key, value in dials.items()])


# --- tokens --------------------------------------------------------------------------------------------------------


def test_prompts_and_programs_are_short_and_survive_the_tokenizer(world) -> None:
    tokenizer = ChatTokenizer.train(world.texts(), vocab_size=768)
    assert tokenizer.vocab_size <= 768
    for split in SPLITS:
        for prompt in world.prompts(split):
            assert len(tokenizer.encode_prompt(prompt)) <= 52
            ids = tokenizer.encode_response(world.reference(prompt))
            assert len(ids) <= 64
            assert tokenizer.decode(ids) == world.reference(prompt)
    assert max(len(tokenizer.encode_response(d.response)) for d in world.demonstrations(0)) <= 64
