"""Packed rows and the compiled passes against the padded trunk and autograd, which are the reference."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from trueline.models import fused, kernels, packed_trunk
from trueline.models.decoder import Decoder, DecoderConfig
from trueline.models.fused import head_logprobs
from trueline.models.heads import last_scores, last_values, response_values, scalar_from
from trueline.models.packed import pack
from trueline.models.packed_trunk import hidden_at, packed_hidden, runs_packed
from trueline.models.scoring import Sampling, response_logprobs
from trueline.models.tiny import make_decoder

needs_kernels = pytest.mark.skipif(kernels.library() is None, reason="no C compiler: the plain path is all there is")


def _model(family: str = "llama", *, heads: int = 4, kv_heads: int = 2, head_dim: int = 16, layers: int = 2) -> Decoder:
    shape = {"vocab_size": 61, "hidden_size": 48, "intermediate_size": 40, "max_positions": 160}
    made = make_decoder(
        DecoderConfig(
            **shape, num_layers=layers, num_heads=heads, num_kv_heads=kv_heads, head_dim=head_dim, family=family
        ),
        3,
    )
    for name, parameter in made.named_parameters():
        if name.endswith(("bias", "norm.weight")):
            torch.nn.init.uniform_(parameter, 0.5, 1.5, generator=torch.Generator().manual_seed(len(name)))
    return made


def _rows(count: int, width: int, *, per_prompt: int = 1) -> tuple[Tensor, Tensor]:
    """Rows of different lengths; `per_prompt` neighbours share their prompt. Padding is filled with other tokens."""
    draw = torch.Generator().manual_seed(count * width + per_prompt)
    tokens = torch.randint(2, 61, (count, width), generator=draw)
    mask = torch.zeros(count, width, dtype=torch.bool)
    for row in range(count):
        prompt = 5 + 3 * (row // per_prompt)
        tokens[row, :prompt] = tokens[row - row % per_prompt, :prompt]
        mask[row, prompt : min(width, prompt + 1 + (7 * row) % 60)] = True
    return tokens, mask


def _graded(model, hidden: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    weights = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(0))
    model.zero_grad()
    (hidden * weights).sum().backward()
    return hidden.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@needs_kernels
@pytest.mark.parametrize("per_prompt", [1, 2, 4])
@pytest.mark.parametrize(
    ("family", "heads", "kv_heads", "head_dim"), [("llama", 4, 2, 16), ("llama", 3, 3, 8), ("qwen2", 4, 1, 24)]
)
def test_packed_rows_give_the_padded_trunks_numbers(family, heads, kv_heads, head_dim, per_prompt) -> None:
    """Values within 1e-5 of unit-scale states, gradients within 1e-5 of each tensor's largest."""
    model = _model(family, heads=heads, kv_heads=kv_heads, head_dim=head_dim)
    tokens, mask = _rows(8, 96, per_prompt=per_prompt)
    wanted = F.pad(mask[:, 1:], (0, 1))
    expected, expected_grads = _graded(model, model.trunk(tokens)[wanted])
    found, grads = _graded(model, packed_hidden(model.trunk, pack(tokens, wanted)))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert grads.keys() == expected_grads.keys() and len(grads) > 10
    for name, grad in grads.items():
        scale = float(expected_grads[name].abs().max())
        torch.testing.assert_close(grad / scale, expected_grads[name] / scale, atol=1e-5, rtol=0)


@needs_kernels
def test_a_long_prompt_needs_several_panels() -> None:
    """150 positions: the attention works through more than three panels of 48 queries."""
    model = _model(layers=1)
    tokens, mask = torch.randint(2, 61, (3, 150), generator=torch.Generator().manual_seed(1)), torch.zeros(3, 150)
    mask[0, 149], mask[1, 100:], mask[2, 1:150:7] = 1, 1, 1
    wanted = F.pad(mask.bool()[:, 1:], (0, 1))
    expected, expected_grads = _graded(model, model.trunk(tokens)[wanted])
    found, grads = _graded(model, packed_hidden(model.trunk, pack(tokens, wanted)))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    for name, grad in grads.items():
        torch.testing.assert_close(
            grad, expected_grads[name], atol=1e-5 * float(expected_grads[name].abs().max()), rtol=0
        )


