"""The stage before training: what it writes, what it is paid by, and that its figures follow the models it looks at."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from trueline.runs.cell import read_json, read_jsonl, write_jsonl
from trueline.training.pairs import read_pairs
from trueline.training.policies import load_policy, load_reward_model
from trueline.training.reward import Config as RewardConfig

from .small import contents, cost, run_small, small


def test_a_reward_model_that_stands_alone_is_addressed_as_before_there_were_members() -> None:
    assert "member" not in RewardConfig().model_dump(mode="json")
    assert RewardConfig(member=2).model_dump(mode="json")["member"] == 2
    assert RewardConfig().model_copy(update={"member": 1}).model_dump(mode="json")["member"] == 1


@pytest.fixture(scope="module")
def probed(tiny_world, finished, tmp_path_factory):
    """A probe of the small reward model and of a second one: the cell, its figures, and the members' cells."""
    folder = tmp_path_factory.mktemp("probed")
    member = run_small(tiny_world, "reward", folder / "member", settings={"member": 1})
    inputs = {"reward": finished("reward"), "member-1": member}
    cell = tiny_world.run("probe", folder / "probe", small("probe", best_of=3, prompts=40, pairs=30), inputs=inputs)
    return cell, read_json(cell / "probe.json"), inputs


@pytest.mark.integration
def test_another_member_sees_the_same_pairs_in_another_order(probed) -> None:
    one, other = (read_json(cell / "done.json") for cell in (probed[2]["reward"], probed[2]["member-1"]))
    assert (one["trained_on"], one["held_out_pairs"]) == (other["trained_on"], other["held_out_pairs"])
    losses = [[row["loss"] for row in read_jsonl(cell / "metrics.jsonl")] for cell in probed[2].values()]
    assert losses[0][0] == pytest.approx(losses[1][0]) == pytest.approx(np.log(2), abs=1e-5)  # both heads start at zero
    assert losses[0][1:] != losses[1][1:]


@pytest.mark.integration
def test_every_figure_is_there_and_repeats(probed, tiny_world, tmp_path) -> None:
    cell, found, inputs = probed
    assert set(found) == {"prompts", "samples", "pairs", "likelihood", "producible", "best_of", "disagreement",
                          "constant"}  # fmt: skip
    assert found["disagreement"]["members"] == 2
    for where in ("own", "pairs"):
        assert found["disagreement"][where]["sd"] > 0 and 0 <= found["disagreement"][where]["rank"] <= 1
    assert found["best_of"]["gold"]["mean"] is not None and found["best_of"]["n"] == 3
    sets = found["constant"]["sets"]
    assert set(sets) == {"own", "pairs"} and set(sets["own"]["kinds"]) == {"benign", "harmful"}
    assert sum(kind["prompts"] for kind in sets["own"]["kinds"].values()) == sets["own"]["all"]["prompts"] == 40
    again = tiny_world.run("probe", tmp_path / "again", small("probe", best_of=3, prompts=40, pairs=30), inputs=inputs)
    assert contents(again) == contents(cell)


@pytest.mark.integration
def test_a_fixed_answer_s_score_is_the_reward_model_s_own(probed, tiny_world, tmp_path) -> None:
    """Text by text, one prompt at a time, against the page's one pass over all of them."""
    _, found, inputs = probed
    stage = tiny_world.stage("reward", tmp_path / "cell", inputs=inputs)
    model, calibration = load_reward_model(stage)
    prompts = tiny_world.task.prompts("selection")[:40]
    for row in (found["constant"]["sets"]["own"]["texts"][0], found["constant"]["sets"]["pairs"]["texts"][-1]):
        scores = []
        for prompt in prompts:
            item = stage.tokenize(prompt, row["text"])
            with torch.no_grad():
                scores.append(float(model(torch.tensor([item.prompt + item.response]))[0, -1]))
        mean = (np.mean(scores) - calibration["mean"]) / calibration["std"]
        assert row["mean"] == pytest.approx(mean, abs=1e-4)


@pytest.mark.integration
def test_the_gap_is_nothing_for_own_samples_and_large_for_noise(probed, tiny_world, tmp_path) -> None:
    """Pairs whose sides SFT itself sampled have a gap of 0 within the interval; sides of shuffled words a large one.
    What SFT says is what it can say, but for what so few samples miss; what it says thrice over is not."""
    rows = [row for row in read_jsonl(tiny_world.cells["pairs"] / "pairs.jsonl") if row["part"] == "training"]
    stage = tiny_world.stage("sft", tmp_path / "cell")
    policy, found = load_policy(stage, "sft"), {}
    prompts = [pair.prompt for pair in read_pairs(tiny_world.cells["pairs"]).training]
    words = tiny_world.task.texts()[0].split()
    for name in ("own", "noise", "thrice"):
        sides = []
        for side in range(2):
            draws = np.random.default_rng(side).uniform(size=(len(rows), stage.limits.max_new_tokens))
            ids = [stage.prompt_ids(p) for p in prompts]
            rollout = stage.engine(policy).generate(
                ids, draws, max_new_tokens=stage.limits.max_new_tokens, sampling=stage.sampling
            )
            texts = [stage.tokenizer.decode(r) for r in rollout.responses()]
            rng = np.random.default_rng(side)
            noise = [" ".join(rng.permutation(words)) for _ in rows]
            sides.append({"own": texts, "noise": noise, "thrice": [f"{text} {text} {text}" for text in texts]}[name])
        given = [row | {"chosen": a, "rejected": b} for row, a, b in zip(rows, *sides)]
        (tmp_path / name).mkdir()
        write_jsonl(tmp_path / name / "pairs.jsonl", given)
        settings = small("probe", best_of=2, prompts=40, pairs=150)
        cell = tiny_world.run("probe", tmp_path / f"{name}-cell", settings, inputs={"pairs": tmp_path / name})
        found[name] = read_json(cell / "probe.json")
    low, high = found["own"]["likelihood"]["gap"]["ci95"]
    assert low - 0.05 < 0 < high + 0.05
    assert found["noise"]["likelihood"]["gap"]["ci95"][0] > 1.0
    own = found["own"]["producible"]
    assert abs(own["chosen"] - own["own"]) < 0.2 and abs(own["rejected"] - own["own"]) < 0.2
    assert found["thrice"]["producible"]["pairs"] < 0.1 < own["pairs"]


@pytest.mark.integration
def test_what_is_measured_costs_no_label_and_no_reward_call(probed) -> None:
    spent = cost(probed[0])
    assert spent["labels"] == spent["reward_calls"] == spent["trained_tokens"] == 0
    assert spent["sampled_tokens"] > 0 and spent["flops"] > 0


@pytest.mark.integration
def test_without_a_reward_model_the_pairs_alone_are_looked_at(tiny_code, tmp_path) -> None:
    cell = tiny_code.run("probe", tmp_path / "cell", small("probe", best_of=2))
    found = read_json(cell / "probe.json")
    assert set(found) == {"prompts", "samples", "pairs", "likelihood", "producible"}
    assert 0 <= found["producible"]["pairs"] <= min(found["producible"]["chosen"], found["producible"]["rejected"]) <= 1
