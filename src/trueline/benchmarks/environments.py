"""Environments of the peers' own, in the user's cache folder: made at the first use, reused once complete."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from trueline.errors import InputError

__all__ = ["PPO_TRL", "Environment", "cache_folder", "peer_environment", "requirements"]

_PINNED = ("trl==1.16.0", "transformers==5.23.0", "datasets", "accelerate")
PPO_TRL = "1.12.0"
"""The last wheel of TRL that has a PPO trainer."""
_STAMP = "complete.json"

Run = Callable[[Sequence[str]], None]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Environment:
    """A virtual environment with the peer in it; `ppo` is a folder with the older TRL alone, to be put before it."""

    folder: Path

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.folder / "bin" / "python"

    @property
    def ppo(self) -> Path:
        """The folder of the older TRL."""
        return self.folder / f"trl-{PPO_TRL}"


def cache_folder() -> Path:
    """Where what takes long to make is kept: `trueline` in XDG_CACHE_HOME, or in ~/.cache."""
    given = os.environ.get("XDG_CACHE_HOME")
    return (Path(given) if given else Path.home() / ".cache") / "trueline"


def requirements() -> list[str]:
    """What is installed: the peer, pinned, and the version of torch that we run on, so that no side has a newer one."""
    return [f"torch=={metadata.version('torch').partition('+')[0]}", *_PINNED]


def peer_environment(say: Say = lambda text: None, run: Run | None = None) -> Environment:
    """The peer's environment; made where it is not there or was left half made. PIP_ARGS holds extra arguments for pip.

    Raises InputError where it cannot be made.
    """
    torch, trl = requirements()[:2]
    key = "-".join([trl, torch, "py{}.{}".format(*sys.version_info)]).replace("==", "-")
    environment = Environment(cache_folder() / "peers" / key)
    wanted = {"requirements": requirements(), "ppo": f"trl=={PPO_TRL}"}
    stamp = environment.folder / _STAMP
    if _stamped(stamp) == wanted and environment.python.exists():
        return environment
    say(f"installing {trl}, {torch} and {wanted['ppo']} once, in {environment.folder}: some minutes, about 1.5 GB")
    stamp.unlink(missing_ok=True)
    run, extra = run or _run, shlex.split(os.environ.get("PIP_ARGS", ""))
    pip = [str(environment.python), "-m", "pip", "install", "-q", "--disable-pip-version-check", *extra]
    run([sys.executable, "-m", "venv", "--clear", str(environment.folder)])
    run([*pip, *wanted["requirements"]])
    run([*pip, "--no-deps", "--target", str(environment.ppo), wanted["ppo"]])
    stamp.write_text(json.dumps(wanted, indent=1) + "\n")
    return environment


def _stamped(stamp: Path) -> object:
    try:
        return json.loads(stamp.read_text())
    except (OSError, ValueError):
        return None


def _run(command: Sequence[str]) -> None:
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        lines = (result.stderr or result.stdout).strip().splitlines()
        raise InputError(
            f"the peer cannot be installed: {' | '.join(line.strip() for line in lines[-3:]) or result.returncode}",
            where="bench", field="--against trl",
            remedy="pip needs its package index once (PIP_ARGS holds extra arguments for pip); or use --against self",
        )  # fmt: skip
