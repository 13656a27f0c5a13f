"""bf16 matrix products with fp32 weights: how close they are to fp32, on the packed and on the padded path."""

from __future__ import annotations

import pytest
import torch

from trueline.models import kernels
from trueline.models.decoder import Decoder, DecoderConfig
from trueline.models.precision import _has_amx, choose_precision
from trueline.models.scoring import Sampling, exact_kl, response_logprobs
from trueline.models.tiny import make_decoder
from trueline.rollout.native import NativeEngine

SHAPE = DecoderConfig(
    vocab_size=61, hidden_size=48, intermediate_size=40, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=16,
    max_positions=64,
)  # fmt: skip
SAMPLING = Sampling(forbidden=torch.arange(61) < 2)
PATHS = [pytest.param(True, marks=pytest.mark.skipif(kernels.library() is None, reason="no C compiler")), False]


def _graded(policy: Decoder, precision: str) -> tuple[torch.Tensor, list[torch.Tensor]]:
    draw = torch.Generator().manual_seed(0)
    tokens, mask = torch.randint(2, 61, (6, 30), generator=draw), torch.zeros(6, 30, dtype=torch.bool)
    mask[:, 10:25] = True
    policy.trunk.precision = precision
    policy.zero_grad()
    logprobs, _ = response_logprobs(policy, tokens, mask, SAMPLING)
    logprobs.sum().backward()
    return logprobs.detach(), [parameter.grad.clone() for parameter in policy.parameters()]


@pytest.mark.parametrize("compiled", PATHS)
def test_bf16_products_are_near_fp32_and_gradients_stay_fp32(compiled, monkeypatch) -> None:
    """bf16 keeps 8 bits: log-probs within a few hundredths, gradients within 5% of their norm; and they do differ."""
    if not compiled:
        monkeypatch.setattr(kernels, "library", lambda: None)
    policy = make_decoder(SHAPE, 0)
    exact, exact_grads = _graded(policy, "fp32")
    low, grads = _graded(policy, "bf16")
    assert low.dtype == torch.float32 and 1e-4 < float((low - exact).abs().max()) < 0.05
    for grad, expected in zip(grads, exact_grads):
        assert grad.dtype == torch.float32
        assert float((grad - expected).norm()) < 0.05 * float(expected.norm())


@pytest.mark.parametrize("compiled", PATHS)
def test_the_same_model_has_no_kl_to_itself_in_bf16(compiled, monkeypatch) -> None:
    if not compiled:
        monkeypatch.setattr(kernels, "library", lambda: None)
    policy, reference = make_decoder(SHAPE, 0), make_decoder(SHAPE, 0)
    policy.trunk.precision = reference.trunk.precision = "bf16"
    mask = torch.arange(20).expand(2, 20) > 8
    with torch.no_grad():
        assert not exact_kl(policy, reference, torch.full((2, 20), 7), mask, SAMPLING).any()


@pytest.mark.parametrize("compiled", PATHS)
def test_an_engine_samples_from_a_policy_in_bf16(compiled, monkeypatch) -> None:
    """Captured log-probs are near the trainer's, which are the ones that count."""
    if not compiled:
        monkeypatch.setattr(kernels, "library", lambda: None)
    policy = make_decoder(SHAPE, 0)
    policy.trunk.precision = "bf16"
    engine = NativeEngine(pad_id=0, end_id=2)
    engine.load_weights(policy, 0)
    rollout = engine.generate([[5, 6, 7]] * 4, None, max_new_tokens=12, sampling=SAMPLING)
    with torch.no_grad():
        scored, _ = response_logprobs(policy, rollout.tokens, rollout.response_mask, SAMPLING)
    assert float((scored - rollout.logprobs).abs().max()) < 0.05


def test_the_choice(tmp_path, monkeypatch) -> None:
    """bf16 on a GPU; on a CPU from two million parameters on, and where it has the instructions."""
    large = DecoderConfig(2048, 256, 768, 6, 8, 8, 32, 64, tied=True)
    assert large.parameter_count == make_decoder(large, 0).parameter_count == 5_639_424
    qwen3 = DecoderConfig(61, 48, 40, 2, 4, 2, 16, 64, family="qwen3")
    qwen2 = DecoderConfig(61, 48, 40, 2, 4, 2, 16, 64, family="qwen2", tied=True)
    for shape in (SHAPE, qwen2, qwen3):
        assert shape.parameter_count == make_decoder(shape, 0).parameter_count
    for amx in (True, False):
        monkeypatch.setattr("trueline.models.precision._has_amx", lambda amx=amx: amx)
        assert choose_precision("auto", large, "cpu") == ("bf16" if amx else "fp32")
        assert choose_precision("auto", SHAPE, "cpu") == "fp32"
        assert choose_precision("auto", SHAPE, "cuda") == "bf16"
        assert choose_precision("bf16", SHAPE, "cpu") == "bf16" and choose_precision("fp32", large, "cuda") == "fp32"
    info = tmp_path / "cpuinfo"
    info.write_text("flags : avx512f amx_bf16 amx_tile\n")
    assert _has_amx(info)
    info.write_text("flags : avx512f avx512_bf16\n")
    assert not _has_amx(info) and not _has_amx(tmp_path / "none")
