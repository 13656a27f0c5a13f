"""What a vLLM server is asked for: samples, log-probs, scores, and to take other weights. Nothing of vLLM is imported.

The server runs in an environment and a process of its own. Its control routes (VLLM_SERVER_DEV_MODE=1) need no key and
do as they are told: it must listen where only its users can reach it.
"""

from __future__ import annotations

import http.client
import json
import math
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from trueline.errors import InputError, RunError

__all__ = ["KEY", "OLDEST", "Drawn", "VllmServer"]

KEY = "TRUELINE_VLLM_KEY"
"""The environment variable that holds the server's key, where it asks for one."""
OLDEST = (0, 19)
"""The oldest version of vLLM with every route that is used here."""

_PASSING = {408, 425, 429}  # and all of 5xx: the same request may succeed later
_FAILURES = (OSError, http.client.HTTPException)
_LARGEST = 1 << 28
_ATTEMPTS, _FIRST_WAIT = 6, 0.25
"""Waits of 1/4 to 4 seconds, 8 in all: a server that is being started anew takes longer, and ends the run."""
_CONTROL = "/collective_rpc"
_NEVER = -100.0  # the least bias that the protocol knows: a probability times 4e-44

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Drawn:
    """One sample: its tokens (the end token is one), the log-prob of each, and whether it ended by itself."""

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    ended: bool


