"""The attack corpus over the tiers that this machine offers, as this user and as an ordinary one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from trueline.sandbox import self_test

from .attack import pairs

HERE = Path(__file__).parent
SOURCE = HERE.parents[1] / "src"
STRONG = ["bubblewrap+landlock+seccomp", "landlock+seccomp", "bubblewrap+seccomp"]
PLACES = dict.fromkeys(("CANARY", "FOLDER", "PARENT", "TOKEN", "PACKAGE", "SITE"), "0")


def attack(*arguments: str, command: tuple[str, ...] = (sys.executable,)) -> dict:
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(SOURCE), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [*command, str(HERE / "attack.py"), *arguments], capture_output=True, text=True, env=environment, timeout=280
    )
    if done.returncode and "no sandbox holds here" in done.stderr:
        pytest.skip(done.stderr.strip().splitlines()[-1])
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def assert_contained(report: dict, tier: str) -> None:
    """0 false passes, 0 escapes, 0 survivors, 0 canaries seen, and the positive controls pass."""
    rows = report["rows"]
    assert report["tier"] == tier and len(rows) == len(list(pairs(PLACES)))
    assert [row for row in rows if not row["right"]] == []
    assert [row for row in rows if row["seen"]] == []
    assert sum(row["case"].startswith("control-honest") for row in rows if row["outcome"] == "pass") >= 7
    assert not [row for row in rows if row["outcome"] == "pass" and not row["case"].startswith("control-honest")]
    assert report["survivors"] == [] and not report["changed"] and report["incidents"] == []


def test_the_corpus_is_large_and_well_formed() -> None:
    corpus = list(pairs(PLACES))
    cases = {pair.case for pair in corpus}
    assert len(corpus) >= 600 and len(cases) >= 300
    assert sum(case.startswith("contain-") for case in cases) >= 150
    assert {pair.case for pair in corpus if "pass" in pair.outcomes} == {c for c in cases if "control-honest" in c}
    for pair in corpus:
        assert set(pair.outcomes) <= {"pass", "fail", "limit"} and pair.outcomes
        assert not [name for name in PLACES if f"@{name}@" in pair.program.source]


@pytest.mark.parametrize("tier", [STRONG[0], *(pytest.param(tier, marks=pytest.mark.nightly) for tier in STRONG[1:])])
def test_the_corpus_is_contained(pool, tier) -> None:
    assert_contained(attack(tier), tier)


def interpreter() -> str:
    """A Python that an ordinary user can start."""
    for path in filter(None, (os.path.realpath(sys.executable), shutil.which("python3", path="/usr/bin"))):
        parts = Path(path).resolve().parents
        if all(part.stat().st_mode & 0o001 for part in parts):
            found = subprocess.run([path, "-c", "import sys; print(sys.version_info >= (3, 11))"], capture_output=True)
            if found.stdout.strip() == b"True":
                return path
    pytest.skip("no Python 3.11 that an ordinary user can start")


@pytest.mark.nightly
@pytest.mark.parametrize("tier", STRONG)
def test_the_corpus_is_contained_for_an_ordinary_user(pool, tier) -> None:
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("needs root and setpriv to become another user")
    if not all(part.stat().st_mode & 0o001 for part in HERE.parents):
        pytest.skip("an ordinary user cannot read this checkout")
    become = ("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups")
    report = attack(tier, command=(*become, interpreter()))
    assert report["uid"] == 65534
    assert_contained(report, tier)


def test_the_attacks_are_real() -> None:
    """Where there is no sandbox they get through: what stops them elsewhere is the sandbox."""
    if "unsafe" not in self_test().available:
        pytest.skip("needs Linux")
    report = attack("unsafe", "--unsafe-cases")
    through = {row["case"] for row in report["rows"] if row["outcome"] == "pass"}
    assert len(through) >= 25, sorted(through)
    assert {"contain-read-canary", "contain-fs-write", "contain-net-tcp-socket", "contain-proc-fork"} <= through