@needs_kernels
def test_threads_change_no_bit() -> None:
    model, (tokens, mask) = _model(), _rows(9, 96, per_prompt=3)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            packed = pack(tokens, F.pad(mask[:, 1:], (0, 1)))
            run = packed_trunk._Run(model.config, packed, model.trunk.cos, model.trunk.sin)
            x = model.trunk.embed.weight[packed.tokens].detach()
            normed, rstd = run.norm(x, model.trunk.norm.weight)
            qkv = torch.randn(len(x), 128, generator=torch.Generator().manual_seed(2))
            run.rotate(qkv, 1.0)
            mixed, lse = torch.empty(len(x), 64), torch.empty(len(x), 4)
            run.lib.attention(*map(kernels.pointer, (qkv, mixed, lse)), run.families, threads)
            dqkv = torch.empty_like(qkv)
            run.lib.attention_backward(*map(kernels.pointer, (qkv, mixed, mixed, lse, dqkv)), run.families, threads)
            found.append(
                (normed, qkv, mixed, lse, dqkv, *run.norm_backward(normed, x, rstd, model.trunk.norm.weight, x))
            )
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, two) for one, two in zip(*found))


def test_equal_prompts_are_packed_once_and_nothing_unread_is() -> None:
    """Two rows share 6 tokens; 4 and 2 response tokens. The last response token is read by nobody: 6 + 3 + 1 tokens,
    and of the last layer the prompt's end and those 4."""
    tokens = torch.arange(20).repeat(2, 1)
    tokens[1, 6:] += 20
    wanted = torch.zeros(2, 20, dtype=torch.bool)
    wanted[0, 5:9], wanted[1, 5:7] = True, True
    made = pack(tokens, wanted)
    assert made.tokens.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 26]
    assert made.positions.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 6]
    assert (made.first.tolist(), made.start.tolist(), made.length.tolist()) == ([0, 3], [0, 6, 9], [6, 3, 1])
    assert made.kept.tolist() == [5, 6, 7, 8, 9]
    assert made.wanted.tolist() == [0, 1, 2, 3, 0, 4]
    tokens[1, 0] = 30  # another prompt: two families, each a row of its own
    assert pack(tokens, wanted).first.tolist() == [0, 1, 2]


def test_rows_that_want_nothing_are_left_out() -> None:
    tokens, wanted = torch.arange(10).repeat(2, 1), torch.zeros(2, 10, dtype=torch.bool)
    wanted[1, 3] = True
    assert len(pack(tokens, wanted)) == 4
    with pytest.raises(ValueError, match="no position is read"):
        pack(tokens, wanted[:, 5:])
    assert hidden_at(_model().trunk, tokens, torch.zeros_like(wanted)).shape == (0, 48)


@needs_kernels
@pytest.mark.parametrize("forbidding", [True, False])
def test_the_compiled_head_gives_autograds_numbers(forbidding, monkeypatch) -> None:
    draw = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(40, 24, generator=draw), torch.randn(61, 24, generator=draw)
    targets, grad = torch.randint(3, 61, (40,), generator=draw), torch.randn(40, generator=draw)
    forbidden = torch.arange(61) < 3 if forbidding else None
    found = []
    for library in (kernels.library(), None):
        monkeypatch.setattr(fused.kernels, "library", lambda library=library: library)
        monkeypatch.setattr(fused.kernels, "available", lambda like, library=library: library is not None)
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        value = head_logprobs(h, w, targets, forbidden)
        value.backward(grad)
        found.append((value.detach(), h.grad, w.grad))
    for compiled, plain in zip(*found):
        torch.testing.assert_close(compiled, plain, atol=2e-5, rtol=1e-5)


@needs_kernels
def test_the_compiled_exponential_keeps_its_accuracy() -> None:
    """Through the head: a vocabulary of two, logits (x, 0): log p of the second is -log(1 + e^x)."""
    x = torch.linspace(-30, 30, 4001)
    found = head_logprobs(x[:, None], torch.tensor([[1.0], [0.0]]), torch.ones(4001, dtype=torch.long), None)
    torch.testing.assert_close(found.double(), -F.softplus(x.double()), atol=3e-6, rtol=3e-7)


