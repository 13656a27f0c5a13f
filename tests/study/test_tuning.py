"""Tuning: equal trials, spread over declared ranges, on seeds and prompts that no report shows."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from program import trueline
from trueline.commands.resolve import resolve
from trueline.errors import InputError
from trueline.runs.cell import read_json, write_json
from trueline.study.design import nodes_of_trials, trial_key
from trueline.study.record import chosen_settings
from trueline.study.tuning import Trial, best_of, check_ranges, draw, read_trials, record_of, tune_section

from .designs import ARMS, design

SECTIONS = design().sections
PPO, DPO, SFT = SECTIONS["ppo"], SECTIONS["dpo"], SECTIONS["sft"]


# --- drawing


@settings(max_examples=60, deadline=None)
@given(
    low=st.floats(1e-9, 1e3),
    factor=st.floats(1.5, 1e4),
    trials=st.integers(1, 24),
    seed=st.integers(0, 2**31),
)
def test_every_slice_of_every_range_is_used_once(low, factor, trials, seed) -> None:
    """Of n slices of equal log width each holds one value. Values are rounded to three digits, which can carry one
    over a border: by at most 0.5% of it."""
    ranges = {"learning_rate": (low, low * factor), "kl_coef": (low, low * factor)}
    drawn = draw(PPO, ranges, trials, seed, "ppo")
    assert len(drawn) == trials and all(list(row) == ["learning_rate", "kl_coef"] for row in drawn)
    slack = 0.0051 / (np.log(factor) / trials)
    for key in ranges:
        values = np.array([row[key] for row in drawn])
        assert ((low <= values) & (values <= low * factor)).all()
        places = np.sort(trials * np.log(values / low) / np.log(factor))
        assert (places > np.arange(trials) - slack).all() and (places < np.arange(trials) + 1 + slack).all()


def test_draws_are_a_function_of_seed_and_name() -> None:
    ranges = {"learning_rate": (1e-6, 1e-3), "beta": (0.01, 1.0)}
    first = draw(DPO, ranges, 6, 100, "dpo")
    assert draw(DPO, ranges, 6, 100, "dpo") == first
    assert draw(DPO, ranges, 6, 101, "dpo") != first
    assert draw(DPO, ranges, 6, 100, "ipo") != first


def test_each_key_has_an_order_of_its_own() -> None:
    """With one order for both, the first slices would always meet and ranks would be equal."""
    drawn = draw(DPO, {"learning_rate": (1e-6, 1e-3), "beta": (1e-6, 1e-3)}, 8, 100, "dpo")
    ranks = [np.argsort(np.argsort([row[key] for row in drawn])).tolist() for key in ("learning_rate", "beta")]
    assert ranks[0] != ranks[1] and sorted(ranks[0]) == sorted(ranks[1]) == list(range(8))


def test_whole_numbers_stay_whole() -> None:
    drawn = draw(PPO, {"steps": (2, 50)}, 20, 0, "ppo")
    assert all(type(row["steps"]) is int and 2 <= row["steps"] <= 50 for row in drawn)
    assert len({row["steps"] for row in drawn}) > 10


def test_draws_are_log_uniform() -> None:
    """Over seeds a single trial's log place is uniform on (0, 1): mean 1/2 and variance 1/12, within 4 standard errors
    (of the variance: sqrt((1/80 - 1/144) / n))."""
    count = 1500
    low, high = 1e-7, 1e-3
    values = np.array([draw(DPO, {"learning_rate": (low, high)}, 1, seed, "dpo")[0]["learning_rate"]
                       for seed in range(count)])  # fmt: skip
    places = np.log(values / low) / np.log(high / low)
    assert places.mean() == pytest.approx(0.5, abs=4 * (1 / 12 / count) ** 0.5)
    assert places.var() == pytest.approx(1 / 12, abs=4 * ((1 / 80 - 1 / 144) / count) ** 0.5)


def test_a_value_that_is_drawn_is_one_that_the_section_takes() -> None:
    for arm in design().arms.values():
        if arm.section:
            section = SECTIONS[arm.section]
            for row in draw(section, arm.search, 7, 100, arm.name):
                assert type(section).model_validate(section.model_dump() | row)


# --- ranges that cannot be searched

BAD = {
    "nothing": ("dpo", DPO, {}, "no range at all", "study.trials=0"),
    "misspelt": ("ppo", PPO, {"kl_coff": (0.1, 1)}, "ppo has no setting 'kl_coff'", "did you mean kl_coef?"),
    "unlike-any": ("ppo", PPO, {"xyzzy": (0.1, 1)}, "ppo has no setting 'xyzzy'", "one of steps, batch_size"),
    "no-number": ("dpo_iter", SECTIONS["dpo_iter"], {"reference": (1, 2)}, "dpo_iter.reference is not a number", ""),
    "true-or-false": ("sft", SFT, {"prompt_loss": (0.1, 1)}, "sft.prompt_loss is not a number", "one of "),
    "turned-round": ("dpo", DPO, {"beta": (1, 0.1)}, "beta: [1, 0.1] is no log range", "the smaller one first"),
    "one-point": ("dpo", DPO, {"beta": (0.1, 0.1)}, "beta: [0.1, 0.1] is no log range", "the smaller one first"),
    "zero": ("dpo", DPO, {"beta": (0, 0.1)}, "beta: [0, 0.1] is no log range", "two numbers above 0"),
    "negative": ("dpo", DPO, {"beta": (-1, 0.1)}, "beta: [-1, 0.1] is no log range", "two numbers above 0"),
    "refused-end": ("ppo", PPO, {"gae_lambda": (0.5, 2)}, "gae_lambda: 2 cannot be used", "narrow the range"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_range_that_cannot_be_searched_is_refused(case) -> None:
    name, section, ranges, reason, remedy = BAD[case]
    with pytest.raises(InputError) as caught:
        check_ranges(name, section, ranges)
    assert reason in caught.value.reason and remedy in caught.value.remedy
    assert (caught.value.where, caught.value.field) == ("settings", f"tune.{name}")


def test_the_ranges_that_come_with_the_arms_can_be_searched() -> None:
    tune = tune_section(design().arms)()
    for arm in design().arms.values():
        if arm.section:
            assert dict(getattr(tune, arm.section)) == dict(arm.search)
            check_ranges(arm.section, SECTIONS[arm.section], arm.search)
    assert set(tune_section(design().arms).model_fields) == {arm.section for arm in design().arms.values()} - {""}


# --- the nodes of trials


def drawn_for(made, arms: tuple[str, ...], trials: int = 3) -> dict:
    sections = made.sections
    return {a: draw(sections[made.arms[a].section], made.arms[a].search, trials, 100, a) for a in arms}


TUNED = tuple(arm for arm in ARMS if arm not in ("sft", "best-of-n"))


@pytest.mark.parametrize("task", ["dialogue", "hh-rlhf"])
def test_every_arm_gets_the_same_trials_on_the_tuning_seeds_and_no_test_prompt(task) -> None:
    made = design(task, study={"arms": ARMS, "seeds": (0, 1), "tuning_seeds": (100, 103)})
    nodes = nodes_of_trials(made, drawn_for(made, TUNED))
    assert all(node.page != "evaluate" for node in nodes)  # `evaluate` alone asks the test prompts
    assert all("gold" not in node.inputs for node in nodes)
    assert {node.seed for node in nodes} == {100, 103}
    assert len({node.variant for node in nodes}) == 1 and all(node.world == made.sections["world"] for node in nodes)
    keys = {node.key: node for node in nodes}
    for arm in TUNED:
        for number in range(3):
            for seed in (100, 103):
                node = keys[trial_key(made, arm, number, seed)]
                assert (node.page, node.measures, node.seed) == ("select", arm, seed)
                assert keys[node.inputs["arm"]].arm == arm
    trained = Counter(node.arm for node in nodes if "#" in node.key and node.page != "select")
    assert set(trained.values()) == {3 * 2} and set(trained) == set(TUNED)
    selected = [node for node in nodes if node.page == "select" and "#" not in node.key]
    assert {node.measures for node in selected} == {"sft", "dpo-half"}  # their starts, once a seed
    assert len(selected) == 4


def test_a_trial_changes_its_own_settings_alone() -> None:
    made = design(study={"arms": ARMS})
    drawn = drawn_for(made, TUNED)
    for node in nodes_of_trials(made, drawn):
        if "#" not in node.key or node.page == "select":
            continue
        number = int(node.key.partition("#")[2].partition("/")[0])
        section = made.sections[made.arms[node.arm].section]
        expected = section.model_dump() | drawn[node.arm][number]
        if "feedback" in expected:
            expected["feedback"] = made.sections["study"].feedback
        assert node.config.model_dump() == expected


def test_trials_of_both_change_its_ppo_and_build_on_the_dpo_that_was_chosen() -> None:
    made = design().replaced({"dpo": {"learning_rate": 3e-5, "beta": 0.77}})
    drawn = drawn_for(made, ("dpo+ppo",), trials=4)
    nodes = nodes_of_trials(made, drawn)
    halves = [node for node in nodes if node.arm == "dpo-half"]
    assert len(halves) == 2 and {(n.config.learning_rate, n.config.beta) for n in halves} == {(3e-5, 0.77)}
    assert all(node.twin == "" and node.share == 0.5 for node in halves)
    both = [node for node in nodes if node.arm == "dpo+ppo"]
    assert len(both) == 4 * 2 and {node.inputs["start"] for node in both} == {node.key for node in halves}
    rates = {node.config.kl_coef for node in both}
    assert rates == {row["kl_coef"] for row in drawn["dpo+ppo"]} and len(rates) == 4
    assert not {node.arm for node in nodes} & {"ppo", "dpo"}


# --- what trials scored


def finished_trials(directory: Path, made, drawn, scores) -> dict[str, Path]:
    """Hand-made selections: `scores[arm][number][seed]` are gold by step; the second step is picked."""
    cells = {}
    for arm, per_trial in scores.items():
        for number, per_seed in enumerate(per_trial):
            for seed, golds in zip(made.sections["study"].tuning_seeds, per_seed):
                cell = directory / f"{arm}-{number}-{seed}"
                cell.mkdir()
                curve = [{"step": step, "metrics": {"selection/sampled/gold": gold, "selection/sampled/kl": 1.0}}
                         for step, gold in zip((0, 5, 10), golds)]  # fmt: skip
                picks = {"end": 10, "proxy": 10, "selected": 5}
                write_json(cell / "selection.json", {"curve": curve, "picks": picks})
                cells[trial_key(made, arm, number, seed)] = cell
    return cells


@pytest.fixture
def tuned(tmp_path):
    """Two arms, two trials each, two seeds. Means of the picked: dpo 2 and 2, ppo 1 and 4."""
    made = design(study={"tuning_seeds": (100, 101), "trials": 2})
    drawn = {
        "dpo": [{"learning_rate": 1e-05, "beta": 0.1}, {"learning_rate": 2.5e-05, "beta": 0.2}],
        "ppo": [{"learning_rate": 0.001, "kl_coef": 0.2}, {"learning_rate": 1e-07, "kl_coef": 0.3}],
    }
    scores = {
        "dpo": [[(0, 1, 9), (0, 3, 9)], [(0, 2, 9), (0, 2, 9)]],
        "ppo": [[(0, 1, 0.5), (0, 1, 0.25)], [(0, 5, -1), (0, 3, -2)]],
    }
    cells = finished_trials(tmp_path, made, drawn, scores)
    return made, drawn, read_trials(made, drawn, cells)


def test_trials_are_scored_at_their_picked_checkpoint_and_at_their_end(tuned) -> None:
    _, drawn, trials = tuned
    assert [(t.arm, t.number) for t in trials] == [("dpo", 0), ("dpo", 1), ("ppo", 0), ("ppo", 1)]
    assert [t.settings for t in trials] == drawn["dpo"] + drawn["ppo"]
    assert [t.scores for t in trials] == [(1, 3), (2, 2), (1, 1), (5, 3)]
    assert [t.ends for t in trials] == [(9, 9), (9, 9), (0.5, 0.25), (-1, -2)]
    assert [t.score for t in trials] == [2, 2, 1, 4]


def test_the_best_is_the_arms_own_and_of_equal_ones_the_first(tuned) -> None:
    _, _, trials = tuned
    assert best_of(trials, "ppo").number == 1
    assert best_of(trials, "dpo").number == 0  # ends and spread do not decide
    rising = [replace(trials[0], number=n, scores=(s,)) for n, s in enumerate((1.0, 7.0, 7.0, 2.0))]
    assert best_of(rising, "dpo").number == 1


def test_the_record_keeps_every_trial(tuned) -> None:
    made, drawn, trials = tuned
    ranges = {arm: made.arms[arm].search for arm in drawn}
    record = record_of(made, trials, ranges)
    assert (record["trials"], record["seeds"], record["metric"]) == (2, [100, 101], "selection/sampled/gold")
    rows = [(row["arm"], row["section"], row["chosen"]) for row in record["arms"]]
    assert rows == [("dpo", "dpo", 0), ("ppo", "ppo", 1)]
    for row in record["arms"]:
        assert [trial["settings"] for trial in row["trials"]] == drawn[row["arm"]]
        assert row["ranges"] == {key: list(ends) for key, ends in ranges[row["arm"]].items()}
    json.dumps(record, allow_nan=False)  # it goes into the manifest


# --- the settings that were chosen, as a file


def test_the_chosen_file_gives_the_same_settings_back(tuned, tmp_path) -> None:
    made, drawn, trials = tuned
    record = record_of(made, trials, {arm: made.arms[arm].search for arm in drawn})
    path = tmp_path / "chosen.yaml"
    chosen_settings(path, "dialogue", record, "trueline study dialogue study.trials=2")
    assert path.read_text().startswith("# Chosen by: trueline study dialogue study.trials=2\n")
    name, sections, _ = resolve(str(path), [], quick=False)
    assert name == "dialogue"
    assert (sections["dpo"].learning_rate, sections["dpo"].beta) == (1e-05, 0.1)
    assert (sections["ppo"].learning_rate, sections["ppo"].kl_coef) == (1e-07, 0.3)
    assert sections["study"].trials == 0  # it is what makes trials needless
    plain = resolve("dialogue", [], quick=False)[1]
    assert sections["kto"] == plain["kto"] and sections["reward"] == plain["reward"]


def test_the_chosen_file_of_a_task_that_ships_with_trials_asks_for_none(tuned, tmp_path) -> None:
    made, drawn, trials = tuned
    rows = [{"prompt": f"Question {i}?", "chosen": "Yes, gladly.", "rejected": "No."} for i in range(80)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path, data = tmp_path / "chosen.yaml", f"data.path={tmp_path / 'rows.jsonl'}"
    assert resolve("pairs", [data], quick=False)[1]["study"].trials > 0
    chosen_settings(path, "pairs", record_of(made, trials, {arm: made.arms[arm].search for arm in drawn}), "x")
    assert resolve(str(path), [data], quick=False)[1]["study"].trials == 0
    assert resolve(str(path), [data, "study.trials=3"], quick=False)[1]["study"].trials == 3


@pytest.mark.parametrize("value", [1e-05, 1e-07, 2.5e-06, 1e16, 0.001, 3, 123456.0, 1.2e-10])
def test_numbers_of_the_chosen_file_are_read_as_the_numbers_they_are(value, tmp_path) -> None:
    """YAML 1.1 takes `1e-05` for a word."""
    row = {"arm": "ppo", "section": "ppo", "chosen": 0, "trials": [{"settings": {"learning_rate": value}}]}
    chosen_settings(tmp_path / "chosen.yaml", "dialogue", {"arms": [row]}, "x")
    found = yaml.safe_load((tmp_path / "chosen.yaml").read_text())["ppo"]["learning_rate"]
    assert found == value and type(found) is type(value)


def test_a_trial_is_ranked_by_its_mean_over_seeds() -> None:
    assert Trial("dpo", 0, {}, (1.0, 4.0), (9.0, 9.0)).score == 2.5


# --- for real

SMALL = (
    "world.demonstrations=300", "world.pairs=80", "study.budget=0", "study.no_shift=false", "study.seeds=0",
    "study.arms=sft,dpo,dpo+ppo", "study.trials=2", "study.tuning_seeds=100", "train.snapshots=1", "train.workers=1",
    "sft.epochs=1", "sft.batch_size=32", "reward.epochs=1", "dpo.epochs=1", "ppo.steps=1", "ppo.batch_size=16",
    "ppo.minibatches=1", "ppo.critic_warmup=0", "evaluate.test_prompts=6", "evaluate.samples=1", "select.prompts=6",
    "select.pairs=4", "evaluate.shown=1", "reward.held_out=0.1",
)  # fmt: skip


@pytest.mark.integration
def test_a_study_with_trials_tunes_first_and_reports_what_it_chose(tmp_path) -> None:
    ended = trueline("study", "dialogue", *SMALL, "-o", "run", cwd=tmp_path, timeout=280)
    assert ended.returncode == 0, ended.stderr[-3000:]
    run = tmp_path / "run"
    tuning = read_json(run / "report.json")["tuning"]
    assert [(row["arm"], len(row["trials"])) for row in tuning["arms"]] == [("dpo", 2), ("dpo+ppo", 2)]
    configs = [read_json(path) for path in run.glob("cells/*/config.json")]
    assert {c["arm"] for c in configs if c["seed"] == 100 and "arm" in c} == {
        "sft", "pairs", "reward", "dpo", "dpo-half", "dpo+ppo",
        "select:sft", "select:dpo", "select:dpo-half", "select:dpo+ppo",
    }  # fmt: skip
    chosen = {row["section"]: row["trials"][row["chosen"]]["settings"] for row in tuning["arms"]}
    final = {c["arm"]: c["config"] for c in configs if c.get("seed") == 0}
    assert chosen["dpo"].items() <= final["dpo"].items()
    assert chosen["dpo"].items() <= next(c for c in configs if c["arm"] == "dpo-half")["config"].items()
    assert chosen["both"].items() <= final["dpo+ppo"].items()
    # The settings that were chosen, without trials: every cell is there already.
    shutil.copytree(run / "cells", tmp_path / "again" / "cells")
    untuned = [setting for setting in SMALL if "trials" not in setting]
    again = trueline("study", run / "chosen.yaml", *untuned, "-o", "again", cwd=tmp_path)
    assert again.returncode == 0, again.stderr[-3000:]
    assert "tuning" not in again.stdout and read_json(tmp_path / "again" / "report.json")["tuning"] == {}
    assert {p.name for p in (tmp_path / "again" / "cells").iterdir()} == {p.name for p in (run / "cells").iterdir()}
