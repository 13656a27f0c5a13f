"""One request to an OpenAI-compatible chat endpoint: the key, the retries, and errors that never show the key."""

from __future__ import annotations

import http.client
import json
import os
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlsplit, urlunsplit

from trueline.errors import InputError, RunError

__all__ = ["ChatClient", "Usage"]

LONGEST_WAIT = 30.0
LARGEST_REPLY = 1 << 22
PASSING = {408, 425, 429}  # and all of 5xx: the same request may succeed later
FAILURES = (OSError, http.client.HTTPException)  # refused, reset, timed out, cut off


class Usage:
    """What was asked for and paid: requests that were answered, tokens as the service counts them, retries.

    `retries_left` is for all requests together: a service that fails often ends the run instead of making it endless.
    """

    def __init__(self, retries: int) -> None:
        self.requests = self.prompt_tokens = self.completion_tokens = self.retries = 0
        self._allowed, self._lock = retries, threading.Lock()

    def book(self, reply: object) -> None:
        """Of one answered request; services that count no tokens count none."""
        usage = reply.get("usage") if isinstance(reply, dict) else None
        counts = [usage.get(k) if isinstance(usage, dict) else 0 for k in ("prompt_tokens", "completion_tokens")]
        with self._lock:
            self.requests += 1
            self.prompt_tokens += counts[0] if isinstance(counts[0], int) else 0
            self.completion_tokens += counts[1] if isinstance(counts[1], int) else 0

    def retry(self) -> bool:
        """Take one retry from the budget; False where none is left."""
        with self._lock:
            if self.retries >= self._allowed:
                return False
            self.retries += 1
            return True

    def as_dict(self) -> dict[str, int]:
        """For records."""
        names = ("requests", "prompt_tokens", "completion_tokens", "retries")
        return {name: getattr(self, name) for name in names}


class ChatClient:
    """Sends chat requests. `name` is the address without query, for errors and cache keys; `usage` is what it cost."""

    def __init__(
        self, url: str, *, key_env: str, timeout: float, attempts: int, backoff: float, retries: int = 1000
    ) -> None:
        self.usage = Usage(retries)
        self._url, self.name = _completions(url)
        self._key_env, self._timeout, self._attempts, self._backoff = key_env, timeout, attempts, backoff
        self._opener = urllib.request.build_opener(_NoRedirect)

    def ask(self, request: dict, key: str, *, accept: Callable[[str], bool], stop: threading.Event) -> str:
        """The text of the first reply that `accept` takes.

        What may pass (429, 5xx, timeouts, replies that are not accepted) is tried again after backoff * 2^n seconds
        (or what Retry-After says), times a jitter in [0.5, 1.5) that the request's `key`, in hexadecimal, decides.
        Raises `RunError` after the last attempt or once `stop` is set, `InputError` where the request is refused.
        """
        body = json.dumps(request).encode()
        outcome = _Outcome(problem="stopped before it was asked")
        for attempt in range(self._attempts):
            if attempt and not self.usage.retry():
                raise RunError(f"{self.name}: {outcome.problem}; the retries of the whole run are used up")
            if stop.wait(self._pause(attempt, key, outcome)) if attempt else stop.is_set():
                break
            outcome = self._once(body)
            if outcome.text is not None and accept(outcome.text):
                return outcome.text
            if outcome.text is not None:
                outcome = _Outcome(problem=f"no verdict in the reply {self._shown(outcome.text)}")
        raise RunError(f"{self.name}: {outcome.problem} ({self._attempts} attempts); nothing was scored")

    def _once(self, body: bytes) -> _Outcome:
        request = urllib.request.Request(self._url, body, self._headers(), method="POST")
        try:
            with self._opener.open(request, timeout=self._timeout) as answer:
                raw = answer.read(LARGEST_REPLY)
        except urllib.error.HTTPError as error:
            return self._refused(error)
        except FAILURES as error:
            return _Outcome(problem=self._redacted(str(getattr(error, "reason", error)) or type(error).__name__))
        try:
            reply = json.loads(raw)
            self.usage.book(reply)
            text = reply["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError):
            text = None
        if isinstance(text, str):
            return _Outcome(text=text)
        return _Outcome(problem=f"no message in the reply {self._shown(raw.decode('utf-8', 'replace'))}")

    def _refused(self, error: urllib.error.HTTPError) -> _Outcome:
        with error:
            said = self._shown(error.read(LARGEST_REPLY).decode("utf-8", "replace"))
        if error.code in PASSING or error.code >= 500:
            return _Outcome(problem=f"HTTP {error.code} {said}", retry_after=_seconds(error.headers.get("Retry-After")))
        if error.code in (401, 403):
            remedy = f"set the environment variable {self._key_env} to a key of this service"
            raise InputError(f"the key is refused (HTTP {error.code})", where=self.name, remedy=remedy) from None
        remedy = "check the address and the model's name"
        raise InputError(f"HTTP {error.code} {said}", where=self.name, remedy=remedy) from None

    def _headers(self) -> dict[str, str]:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        key = os.environ.get(self._key_env, "").strip()
        if key and not all("!" <= c <= "~" for c in key):  # http.client would show it in its own error
            raise InputError("holds no key: blanks or letters that no header can carry", field=self._key_env)
        return headers | ({"Authorization": f"Bearer {key}"} if key else {})

    def _pause(self, attempt: int, key: str, outcome: _Outcome) -> float:
        jitter = 0.5 + int(key[8 * (attempt % 8) :][:8], 16) / 2**32
        return min(LONGEST_WAIT, max(self._backoff * 2 ** (attempt - 1) * jitter, outcome.retry_after))

    def _shown(self, text: str) -> str:
        """The end of a reply, where its verdict should be, without the key should a server echo it."""
        text = self._redacted(text)
        return repr(text if len(text) <= 200 else "..." + text[-200:])

    def _redacted(self, text: str) -> str:
        key = os.environ.get(self._key_env, "").strip()
        return text.replace(key, "[key]") if key else text


@dataclass(frozen=True)
class _Outcome:
    """Of one attempt: a text, or what went wrong and the least wait before the next."""

    text: str | None = None
    problem: str = ""
    retry_after: float = 0.0


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the key to another host."""

    def redirect_request(self, *_: object) -> None:
        return None


def _completions(url: str) -> tuple[str, str]:
    """The address of chat completions, and the same without query; `url` may be a host, its /v1 or the whole path."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InputError("not an http(s) address", field="url", remedy="for example http://localhost:8000/v1")
    if parts.username is not None:
        raise InputError("the address holds a user name", field="url", remedy="give the key in the environment")
    path = parts.path.rstrip("/")
    if not path.endswith("/chat/completions"):
        path = (path or "/v1") + "/chat/completions"
    return urlunsplit((parts.scheme, parts.netloc, path, parts.query, "")), urlunsplit((*parts[:2], path, "", ""))


def _seconds(text: str | None) -> float:
    """Retry-After in seconds; its other form, a date, is left to the backoff."""
    return float(text) if text and text.strip().isdecimal() else 0.0
