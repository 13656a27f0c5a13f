"""The native engine against teacher forcing, against transformers, and against its own promises."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from trueline.errors import NumericsError
from trueline.models.checkpoints import save_model
from trueline.models.decoder import Decoder, DecoderConfig
from trueline.models.scoring import Sampling, response_logprobs
from trueline.models.tiny import make_decoder
from trueline.rollout.native import NativeEngine, _draw
from trueline.seeds import uniforms

VOCAB, PAD, END, LIMIT = 29, 0, 1, 14
FORBIDDEN = torch.zeros(VOCAB, dtype=torch.bool).index_fill_(0, torch.tensor([PAD, 2, VOCAB - 1]), True)
PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13, 14], [5, 6, 7], [15, 16], [17] * 9, [3, 4], [20, 21, 22]]


def policy(family: str = "qwen3", *, end_bias: float = 0.0) -> Decoder:
    """A random decoder, peaked enough to end now and then: `end_bias` moves the end token's row of the head."""
    config = DecoderConfig(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8,
        max_positions=32, family=family, pad_id=PAD, end_id=END,
    )  # fmt: skip
    model = make_decoder(config, 0)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        model.head.weight.normal_(0.0, 0.35, generator=generator)
        model.trunk.embed.weight.normal_(0.0, 0.5, generator=generator)
        model.head.weight[END] += end_bias * model.head.weight[3]
    return model.eval()


def engine(model: Decoder, batch_size: int = 512) -> NativeEngine:
    made = NativeEngine(pad_id=PAD, end_id=END, batch_size=batch_size)
    made.load_weights(model, 7)
    return made


def draws(prompts, ids=None) -> np.ndarray:
    return uniforms(0, "rollout", 0, ids if ids is not None else range(len(prompts)), LIMIT)


def sample(model, prompts=PROMPTS, *, sampling=None, batch_size=512, table=None):
    table = draws(prompts) if table is None else table
    sampling = Sampling(forbidden=FORBIDDEN) if sampling is None else sampling
    return engine(model, batch_size).generate(prompts, table, max_new_tokens=LIMIT, sampling=sampling)


def test_a_rollout_is_consistent() -> None:
    many = PROMPTS * 12
    rollout = sample(policy(), many)
    assert (len(rollout), rollout.version) == (96, 7)
    assert 5 < int(rollout.ended.sum()) < 91  # both ways of stopping occur
    index = torch.arange(rollout.tokens.shape[1])
    for row, prompt in enumerate(many):
        start, end = int(rollout.prompt_lengths[row]), int(rollout.lengths[row])
        response = rollout.tokens[row, start:end].tolist()
        assert rollout.tokens[row, :start].tolist() == prompt
        assert (rollout.tokens[row, end:] == PAD).all()
        assert (rollout.response_mask[row] == ((index >= start) & (index < end))).all()
        assert END not in response[:-1]
        assert bool(rollout.ended[row]) == (response[-1] == END)
        assert len(response) == LIMIT or rollout.ended[row]
    assert rollout.tokens.shape[1] == int(rollout.lengths.max())
    assert (rollout.logprobs[~rollout.response_mask] == 0).all()
    assert rollout.sampled_tokens == int(rollout.response_lengths.sum()) == sum(map(len, rollout.responses()))


