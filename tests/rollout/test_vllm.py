"""The engine that samples at a server: what it hands over, proves and refuses, over HTTP."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from trueline.errors import InputError, NumericsError, RunError
from trueline.models.scoring import Sampling, response_logprobs
from trueline.rollout.native import NativeEngine
from trueline.rollout.vllm import VllmEngine, _seed
from trueline.rollout.vllm_client import KEY, VllmServer
from trueline.rollout.vllm_launch import served

from .protocol import ProtocolServer
from .test_native import END, FORBIDDEN, LIMIT, PAD, PROMPTS, draws, policy

SAMPLING = Sampling(forbidden=FORBIDDEN)


@contextmanager
def _engine(server: ProtocolServer, timeout: float = 20.0, **more) -> Iterator[VllmEngine]:
    client = VllmServer(server.url, timeout=timeout)
    client.check()
    with VllmEngine(client, pad_id=PAD, end_id=END, **more) as engine:
        yield engine


def _sample(engine: VllmEngine, prompts=PROMPTS, table=None, **more):
    table = draws(prompts) if table is None else table
    return engine.generate(prompts, table, max_new_tokens=LIMIT, sampling=SAMPLING, **more)


def test_a_rollout_is_what_the_server_drew() -> None:
    model = policy()
    with ProtocolServer(policy(end_bias=1.0)) as server, _engine(server) as engine:
        engine.load_weights(model, 3)
        many = PROMPTS * 6
        rollout = _sample(engine, many)
        assert (len(rollout), rollout.version) == (48, 3)
        assert 0 < int(rollout.ended.sum()) < 48
        with torch.no_grad():
            own, _ = response_logprobs(model, rollout.tokens, rollout.response_mask, SAMPLING)
        assert float((own - rollout.logprobs).abs().max()) < 1e-5
        assert not FORBIDDEN[rollout.tokens[rollout.response_mask]].any()
        for row, prompt in enumerate(many):
            assert rollout.tokens[row, : len(prompt)].tolist() == prompt
            last = rollout.tokens[row, int(rollout.lengths[row]) - 1]
            assert bool(rollout.ended[row]) == (int(last) == END)
            assert (rollout.tokens[row, int(rollout.lengths[row]) :] == PAD).all()


def test_a_sample_hangs_on_its_own_draw_alone() -> None:
    with ProtocolServer(policy()) as server, _engine(server) as engine:
        engine.load_weights(policy(), 1)
        table = draws(PROMPTS)
        together = _sample(engine).responses()
        backwards = _sample(engine, PROMPTS[::-1], table[::-1]).responses()[::-1]
        alone = [_sample(engine, [prompt], table[i : i + 1]).responses()[0] for i, prompt in enumerate(PROMPTS)]
        assert together == backwards == alone
        assert together[0] != together[3] or _seed(table[0]) == _seed(table[3])  # equal prompts, other draws


def test_greedy_is_the_native_engines() -> None:
    model = policy()
    native = NativeEngine(pad_id=PAD, end_id=END)
    native.load_weights(model, 0)
    with ProtocolServer(policy(end_bias=1.0)) as server, _engine(server) as engine:
        engine.load_weights(model, 1)
        served_rows = engine.generate(PROMPTS, None, max_new_tokens=LIMIT, sampling=SAMPLING).responses()
    assert served_rows == native.generate(PROMPTS, None, max_new_tokens=LIMIT, sampling=SAMPLING).responses()


def test_every_hand_over_is_proved_and_leaves_no_file() -> None:
    with ProtocolServer(policy()) as server, _engine(server) as engine:
        folder = engine._folder
        engine.load_weights(policy(), 1)
        assert engine.proof.moved == 0 and engine.proof.largest < 1e-5
        engine.load_weights(policy(end_bias=1.0), 2)
        assert engine.proof.version == 2 and engine.proof.moved > 0.01 and engine.proof.nearer
        assert list(folder.iterdir()) == []
        assert server.paths.count("/collective_rpc") == 2 == server.paths.count("/reset_prefix_cache") - 1
    assert not folder.exists()


def test_a_server_that_keeps_its_weights_is_found_out() -> None:
    with ProtocolServer(policy()) as server, _engine(server) as engine:
        engine.load_weights(policy(), 1)
        server.stale = True
        moved = policy()
        with torch.no_grad():
            for parameter in moved.parameters():
                parameter.add_(0.002 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
        with pytest.raises(NumericsError, match=r"not hold the policy's weights .* nearer to those of the weights"):
            engine.load_weights(moved, 2)
    with ProtocolServer(policy(), stale=True) as server, _engine(server) as engine:
        with pytest.raises(NumericsError, match="is it another model"):
            engine.load_weights(policy("llama"), 1)


def test_log_probs_of_fewer_tokens_than_were_sent_prove_nothing() -> None:
    short = _with(prompt_logprobs=[None, {"5": {"logprob": -1.0}}])
    with ProtocolServer(policy()) as server, _engine(server) as engine:
        server.faults["/v1/completions"] = short
        with pytest.raises(RunError, match=r"1 log-probs of 24 tokens"):
            engine.load_weights(policy(), 1)


def test_a_server_that_sleeps_is_woken_before_it_works() -> None:
    with ProtocolServer(policy()) as server, _engine(server, sleeps=True) as engine:
        engine.load_weights(policy(), 1)
        _sample(engine)
        _sample(engine)
        engine.load_weights(policy(), 2)
        control = [path for path in server.paths if path in ("/sleep", "/wake_up", "/collective_rpc")]
        assert control == ["/collective_rpc", "/sleep", "/wake_up", "/sleep", "/wake_up", "/collective_rpc"]


def _without(*keys: str):
    def broken(answer: dict) -> dict:
        choice = {k: v for k, v in answer["choices"][0].items() if k not in keys}
        return {"choices": [choice]}

    return broken


def _with(**changes):
    return lambda answer: {"choices": [answer["choices"][0] | changes]}


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("late", r"no answer within 1 s"),
        ("half", r"/v1/completions: .*(IncompleteRead|wrong answer)"),
        ("gone", r"(Remote end closed|reset)"),
        (500, r"HTTP 500"),
        (_without("token_ids"), r"a wrong answer \('token_ids'\).*nothing was used of it"),
        (_without("logprobs"), r"a wrong answer \('logprobs'\)"),
        (_with(token_ids=[7], logprobs={"token_logprobs": [-1.0, -2.0]}), r"2 log-probs of 1 tokens"),
        (_with(token_ids=[7], logprobs={"token_logprobs": [float("nan")]}), r"log-probs that are none"),
        (_with(token_ids=[7], logprobs={"token_logprobs": [0.5]}), r"log-probs that are none"),
        (_with(token_ids=[], logprobs={"token_logprobs": []}), r"0 tokens where 14 were allowed"),
        (_with(token_ids=[7] * 15, logprobs={"token_logprobs": [-1.0] * 15}), r"15 tokens where 14"),
        (_with(token_ids=[7], logprobs={"token_logprobs": [-1.0]}, finish_reason="length"), r"cut off before its"),
        (_with(token_ids=[7], logprobs={"token_logprobs": [-1.0]}, finish_reason="stop"), r"without an end token"),
        (_with(token_ids=[7], logprobs={"token_logprobs": [-1.0]}, finish_reason="abort"), r"finish_reason 'abort'"),
        (_with(token_ids=["x"], logprobs={"token_logprobs": [-1.0]}), r"tokens that are no ids"),
        (lambda answer: {"choices": []}, r"a wrong answer"),
        (lambda answer: None, r"a wrong answer"),
    ],
)  # fmt: skip
def test_an_answer_that_is_late_half_or_wrong_is_never_a_sample(fault, message, monkeypatch) -> None:
    monkeypatch.setattr("trueline.rollout.vllm_client._FIRST_WAIT", 0.01)
    with ProtocolServer(policy()) as server, _engine(server, timeout=1.0 if fault == "late" else 20.0) as engine:
        engine.load_weights(policy(), 1)
        server.faults["/v1/completions"] = fault
        began = time.monotonic()
        with pytest.raises(RunError, match=message):
            _sample(engine)
        assert time.monotonic() - began < 10


@pytest.mark.parametrize("fault", [500, 503, 429, "gone"])
def test_what_passes_is_asked_again_and_changes_nothing(fault, monkeypatch) -> None:
    monkeypatch.setattr("trueline.rollout.vllm_client._FIRST_WAIT", 0.01)
    with ProtocolServer(policy()) as server, _engine(server) as engine:
        engine.load_weights(policy(), 1)
        expected = _sample(engine).responses()
        server.once, server.faults = True, {"/v1/completions": fault}
        assert _sample(engine).responses() == expected and not server.faults


def test_a_server_that_is_gone_ends_the_run_in_time(monkeypatch) -> None:
    monkeypatch.setattr("trueline.rollout.vllm_client._FIRST_WAIT", 0.01)
    with ProtocolServer(policy()) as server, _engine(server) as engine:
        engine.load_weights(policy(), 1)
        server._server.shutdown()
        server._server.server_close()
        engine.server.close()
        with pytest.raises(RunError, match=r"refused; .* it goes on from the last checkpoint"):
            _sample(engine)


@pytest.mark.parametrize(
    ("server", "message"),
    [
        ({"version": "0.9.1"}, r"vLLM 0.9.1, needed is 0.19 or newer"),
        ({"version": "dev"}, r"vLLM dev, needed is"),
        ({"raw": True}, r"log-probs are not of what is sampled from.*processed_logprobs"),
        ({"control": False}, r"takes no other weights.*VLLM_SERVER_DEV_MODE=1"),
        ({"faults": {"/version": 404}}, r"HTTP 404"),
        ({"faults": {"/v1/models": 401}}, rf"HTTP 401 .*{KEY}"),
    ],
)
def test_a_server_that_cannot_be_used_is_refused_before_anything_runs(server, message) -> None:
    with ProtocolServer(policy(), **server) as started, closing(VllmServer(started.url, timeout=5)) as client:
        with pytest.raises(InputError, match=message):
            client.check()


def test_a_server_of_another_model_is_named_once() -> None:
    with ProtocolServer(policy(), faults={"/collective_rpc": 500}) as server, _engine(server) as engine:
        with pytest.raises(RunError, match="is it a server of this model, and does it see"):
            engine.load_weights(policy(), 1)
        assert server.paths.count("/collective_rpc") == 1


@pytest.mark.parametrize("url", ["ftp://host", "http://me:secret@host", "", "http://"])
def test_what_is_no_address(url) -> None:
    with pytest.raises(InputError, match="no address of a server"):
        VllmServer(url)


def test_the_key_goes_to_the_server_and_nowhere_else(monkeypatch) -> None:
    monkeypatch.setenv(KEY, "se cret")
    with pytest.raises(InputError, match=f"{KEY}: holds no key") as refusal:
        VllmServer("http://127.0.0.1:1")._headers()
    assert "se cret" not in str(refusal.value)
    monkeypatch.setenv(KEY, "sk-secret")
    assert VllmServer("http://127.0.0.1:1")._headers()["Authorization"] == "Bearer sk-secret"


FAKE = """#!{python}
import http.server, sys, time
if {mode!r} == "dies": print("RuntimeError: no memory for the cache"); sys.exit(3)
if {mode!r} == "hangs": time.sleep(600)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self): self.send_response(200); self.send_header("Content-Length", "0"); self.end_headers()
    def log_message(self, *_): pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Handler).serve_forever()
