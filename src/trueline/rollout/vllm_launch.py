"""A vLLM server of our own: started in its own environment and process group, waited for, and ended with us."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from trueline.errors import InputError, RunError

__all__ = ["LEAST_CONTEXT", "RECEIVER", "RECEIVER_FOLDER", "served"]

RECEIVER, RECEIVER_FOLDER = "trueline_receiver.Receiver", Path(__file__).parent / "inside"
"""`--worker-extension-cls` of a server that takes weights over a group, and what must be on its PYTHONPATH."""

LEAST_CONTEXT = 32
"""Tokens that a server must be able to read, however short prompts and responses are: the rows of a proof."""

_START_SECONDS = 900.0
"""Large models are read, compiled and captured before a server answers."""
_END_SECONDS = 10.0


@contextmanager
def served(
    command: str,
    folder: Path,
    log: Path,
    options: Sequence[str] = (),
    *,
    takes_group: bool = False,
    patience: float = _START_SECONDS,
) -> Iterator[str]:
    """The address of a server of the model in `folder`, on 127.0.0.1 and a free port; what it says is in `log`.

    `takes_group`: its workers can take weights over a process group.
    Raises InputError where the command cannot be run, RunError where the server ends or does not answer in time. The
    server is gone when the block is left, and when this process is killed.
    """
    port = _free_port()
    arguments = [
        command, "serve", str(folder), "--host", "127.0.0.1", "--port", str(port), "--served-model-name", "policy",
        "--logprobs-mode", "processed_logprobs", "--generation-config", "vllm", *options,
    ]  # fmt: skip
    environment = {**os.environ, "VLLM_SERVER_DEV_MODE": "1", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
    for ours in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):  # torchrun's, for this run alone
        environment.pop(ours, None)
    if takes_group:
        arguments += ["--worker-extension-cls", RECEIVER]
        paths = [str(RECEIVER_FOLDER), *filter(None, [environment.get("PYTHONPATH")])]
        environment["PYTHONPATH"] = os.pathsep.join(paths)
    with log.open("ab") as words:
        try:
            process = subprocess.Popen(
                arguments, env=environment, stdin=subprocess.DEVNULL, stdout=words, stderr=words,
                start_new_session=True, preexec_fn=_end_with(os.getpid()),
            )  # fmt: skip
        except OSError as error:
            raise InputError(
                f"{command!r} cannot be run ({error.strerror})", where="settings", field="rollout.command",
                remedy="give the path of the vllm command in its environment's bin folder",
            ) from None  # fmt: skip
    try:
        _wait(process, port, log, patience)
        yield f"http://127.0.0.1:{port}"
    finally:
        _end(process)


def _wait(process: subprocess.Popen, port: int, log: Path, patience: float) -> None:
    until = time.monotonic() + patience
    while time.monotonic() < until:
        if process.poll() is not None:
            raise RunError(f"vLLM ended with {process.returncode} before it answered: {_last_words(log)}")
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        with closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
            connection.request("GET", "/health")
            if connection.getresponse().status == 200:
                return
        time.sleep(0.5)
    raise RunError(f"vLLM did not answer within {patience:g} s: {_last_words(log)}")


def _last_words(log: Path) -> str:
    """The last line that names an error, else the last line."""
    lines = [line.strip() for line in log.read_text("utf-8", errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if "Error" in line and "leaked" not in line]
    return f"{((errors or lines or ['(no words)'])[-1])[-300:]} (all of it: {log})"


def _end(process: subprocess.Popen) -> None:
    """Ask, then kill; its workers are in its process group."""
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_END_SECONDS)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _end_with(parent: int) -> Callable[[], None] | None:
    if not sys.platform.startswith("linux"):
        return None
    import ctypes

    library, set_death_signal = ctypes.CDLL(None), 1

    def before() -> None:
        library.prctl(set_death_signal, signal.SIGTERM)
        if os.getppid() != parent:
            os._exit(1)

    return before


def _free_port() -> int:
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