class VllmServer:
    """A client of one server. `url` is its address ("http://127.0.0.1:8000"); an answer has `timeout` seconds in all.

    What may pass (a lost connection, 429, 5xx to a sample) is tried again for some seconds. Raises RunError where the
    server is late, gone, or answers by half or wrongly: such an answer is never a sample. Raises InputError where it is
    not a server that can be used, or refuses a request.
    """

    def __init__(self, url: str, *, timeout: float = 600.0, connections: int = 64) -> None:
        parts = urlsplit(url if "//" in url else f"http://{url}")
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None:
            raise InputError(
                f"{url!r} is no address of a server", where="settings", field="rollout.url",
                remedy="for example http://127.0.0.1:8000",
            )  # fmt: skip
        self.name = f"{parts.scheme}://{parts.netloc}"
        self._secure, self._host, self._port = parts.scheme == "https", parts.hostname, parts.port
        self._timeout, self._connections = timeout, connections
        self._idle: deque[http.client.HTTPConnection] = deque()  # its ends are safe among threads
        weakref.finalize(self, _close, self._idle)  # at the latest when nobody holds the client
        self.model = ""

    def close(self) -> None:
        """Close what is open to the server; the next request opens it again."""
        _close(self._idle)

    # what it is

    def check(self, *, sampling: bool = True) -> str:
        """Make sure that this is a vLLM server of a version that can be used, and how it was started; its version.

        `sampling`: it must say the log-probs of what is sampled from (`--logprobs-mode processed_logprobs`) and take
        other weights (VLLM_SERVER_DEV_MODE=1).
        """
        version = self._get("/version", lambda answer: str(answer["version"]))
        if _numbers(version) < OLDEST:
            raise InputError(
                f"vLLM {version}, needed is {OLDEST[0]}.{OLDEST[1]} or newer", where=self.name, field="rollout.url",
                remedy="install a newer vLLM in the server's environment",
            )  # fmt: skip
        self.model = self._get("/v1/models", lambda answer: str(answer["data"][0]["id"]))
        if not sampling:
            return version
        # A token that is the only one allowed has probability 1 in what is sampled from, and less in the raw logits.
        (only,) = self._ask_all(
            [self._body([0], 0, 1, {"allowed_token_ids": [1], "temperature": 1.0})], "/v1/completions", _drawn
        )
        if abs(only.logprobs[0]) > 1e-4:
            raise InputError(
                "the log-probs are not of what is sampled from", where=self.name, field="rollout.url",
                remedy="start the server with --logprobs-mode processed_logprobs",
            )  # fmt: skip
        try:
            self._post("/reset_prefix_cache", None)
        except InputError:
            raise InputError(
                "the server takes no other weights", where=self.name, field="rollout.url",
                remedy="start it with VLLM_SERVER_DEV_MODE=1 in its environment, on 127.0.0.1",
            ) from None  # fmt: skip
        return version

    # what it computes

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
        *,
        limit: int,
        end_ids: Sequence[int],
        forbidden: Sequence[int] = (),
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
    ) -> list[Drawn]:
        """One response to each prompt, by its own seed, of at most `limit` tokens; temperature 0 is greedy."""
        settings = {
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "stop_token_ids": list(end_ids),
            "logit_bias": {str(token): _NEVER for token in forbidden},
        }
        bodies = [self._body(prompt, seed, limit, settings) for prompt, seed in zip(prompts, seeds, strict=True)]

        def read(answer: Any) -> Drawn:
            drawn = _drawn(answer)
            _require(0 < len(drawn.tokens) <= limit, f"{len(drawn.tokens)} tokens where {limit} were allowed")
            ends = drawn.tokens[-1] in end_ids
            _require(drawn.ended or len(drawn.tokens) == limit, "a response that was cut off before its limit")
            _require(not drawn.ended or ends, "a response that ended without an end token")
            return Drawn(drawn.tokens, drawn.logprobs, ends)

        return self._ask_all(bodies, "/v1/completions", read)

    def score(self, rows: Sequence[Sequence[int]]) -> list[list[float]]:
        """The log-prob of every token but the first of each row, by the plain softmax of its logits."""
        bodies = [self._body(row, 0, 1, {"temperature": 0.0, "prompt_logprobs": 0}) for row in rows]
        return self._ask_all(bodies, "/v1/completions", _prompt_logprobs)

    def rewards(self, rows: Sequence[Sequence[int]]) -> list[float]:
        """The raw score of each row, of a server of a reward model (`--runner pooling`)."""
        bodies = [
            {"model": self.model, "input": list(row), "use_activation": False, "task": "classify"} for row in rows
        ]
        return self._ask_all(bodies, "/pooling", _reward)

    # what it is made to do

    def load(self, folder: Path) -> None:
        """Take the weights of a Hugging Face folder, which the server must see under the same name.

        RunError where it cannot: another architecture, another vocabulary, a folder that it does not see.
        """
        call = {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}, "timeout": self._timeout}
        try:
            self._post(_CONTROL, call)
        except RunError as error:
            raise RunError(f"{error} (is it a server of this model, and does it see {folder.parent}?)") from None
        self.forget()

    def forget(self) -> None:
        """Drop the cached prefixes: they are of the weights before."""
        self._post("/reset_prefix_cache", None)

    def workers(self, method: str, arguments: Mapping[str, Any], read: Callable[[Any], Answer] = lambda a: a) -> list:
        """What every worker of the server answers to one of its methods, in no order."""
        call = {"method": method, "kwargs": dict(arguments), "timeout": self._timeout}

        def answers(answer: Any) -> list[Answer]:
            return [read(one) for one in answer["results"]]

        return self._exchange("POST", _CONTROL, call, answers, threading.Event())

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        return self._host, self._port or (443 if self._secure else 80)

    def sleep(self) -> None:
        """Give the accelerator's memory back: weights to the host, the cache dropped."""
        self._post("/sleep?level=1", None)

    def wake(self) -> None:
        """Take it again."""
        self._post("/wake_up", None)

    # how it is asked

    def _body(self, row: Sequence[int], seed: int, limit: int, settings: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "model": self.model,
            "prompt": list(row),
            "max_tokens": limit,
            "seed": seed,
            "logprobs": 0,
            "return_token_ids": True,
            "skip_special_tokens": False,
            **settings,
        }

    def _ask_all(self, bodies: Sequence[dict], path: str, read: Callable[[Any], Answer]) -> list[Answer]:
        """An answer to each, many at a time; the first failure stops what has not begun."""
        stop = threading.Event()

        def one(body: dict) -> Answer:
            if stop.is_set():
                raise RunError(f"{self.name}: stopped before it was asked")
            try:
                return self._exchange("POST", path, body, read, stop)
            except Exception:
                stop.set()
                raise

        with ThreadPoolExecutor(max(1, min(self._connections, len(bodies)))) as pool:
            futures = [pool.submit(one, body) for body in bodies]
            failures = [f.exception() for f in futures if f.exception() is not None]
        if failures:
            raise next((f for f in failures if "stopped before" not in str(f)), failures[0])
        return [future.result() for future in futures]

    def _get(self, path: str, read: Callable[[Any], Answer]) -> Answer:
        return self._exchange("GET", path, None, read, threading.Event())

    def _post(self, path: str, body: dict | None) -> None:
        self._exchange("POST", path, body, lambda answer: None, threading.Event())

    def _exchange(
        self, method: str, path: str, body: dict | None, read: Callable[[Any], Answer], stop: threading.Event
    ) -> Answer:
        until, problem = time.monotonic() + self._timeout, ""
        for attempt in range(_ATTEMPTS):
            if attempt and stop.wait(_FIRST_WAIT * 2 ** (attempt - 1)):
                break
            try:
                status, raw = self._once(method, path, body, until)
            except TimeoutError:
                problem = f"no answer within {self._timeout:g} s"
                break
            except _FAILURES as error:
                problem = str(error) or type(error).__name__
                continue
            if status == 200:
                return self._read(path, raw, read)
            problem = f"HTTP {status} {raw[:300].decode('utf-8', 'replace')}"
            if status not in _PASSING and status < 500:
                raise self._refused(path, status, problem)
            if path == _CONTROL:
                break
        raise RunError(
            f"{self.name}{path}: {problem}; look at the server's own words, then run the same command again: it goes "
            "on from the last checkpoint"
        )

    def _once(self, method: str, path: str, body: dict | None, until: float) -> tuple[int, bytes]:
        """Status and body of one attempt. A connection is used again; one that the server closed meanwhile is not."""
        connection, fresh = self._taken(max(0.05, until - time.monotonic()))
        payload = None if body is None else json.dumps(body)
        try:
            connection.request(method, path, payload, self._headers())
            answer = connection.getresponse()
            raw = answer.read(_LARGEST)
        except BaseException as error:
            connection.close()
            if isinstance(error, _FAILURES) and not isinstance(error, TimeoutError) and not fresh:
                return self._once(method, path, body, until)
            raise
        self._idle.append(connection)
        return answer.status, raw

    def _taken(self, timeout: float) -> tuple[http.client.HTTPConnection, bool]:
        """A connection that nobody uses, and whether it is new."""
        while self._idle:
            connection = self._idle.pop()
            if connection.sock is not None:
                connection.sock.settimeout(timeout)
                return connection, False
        kind = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
        return kind(self._host, self._port, timeout=timeout), True

    def _headers(self) -> dict[str, str]:
        key = os.environ.get(KEY, "").strip()
        if key and not all("!" <= c <= "~" for c in key):
            raise InputError("holds no key: blanks or letters that no header can carry", field=KEY)
        return {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})

    def _read(self, path: str, raw: bytes, read: Callable[[Any], Answer]) -> Answer:
        try:
            return read(json.loads(raw) if raw.strip() else None)
        except (ValueError, LookupError, TypeError, _Wrong) as error:
            shown = raw[:200].decode("utf-8", "replace")
            raise RunError(f"{self.name}{path}: a wrong answer ({error}): {shown!r}; nothing was used of it") from None

    def _refused(self, path: str, status: int, problem: str) -> InputError:
        remedy = "start the server as docs/vllm.md says"
        if status in (401, 403):
            remedy = f"set the environment variable {KEY} to the server's key"
        return InputError(f"{path}: {problem}", where=self.name, field="rollout.url", remedy=remedy)