def test_an_end_at_the_limit_is_an_end() -> None:
    """A response whose last allowed token is the end token stopped by itself."""
    rollout = sample(policy(), PROMPTS * 12)
    at_limit = rollout.response_lengths == LIMIT
    last = rollout.tokens.gather(1, (rollout.lengths - 1)[:, None]).squeeze(1)
    assert (rollout.ended == (last == END)).all()
    assert (at_limit | rollout.ended).all()
    one = engine(policy(end_bias=40.0)).generate(
        [[5], [6]], np.full((2, 1), 0.5), max_new_tokens=1, sampling=Sampling(forbidden=FORBIDDEN)
    )
    assert one.tokens.shape == (2, 2) and one.response_lengths.tolist() == [1, 1]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize(
    "how", [{}, {"temperature": 0.6}, {"top_k": 4}, {"top_p": 0.7}, {"temperature": 1.4, "top_k": 9, "top_p": 0.8}]
)
def test_captured_logprobs_are_the_teacher_forced_ones(dtype, tolerance, family, how) -> None:
    model = policy(family).to(dtype)
    sampling = Sampling(forbidden=FORBIDDEN, **how)
    rollout = sample(model, PROMPTS * 3, sampling=sampling)
    with torch.no_grad():
        scored, _ = response_logprobs(model, rollout.tokens, rollout.response_mask, sampling)
    assert rollout.logprobs.dtype == dtype
    torch.testing.assert_close(rollout.logprobs, scored, rtol=0, atol=tolerance)
    assert scored[rollout.response_mask].std() > 0.1


def test_forbidden_tokens_have_no_probability_and_are_never_sampled() -> None:
    """Draws at the far ends of the unit interval meet the first and the last token, both forbidden here."""
    model = policy()
    table = draws(PROMPTS * 4)
    table[0::3], table[1::3] = 2.0**-33, 1 - 2.0**-33
    rollout = sample(model, PROMPTS * 4, table=table)
    assert not FORBIDDEN[rollout.tokens[rollout.response_mask]].any()
    free = sample(model, PROMPTS * 4, table=table, sampling=Sampling())
    assert FORBIDDEN[free.tokens[free.response_mask]].any()  # without the mask they are
    tokens = rollout.tokens.clone()
    tokens[rollout.response_mask] = 2
    scored, _ = response_logprobs(model, tokens, rollout.response_mask, Sampling(forbidden=FORBIDDEN))
    assert (scored[rollout.response_mask] == -torch.inf).all()


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_greedy_is_greedy_in_transformers(tmp_path, family) -> None:
    model = policy(family)
    save_model(model, tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    rollout = engine(model).generate(PROMPTS, None, max_new_tokens=LIMIT, sampling=Sampling())
    for prompt, response in zip(PROMPTS, rollout.responses()):
        ids = torch.tensor([prompt])
        out = theirs.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=LIMIT, top_k=None, top_p=None,
            temperature=None,
        )  # fmt: skip
        assert out[0, len(prompt) :].tolist() == response
    assert len({tuple(r) for r in rollout.responses()}) > 3


def rows_of(rollout) -> list[tuple[list[int], bool]]:
    return list(zip(rollout.responses(), rollout.ended.tolist()))


@pytest.mark.parametrize("batch_size", [1, 3, 5, 512])
def test_a_sample_does_not_depend_on_its_batch(batch_size) -> None:
    """In float64: alone, in any batch size, in any order, the tokens are bit-equal and log-probs equal to rounding."""
    model, prompts = policy().double(), PROMPTS * 3
    table = draws(prompts)
    together = sample(model, prompts, table=table)
    order = np.random.default_rng(0).permutation(len(prompts))
    shuffled = sample(model, [prompts[i] for i in order], table=table[order], batch_size=batch_size)
    expected = rows_of(together)
    assert rows_of(shuffled) == [expected[i] for i in order]
    for place, i in enumerate(order):
        a = shuffled.logprobs[place][shuffled.response_mask[place]]
        b = together.logprobs[i][together.response_mask[i]]
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
    assert len({len(response) for response, _ in expected}) > 3  # rows end at different times: compaction happens


def test_compaction_changes_nothing(monkeypatch) -> None:
    """The cache is compacted where rows have ended; a cache that refuses to shrink is never asked in a batch of one."""
    from trueline.models.decoder import KVCache

    model, prompts, kept = policy().double(), PROMPTS * 3, []
    keep = KVCache.keep
    monkeypatch.setattr(KVCache, "keep", lambda self, rows: kept.append(len(rows)) or keep(self, rows))
    together = sample(model, prompts)
    assert len(kept) >= 2 and kept == sorted(kept, reverse=True)
    kept.clear()
    alone = sample(model, prompts, batch_size=1)
    assert not kept
    assert rows_of(alone) == rows_of(together)


