"""What a reward model and a learned judge say of themselves: accuracy in and out of distribution, calibration."""

from __future__ import annotations

import json

import pytest
import torch

from trueline.runs.cell import read_json, read_jsonl, write_jsonl
from trueline.study.judges import judge_rows
from trueline.training.held_out import calibration, counts, length_controls
from trueline.training.judge import load_judge
from trueline.training.pairs import read_pairs
from trueline.types import Judgement, Pair, Prompt

from .small import run_small


def test_counts_by_kind_with_ties_half_right() -> None:
    found = counts(["a", "b", "a", ""], [1.0, -1.0, 0.0, 2.0])
    assert found == {
        "all": {"right": 2.5, "pairs": 4},
        "a": {"right": 1.5, "pairs": 2},
        "b": {"right": 0.0, "pairs": 1},
    }
    assert counts([], []) == {}


def test_length_controls_by_hand() -> None:
    """10 against 9 characters is within a tenth, 10 against 8 is not; the longer side is chosen in two of three."""
    prompt = Prompt.ask("q")
    pairs = [Pair(prompt, "c" * a, "r" * b) for a, b in ((10, 9), (10, 8), (3, 7))]
    found = length_controls(pairs, [-1.0, 1.0, 1.0])
    assert found["longer_wins"] == {"all": {"right": 2.0, "pairs": 3}}
    assert found["equal_length"] == {"all": {"right": 0.0, "pairs": 1}}


def test_calibration_of_a_judge_that_says_nothing() -> None:
    """All margins 0: it says 0.5 of each pair and is half right, so nothing is wrong with it."""
    found = calibration([0.0] * 40)
    assert found["ece"] == 0 and sum(b["count"] for b in found["bins"]) == 40
    assert found["by_chance"] == pytest.approx((2 * 0.25 / (torch.pi * 4)) ** 0.5)  # ten bins of four


@pytest.mark.integration
def test_the_reward_page_measures_itself_in_and_out_of_distribution(tiny_world, finished) -> None:
    done = read_json(finished("reward") / "done.json")
    held = done["accuracy"]["in_distribution"]["all"]
    pairs = read_pairs(tiny_world.cells["pairs"]).training
    assert held["pairs"] == done["held_out_pairs"] == round(0.1 * len(pairs))
    assert done["trained_on"] + done["held_out_pairs"] == len(pairs)
    assert held["right"] / held["pairs"] == done["held_out_accuracy"]
    assert sum(b["count"] for b in done["calibration"]["bins"]) == held["pairs"]
    own = done["accuracy"]["own_samples"]
    assert own["all"]["pairs"] == sum(own[k]["pairs"] for k in own if k != "all") > 0
    assert own["all"]["right"] == sum(own[k]["right"] for k in own if k != "all")
    assert "elsewhere" not in done["accuracy"]


class _OtherJudge:
    """The same task under a gold judge that is `factor` times its own."""

    def __init__(self, task, factor: float) -> None:
        self.task, self.factor = task, factor

    def __getattr__(self, name):
        return getattr(self.task, name)

    def judge_many(self, prompts, responses) -> list[Judgement]:
        return [Judgement(self.factor * judged.score) for judged in self.task.judge_many(prompts, responses)]


@pytest.mark.integration
def test_own_samples_are_ordered_by_gold_and_ties_are_left_out(tiny_world, finished, tmp_path) -> None:
    """Gold turned round turns right into wrong; gold that says nothing leaves no pair to be right on."""
    found = {}
    for factor in (-1.0, 0.0):
        task = _OtherJudge(tiny_world.task, factor)
        cell = run_small(tiny_world, "reward", tmp_path / f"{factor:g}", task=task)
        found[factor] = read_json(cell / "done.json")["accuracy"]["own_samples"]
    own = read_json(finished("reward") / "done.json")["accuracy"]["own_samples"]
    assert {k: v["pairs"] for k, v in own.items()} == {k: v["pairs"] for k, v in found[-1.0].items()}
    assert all(own[k]["right"] + found[-1.0][k]["right"] == own[k]["pairs"] for k in own)
    assert own["all"]["right"] != found[-1.0]["all"]["right"]
    assert found[0.0] == {}


