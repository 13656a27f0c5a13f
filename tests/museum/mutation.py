"""Mutation runs: small faults of every kind, sampled from the losses and the checkpoint code; how many do tests see?

`python -m tests.museum.mutation [COUNT] [SEED]` prints the score as JSON; survivors are named. Faults of error texts
and annotations are not counted, for no number hangs on them.
"""

from __future__ import annotations

import ast
import copy
import json
import random
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.museum.patching import SOURCE, failing, patched

__all__ = ["Fault", "faults_of", "run"]

TESTS = {
    "algorithms/advantages.py": [
        "algorithms/test_edges.py",
        "algorithms/test_advantages.py",
        "algorithms/test_golden_vectors.py",
    ],
    "algorithms/averaging.py": ["algorithms/test_state.py"],
    "algorithms/controllers.py": ["algorithms/test_state.py"],
    "algorithms/divergence.py": [
        "algorithms/test_edges.py",
        "algorithms/test_losses.py",
        "algorithms/test_golden_vectors.py",
    ],
    "algorithms/dpo.py": [
        "algorithms/test_edges.py",
        "algorithms/test_preference_losses.py",
        "algorithms/test_golden_vectors.py",
    ],
    "algorithms/ipo.py": [
        "algorithms/test_edges.py",
        "algorithms/test_preference_losses.py",
        "algorithms/test_golden_vectors.py",
    ],
    "algorithms/kto.py": [
        "algorithms/test_edges.py",
        "algorithms/test_preference_losses.py",
        "algorithms/test_golden_vectors.py",
    ],
    "algorithms/logprobs.py": ["algorithms/test_logprobs.py"],
    "algorithms/masking.py": ["algorithms/test_masking.py"],
    "algorithms/online_kl.py": ["algorithms/test_preference_losses.py"],
    "algorithms/ppo.py": ["algorithms/test_losses.py", "algorithms/test_golden_vectors.py"],
    "algorithms/reward_modeling.py": [
        "algorithms/test_edges.py",
        "algorithms/test_preference_losses.py",
        "algorithms/test_calibration.py",
    ],
    "algorithms/sft.py": ["algorithms/test_losses.py", "algorithms/test_golden_vectors.py"],
    "algorithms/shapes.py": ["algorithms"],
    "algorithms/simpo.py": [
        "algorithms/test_edges.py",
        "algorithms/test_preference_losses.py",
        "algorithms/test_golden_vectors.py",
    ],
    "runs/checkpoint.py": ["runs/test_checkpoint.py"],
    "runs/cell.py": ["runs/test_cell.py"],
}
SWAPS: dict[type, type] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.Lt: ast.LtE, ast.LtE: ast.Lt,
    ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.And: ast.Or, ast.Or: ast.And,
    ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}  # fmt: skip
CALLS = {
    "maximum": "minimum", "min": "max", "max": "min", "sum": "mean", "mean": "sum", "exp": "expm1",
    "clamp_min": "clamp_max", "masked_fill": None, "detach": None, "abs": None, "sqrt": None, "square": None,
}  # fmt: skip
"""Methods that are exchanged; None: the call is left out, its object stays."""


@dataclass(frozen=True)
class Fault:
    """One fault: a file's text with it, and where it is."""

    file: str
    line: int
    what: str
    text: str


def faults_of(file: str) -> Iterator[Fault]:
    """Every fault of one file, one at a time."""
    tree = ast.parse((SOURCE / file).read_text(encoding="utf-8"))
    skipped = {id(inner) for node in ast.walk(tree) for inner in _untested(node)}
    for index, node in enumerate(ast.walk(tree)):
        if id(node) in skipped:
            continue
        for number, what in enumerate(_changes(node)):
            changed = copy.deepcopy(tree)
            target = list(ast.walk(changed))[index]
            _apply(changed, target, number)
            yield Fault(file, getattr(node, "lineno", 0), what, ast.unparse(ast.fix_missing_locations(changed)))


