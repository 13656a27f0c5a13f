"""The self-test: what holds is offered, what does not is refused with the reason."""

from __future__ import annotations

import os
import stat

import pytest

from trueline.errors import InputError
from trueline.sandbox import CallTest, Pool, Program, self_test, tiers
from trueline.sandbox.worker import TIERS, Tier

GOOD = Program("def f(x):\n    return x\n", (CallTest("f", [1], 1),))


def test_every_tier_has_a_verdict_and_its_controls(pool) -> None:
    report = self_test()
    assert set(report.reasons) == {tier.name for tier in TIERS}
    assert report.best == pool.tier and report.best in report.available
    for name in report.available:
        controls = {control.name: control.held for control in report.controls[name]}
        assert controls["positive"] and controls["negative"] and all(controls.values())
        assert name == "unsafe" or {"read", "write", "connect", "spawn", "kill", "environment"} <= set(controls)


def test_the_tier_without_walls_is_refused_unless_it_is_asked_for(pool) -> None:
    with pytest.raises(InputError, match="unsafe=True"):
        Pool(1, tier="unsafe")
    with Pool(1, tier="unsafe", unsafe=True) as open_pool:
        assert open_pool.tier == "unsafe"
        assert [v.outcome for v in open_pool.judge([GOOD])] == ["pass"]


def test_no_such_tier() -> None:
    with pytest.raises(InputError, match=r"docker.*choose from"):
        Pool(1, tier="docker")
    with pytest.raises(InputError, match="at least 1"):
        Pool(0)


def test_without_bubblewrap_the_next_tier_is_named(pool, monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    report = self_test()
    assert all("bwrap is not installed" in report.reasons[name] for name in report.reasons if "bubble" in name)
    if report.best is None:
        pytest.skip(f"no Landlock here: {report.reasons}")
    with Pool(1) as narrower:
        assert narrower.tier == "landlock+seccomp"
        assert [v.outcome for v in narrower.judge([GOOD])] == ["pass"]
    with pytest.raises(InputError, match="bwrap is not installed"):
        Pool(1, tier="bubblewrap+landlock+seccomp")


def fake_bubblewrap(folder, monkeypatch, body: str) -> None:
    path = folder / "bwrap"
    path.write_text(f"#!/bin/bash\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}/usr/bin{os.pathsep}/bin")


def test_without_namespaces_bubblewraps_own_words_are_the_reason(pool, monkeypatch, tmp_path) -> None:
    words = "bwrap: No permissions to create new namespace"
    fake_bubblewrap(tmp_path, monkeypatch, f"echo '{words}' >&2; exit 1")
    with pytest.raises(InputError, match=words):
        Pool(1, tier="bubblewrap+landlock+seccomp")


def test_a_wall_that_only_pretends_is_found_out(pool, monkeypatch, tmp_path) -> None:
    """This bwrap runs the command without any namespace: files are open, and the canaries say so."""
    skip = """while [ "$1" != --chdir ]; do [ "$1" = --info-fd ] && fd=$2; shift; done; shift 2
        eval "echo '{\\"child-pid\\": '$$'}' >&$fd; exec $fd>&-"; exec env -i PYTHONHASHSEED=0 "$@" """
    fake_bubblewrap(tmp_path, monkeypatch, skip)
    with pytest.raises(InputError, match="read: ") as caught:
        Pool(1, tier="bubblewrap+seccomp")
    assert "<canary>" in str(caught.value) or "wrong" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "missing"), [("landlock", "read"), ("seccomp", "connect")], ids=["no Landlock", "no filter"]
)
def test_each_wall_is_tested_by_what_it_stops(pool, monkeypatch, name, missing) -> None:
    """A strong tier that lacks one wall fails its self-test at that wall's canaries."""
    if not self_test().available.count("landlock+seccomp"):
        pytest.skip("no Landlock here")
    walls = {"landlock": True, "seccomp": True} | {name: False}
    weak = Tier("weak", False, **walls)
    monkeypatch.setattr(Tier, "strong", property(lambda self: True))
    reason, controls = tiers._try(weak)
    assert f"{missing}: " in reason
    assert {c.name: c.held for c in controls}["positive"]


def test_no_strong_tier_means_no_judgement(pool, monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(tiers, "TIERS", tuple(tier for tier in TIERS if "landlock" != tier.name.split("+")[0]))
    with pytest.raises(InputError, match=r"no sandbox holds here.*bwrap is not installed.*unsafe=True") as caught:
        Pool(1)
    assert caught.value.exit_code == 2
    with Pool(1, unsafe=True) as open_pool:
        assert open_pool.tier == "unsafe"
