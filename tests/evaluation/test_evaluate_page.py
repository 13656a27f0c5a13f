"""The evaluation of an arm: its checkpoints, what is picked of them, what is written."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.torch import load_file

from trueline.algorithms.advantages import best_of_n_kl
from trueline.runs.cell import read_json, read_jsonl
from trueline.training.select import _picks

pytestmark = pytest.mark.integration
SMALL = {"samples": 2, "test_prompts": 8, "shown": 3, "best_of": 4}
CURVE = {"prompts": 8, "pairs": 8}


@pytest.fixture(scope="module")
def cells(tiny_world, tmp_path_factory):
    """A DPO arm of four steps with four checkpoints, and the evaluations of SFT, that arm and best-of-n."""
    directory = tmp_path_factory.mktemp("evaluated")
    settings = {"batch_size": 16, "learning_rate": 1e-3}
    dpo = tiny_world.run("dpo", directory / "dpo", settings, max_steps=4, snapshots=4)
    sft = tiny_world.cells["sft"]
    made = {"arm": dpo, "sft": _evaluate(tiny_world, directory / "e-sft", "sft", arm=sft)}
    baseline = {"baseline": made["sft"]}
    made["dpo"] = _evaluate(tiny_world, directory / "e-dpo", "dpo", arm=dpo, charged=("pairs",), **baseline)
    made["best-of-n"] = _evaluate(
        tiny_world, directory / "e-bon", "best-of-n", arm=sft, charged=("pairs", "reward"), **baseline
    )
    return made


def _evaluate(world, directory, arm_name, *, charged=(), **inputs):
    from trueline.training import evaluate, select

    picked = directory.with_name(f"picked-{directory.name}")
    before = dict(inputs)
    if "baseline" in before:
        before["baseline"] = before["baseline"].with_name(f"picked-{before['baseline'].name}")
    best_of = SMALL["best_of"] if arm_name == "best-of-n" else 1
    select.train(select.Config(**CURVE, best_of=best_of), world.stage(arm_name, picked, inputs=before))
    inputs["picked"] = picked
    stage = world.stage(arm_name, directory, inputs=inputs, charged=charged)
    evaluate.train(evaluate.Config(**SMALL), stage)
    return directory


def test_every_checkpoint_is_on_the_curve_after_the_start(cells) -> None:
    curve = read_json(cells["dpo"] / "evaluation.json")["curve"]
    assert [point["step"] for point in curve] == [0, 1, 2, 3, 4]
    assert curve[0]["flops"] == 0 and curve[0]["metrics"]["selection/sampled/kl"] == pytest.approx(0, abs=1e-4)
    spent = {row["step"]: row["spent/flops"] for row in read_jsonl(cells["arm"] / "metrics.jsonl")}
    assert [point["flops"] for point in curve[1:]] == [spent[step] for step in (1, 2, 3, 4)]
    logps = [point["metrics"]["pairs/logps_chosen"] - point["metrics"]["pairs/logps_rejected"] for point in curve]
    assert logps[-1] > logps[0]  # the margin on training pairs is what DPO raises


def test_the_start_is_sft_and_scores_as_sft_does(cells) -> None:
    sft, dpo = (read_json(cells[name] / "evaluation.json") for name in ("sft", "dpo"))
    assert sft["curve"][0]["metrics"] == dpo["curve"][0]["metrics"]
    assert sft["picks"] == {"end": 0, "proxy": 0, "selected": 0}


def test_picks_are_the_end_the_proxys_best_and_the_selection_judges_best() -> None:
    def point(step, gold, proxy):
        return {"step": step, "metrics": {"selection/sampled/gold": gold, "selection/sampled/proxy": proxy}}

    curve = [point(0, 9.0, 9.0), point(5, 1.0, 0.2), point(10, 0.5, 0.9), point(15, 0.1, 0.3)]
    assert _picks(curve) == {"end": 15, "proxy": 10, "selected": 5}  # the start is another arm's policy
    assert _picks(curve[:1]) == {"end": 0, "proxy": 0, "selected": 0}


def test_figures_are_the_means_of_the_scores_per_prompt(cells) -> None:
    evaluation = read_json(cells["dpo"] / "evaluation.json")
    rows = list(read_jsonl(cells["dpo"] / "scores.jsonl"))
    assert {(r["split"], r["decoding"]) for r in rows} == {
        ("test", "sampled"),
        ("test", "greedy"),
        ("shifted", "sampled"),
        ("hard", "sampled"),
    }
    for pick in ("end", "selected"):
        gold = [r["gold"] for r in rows if (r["pick"], r["split"], r["decoding"]) == (pick, "test", "sampled")]
        assert len(gold) == 8 and all(len(g) == 2 for g in gold)
        assert np.mean(gold) == pytest.approx(evaluation["figures"][pick]["test/sampled/gold"])


def test_an_arm_that_ends_below_sft_is_marked(cells) -> None:
    sft, dpo = (read_json(cells[name] / "evaluation.json") for name in ("sft", "dpo"))
    ends = [e["figures"]["end"]["test/sampled/gold"] for e in (sft, dpo)]
    assert dpo["collapsed"] == (ends[1] < ends[0]) and sft["collapsed"] is False


def test_best_of_n_has_its_analytic_kl_and_no_less_proxy_than_sft(cells) -> None:
    best, sft = (read_json(cells[name] / "evaluation.json") for name in ("best-of-n", "sft"))
    assert best["analytic_kl"] == best_of_n_kl(4) and "analytic_kl" not in sft
    proxies = [e["figures"]["end"]["test/sampled/proxy"] for e in (best, sft)]
    assert proxies[0] > proxies[1]


def test_what_comes_before_is_charged_once(tiny_world, cells) -> None:
    before = {name: read_json(tiny_world.cells[name] / "cost.json")["own"] for name in ("pairs", "reward")}
    arm = read_json(cells["arm"] / "cost.json")["own"]
    cost = read_json(cells["dpo"] / "cost.json")
    assert cost["own"] == arm
    assert cost["charged"]["labels"] == before["pairs"]["labels"] and arm["labels"] == 0
    assert cost["charged"]["flops"] == arm["flops"] + before["pairs"]["flops"]
    assert read_json(cells["sft"] / "cost.json")["charged"]["flops"] == 0


def test_best_of_n_pays_at_inference(tiny_world, cells, tmp_path) -> None:
    """Four draws and four scores for each of the eight test prompts that were asked: 2 FLOP per parameter and token,
    for the policy and for the reward model."""
    own = read_json(cells["best-of-n"] / "cost.json")["own"]
    assert own["reward_calls"] == 4 * own["prompts"] == 4 * 8
    length = read_json(cells["best-of-n"] / "evaluation.json")["figures"]["selected"]["test/sampled/length"]
    assert own["sampled_tokens"] == round(32 * length) > 32
    stage = tiny_world.stage("count", tmp_path / "count")
    tokens = own["sampled_tokens"] + 4 * sum(len(stage.prompt_ids(p)) for p in tiny_world.task.prompts("test")[:8])
    sizes = [sum(t.numel() for t in load_file(tiny_world.cells[cell] / name / "model.safetensors").values())
             for cell, name in (("sft", "model"), ("reward", "reward_model"))]  # fmt: skip
    assert own["flops"] == 2.0 * sum(sizes) * tokens


def test_samples_show_every_kind_of_prompt_and_those_of_training(cells) -> None:
    rows = list(read_jsonl(cells["dpo"] / "samples.jsonl"))
    watched = [r for r in rows if r["pick"] == "training"]
    shown = [r for r in rows if r["pick"] == "selected" and (r["split"], r["decoding"]) == ("test", "sampled")]
    assert len(watched) == 4 * 4 and all("gold" in r for r in watched)
    assert len(shown) == 3