def test_the_same_prompt_with_other_draws_is_another_sample() -> None:
    rollout = sample(policy(), [PROMPTS[0]] * 6)
    assert len({tuple(r) for r in rollout.responses()}) > 3
    same = sample(policy(), [PROMPTS[0]] * 6, table=draws([0] * 6, ids=[4] * 6))
    assert len({tuple(r) for r in same.responses()}) == 1


@pytest.mark.parametrize("how", [{}, {"temperature": 0.5}, {"top_k": 3}, {"top_p": 0.6}])
def test_frequencies_agree_with_the_softmax(how) -> None:
    """Chi-square of the first sampled token over 6000 draws of a fixed stream. With k cells the statistic has mean
    k - 1 and standard deviation sqrt(2 (k - 1)); it must stay below the mean plus five of them."""
    model, sampling, n = policy(), Sampling(forbidden=FORBIDDEN, **how), 6000
    rollout = engine(model).generate(
        [PROMPTS[0]] * n, uniforms(1, "chi", 0, range(n), 1), max_new_tokens=1, sampling=sampling
    )
    counts = torch.bincount(rollout.tokens[:, len(PROMPTS[0])], minlength=VOCAB).double()
    with torch.no_grad():
        logits = model(torch.tensor([PROMPTS[0]]))[0, -1].double()
    logits = logits.masked_fill(FORBIDDEN, -torch.inf) / how.get("temperature", 1.0)
    ranked = logits.argsort(descending=True)
    kept = len(ranked)
    if "top_k" in how:
        kept = how["top_k"]
    if "top_p" in how:
        kept = int((logits.softmax(-1)[ranked].cumsum(0) < how["top_p"]).sum()) + 1
    probs = torch.zeros(VOCAB, dtype=torch.double)
    probs[ranked[:kept]] = logits[ranked[:kept]].softmax(-1)
    assert (counts[probs == 0] == 0).all()
    cells = probs * n >= 5
    expected, seen = (torch.cat((v[cells], v[~cells].sum()[None])) for v in (probs * n, counts))
    expected, seen = expected[expected > 0], seen[expected > 0]
    degrees = len(expected) - 1
    statistic = float(((seen - expected) ** 2 / expected).sum())
    assert degrees >= 2
    assert statistic < degrees + 5 * (2 * degrees) ** 0.5
    # the test can fail: against the distribution of another temperature it does
    wrong = torch.zeros(VOCAB, dtype=torch.double)
    wrong[ranked[:kept]] = (logits[ranked[:kept]] * 1.3).softmax(-1)
    wrong = torch.cat((wrong[cells], wrong[~cells].sum()[None]))
    wrong = wrong[: len(expected)] * n
    assert float(((seen - wrong) ** 2 / wrong.clamp_min(1e-3)).sum()) > degrees + 5 * (2 * degrees) ** 0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_inverse_cdf_by_hand(dtype) -> None:
    """Probabilities 0, 1/4, 0, 1/2, 1/4, 0: cumulative 0, 1/4, 1/4, 3/4, 1, 1. u below 1/4 is token 1, from there to
    3/4 token 3, above token 4; no u in [0, 1], the closed ends included, reaches a token of probability 0."""
    logits = torch.tensor([0.0, 0.25, 0.0, 0.5, 0.25, 0.0], dtype=dtype).log()
    u = torch.tensor([0.0, 2.0**-33, 0.2, 0.26, 0.5, 0.74, 0.76, 1 - 2.0**-33, 1.0], dtype=torch.float64)
    drawn = _draw(logits.expand(len(u), -1), u)
    assert drawn.tolist() == [1, 1, 1, 3, 3, 3, 4, 4, 4]
    assert _draw(logits[None], None).tolist() == [3]