def _untested(node: ast.AST) -> Iterator[ast.AST]:
    """What holds no number: annotations, defaults of error texts, decorators, docstrings, `__all__`."""
    parts: list[ast.AST | None] = []
    if isinstance(node, ast.Raise | ast.JoinedStr):
        parts = [node]
    elif isinstance(node, ast.FunctionDef):
        parts = [node.returns, *node.decorator_list, *(a.annotation for a in [*node.args.args, *node.args.kwonlyargs])]
    elif isinstance(node, ast.AnnAssign):
        parts = [node.annotation]
    elif isinstance(node, ast.Assign) and not isinstance(node.value, ast.Constant):
        names = {target.id for target in node.targets if isinstance(target, ast.Name)}
        parts = [node.value] if names & {"__all__", "State"} else []
    for part in parts:
        if part is not None:
            yield from ast.walk(part)


def _changes(node: ast.AST) -> list[str]:
    if isinstance(node, ast.BinOp | ast.BoolOp) and type(node.op) in SWAPS:
        return [f"{type(node.op).__name__} -> {SWAPS[type(node.op)].__name__}"]
    if isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in SWAPS:
        return [f"{type(node.ops[0]).__name__} -> {SWAPS[type(node.ops[0])].__name__}"]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub | ast.Invert):
        return [f"{type(node.op).__name__} left out"]
    if isinstance(node, ast.Constant) and isinstance(node.value, bool):
        return [f"{node.value} -> {not node.value}"]
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return [f"{node.value} -> {node.value + 1}"]
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in CALLS:
        return [f"{node.func.attr}() -> {CALLS[node.func.attr] or 'left out'}"]
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        return ["statement left out"]
    return []


def _apply(tree: ast.Module, node: ast.AST, number: int) -> None:
    if isinstance(node, ast.BinOp | ast.BoolOp):
        node.op = SWAPS[type(node.op)]()
    elif isinstance(node, ast.Compare):
        node.ops = [SWAPS[type(node.ops[0])]()]
    elif isinstance(node, ast.Constant):
        node.value = (not node.value) if isinstance(node.value, bool) else node.value + 1
    elif isinstance(node, ast.Expr):
        node.value = ast.Constant(None)
    elif isinstance(node, ast.UnaryOp):
        _replace(tree, node, node.operand)
    elif isinstance(node, ast.Call) and CALLS[node.func.attr]:
        node.func.attr = CALLS[node.func.attr]
    else:
        _replace(tree, node, node.func.value)


def _replace(tree: ast.Module, old: ast.AST, new: ast.AST) -> None:
    class Swap(ast.NodeTransformer):
        def visit(self, node: ast.AST) -> ast.AST:
            return new if node is old else self.generic_visit(node)

    Swap().visit(tree)


def run(count: int, seed: int = 0) -> dict:
    """The score over `count` sampled faults: how many of them a test sees."""
    every = [fault for file in TESTS for fault in faults_of(file)]
    sampled = random.Random(seed).sample(every, min(count, len(every)))
    with ThreadPoolExecutor(2) as pool:
        seen = list(pool.map(_is_seen, sampled))
    left = [f"{f.file}:{f.line}: {f.what}" for f, found in zip(sampled, seen) if not found]
    return {"possible": len(every), "sampled": len(sampled), "seen": sum(seen), "score": sum(seen) / len(seen),
            "survivors": sorted(left)}  # fmt: skip


def _is_seen(fault: Fault) -> bool:
    with tempfile.TemporaryDirectory(prefix="fault-") as folder:
        edges = ["algorithms/test_edges.py"] if fault.file.startswith("algorithms") else []
        return bool(failing(patched(Path(folder), fault.file, fault.text), [*edges, *TESTS[fault.file]]))


if __name__ == "__main__":
    print(json.dumps(run(int(sys.argv[1]) if sys.argv[1:] else 400, int(sys.argv[2]) if sys.argv[2:] else 0), indent=1))
