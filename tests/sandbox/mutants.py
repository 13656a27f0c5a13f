"""Versions of a program with one thing changed each. The text is parsed here, never run."""

from __future__ import annotations

import ast
import warnings
from collections.abc import Callable, Iterator

__all__ = ["mutants"]

_PAIRS = [
    (ast.Lt, ast.GtE), (ast.Gt, ast.LtE), (ast.Eq, ast.NotEq), (ast.In, ast.NotIn), (ast.Is, ast.IsNot),
    (ast.Add, ast.Sub), (ast.Mult, ast.FloorDiv), (ast.And, ast.Or), (ast.BitAnd, ast.BitOr), (ast.LShift, ast.RShift),
]  # fmt: skip
_OTHER: dict[type[ast.AST], type[ast.AST]] = {ast.Div: ast.Mult, ast.Mod: ast.Mult, ast.BitXor: ast.BitAnd}
_OTHER |= dict(_PAIRS) | {other: one for one, other in _PAIRS}


def mutants(source: str) -> Iterator[str]:
    """One change each: a comparison or an operation swapped, a number off by one, a truth value or text changed, a
    condition negated, a result dropped. Kinds take turns, and within a kind the later places come first: what is near
    the result is seldom without effect."""
    kinds = [
        [node for node in ast.walk(_parsed(source)) if change(node) is not None]
        for change in (_swapped, _off_by_one, _negated, _dropped)
    ]
    for turn in range(max(map(len, kinds))):
        for change, nodes in zip((_swapped, _off_by_one, _negated, _dropped), kinds):
            if turn < len(nodes):
                place = len(nodes) - 1 - turn
                yield _changed(source, change, place)


def _parsed(source: str) -> ast.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "\\w" and its like in texts that were written long ago
        return ast.parse(source)


def _changed(source: str, change: Callable[[ast.AST], Callable[[], None] | None], place: int) -> str:
    tree = _parsed(source)
    actions = [action for node in ast.walk(tree) if (action := change(node)) is not None]
    actions[place]()
    return ast.unparse(ast.fix_missing_locations(tree))


def _swapped(node: ast.AST) -> Callable[[], None] | None:
    if isinstance(node, ast.Compare) and type(node.ops[0]) in _OTHER:
        return lambda: node.ops.__setitem__(0, _OTHER[type(node.ops[0])]())
    if isinstance(node, ast.BinOp | ast.AugAssign | ast.BoolOp) and type(node.op) in _OTHER:
        return lambda: setattr(node, "op", _OTHER[type(node.op)]())
    return None


def _off_by_one(node: ast.AST) -> Callable[[], None] | None:
    if not isinstance(node, ast.Constant) or isinstance(node.value, bytes) or node.value in (None, ...):
        return None
    if isinstance(node.value, bool):
        return lambda: setattr(node, "value", not node.value)
    return lambda: setattr(node, "value", node.value + ("x" if isinstance(node.value, str) else 1))


def _negated(node: ast.AST) -> Callable[[], None] | None:
    if isinstance(node, ast.If | ast.IfExp | ast.While):
        return lambda: setattr(node, "test", ast.UnaryOp(ast.Not(), node.test))
    return None


def _dropped(node: ast.AST) -> Callable[[], None] | None:
    if isinstance(node, ast.Return) and node.value is not None:
        return lambda: setattr(node, "value", ast.Constant(None))
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        return lambda: setattr(node, "value", ast.Constant(None))
    return None
