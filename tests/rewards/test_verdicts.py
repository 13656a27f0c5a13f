"""Verdicts that processes share: what comes out is what went in, and a file that fails costs no verdict."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from trueline.errors import InputError
from trueline.rewards.verdicts import VerdictFile
from trueline.rewards.verifier import Verifier
from trueline.sandbox import CallTest, Limits, Pool, Program, Verdict

ODD = Verdict("fail", "wrong", 1, ("5", None, "\udcff\n'"), (True, False), "5, not 6", 0.25)
RIGHT = Verdict("pass", passed=(True,), outputs=("i1",))


def test_what_comes_out_is_what_went_in(tmp_path) -> None:
    """In another connection, as another process would have it; more keys than one query takes."""
    one, other = VerdictFile(tmp_path / "v"), VerdictFile(tmp_path / "v")
    many = {n.to_bytes(16, "big"): ODD if n % 2 else RIGHT for n in range(1203)}
    one.keep(many)
    assert other.find([*many, b"unknown"]) == many
    assert other.find([]) == {} and other.find([b"unknown"]) == {}


def test_the_first_verdict_stays(tmp_path) -> None:
    one, other = VerdictFile(tmp_path / "v"), VerdictFile(tmp_path / "v")
    one.keep({b"a": ODD})
    other.keep({b"a": RIGHT, b"b": RIGHT})
    assert one.find([b"a", b"b"]) == {b"a": ODD, b"b": RIGHT}


def test_a_file_that_fails_knows_nothing_and_raises_nothing(tmp_path) -> None:
    (tmp_path / "text").write_text("this is no database, and long enough to be looked at" * 50)
    broken = [VerdictFile(tmp_path / "text"), VerdictFile(tmp_path / "no" / "such" / "folder")]
    held = VerdictFile(tmp_path / "v")
    held.keep({b"a": ODD})
    raw = sqlite3.connect(tmp_path / "v")
    raw.execute("UPDATE verdicts_1 SET verdict = 'not json'")
    raw.commit()
    raw.close()
    closed = VerdictFile(tmp_path / "w")
    closed.close()
    for file in (*broken, held, closed):
        file.keep({b"b": ODD})
        assert file.find([b"a"]) == {}


@pytest.mark.integration
def test_a_program_that_another_has_run_is_not_run_again(tmp_path) -> None:
    try:
        Pool(1).close()
    except InputError as error:
        pytest.skip(str(error))
    limits = Limits(cpu_seconds=1.0, wall_seconds=10.0)
    programs = [Program(f"def f(x):\n    return x + {n}\n", (CallTest("f", [1], 2),), limits=limits) for n in range(3)]
    with Verifier(shared=VerdictFile(tmp_path / "v")) as one, Verifier(shared=VerdictFile(tmp_path / "v")) as other:
        verdicts = one.verdicts(programs[:2])
        assert one.executions == 2 and [v.outcome for v in verdicts] == ["fail", "pass"]
        assert other.verdicts(programs)[:2] == verdicts and other.executions == 1
        assert one.verdicts(programs)[2] == other.verdicts(programs)[2] and one.executions == 2
    with Verifier() as alone:  # without the file it runs them
        alone.verdicts(programs)
        assert alone.executions == 3


def test_a_run_that_was_not_judged_is_not_kept(tmp_path, monkeypatch) -> None:
    """The sandbox's own failure says nothing of the program: the next one asks again."""

    class Broken:
        def judge(self, programs):
            return [Verdict("infrastructure", detail="worker died") for _ in programs]

    file = VerdictFile(Path(tmp_path, "v"))
    verifier = Verifier(shared=file)
    monkeypatch.setattr(verifier, "_opened", lambda: Broken())
    for expected in (1, 2):
        assert verifier.verdicts([Program("x", ())])[0].outcome == "infrastructure"
        assert verifier.executions == expected
    assert file._connection.execute("SELECT count(*) FROM verdicts_1").fetchone() == (0,)
