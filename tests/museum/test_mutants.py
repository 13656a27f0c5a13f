"""The public bugs still fit our code, and each is caught by its test; small faults of any kind mostly are."""

from __future__ import annotations

import ast
import os
import sys
import tempfile
from pathlib import Path

import pytest
from tests.reliability.figures import record

from . import mutation
from .mutants import MUTANTS
from .patching import ROOT, SOURCE, failing, patched


def test_there_are_many_and_each_has_a_source_and_a_test_of_its_own() -> None:
    assert len(MUTANTS) >= 60 and len({m.name for m in MUTANTS}) == len(MUTANTS)
    assert all(m.source and m.old != m.new for m in MUTANTS)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.name)
def test_its_patch_fits_and_its_test_is_there(mutant) -> None:
    text = (SOURCE / mutant.file).read_text(encoding="utf-8")
    assert text.count(mutant.old) == 1
    ast.parse(text.replace(mutant.old, mutant.new))
    file, _, name = mutant.test.partition("::")
    tree = ast.parse((ROOT / "tests" / file).read_text(encoding="utf-8"))
    assert name.split("::")[-1] in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


@pytest.mark.nightly
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.name)
def test_it_is_caught(mutant) -> None:
    text = (SOURCE / mutant.file).read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory(prefix="bug-") as folder:
        found = failing(patched(Path(folder), mutant.file, text.replace(mutant.old, mutant.new)), [mutant.test])
    record("H13", f"bug-{MUTANTS.index(mutant)}", bugs=1, caught=int(bool(found)))
    assert found and found[0].startswith(mutant.test.split("::")[0])


@pytest.mark.nightly
def test_without_a_patch_the_tests_pass() -> None:
    """Control: it is the patch that they see."""
    with tempfile.TemporaryDirectory(prefix="bug-") as folder:
        file = MUTANTS[0].file
        copy = patched(Path(folder), file, (SOURCE / file).read_text(encoding="utf-8"))
        assert failing(copy, sorted({m.test for m in MUTANTS if m.file.startswith("algorithms")})) == []


@pytest.mark.nightly
@pytest.mark.timeout(7200)
def test_small_faults_are_seen() -> None:
    found = mutation.run(int(os.environ.get("TRUELINE_FAULTS", "400")))
    record("H13", "faults", sampled=found["sampled"], seen=found["seen"])
    print("\n".join(found["survivors"]), file=sys.stderr)
    assert found["score"] >= 0.85


def test_a_fault_changes_one_place() -> None:
    faults = list(mutation.faults_of("algorithms/ppo.py"))
    own = ast.unparse(ast.parse((SOURCE / "algorithms/ppo.py").read_text(encoding="utf-8"))).splitlines()
    assert len(faults) > 20
    for fault in faults:
        changed = [a != b for a, b in zip(own, fault.text.splitlines())]
        assert sum(changed) == 1 or len(fault.text.splitlines()) != len(own), fault.what
