"""Gold by a judge that was handed in: an endpoint that compares, and how far it agrees with labelled pairs."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.rewards.chat_server import ChatServer, longer

from trueline.rewards.endpoint import EndpointJudge
from trueline.training.agreement import against_reference, agreement, is_given
from trueline.training.instruments import instruments_of, own_tokenizer, sampler_of
from trueline.training.policies import load_policy
from trueline.training.reading import rendered
from trueline.types import Pair, Prompt

pytestmark = pytest.mark.integration


@pytest.fixture
def stage(tiny_world, tmp_path):
    return tiny_world.stage("sft", tmp_path / "cell", inputs={"arm": tiny_world.cells["sft"]})


def test_gold_compares_with_one_sft_sample_per_prompt(stage, tmp_path) -> None:
    sft, prompts = load_policy(stage, "sft"), stage.task.prompts("test")[:3]
    with ChatServer(longer) as server:
        judge = EndpointJudge(server.url, "rule", cache=tmp_path / "judge.jsonl", backoff=0.01)
        gold = against_reference(judge, sft, sampler_of(stage))
        long = gold(prompts, ["a much longer answer than any of the others " * 9] * 3, None)
        short = gold(prompts, ["."] * 3, None)
        asked = len(server.requests)
        again = gold(prompts, ["."] * 3, None)
    assert [j.score for j in long] == [1.0] * 3 and [j.score for j in short] == [-1.0] * 3
    assert [j.score for j in again] == [-1.0] * 3 and len(server.requests) == asked  # the reference stays the same
    assert all(j.parts == {"position_inconsistency": 0.0} for j in long)


def test_agreement_counts_the_pairs_that_the_judge_orders_as_labelled(stage, tmp_path, monkeypatch) -> None:
    ask = Prompt.ask("how do i brew tea ?")
    pairs = [Pair(ask, "longer than it", "short"), Pair(ask, "no", "longer than it"), Pair(ask, "aaa bbb", "c")]
    monkeypatch.setattr("trueline.training.agreement.read_pairs", lambda cell: _Sources(pairs))
    with ChatServer(longer) as server:
        judge = EndpointJudge(server.url, "rule", cache=tmp_path / "judge.jsonl", backoff=0.01)
        assert agreement(stage, None, judge) == {"right": 2.0, "pairs": 3}
    monkeypatch.setattr("trueline.training.agreement.read_pairs", lambda cell: _Sources([]))
    assert agreement(stage, None, None) == {}


def test_agreement_of_scores_counts_a_tie_as_half(stage, monkeypatch) -> None:
    sft = load_policy(stage, "sft")
    instruments = instruments_of(stage, sft, None, judge="gold")  # the world's own judge
    ask = next(p for p in stage.task.prompts("test") if p.kind == "harmful")
    refusal, steps = "i can not help with that .", "sure . first pay ."
    pairs = [Pair(ask, refusal, steps), Pair(ask, steps, refusal), Pair(ask, refusal, refusal + " ")]
    monkeypatch.setattr("trueline.training.agreement.read_pairs", lambda cell: _Sources(pairs))
    assert agreement(stage, instruments, None) == {"right": 1.5, "pairs": 3}
    louder = replace(instruments, gold=lambda p, t, r: [replace(j, score=-j.score) for j in instruments.gold(p, t, r)])
    assert agreement(stage, louder, None)["right"] == 1.5 and not is_given(stage, "sft")


def test_texts_are_rendered_with_an_end_token_only_where_they_ended(stage) -> None:
    import torch

    prompts = stage.task.prompts("test")[:2]
    whole = rendered(stage, stage.tokenizer, prompts, ["yes .", "yes ."], torch.tensor([True, False]))
    ended, cut = whole.responses()
    assert ended[-1] == stage.tokenizer.end_id and ended[:-1] == cut
    assert whole.response_lengths.tolist() == [len(ended), len(cut)]
    assert own_tokenizer(stage) is None  # the arm is SFT itself


class _Sources:
    def __init__(self, gold: list[Pair]) -> None:
        self.gold = gold
