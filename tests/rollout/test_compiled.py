"""The compiled sampler against the engine's plain loop: the same draws, log-probs up to rounding."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from trueline.errors import NumericsError
from trueline.models import kernels
from trueline.models.decoder import Decoder, DecoderConfig
from trueline.models.scoring import Sampling, response_logprobs
from trueline.models.tiny import make_decoder
from trueline.rollout import native
from trueline.rollout.compiled import can_generate
from trueline.rollout.native import NativeEngine
from trueline.seeds import uniforms

pytestmark = pytest.mark.skipif(kernels.library() is None, reason="no C compiler: the plain loop is all there is")
SAMPLING = Sampling(forbidden=torch.arange(41) < 1)


def _model(family: str = "llama", kv_heads: int = 2, **changes) -> Decoder:
    shape = {"vocab_size": 41, "hidden_size": 32, "intermediate_size": 40, "num_layers": 2, "head_dim": 8}
    made = make_decoder(
        DecoderConfig(**shape | changes, num_heads=4, num_kv_heads=kv_heads, max_positions=128, family=family), 1
    )
    with torch.no_grad():
        made.head.weight.mul_(20)  # a distribution with likely and unlikely tokens
        for block in made.trunk.blocks:
            if block.attention.qkv.bias is not None:
                block.attention.qkv.bias.normal_(0, 0.5, generator=torch.Generator().manual_seed(0))
    return made


def _prompts(count: int) -> list[list[int]]:
    draw = np.random.default_rng(0)
    return [draw.integers(2, 41, draw.integers(1, 60)).tolist() for _ in range(count)]


def _both(policy, prompts, draws, limit, monkeypatch, ends=(1,)):
    engine = NativeEngine(pad_id=0, end_id=ends)
    engine.load_weights(policy, 4)
    assert can_generate(policy, SAMPLING)
    compiled = engine.generate(prompts, draws, max_new_tokens=limit, sampling=SAMPLING)
    monkeypatch.setattr(native, "can_generate", lambda *_: False)
    plain = engine.generate(prompts, draws, max_new_tokens=limit, sampling=SAMPLING)
    monkeypatch.undo()
    return compiled, plain


@pytest.mark.parametrize("greedy", [False, True])
@pytest.mark.parametrize(("family", "kv_heads"), [("llama", 2), ("llama", 4), ("qwen2", 1)])
def test_the_same_tokens_and_logprobs_as_the_plain_loop(family, kv_heads, greedy, monkeypatch) -> None:
    """150 rows on 32 places a thread: places are freed and filled again; a third of the prompts is asked four times."""
    prompts = [prompt for n, prompt in enumerate(_prompts(75)) for _ in range(4 if n % 3 == 0 else 1)]
    draws = None if greedy else uniforms(0, "test", 0, range(len(prompts)), 24)
    found, expected = _both(_model(family, kv_heads), prompts, draws, 24, monkeypatch, ends=(1, 9))
    assert found.version == 4
    assert found.responses() == expected.responses()
    for name in ("tokens", "response_mask", "lengths", "prompt_lengths", "ended"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    torch.testing.assert_close(found.logprobs, expected.logprobs, atol=2e-5, rtol=0)
    if not greedy:
        assert 0 < int(found.ended.sum()) < len(prompts)  # both ways to stop are there


@pytest.mark.parametrize("limit", [1, 2])
def test_the_shortest_responses(limit, monkeypatch) -> None:
    prompts = _prompts(40)
    found, expected = _both(_model(), prompts, uniforms(3, "t", 0, range(40), limit), limit, monkeypatch)
    assert found.responses() == expected.responses() and torch.equal(found.ended, expected.ended)


def test_threads_and_company_change_no_draw() -> None:
    """A row alone, among others, and on another number of threads: the same tokens, log-probs to the last bit."""
    policy, prompts = _model(), _prompts(50)
    draws = uniforms(0, "t", 0, range(50), 16)
    engine = NativeEngine(pad_id=0, end_id=1)
    engine.load_weights(policy, 0)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(engine.generate(prompts, draws, max_new_tokens=16, sampling=SAMPLING))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(found[0].tokens, other.tokens) for other in found[1:])
    assert all(torch.equal(found[0].logprobs, other.logprobs) for other in found[1:])
    alone = engine.generate(prompts[7:8], draws[7:8], max_new_tokens=16, sampling=SAMPLING)
    assert alone.responses()[0] == found[0].responses()[7]


def test_what_was_captured_is_what_the_trainer_scores() -> None:
    policy = _model()
    engine = NativeEngine(pad_id=0, end_id=1)
    engine.load_weights(policy, 0)
    rollout = engine.generate(_prompts(30), uniforms(1, "t", 0, range(30), 20), max_new_tokens=20, sampling=SAMPLING)
    with torch.no_grad():
        scored, _ = response_logprobs(policy, rollout.tokens, rollout.response_mask, SAMPLING)
    torch.testing.assert_close(rollout.logprobs, scored, atol=2e-5, rtol=0)


def test_draws_follow_the_distribution() -> None:
    """20,000 first tokens behind one prompt: chi-square over the tokens that are expected at least 5 times, against
    its 0.9999 quantile for 40 degrees of freedom at most."""
    policy, count = _model(), 20000
    engine = NativeEngine(pad_id=0, end_id=1)
    engine.load_weights(policy, 0)
    rollout = engine.generate(
        [[5, 6, 7]] * count, uniforms(0, "t", 0, range(count), 1), max_new_tokens=1, sampling=SAMPLING
    )
    with torch.no_grad():
        expected = SAMPLING.process(policy(torch.tensor([[5, 6, 7]]))[0, -1]).softmax(-1) * count
    seen = torch.bincount(rollout.tokens[:, 3], minlength=41)
    assert seen[0] == 0
    common = expected >= 5
    assert 5 < int(common.sum()) <= 41
    assert float(((seen - expected).square() / expected)[common].sum()) < 84.0


def test_the_weights_are_the_present_ones() -> None:
    """Nothing of an earlier call is kept: weights that were changed in place are sampled from."""
    policy = _model()
    engine = NativeEngine(pad_id=0, end_id=1)
    engine.load_weights(policy, 0)
    before = engine.generate(_prompts(8), None, max_new_tokens=8, sampling=SAMPLING)
    with torch.no_grad():
        policy.head.weight.mul_(-1)
    assert before.responses() != engine.generate(_prompts(8), None, max_new_tokens=8, sampling=SAMPLING).responses()


def test_damaged_weights_are_an_error() -> None:
    policy = _model()
    with torch.no_grad():
        policy.trunk.norm.weight.fill_(float("nan"))
    engine = NativeEngine(pad_id=0, end_id=1)
    engine.load_weights(policy, 0)
    with pytest.raises(NumericsError, match="not finite"):
        engine.generate(_prompts(4), uniforms(0, "t", 0, range(4), 5), max_new_tokens=5, sampling=SAMPLING)


def test_what_it_does_not_know_goes_to_the_plain_loop() -> None:
    assert not can_generate(_model(), Sampling(top_p=0.9))
    assert not can_generate(_model(), Sampling(temperature=0.7))
    assert not can_generate(_model().double(), SAMPLING)
    assert not can_generate(_model("qwen3"), SAMPLING)
    assert not can_generate(_model(hidden_size=40), SAMPLING)