def _close(connections: deque[http.client.HTTPConnection]) -> None:
    while connections:
        connections.pop().close()


class _Wrong(Exception):
    """An answer that cannot be one."""


def _require(held: bool, otherwise: str) -> None:
    if not held:
        raise _Wrong(otherwise)


def _drawn(answer: Any) -> Drawn:
    (choice,) = answer["choices"]
    tokens = tuple(choice["token_ids"])
    logprobs = tuple(map(float, choice["logprobs"]["token_logprobs"]))
    _require(all(isinstance(token, int) and token >= 0 for token in tokens), "tokens that are no ids")
    _require(len(tokens) == len(logprobs), f"{len(logprobs)} log-probs of {len(tokens)} tokens")
    _require(all(math.isfinite(value) and value <= 1e-3 for value in logprobs), "log-probs that are none")
    _require(choice["finish_reason"] in ("stop", "length"), f"finish_reason {choice['finish_reason']!r}")
    return Drawn(tokens, logprobs, choice["finish_reason"] == "stop")


def _prompt_logprobs(answer: Any) -> list[float]:
    (choice,) = answer["choices"]
    first, *rest = choice["prompt_logprobs"]
    _require(first is None, "a log-prob of the first token")
    asked = len(choice["prompt_token_ids"])
    _require(len(rest) == asked - 1, f"{len(rest)} log-probs of {asked} tokens")
    values = [float(next(iter(entry.values()))["logprob"]) for entry in rest]
    _require(all(map(math.isfinite, values)), "log-probs that are not finite")
    return values


def _reward(answer: Any) -> float:
    (row,) = answer["data"]
    values = row["data"] if isinstance(row["data"], list) else [row["data"]]
    _require(len(values) == 1, f"{len(values)} scores of one row")
    value = float(values[0])
    _require(math.isfinite(value), "a score that is not finite")
    return value


def _numbers(version: str) -> tuple[int, int]:
    parts = version.split("+")[0].split(".")
    try:
        return int(parts[0]), int(parts[1])
    except (ValueError, IndexError):
        return (0, 0)
