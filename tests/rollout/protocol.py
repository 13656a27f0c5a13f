"""A server that speaks vLLM's protocol over HTTP with a decoder of ours behind it, and breaks as it is told.

It stands for vLLM where vLLM's faults are wanted; tests/rollout/test_real_vllm.py runs the real one.
"""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trueline.models.checkpoints import _fill, load_decoder
from trueline.models.decoder import Decoder
from trueline.models.heads import last_scores
from trueline.models.scoring import Sampling, response_logprobs
from trueline.rollout.inside.trueline_receiver import Receiver

__all__ = ["ProtocolServer"]


class _Taken:
    """Tensors in memory as those of a folder are read."""

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        self.shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
        self.read = tensors.__getitem__


class _Worker(Receiver):
    """A worker with what the receiver asks of vLLM's."""

    rank, device = 0, "cpu"

    def __init__(self, server: ProtocolServer, limit: int | None) -> None:
        self.server, self.limit = server, limit

    def reload_weights(self, *, weights_iterator) -> None:
        taken = {}
        for name, tensor in weights_iterator:
            if self.limit is not None and len(taken) == self.limit:
                raise RuntimeError("no room for more weights")
            taken[name] = tensor
        if not self.server.stale:
            with torch.device("meta"):
                model = Decoder(self.server.model.config)
            _fill(model, _Taken(taken), Path("the group"), torch.float32)
            self.server.model = model


class ProtocolServer:
    """`faults` maps a path to what is done with its answers: a status code, "late", "half", "gone", or a function of
    the answer; `once` makes each fault happen one time. `raw` gives log-probs of the unprocessed distribution, `stale`
    takes no weights, `noise` moves every log-prob of a sample, `scorer` answers /pooling. `ranks` are those that its
    workers name, and `limit` is how many tensors they take before they fail."""

    def __init__(self, model=None, *, version: str = "0.32.0", faults: dict[str, Any] | None = None, once=False,
                 raw=False, stale=False, control=True, noise=0.0, scorer=None, ranks=(0,),
                 limit=None) -> None:  # fmt: skip
        self.model, self.faults, self.once = model, dict(faults or {}), once
        self.raw, self.stale, self.noise, self.scorer = raw, stale, noise, scorer
        self.paths: list[str] = []
        self.bodies: list[dict] = []
        lock, outer = threading.Lock(), self
        self.ranks, self.worker = ranks, _Worker(self, limit)
        routes = {
            "/version": lambda body: {"version": version},
            "/v1/models": lambda body: {"data": [{"id": "policy"}]},
            "/v1/completions": self._complete,
            "/pooling": self._pool,
        }
        if control:
            routes |= {"/collective_rpc": self._reload, "/reset_prefix_cache": lambda body: None}
            routes |= {"/sleep": lambda body: None, "/wake_up": lambda body: None}

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _answer(self) -> None:
                raw_body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                path, body = self.path.split("?")[0], json.loads(raw_body) if raw_body else {}
                with lock:
                    outer.paths.append(path)
                    outer.bodies.append(body)
                    fault = outer.faults.get(path)
                    if outer.once:
                        outer.faults.pop(path, None)
                    try:
                        status, answer = (200, routes[path](body)) if path in routes else (404, {"detail": "Not Found"})
                    except Exception as error:
                        status, answer = 500, {"error": str(error)}
                if isinstance(fault, int):
                    status, answer = fault, {"error": "as it was told"}
                elif fault == "late":
                    time.sleep(1.5)
                elif fault == "gone":
                    self.close_connection = True
                    return
                elif callable(fault):
                    answer = fault(answer)
                data = b"" if answer is None else json.dumps(answer).encode()
                try:
                    self.send_response(status)
                    self.send_header("Content-Length", str(len(data)))
                    self.end_headers()
                    self.wfile.write(data[: len(data) // 2] if fault == "half" else data)
                    self.close_connection = fault == "half"
                except (BrokenPipeError, ConnectionResetError):
                    pass

            do_GET = do_POST = _answer

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)

    def __enter__(self) -> ProtocolServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _reload(self, body: dict) -> dict:
        if body["method"].startswith("trueline_"):
            answer = getattr(self.worker, body["method"])(**body["kwargs"])
            return {"results": [str(rank) for rank in self.ranks] if body["method"] == "trueline_rank" else [answer]}
        assert body["method"] == "reload_weights"
        folder = Path(body["kwargs"]["weights_path"])
        assert folder.is_dir()
        if not self.stale:
            self.model = load_decoder(folder)
        return {"results": [None]}

    @torch.no_grad()
    def _complete(self, body: dict) -> dict:
        row, tokens, values = list(body["prompt"]), [], []
        vocabulary = self.model.config.vocab_size
        bias = torch.zeros(vocabulary)
        for token, value in body.get("logit_bias", {}).items():
            bias[int(token)] = value
        if "allowed_token_ids" in body:
            bias += -torch.inf
            bias[body["allowed_token_ids"]] = 0.0
        draws, ended = np.random.default_rng(body["seed"]), False
        for _ in range(body["max_tokens"]):
            plain = self.model(torch.tensor([row + tokens]))[0, -1].log_softmax(-1)
            shown = (plain + bias).log_softmax(-1)
            if body["temperature"] == 0:
                token = int(shown.argmax())
            else:
                probabilities = shown.double().exp().numpy()
                token = int(draws.choice(vocabulary, p=probabilities / probabilities.sum()))
            tokens.append(token)
            moved = 0.0 if "allowed_token_ids" in body else self.noise
            values.append(float((plain if self.raw else shown)[token]) - moved)
            ended = token in body.get("stop_token_ids", ())
            if ended:
                break
        choice = {"token_ids": tokens, "logprobs": {"token_logprobs": values}}
        choice["finish_reason"] = "stop" if ended else "length"
        if body.get("prompt_logprobs") is not None:
            ids = torch.tensor([row])
            mask = torch.ones_like(ids, dtype=torch.bool)
            mask[:, 0] = False
            scored = response_logprobs(self.model, ids, mask, Sampling())[0][0, 1:].tolist()
            choice["prompt_token_ids"] = row
            choice["prompt_logprobs"] = [None, *({str(t): {"logprob": v}} for t, v in zip(row[1:], scored))]
        return {"choices": [choice]}

    def _pool(self, body: dict) -> dict:
        with torch.no_grad():
            row = torch.tensor([body["input"]])
            score = float(last_scores(self.scorer, row, torch.tensor([row.shape[1]])))
        return {"data": [{"data": [score]}]}