@pytest.mark.parametrize("compiled", [pytest.param(True, marks=needs_kernels), False])
def test_scalars_are_read_where_they_belong(compiled, monkeypatch) -> None:
    if not compiled:
        monkeypatch.setattr(kernels, "library", lambda: None)
    critic = scalar_from(_model(), bias=True)
    torch.nn.init.normal_(critic.score.weight, generator=torch.Generator().manual_seed(5))
    tokens, mask = _rows(6, 90, per_prompt=2)
    assert runs_packed(critic.trunk) == compiled
    everywhere = critic(tokens)
    before = F.pad(everywhere[:, :-1], (1, 0)).masked_fill(~mask, 0.0)
    torch.testing.assert_close(response_values(critic, tokens, mask), before, atol=3e-5, rtol=0)
    lengths = mask.shape[1] - mask.flip(1).int().argmax(1)
    prompts = mask.int().argmax(1)
    for shared in (None, prompts):
        torch.testing.assert_close(
            last_scores(critic, tokens, lengths, shared), last_values(everywhere, lengths), atol=3e-5, rtol=0
        )


@needs_kernels
def test_logprobs_of_a_policy_are_the_plain_paths(monkeypatch) -> None:
    model, (tokens, mask) = _model("qwen2"), _rows(6, 90, per_prompt=3)
    sampling = Sampling(forbidden=torch.arange(61) < 2)
    compiled, entropies = response_logprobs(model, tokens, mask, sampling, entropy=True)
    monkeypatch.setattr(kernels, "library", lambda: None)
    plain, plain_entropies = response_logprobs(model, tokens, mask, sampling, entropy=True)
    torch.testing.assert_close(compiled, plain, atol=2e-5, rtol=0)
    torch.testing.assert_close(entropies, plain_entropies, atol=2e-5, rtol=0)
    assert float(compiled.detach().abs().max()) > 1


def test_what_the_kernels_do_not_know_runs_padded() -> None:
    """Double precision, heads of no multiple of 8, queries with a norm of their own, and autocast."""
    assert not runs_packed(_model().double().trunk)
    assert not runs_packed(_model(head_dim=12).trunk)
    assert not runs_packed(_model("qwen3").trunk)
    with torch.autocast("cpu", torch.bfloat16):
        assert not runs_packed(_model().trunk)


def test_switched_off_there_are_no_kernels(monkeypatch) -> None:
    kernels.library.cache_clear()
    monkeypatch.setenv("TRUELINE_KERNELS", "0")
    try:
        assert kernels.library() is None and not runs_packed(_model().trunk)
    finally:
        kernels.library.cache_clear()


def test_without_a_compiler_there_are_no_kernels(monkeypatch, tmp_path) -> None:
    kernels.library.cache_clear()
    monkeypatch.setattr(kernels.shutil, "which", lambda name: None)
    try:
        assert kernels.library() is None
    finally:
        kernels.library.cache_clear()


def test_a_context_that_is_too_short_is_an_error_on_both_paths(monkeypatch) -> None:
    model, tokens = _model(), torch.ones(1, 200, dtype=torch.long)
    wanted = torch.zeros(1, 200, dtype=torch.bool)
    wanted[0, 199] = True
    for library in {kernels.library(), None}:
        monkeypatch.setattr(kernels, "library", lambda library=library: library)
        with pytest.raises(ValueError, match="exceed the model's context of 160"):
            hidden_at(model.trunk, tokens, wanted)


def test_the_shared_part_is_never_longer_than_what_is_read() -> None:
    """A reward model's rows: the last token of each; rows of one prompt share it even where a response is empty."""
    model = scalar_from(_model(), bias=False)
    torch.nn.init.normal_(model.score.weight, generator=torch.Generator().manual_seed(5))
    tokens = torch.arange(2, 32).repeat(3, 1)
    tokens[2, 10:] = 7
    lengths, prompts = torch.tensor([10, 14, 12]), torch.tensor([10, 10, 10])
    for order in itertools.permutations(range(3)):
        rows = torch.tensor(order)
        found = last_scores(model, tokens[rows], lengths[rows], prompts[rows])
        np.testing.assert_allclose(
            found.detach().numpy(), last_values(model(tokens[rows]), lengths[rows]).detach().numpy(), atol=1e-5
        )
