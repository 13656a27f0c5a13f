"""What an evaluation measures, on the tiny SFT model and policies made from it."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from trueline.evaluation.measure import Instruments, Sampler, measure, metrics_of, sample_texts
from trueline.models.checkpoints import load_decoder
from trueline.models.scoring import exact_kl
from trueline.rewards.learned import LearnedReward
from trueline.training.policies import load_reward_model
from trueline.types import Judgement

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def sft(tiny_world):
    return load_decoder(tiny_world.cells["sft"] / "model")


@pytest.fixture(scope="module")
def other(sft):
    """A policy that is not SFT."""
    moved, generator = copy.deepcopy(sft), torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in moved.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    return moved


@pytest.fixture(scope="module")
def stage(tiny_world, tmp_path_factory):
    return tiny_world.stage("evaluate", tmp_path_factory.mktemp("measure") / "cell")


@pytest.fixture(scope="module")
def sampler(stage) -> Sampler:
    tokenizer = stage.tokenizer
    return Sampler(stage.prompt_ids, tokenizer.decode, stage.sampling, tokenizer.pad_id, tokenizer.end_id, 40, seed=11)


@pytest.fixture(scope="module")
def instruments(tiny_world, stage, sft) -> Instruments:
    reward = LearnedReward(*load_reward_model(stage))

    def gold(prompts, texts, rollout):
        return [tiny_world.task.judge(p, t) for p, t in zip(prompts, texts)]

    def outside(prompts, texts, rollout):
        return [len(t) % 2 == 0 for t in texts]

    def proxy(prompts, texts, rollout):
        return reward.standardized(rollout.tokens, rollout.lengths)

    return Instruments(gold, sft, proxy, outside)


@pytest.fixture(scope="module")
def prompts(tiny_world):
    return tiny_world.task.prompts("test")[:40]


def test_sft_is_at_no_distance_from_itself(sft, prompts, sampler, instruments) -> None:
    measured = measure(sft, prompts, sampler, instruments, samples=2, stream="test")
    for values in (measured.kl, measured.kl_k3):
        assert np.abs(values).max() < 1e-4


def test_the_kl_of_another_policy_is_its_log_ratio_on_its_own_samples(
    sft, other, prompts, sampler, instruments
) -> None:
    """Its mean agrees with the full-vocabulary KL along the same samples, which has the same expectation: 4 standard
    errors. k3 is never negative."""
    measured = measure(other, prompts, sampler, instruments, samples=8, stream="test")
    k1 = np.array(measured.kl).ravel()
    rollout, _ = sample_texts(other, [p for p in prompts for _ in range(8)], sampler, stream="test")
    with torch.no_grad():
        exact = exact_kl(other, sft, rollout.tokens, rollout.response_mask, sampler.sampling).sum(1).numpy()
    assert exact.mean() > 0.1
    assert k1.mean() == pytest.approx(exact.mean(), abs=4 * (k1 - exact).std() / len(k1) ** 0.5)
    assert np.min(measured.kl_k3) >= -1e-5


def test_best_of_n_is_the_proxys_favourite_of_the_same_draws(sft, prompts, sampler, instruments) -> None:
    """n draws a prompt: best-of-n shows the one that the proxy scores highest, with that one's own figures."""
    best = measure(sft, prompts, sampler, instruments, samples=1, stream="test", best_of=4)
    every = measure(sft, prompts, sampler, instruments, samples=4, stream="test")
    proxy = np.array(every.proxy)
    assert np.array(best.proxy)[:, 0] == pytest.approx(proxy.max(1), abs=1e-5)
    for i, favourite in enumerate(proxy.argmax(1)):
        assert best.texts[i][0] == every.texts[i][favourite]
        assert best.gold[i][0] == every.gold[i][favourite]
        assert best.length[i][0] == every.length[i][favourite]
    assert any(best.texts[i][0] != every.texts[i][0] for i in range(len(prompts)))


def test_several_best_of_n_samples_a_prompt_come_from_draws_of_their_own(sft, prompts, sampler, instruments) -> None:
    best = measure(sft, prompts, sampler, instruments, samples=2, stream="test", best_of=3)
    every = measure(sft, prompts, sampler, instruments, samples=6, stream="test")
    proxy = np.array(every.proxy).reshape(len(prompts), 2, 3)
    assert np.array(best.proxy) == pytest.approx(proxy.max(2), abs=1e-5)


def test_best_of_n_without_a_proxy_is_refused(sft, prompts, sampler, instruments) -> None:
    blind = Instruments(instruments.gold, instruments.sft)
    with pytest.raises(ValueError, match="needs a proxy"):
        measure(sft, prompts, sampler, blind, samples=1, stream="test", best_of=2)
    measured = measure(sft, prompts, sampler, blind, samples=1, stream="test")
    assert measured.proxy is None and measured.outside is None
    assert not {"test/sampled/proxy", "test/sampled/outside"} & set(metrics_of(measured, "test/sampled"))


def test_greedy_decoding_is_the_same_each_time_and_whatever_the_seed(sft, prompts, sampler, instruments) -> None:
    from dataclasses import replace

    greedy = measure(sft, prompts, sampler, instruments, samples=1, stream="test", greedy=True)
    again = measure(sft, prompts, replace(sampler, seed=99), instruments, samples=1, stream="other", greedy=True)
    assert greedy == again
    twice = measure(sft, prompts, sampler, instruments, samples=2, stream="test", greedy=True)
    assert all(a == b for a, b in twice.texts)


