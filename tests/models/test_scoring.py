"""Log-probs of response tokens, without full logits, against the full computation; and the fused steps' derivatives."""

from __future__ import annotations

import pytest
import torch

from trueline.models import scoring
from trueline.models.decoder import Decoder
from trueline.models.fused import head_logprobs, rotate
from trueline.models.scoring import Sampling, exact_kl, forbidden_mask, response_hidden, response_logprobs

from .small import FAMILIES, PAD, VOCAB, ragged, small_decoder

FORBIDDEN = torch.zeros(VOCAB, dtype=torch.bool).index_fill_(0, torch.tensor([PAD, 5, 36]), True)
SAMPLINGS = {
    "plain": Sampling(),
    "forbidden": Sampling(forbidden=FORBIDDEN),
    "warm": Sampling(temperature=0.7, forbidden=FORBIDDEN),
}


def batch(seed: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and a response mask whose targets are never forbidden; row 1 has no response token at all."""
    tokens, lengths = ragged(seed=seed)
    tokens[(tokens == 5) | (tokens == 36)] = 6
    index = torch.arange(tokens.shape[1])
    mask = (index >= 3) & (index < lengths[:, None])
    mask[1] = False
    return tokens, mask


def in_full(model: Decoder, tokens, mask, sampling) -> tuple[torch.Tensor, torch.Tensor]:
    """The same from logits [B, T, V], by the definition."""
    logits = model(tokens) / sampling.temperature
    if sampling.forbidden is not None:
        logits = logits.masked_fill(sampling.forbidden, -1e30)
    logprobs = logits.log_softmax(-1)
    entropies = -(logprobs.exp() * logprobs).sum(-1)
    picked = logprobs[:, :-1].gather(-1, tokens[:, 1:, None]).squeeze(-1)
    zero = torch.zeros(len(tokens), 1, dtype=picked.dtype)
    shifted = torch.cat((zero, picked), 1), torch.cat((zero, entropies[:, :-1]), 1)
    return tuple(torch.where(mask, value, 0.0) for value in shifted)


def gradient(model: Decoder, value: torch.Tensor) -> torch.Tensor:
    weights = torch.linspace(0.2, 0.9, value.numel(), dtype=value.dtype).view_as(value)
    return torch.cat([g.flatten() for g in torch.autograd.grad((value * weights).sum(), list(model.parameters()))])


@pytest.mark.parametrize("name", SAMPLINGS)
@pytest.mark.parametrize("entropy", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_equals_the_full_computation(family, entropy, name) -> None:
    model, sampling = small_decoder(family, tied=family == "qwen3").double(), SAMPLINGS[name]
    tokens, mask = batch()
    scored, entropies = response_logprobs(model, tokens, mask, sampling, entropy=entropy)
    expected, expected_entropies = in_full(model, tokens, mask, sampling)
    assert scored.dtype == torch.float64
    torch.testing.assert_close(scored, expected, rtol=0, atol=1e-12)
    assert (scored[~mask] == 0).all() and (scored[mask] < 0).all()
    if entropy:
        torch.testing.assert_close(entropies, expected_entropies, rtol=0, atol=1e-12)
        scored, expected = scored + 0.3 * entropies, expected + 0.3 * expected_entropies
    else:
        assert entropies is None
    torch.testing.assert_close(gradient(model, scored), gradient(model, expected), rtol=0, atol=1e-11)


@pytest.mark.parametrize("entropy", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_recomputed_chunks_change_neither_value_nor_gradient(monkeypatch, entropy, tied) -> None:
    model, sampling = small_decoder(tied=tied).double(), SAMPLINGS["forbidden"]
    tokens, mask = batch()

    def result():
        scored, entropies = response_logprobs(model, tokens, mask, sampling, entropy=entropy)
        return scored + entropies if entropy else scored

    whole = result()
    whole_gradient = gradient(model, whole)
    recomputed = []
    checkpoint = scoring.checkpoint
    monkeypatch.setattr(scoring, "checkpoint", lambda *a, **k: recomputed.append(1) or checkpoint(*a, **k))
    monkeypatch.setattr(scoring, "_CHUNK", 7)
    monkeypatch.setattr(scoring, "_KEEP", 0)
    chunked = result()
    assert len(recomputed) == -(-int(mask.sum()) // 7) > 3
    torch.testing.assert_close(chunked, whole, rtol=0, atol=1e-13)
    torch.testing.assert_close(gradient(model, chunked), whole_gradient, rtol=0, atol=1e-12)


def test_without_a_gradient_nothing_is_recomputed(monkeypatch) -> None:
    monkeypatch.setattr(scoring, "_KEEP", 0)
    monkeypatch.setattr(scoring, "checkpoint", None)
    tokens, mask = batch()
    with torch.no_grad():
        response_logprobs(small_decoder(), tokens, mask, Sampling())


@pytest.mark.parametrize("extra", [1, 9, 40])
def test_padding_never_matters(extra) -> None:
    """Neither how much of it, nor which token stands there."""
    model, sampling = small_decoder().double(), SAMPLINGS["forbidden"]
    tokens, mask = batch()
    wider = torch.nn.functional.pad(tokens, (0, extra), value=11)
    wide_mask = torch.nn.functional.pad(mask, (0, extra))
    for entropy in (False, True):
        narrow = response_logprobs(model, tokens, mask, sampling, entropy=entropy)
        wide = response_logprobs(model, wider, wide_mask, sampling, entropy=entropy)
        for a, b in zip(narrow, wide):
            if a is not None:
                torch.testing.assert_close(b[:, :-extra], a, rtol=0, atol=1e-13)
                assert (b[:, -extra:] == 0).all()
        torch.testing.assert_close(gradient(model, wide[0][:, :-extra]), gradient(model, narrow[0]), rtol=0, atol=1e-12)


def test_a_later_token_never_matters() -> None:
    model = small_decoder().double()
    tokens, mask = batch()
    changed = tokens.clone()
    changed[:, 12:] = 9
    a, _ = response_logprobs(model, tokens, mask, Sampling())
    b, _ = response_logprobs(model, changed, mask, Sampling())
    torch.testing.assert_close(a[:, :12], b[:, :12], rtol=0, atol=1e-13)
    assert (a[:, 12:] - b[:, 12:]).abs().max() > 1e-3


def test_long_sequences_take_the_other_attention_path() -> None:
    """Above 512 tokens the fused kernel runs; a prefix that both paths can score has one value."""
    model = small_decoder("qwen3", max_positions=600).double()
    tokens = torch.randint(2, VOCAB, (2, 600), generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(2, 600, dtype=torch.bool)
    mask[:, 300:500] = True
    long, _ = response_logprobs(model, tokens, mask, Sampling())
    short, _ = response_logprobs(model, tokens[:, :500], mask[:, :500], Sampling())
    torch.testing.assert_close(long[:, :500], short, rtol=0, atol=1e-11)


def test_a_batch_without_a_response_token_gives_zeros() -> None:
    tokens, mask = batch()
    model, none = small_decoder(), torch.zeros_like(mask)
    scored, entropies = response_logprobs(model, tokens, none, Sampling(), entropy=True)
    assert (scored == 0).all() and (entropies == 0).all()
    assert (exact_kl(model, model, tokens, none, Sampling()) == 0).all()


def test_the_first_token_cannot_be_a_response() -> None:
    tokens, mask = batch()
    mask[0, 0] = True
    with pytest.raises(ValueError, match="index 0"):
        response_hidden(small_decoder(), tokens, mask)


def test_exact_kl_by_the_definition() -> None:
    policy, reference = small_decoder().double(), small_decoder().double()
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.mul_(1.1)
    tokens, mask = batch()
    kl = exact_kl(policy, reference, tokens, mask, SAMPLINGS["forbidden"])
    logp, logq = (m(tokens).masked_fill(FORBIDDEN, -1e30).log_softmax(-1)[:, :-1] for m in (policy, reference))
    expected = torch.nn.functional.pad((logp.exp() * (logp - logq)).sum(-1), (1, 0)).masked_fill(~mask, 0.0)
    torch.testing.assert_close(kl, expected, rtol=0, atol=1e-12)
    assert kl[mask].min() > 0
    assert (exact_kl(policy, policy, tokens, mask, SAMPLINGS["forbidden"]) == 0).all()


def test_exact_kl_in_chunks(monkeypatch) -> None:
    policy, reference = small_decoder().double(), small_decoder("qwen3").double()
    tokens, mask = batch()
    whole = exact_kl(policy, reference, tokens, mask, Sampling())
    monkeypatch.setattr(scoring, "_CHUNK", 5)
    torch.testing.assert_close(exact_kl(policy, reference, tokens, mask, Sampling()), whole, rtol=0, atol=1e-13)


def test_half_precision_is_widened_before_the_softmax() -> None:
    """bf16 has 8 bits: log-probs made in it would be multiples of 2^-7 or coarser near 1."""
    model = small_decoder().bfloat16()
    tokens, mask = batch()
    scored, _ = response_logprobs(model, tokens, mask, Sampling())
    assert scored.dtype == torch.float32
    assert (scored[mask] != scored[mask].bfloat16().float()).any()
    scored.sum().backward()
    assert all(p.grad.isfinite().all() and p.grad.dtype == torch.bfloat16 for p in model.parameters())


# the fused steps


def test_head_logprobs_derivative() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(4, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(6, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([0, 5, 2, 2])
    forbidden = torch.tensor([False, True, False, True, False, False])
    assert torch.autograd.gradcheck(lambda h, w: head_logprobs(h, w, targets, forbidden), (hidden, weight))
    assert torch.autograd.gradcheck(lambda h: head_logprobs(h, weight.detach(), targets, None), (hidden,))


def test_rotate_by_hand_and_its_derivative() -> None:
    """(1, 0) turned by a quarter is (0, 1): dim 2 is one plane, its halves are the two coordinates."""
    quarter = torch.tensor([torch.pi / 2] * 2, dtype=torch.float64)
    turned = rotate(torch.tensor([[1.0, 0.0]], dtype=torch.float64), quarter.cos(), quarter.sin())
    torch.testing.assert_close(turned, torch.tensor([[0.0, 1.0]], dtype=torch.float64))
    x = torch.randn(2, 3, 5, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    angles = torch.outer(torch.arange(5.0, dtype=torch.float64), torch.linspace(0.1, 1, 4)).repeat(1, 2)
    assert torch.autograd.gradcheck(lambda y: rotate(y, angles.cos(), angles.sin()), (x,))
    torch.testing.assert_close(rotate(x, angles.cos(), angles.sin()).norm(dim=-1), x.norm(dim=-1))


# a model padded beyond its tokenizer


def test_what_lies_beyond_the_mask_is_forbidden() -> None:
    """A mask of the tokenizer's 30 ids on a model of 37 is the mask of 37 with the last 7 forbidden."""
    short = forbidden_mask(30, (0, 4))
    long = forbidden_mask(VOCAB, (0, 4, *range(30, VOCAB)))
    logits = torch.randn(3, VOCAB, generator=torch.Generator().manual_seed(0))
    processed = Sampling(forbidden=short).process(logits)
    assert torch.equal(processed, Sampling(forbidden=long).process(logits))
    assert processed.isneginf().sum(1).tolist() == [9, 9, 9]
    model = small_decoder()
    tokens, mask = batch()
    tokens = torch.where(mask, 5 + tokens % 25, tokens)  # what was sampled is what may be sampled
    for entropy in (False, True):
        found = response_logprobs(model, tokens, mask, Sampling(forbidden=short), entropy=entropy)
        expected = response_logprobs(model, tokens, mask, Sampling(forbidden=long), entropy=entropy)
        assert torch.equal(found[0], expected[0]) and found[0][mask].isfinite().all()
    wider, _ = response_logprobs(model, tokens, mask, Sampling(forbidden=forbidden_mask(VOCAB, (0, 4))))
    assert not torch.equal(found[0], wider)