"""


def _command(folder: Path, mode: str) -> str:
    path = folder / f"vllm-{mode}"
    path.write_text(FAKE.format(python=sys.executable, mode=mode))
    path.chmod(0o755)
    return str(path)


def _alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False


def test_a_server_that_was_started_is_ended(tmp_path) -> None:
    with served(_command(tmp_path, "answers"), tmp_path, tmp_path / "log", patience=20) as url:
        assert url.startswith("http://127.0.0.1:")
        found = subprocess.run(["pgrep", "-f", "vllm-answers"], capture_output=True, text=True).stdout.split()
        assert len(found) == 1
    assert not _alive(int(found[0]))


def test_a_server_dies_with_who_started_it(tmp_path) -> None:
    program = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom trueline.rollout.vllm_launch import served\n"
        f"with served({_command(tmp_path, 'answers')!r}, Path('.'), Path({str(tmp_path / 'log')!r})):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    source = str(Path(__file__).parents[2] / "src")
    done = subprocess.run([sys.executable, "-c", program], env=os.environ | {"PYTHONPATH": source}, timeout=60)
    assert done.returncode == -9
    until = time.monotonic() + 10
    while time.monotonic() < until:
        found = subprocess.run(["pgrep", "-f", str(tmp_path / "vllm-answers")], capture_output=True, text=True).stdout
        if not found.split():
            return
        time.sleep(0.05)
    pytest.fail("the server outlived its run")


@pytest.mark.parametrize(
    ("mode", "message"),
    [("dies", r"ended with 3 before it answered: RuntimeError: no memory"), ("hangs", r"did not answer within 1 s")],
)
def test_a_server_that_does_not_start_says_why(mode, message, tmp_path) -> None:
    with (
        pytest.raises(RunError, match=message),
        served(_command(tmp_path, mode), tmp_path, tmp_path / "log", patience=1.0 if mode == "hangs" else 20),
    ):
        pytest.fail("nothing is served")  # fmt: skip


def test_a_command_that_is_none(tmp_path) -> None:
    with (
        pytest.raises(InputError, match=r"rollout.command: .*cannot be run"),
        served(str(tmp_path / "absent"), tmp_path, tmp_path / "log"),
    ):
        pytest.fail("nothing is served")  # fmt: skip


def test_seeds_are_of_the_uniforms() -> None:
    table = np.random.default_rng(0).random((2000, 5))
    seeds = {_seed(row) for row in table}
    assert len(seeds) == 2000 and all(0 <= seed < 2**63 for seed in seeds)
    assert _seed(table[3]) == _seed(table[3].copy())
