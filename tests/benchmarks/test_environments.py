"""The peer's environment: complete only with its stamp, made anew where that is missing or another one."""

from __future__ import annotations

import json
from importlib import metadata

import pytest

from trueline.benchmarks import environments
from trueline.benchmarks.environments import cache_folder, peer_environment, requirements
from trueline.errors import InputError


@pytest.fixture
def calls(tmp_path, monkeypatch) -> list[list[str]]:
    """What would be run; an interpreter appears as after a real `python -m venv`."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PIP_ARGS", "--index-url 'a b'")
    return []


def make(calls: list[list[str]], fail_at: int | None = None):
    def run(command) -> None:
        if len(calls) == fail_at:
            raise InputError("no network")
        calls.append(list(command))
        if "venv" in command:
            python = environments.Path(command[-1]) / "bin" / "python"
            python.parent.mkdir(parents=True, exist_ok=True)
            python.touch()

    return peer_environment(run=run)


def test_it_is_made_once_with_our_torch_and_the_users_arguments(calls, tmp_path) -> None:
    made = make(calls)
    venv, install, older = calls
    assert made.folder.parent == tmp_path / "trueline" / "peers" == cache_folder() / "peers"
    assert venv[1:3] == ["-m", "venv"] and install[0] == older[0] == str(made.python)
    assert install[-5:] == [f"torch=={metadata.version('torch').split('+')[0]}", *requirements()[1:]]
    assert {"trl==1.16.0", "transformers==5.23.0"} < set(install) and "--index-url" in install and "a b" in install
    assert older[-4:] == ["--no-deps", "--target", str(made.ppo), "trl==1.12.0"]
    assert make(calls) == made and len(calls) == 3


def test_one_that_was_left_half_made_is_made_again(calls) -> None:
    with pytest.raises(InputError, match="no network"):
        make(calls, fail_at=2)
    make(calls)
    assert len(calls) == 2 + 3


def test_one_with_other_requirements_is_made_again(calls) -> None:
    stamp = make(calls).folder / "complete.json"
    stamp.write_text(json.dumps(json.loads(stamp.read_text()) | {"ppo": "trl==1.11.0"}))
    make(calls)
    assert len(calls) == 6


def test_one_whose_interpreter_is_gone_is_made_again(calls) -> None:
    make(calls).python.unlink()
    make(calls)
    assert len(calls) == 6


def test_a_failing_command_says_what_to_do() -> None:
    with pytest.raises(InputError, match=r"cannot be installed: no index.*PIP_ARGS.*--against self") as caught:
        environments._run(["sh", "-c", "echo 'no index' >&2; exit 1"])
    assert caught.value.exit_code == 2
