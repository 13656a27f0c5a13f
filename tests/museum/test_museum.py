"""The museum is whole: every pain has its threads and tests that exist, or a reason why no test can hold it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from .pains import NOT_HELD, PAINS

TESTS = Path(__file__).resolve().parents[1]


def test_every_pain_is_shown_once() -> None:
    assert sorted([pain.number for pain in PAINS] + list(NOT_HELD)) == list(range(1, 48))
    assert all(pain.threads and all(pain.threads) and pain.symptom for pain in PAINS)


@pytest.mark.parametrize("pain", PAINS, ids=lambda pain: f"{pain.number}")
def test_its_tests_exist(pain) -> None:
    assert pain.tests
    for test in pain.tests:
        file, name = test.split("::")
        tree = ast.parse((TESTS / file).read_text(encoding="utf-8"))
        found = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == name]
        assert len(found) == 1, test
        assert any(isinstance(node, ast.Assert | ast.With) for node in ast.walk(found[0])) or found[0].body, test
