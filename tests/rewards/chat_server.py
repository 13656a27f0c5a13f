"""A real HTTP server with /v1/chat/completions, whose answers a rule decides."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

__all__ = ["ChatServer", "longer", "shown"]


class ChatServer:
    """`rule(request, number)` gives a reply's text, or (status, body) or (status, body, headers)."""

    def __init__(self, rule: Callable[[dict, int], str | tuple]) -> None:
        self.requests: list[dict] = []
        self.authorizations: list[str | None] = []
        self.paths: list[str] = []
        self.at_once = self.most_at_once = 0
        lock, outer = threading.Lock(), self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    number = len(outer.requests)
                    outer.requests.append(request)
                    outer.authorizations.append(self.headers.get("Authorization"))
                    outer.paths.append(self.path)
                    outer.at_once += 1
                    outer.most_at_once = max(outer.most_at_once, outer.at_once)
                answer = rule(request, number)
                with lock:
                    outer.at_once -= 1
                if isinstance(answer, str):
                    body = json.dumps({"choices": [{"message": {"role": "assistant", "content": answer}}]})
                    answer = (200, body)
                status, body, headers = (*answer, {})[:3]
                data = body.encode()
                try:
                    self.send_response(status)
                    for name, value in ({"Content-Length": str(len(data))} | headers).items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(data)
                except (BrokenPipeError, ConnectionResetError):
                    pass  # a client that timed out is gone

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)

    def __enter__(self) -> ChatServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def shown(request: dict) -> tuple[str, str, str]:
    """Conversation and the answers A and B as a reader who trusts only the announced mark finds them."""
    rules, content = (message["content"] for message in request["messages"])
    fence = re.search(r'begin with "(.+?)"', rules).group(1)
    names = ("conversation", "answer A", "answer B")
    parts = [re.findall(f"{re.escape(f'{fence} {n} begins')}\n(.*?)\n{re.escape(f'{fence} {n} ends')}", content, re.S)
             for n in names]  # fmt: skip
    assert [len(part) for part in parts] == [1, 1, 1], "each part stands once between its marks"
    assert content.count(fence) == 6
    return tuple(part[0] for part in parts)


def longer(request: dict, _: int) -> str:
    """The longer answer wins."""
    _, a, b = shown(request)
    return "I counted.\n" + ("TIE" if len(a) == len(b) else "A" if len(a) > len(b) else "B")
