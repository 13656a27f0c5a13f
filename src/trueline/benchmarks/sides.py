"""The two processes of a comparison, asked for rounds in turn."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trueline.errors import RunError

__all__ = ["Round", "Side", "our_side", "peer_side", "rounds_in_turn"]

_PEERS = Path(__file__).parent / "peers"


@dataclass(frozen=True)
class Round:
    """One round of one side: wall and processor seconds, the processor seconds that it burnt while it waited for the
    order, memory, and what came out."""

    seconds: float
    cpu: float
    waited_cpu: float
    peak_mb: float
    device_peak_mb: float | None
    result: dict[str, float]


@dataclass
class Side:
    """One process, from its start until it is hung up on. Use it as a context."""

    name: str
    command: Sequence[str]
    environment: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    _process: subprocess.Popen | None = None
    _errors: Any = None

    def __enter__(self) -> Side:
        self._errors = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True,
            env={**os.environ, **self.environment},
        )  # fmt: skip
        return self

    def __exit__(self, *args: Any) -> None:
        """Hang up; the process ends at the end of its input. One that does not is ended."""
        try:
            self._process.stdin.close()
        except OSError:  # it has died with an order in the pipe
            pass
        if args[0] is not None:
            self._process.kill()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._errors.close()

    def ready(self) -> None:
        """Wait until it is."""
        message = self._read()
        if not message.pop("ready", False):
            raise RunError(f"bench: the side {self.name} answered before it was asked")
        self.versions, self.facts = message.pop("versions", {}), message

    def round(self) -> Round:
        """One round, from the order to the answer."""
        self.ask()
        return self.hear()

    def ask(self) -> None:
        """Order a round without waiting for it."""
        try:
            self._process.stdin.write("go\n")
            self._process.stdin.flush()
        except OSError:
            self._died()

    def hear(self) -> Round:
        """The answer to the order."""
        answer = self._read()
        return Round(
            answer["seconds"], answer["cpu"], answer["waited_cpu"], answer["peak_mb"], answer.get("device_peak_mb"),
            answer["result"],
        )  # fmt: skip

    def _read(self) -> dict[str, Any]:
        line = self._process.stdout.readline()
        if not line:
            self._died()
        try:
            return json.loads(line)
        except ValueError:
            raise RunError(f"bench: the side {self.name} said {line[:200]!r}") from None

    def _died(self) -> None:
        code = self._process.wait()
        self._errors.seek(0)
        tail = self._errors.read().decode(errors="replace").strip()[-1500:]
        raise RunError(f"bench: the side {self.name} ended with code {code}; its last words:\n{tail}")


def our_side(folder: Path, threads: int, name: str = "ours") -> Side:
    """Our page in a process of its own."""
    return Side(name, [sys.executable, "-m", "trueline.benchmarks.ours", str(folder)], _threads(threads))


def peer_side(kind: str, folder: Path, threads: int, environment: Any) -> Side:
    """The peer's trainer, or its `generate`, in its own environment."""
    script = {"ppo": "trl_ppo.py", "rollout": "hf_generate.py"}.get(kind, "trl_trainer.py")
    # nothing of our own environment may leak in, and nothing is to be fetched
    variables = _threads(threads) | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    variables["PYTHONPATH"] = str(environment.ppo) if kind == "ppo" else ""
    return Side("peer", [str(environment.python), str(_PEERS / script), str(folder)], variables)


def _threads(count: int) -> dict[str, str]:
    return {name: str(count) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}


def rounds_in_turn(sides: Sequence[Side], count: int, step: Any = lambda: None) -> list[list[Round]]:
    """`count` rounds of each side after one that warms it up, A B A B, all processes alive; [side][round], the first
    one being the warm-up."""
    found: list[list[Round]] = [[] for _ in sides]
    for _ in range(count + 1):
        for at, side in enumerate(sides):
            found[at].append(side.round())
            step()
    return found