@pytest.mark.integration
def test_pairs_that_were_left_out_of_training_are_measured_apart(tiny_world, tmp_path) -> None:
    """The same pairs, some of them turned round and put in the part `elsewhere`: right becomes wrong, weights stay."""
    rows = list(read_jsonl(tiny_world.cells["pairs"] / "pairs.jsonl"))
    shown = rows[20:60]
    plain = [row | {"part": "elsewhere", "kind": "other"} for row in shown]
    turned = [row | {"chosen": row["rejected"], "rejected": row["chosen"]} for row in plain]
    found = []
    for name, more in (("plain", plain), ("turned", turned)):
        (tmp_path / name).mkdir()
        write_jsonl(tmp_path / name / "pairs.jsonl", rows + more)
        assert len(read_pairs(tmp_path / name).elsewhere) == 40
        cell = run_small(tiny_world, "reward", tmp_path / f"{name}-cell", inputs={"pairs": tmp_path / name})
        found.append((read_json(cell / "done.json"), (cell / "reward_model" / "model.safetensors").read_bytes()))
    (one, weights), (other, same) = found
    assert weights == same
    a, b = one["accuracy"]["elsewhere"], other["accuracy"]["elsewhere"]
    assert a["other"]["right"] + b["other"]["right"] == 40 == a["all"]["pairs"]
    assert a["other"]["right"] != b["other"]["right"]
    assert one["accuracy"]["in_distribution"] == other["accuracy"]["in_distribution"]


@pytest.mark.integration
def test_the_cost_of_a_reward_model_does_not_hold_its_measurement(tiny_world, finished, tmp_path) -> None:
    """Own samples and pairs elsewhere are evaluation: the cost is that of the run without them."""
    from trueline.training import reward

    spent = read_json(finished("reward") / "cost.json")["own"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reward, "_out_of_distribution", lambda *args: {})
        bare = run_small(tiny_world, "reward", tmp_path / "bare")
    own = read_json(bare / "cost.json")["own"]
    keys = ("flops", "sampled_tokens", "trained_tokens", "reward_calls", "labels")
    assert {k: own[k] for k in keys} == {k: spent[k] for k in keys}


@pytest.mark.integration
def test_the_judge_page_fits_measures_and_standardises(tiny_world, finished) -> None:
    cell = finished("judge")
    done, judge = read_json(cell / "done.json"), load_judge(cell)
    pairs = read_pairs(tiny_world.cells["pairs"]).training
    held = pairs[: done["held_out_pairs"]]
    assert done["held_out_pairs"] == round(0.3 * len(pairs)) and done["trained_on"] == len(pairs) - len(held)
    right = sum((m > 0) + 0.5 * (m == 0) for m in judge.margins(held))
    assert right / len(held) == done["held_out_accuracy"]
    assert {"in_distribution", "longer_wins", "equal_length"} == set(done["accuracy"])
    row = read_json(cell / "judge" / "judge.json")
    assert row["std"] > 0 and row["kinds"] == sorted({p.prompt.kind for p in pairs})


def test_rows_for_the_report() -> None:
    """Wilson of 30 of 60: centre 0.5, half width z sqrt(1/4/60 + z^2/(4 60^2)) / (1 + z^2/60) = 0.12265."""
    done = {
        "family": "reward model", "part": "training", "trained_on": 1200, "held_out_pairs": 60,
        "held_out_accuracy": 0.5, "calibration": {"ece": 0.1, "by_chance": 0.04, "bins": []},
        "accuracy": {
            "in_distribution": {"all": {"right": 30.0, "pairs": 60}, "helpful": {"right": 30.0, "pairs": 60}},
            "longer_wins": {"all": {"right": 33.0, "pairs": 60}}, "equal_length": {},
            "elsewhere": {"all": {"right": 8.0, "pairs": 20}, "harmless": {"right": 8.0, "pairs": 20}},
        },
    }  # fmt: skip
    older = {"held_out_accuracy": 0.6}
    (row,) = judge_rows([("reward, seed 0", json.loads(json.dumps(done))), ("an older cell", older)])
    assert row.trained_on == "1,200 training pairs (reward model)"
    assert (row.held_out.value, row.held_out.pairs) == (0.5, 60)
    assert (row.held_out.low, row.held_out.high) == pytest.approx((0.5 - 0.12265, 0.5 + 0.12265), abs=1e-5)
    assert [s.name for s in row.by_kind] == ["helpful"] and row.equal_length is None
    assert [(s.name, s.value) for s in row.elsewhere] == [("harmless pairs, left out of training", 0.4)]
    assert (row.ece, row.by_chance) == (0.1, 0.04)


def test_the_partial_of_the_report_shows_each_figure_and_nothing_without_rows() -> None:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    from trueline.study import page

    folder = page.__file__.rsplit("/", 1)[0] + "/templates"
    environment = Environment(loader=FileSystemLoader(folder), autoescape=True, undefined=StrictUndefined)
    environment.filters["num"] = lambda value, digits=2: f"{value:.{digits}f}"
    template = environment.get_template("judges.html")
    counted = {"all": {"right": 45.0, "pairs": 60}}
    done = {"family": "linear", "part": "gold", "trained_on": 140, "calibration": {"ece": 0.1234, "by_chance": 0.05},
            "accuracy": {"in_distribution": counted, "longer_wins": counted, "own_samples": counted}}  # fmt: skip
    text = template.render(judges=judge_rows([("<gold>", done)]))
    assert "&lt;gold&gt;" in text and "0.750" in text and "0.123" in text and "own samples" in text
    assert template.render(judges=[]).strip() == ""
