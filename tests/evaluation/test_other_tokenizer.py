"""A policy with a tokenizer of its own: its texts are written out again with the study's, its log-probs not used."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from trueline.data.chat import ChatTokenizer
from trueline.evaluation.measure import measure, metrics_of, sample_texts
from trueline.models.checkpoints import load_decoder, load_scalar, save_model
from trueline.models.decoder import DecoderConfig
from trueline.models.tiny import make_decoder
from trueline.rewards.learned import LearnedReward
from trueline.runs.cell import read_json
from trueline.training.instruments import instruments_of, own_tokenizer, sampler_of
from trueline.training.reading import rendered

pytestmark = pytest.mark.integration
TEXTS = ["how do i brew tea ?", "first boil the water , then add the leaves .", "i can not help with that ."] * 20


@pytest.fixture(scope="module")
def arm(tiny_world, tmp_path_factory):
    """The cell of a random policy with 300 tokens of its own: one in eight of its responses ends within the limit."""
    cell, tokenizer = tmp_path_factory.mktemp("foreign") / "cell", ChatTokenizer.train(TEXTS, vocab_size=300)
    shape = DecoderConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=32, intermediate_size=48, num_layers=1, num_heads=4,
        num_kv_heads=2, head_dim=8, max_positions=64, family="llama", tied=True, pad_id=tokenizer.pad_id,
        end_id=tokenizer.end_id,
    )  # fmt: skip
    save_model(make_decoder(shape, 3), cell / "model")
    tokenizer.save(cell / "model")
    return cell


@pytest.fixture(scope="module")
def stage(tiny_world, arm, tmp_path_factory):
    return tiny_world.stage("evaluate", tmp_path_factory.mktemp("stage") / "cell", inputs={"arm": arm})


@pytest.fixture(scope="module")
def seen(tiny_world, stage, arm):
    """40 prompts with four samples each, measured; and what the judge was shown."""
    foreign, shown = own_tokenizer(stage), []
    sft = load_decoder(tiny_world.cells["sft"] / "model")
    instruments = instruments_of(stage, sft, lambda p, t, rollout: shown.append((t, rollout)) or [False] * len(t),
                                 judge="gold", foreign=foreign)  # fmt: skip
    policy, prompts = load_decoder(arm / "model"), tiny_world.task.prompts("test")[:40]
    measured = measure(policy, prompts, sampler_of(stage, foreign), instruments, samples=4, stream="test")
    return measured, *shown[0]


def test_the_arms_tokenizer_is_told_from_the_studys(tiny_world, stage, arm, tmp_path) -> None:
    assert own_tokenizer(stage).fingerprint == ChatTokenizer.load(arm / "model").fingerprint
    same = tiny_world.stage("evaluate", tmp_path / "cell", inputs={"arm": tiny_world.cells["reward"]})
    assert own_tokenizer(same) is None  # no policy of another maker
    sft = tiny_world.stage("evaluate", tmp_path / "cell", inputs={"arm": tiny_world.cells["sft"]})
    assert own_tokenizer(sft) is None


def test_nothing_that_needs_sfts_log_probs_is_measured(seen) -> None:
    measured, *_ = seen
    assert measured.kl is None and measured.kl_k3 is None and measured.nll is None
    names = {key.rsplit("/", 1)[1] for key in metrics_of(measured, "test/sampled")}
    assert not names & {"kl", "kl_k3", "entropy"} and {"gold", "proxy", "length", "ended", "outside"} <= names


def test_lengths_are_in_the_studys_tokens_and_a_cut_response_gets_no_end(stage, seen) -> None:
    measured, texts, rollout = seen
    flat = [t for row in measured.texts for t in row]
    ended, lengths = np.ravel(measured.ended), np.ravel(measured.length)
    assert flat == list(texts) and 5 < ended.sum() < 80
    own = own_tokenizer(stage)
    for text, done, length, ids in zip(flat, ended, lengths, rollout.responses()):
        whole = stage.tokenizer.encode_response(text)  # with the end token
        assert length == len(ids) == (len(whole) if done or len(whole) == 1 else len(whole) - 1)
        assert ids == whole[:length] and (ids[-1] in stage.tokenizer.end_ids) == (bool(done) or not text)
    assert any(len(own.encode_response(t)) != len(stage.tokenizer.encode_response(t)) for t in flat)


def test_prompts_are_written_out_again_too(tiny_world, stage, seen) -> None:
    _, _, rollout = seen
    for i, prompt in enumerate(tiny_world.task.prompts("test")[:40]):
        ids = list(stage.prompt_ids(prompt))
        assert rollout.tokens[4 * i, : len(ids)].tolist() == ids and int(rollout.prompt_lengths[4 * i]) == len(ids)


def test_the_proxy_reads_a_text_alike_whoever_wrote_it(stage, tiny_world) -> None:
    """SFT's own samples, scored as they are and written out again from their texts."""
    sft = load_decoder(tiny_world.cells["sft"] / "model")
    plain = instruments_of(stage, sft, None, judge="gold")
    prompts = tiny_world.task.prompts("test")[:30]
    rollout, texts = sample_texts(sft, prompts, sampler_of(stage), stream="test")
    again = rendered(stage, stage.tokenizer, prompts, texts, rollout.ended)
    alike = [a == b for a, b in zip(rollout.responses(), again.responses())]
    scores = [plain.proxy(prompts, texts, r).tolist() for r in (rollout, again)]
    assert sum(alike) > 20  # the others say the same with other tokens
    assert all(abs(a - b) < 1e-4 for a, b, same in zip(*scores, alike) if same)


def test_texts_beyond_the_reward_models_context_are_read_as_far_as_it_goes(tiny_world, seen) -> None:
    """40 tokens of one tokenizer can be more than 40 of another."""
    measured, _, rollout = seen
    model, room = load_scalar(tiny_world.cells["reward"] / "reward_model", bias=False), 64
    assert model.config.max_positions == room < int(rollout.lengths.max())
    longest = int(rollout.lengths.argmax())
    whole = LearnedReward(model).scores(rollout.tokens, rollout.lengths)
    cut = LearnedReward(model).scores(rollout.tokens[longest : longest + 1, :room], torch.tensor([room]))
    assert float(whole[longest]) == pytest.approx(float(cut[0]), abs=1e-5)
    assert np.isfinite(measured.proxy).all()


def test_the_selection_page_leaves_out_what_it_cannot_follow(tiny_world, arm, tmp_path) -> None:
    from trueline.training import select

    stage = tiny_world.stage("kto", tmp_path / "cell", inputs={"arm": arm})
    select.train(select.Config(prompts=6, pairs=4), stage)
    selection = read_json(tmp_path / "cell" / "selection.json")
    assert selection["picks"] == {"end": 0, "proxy": 0, "selected": 0}  # one checkpoint, no training curve
    (point,) = selection["curve"]
    names = {key.rsplit("/", 1)[1] for key in point["metrics"]}
    assert {"gold", "length", "proxy"} <= names
    assert not names & {"kl", "kl_k3", "entropy", "logps_chosen", "logps_rejected"}