def test_weights_are_those_of_the_last_load() -> None:
    one, other = policy(), policy(end_bias=40.0)
    made = engine(one)
    call = {"max_new_tokens": LIMIT, "sampling": Sampling(forbidden=FORBIDDEN)}
    first = made.generate(PROMPTS, draws(PROMPTS), **call)
    made.load_weights(other, 8)
    second = made.generate(PROMPTS, draws(PROMPTS), **call)
    assert (first.version, second.version) == (7, 8)
    assert first.responses() != second.responses()


def test_select_cuts_to_the_longest_of_the_rows() -> None:
    rollout = sample(policy(), PROMPTS * 3)
    rows = rollout.lengths.argsort()[:3]
    part = rollout.select(rows)
    assert part.tokens.shape == (3, int(rollout.lengths[rows].max()))
    assert rows_of(part) == [rows_of(rollout)[i] for i in rows.tolist()]
    assert part.sampled_tokens == int(rollout.response_lengths[rows].sum())


# what is refused


def test_a_prompt_that_is_too_long_is_named() -> None:
    with pytest.raises(ValueError, match="need 33 positions, the model has 32"):
        sample(policy(), [[5] * 19])
    assert sample(policy(), [[5] * 18]).tokens.shape[0] == 1


@pytest.mark.parametrize("prompts", [[], [[5], []]])
def test_an_empty_prompt_is_refused(prompts) -> None:
    with pytest.raises(ValueError, match="prompts"):
        sample(policy(), prompts, table=np.full((2, LIMIT), 0.5))


@pytest.mark.parametrize("shape", [(7, LIMIT), (8, LIMIT - 1)])
def test_draws_that_do_not_fit_are_refused(shape) -> None:
    with pytest.raises(ValueError, match="uniforms"):
        sample(policy(), table=np.full(shape, 0.5))


def test_an_engine_without_weights_is_refused() -> None:
    with pytest.raises(RuntimeError, match="load_weights"):
        NativeEngine(pad_id=PAD, end_id=END).generate(PROMPTS, None, max_new_tokens=2, sampling=Sampling())


def test_damaged_weights_are_no_sample() -> None:
    model = policy()
    with torch.no_grad():
        model.trunk.norm.weight[0] = torch.nan
    with pytest.raises(NumericsError, match="version 7"):
        sample(model)
    with pytest.raises(NumericsError, match="forbidden"):
        sample(policy(), sampling=Sampling(forbidden=torch.ones(VOCAB, dtype=torch.bool)))


@pytest.mark.parametrize("ends", [(3,), (END, 3), (3, END), (END, 3, 21, 8)])
def test_a_response_ends_at_the_first_of_several_ends(ends) -> None:
    """The draws decide the tokens, so a sample with ends is the sample without any, cut after the first end."""
    many = PROMPTS * 12
    without = NativeEngine(pad_id=PAD, end_id=())
    without.load_weights(policy(), 0)
    free = without.generate(many, draws(many), max_new_tokens=LIMIT, sampling=Sampling()).responses()
    assert {len(response) for response in free} == {LIMIT}
    made = NativeEngine(pad_id=PAD, end_id=ends)
    made.load_weights(policy(), 0)
    rollout = made.generate(many, draws(many), max_new_tokens=LIMIT, sampling=Sampling())
    stops = [next((i + 1 for i, token in enumerate(row) if token in ends), LIMIT) for row in free]
    assert rollout.responses() == [row[:stop] for row, stop in zip(free, stops)]
    assert rollout.ended.tolist() == [row[stop - 1] in ends for row, stop in zip(free, stops)]
    assert {row[-1] for row in rollout.responses()} >= set(ends) and not rollout.ended.all()