def test_every_arm_gets_the_same_draws(sft, other, prompts, sampler, instruments) -> None:
    """Two policies with equal weights, loaded apart, say the same; another stream or seed says something else; and a
    policy that is nearly SFT answers most prompts as SFT does, which independent draws would not."""
    from dataclasses import replace

    texts = measure(sft, prompts, sampler, instruments, samples=2, stream="test").texts
    assert measure(copy.deepcopy(sft), prompts, sampler, instruments, samples=2, stream="test").texts == texts
    assert measure(sft, prompts, sampler, instruments, samples=2, stream="selection").texts != texts
    assert measure(sft, prompts, replace(sampler, seed=12), instruments, samples=2, stream="test").texts != texts
    near = copy.deepcopy(sft)
    with torch.no_grad():
        for mine, theirs in zip(near.parameters(), other.parameters()):
            mine.lerp_(theirs, 0.01)
    nearly = measure(near, prompts, sampler, instruments, samples=2, stream="test").texts
    flat = [a == b for one, two in zip(texts, nearly) for a, b in zip(one, two)]
    independent = [a == b for a, b in texts]
    assert np.mean(flat) > 0.5 > np.mean(independent)


def test_fewer_prompts_leave_the_others_samples_as_they_were(sft, prompts, sampler, instruments) -> None:
    """A row's draws belong to its place in the list, so that a cut test set is the head of the whole one."""
    whole = measure(sft, prompts, sampler, instruments, samples=2, stream="test")
    head = measure(sft, prompts[:10], sampler, instruments, samples=2, stream="test")
    assert head.texts == whole.texts[:10]


def test_metrics_are_means_over_prompts_and_samples(sft, prompts, sampler, instruments) -> None:
    measured = measure(sft, prompts, sampler, instruments, samples=2, stream="test")
    metrics = metrics_of(measured, "test/sampled")
    rollout, texts = sample_texts(sft, [p for p in prompts for _ in range(2)], sampler, stream="test")
    assert [text for row in measured.texts for text in row] == texts
    assert metrics["test/sampled/length"] == pytest.approx(float(rollout.response_lengths.float().mean()))
    assert metrics["test/sampled/ended"] == pytest.approx(float(rollout.ended.float().mean()))
    assert metrics["test/sampled/distinct"] == len(set(texts)) / len(texts)
    assert metrics["test/sampled/outside"] == np.mean([len(t) % 2 == 0 for t in texts])
    nll = [-float(rollout.logprobs[i].sum()) / int(rollout.response_lengths[i]) for i in range(len(texts))]
    assert metrics["test/sampled/entropy"] == pytest.approx(np.mean(nll), rel=1e-4)


def test_parts_are_means_over_the_prompts_they_concern(tiny_world, sft, prompts, sampler, instruments) -> None:
    """The refusal rate of harmful requests is not diluted by harmless ones."""
    measured = measure(sft, prompts, sampler, instruments, samples=1, stream="test")
    harmful = [i for i, p in enumerate(prompts) if p.kind == "harmful"]
    rates = [tiny_world.task.judge(prompts[i], measured.texts[i][0]).parts["refusal_harmful"] for i in harmful]
    assert 0 < len(harmful) < len(prompts)
    assert metrics_of(measured, "test/sampled")["test/sampled/refusal_harmful"] == pytest.approx(np.mean(rates))


def test_parts_stand_beside_the_prompts_they_concern(tiny_world, sft, prompts, sampler, instruments) -> None:
    measured = measure(sft, prompts, sampler, instruments, samples=2, stream="test")
    for i, prompt in enumerate(prompts):
        judged = [tiny_world.task.judge(prompt, text) for text in measured.texts[i]]
        for name, rows in measured.parts.items():
            assert rows[i] == [j.parts[name] for j in judged if name in j.parts]
            if name.startswith("refusal_"):
                assert bool(rows[i]) == name.endswith(prompt.kind)


def test_the_kl_to_the_start_is_the_one_to_that_policy(sft, other, prompts, sampler, instruments) -> None:
    """To itself it is 0, to SFT it is the KL to SFT, and without a start there is none."""

    def measured(policy, **more):
        return measure(policy, prompts[:20], sampler, replace(instruments, **more), samples=2, stream="test")

    assert measured(other).kl_start is None
    itself, to_sft = measured(other, start=other), measured(other, start=sft)
    assert np.abs(itself.kl_start).max() < 1e-4 < np.abs(itself.kl).max()
    assert np.allclose(to_sft.kl_start, to_sft.kl)
    key = "test/sampled/kl_start"
    assert metrics_of(to_sft, "test/sampled")[key] == pytest.approx(np.mean(to_sft.kl))
    assert key not in metrics_of(measured(other), "test/sampled")


def test_refusals_are_read_off_texts_where_no_judge_knows(sft, prompts, sampler, instruments) -> None:
    def silent(asked, texts, rollout):
        return [Judgement(0.0) for _ in texts]

    told = replace(instruments, gold=silent, refuses=lambda text: "sorry" in text or "can not" in text)
    measured = measure(sft, prompts, sampler, told, samples=2, stream="test")
    flags = [[told.refuses(text) for text in row] for row in measured.texts]
    assert measured.refused == flags
    metrics = metrics_of(measured, "test/sampled")
    assert metrics["test/sampled/refusal"] == np.mean(flags)
    for kind in ("benign", "harmful"):
        own = [row for prompt, row in zip(prompts, flags) if prompt.kind == kind]
        assert metrics[f"test/sampled/refusal_{kind}"] == np.mean(own)
    assert "test/sampled/refusal" not in metrics_of(
        measure(sft, prompts[:5], sampler, instruments, samples=1, stream="test"), "test/sampled"
    )
