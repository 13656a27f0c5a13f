"""What a report says of tuning, of learned judges, of a single seed, and of checkpoints whose cost is not known."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest

from trueline.study.comparisons import over_prompts
from trueline.study.matrix import load
from trueline.study.report import build
from trueline.study.statistics import wilson
from trueline.study.trials import WIDTH, trial_table

from .conftest import LIGHT
from .pages import Page
from .study_builder import QUIRKY, build_run


def trials(arm: str, section: str, scores: list[list[float]], chosen: int, key: str = "beta") -> dict:
    rows = [{"arm": arm, "number": n, "settings": {"learning_rate": 1e-5 * (n + 1), key: 0.1}, "scores": values,
             "ends": [v - 1 for v in values]} for n, values in enumerate(scores)]  # fmt: skip
    ranges = {"learning_rate": [1e-7, 1e-3], key: [0.03, 0.3]}
    return {"arm": arm, "section": section, "ranges": ranges, "chosen": chosen, "trials": rows}


TUNING = {
    "trials": 3, "seeds": [100, 101], "metric": "selection/sampled/gold",
    "arms": [trials("dpo", "dpo", [[1.0, 2.0], [0.0, 0.0], [2.0, 2.0]], 2),
             trials("dpo+ppo", "both", [[4.0, 4.0], [2.5, 3.5], [-1.0, 1.0]], 0, "kl_coef")],
}  # fmt: skip
DONE = {
    "family": "reward model", "part": "training", "trained_on": 1080,
    "accuracy": {
        "in_distribution": {"all": {"right": 90.0, "pairs": 120}, "harmful": {"right": 30.0, "pairs": 50},
                            "benign": {"right": 60.0, "pairs": 70}},
        "longer_wins": {"all": {"right": 66.0, "pairs": 120}},
        "equal_length": {"all": {"right": 8.0, "pairs": 20}},
        "own_samples": {"all": {"right": 101.5, "pairs": 203}},
        "elsewhere": {"all": {"right": 30.0, "pairs": 40}, "harmless": {"right": 30.0, "pairs": 40}},
    },
    "calibration": {"ece": 0.0719, "by_chance": 0.0432},
}  # fmt: skip


def rebuilt(directory, *, manifest: dict, **changes) -> tuple[dict, str]:
    """The report of a light study whose manifest says this too."""
    run = build_run(directory, replace(LIGHT, **changes))
    path = run / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | manifest))
    return build(run), (run / "report.html").read_text(encoding="utf-8")


def section(html: str, heading: str) -> str:
    found = re.search(rf"<section>\s*<h2>{heading}</h2>(.*?)</section>", html, re.S)
    assert found, heading
    return found[1]


# --- tuning


def test_nothing_tuned_has_no_table() -> None:
    assert trial_table({}) is None


def test_all_arms_are_drawn_on_one_scale() -> None:
    """Means of the seeds: dpo 1.5, 0, 2; both 4, 3, 0. The scale is 0 to 4, so 4 lies 6 pixels from the right end."""
    table = trial_table(TUNING)
    assert (table.trials, table.seeds, table.scale) == (3, (100, 101), (0.0, 4.0))
    dpo, both = table.rows
    per_point = (WIDTH - 12) / 4
    assert dpo.places == pytest.approx((6 + 1.5 * per_point, 6, 6 + 2 * per_point), abs=0.01)
    assert both.places == pytest.approx((WIDTH - 6, 6 + 3 * per_point, 6), abs=0.01)
    assert (dpo.chosen, dpo.score, dpo.spread) == (dpo.places[2], 2.0, (0.0, 2.0))
    assert (both.chosen, both.score, both.spread) == (WIDTH - 6, 4.0, (0.0, 4.0))
    assert dpo.settings == "learning_rate 3e-05, beta 0.1"
    assert [t["chosen"] for t in both.trials] == [True, False, False] and both.trials[1]["end"] == 2.0
    assert table.ranges["both"] == {"learning_rate": "1e-07 to 0.001", "kl_coef": "0.03 to 0.3"}


def test_trials_that_all_scored_the_same_are_drawn_in_the_middle() -> None:
    alike = TUNING | {"arms": [trials("dpo", "dpo", [[1.0], [1.0]], 0)]}
    assert trial_table(alike).rows[0].places == (WIDTH / 2, WIDTH / 2)


def test_the_strips_and_every_trial_are_in_the_report(tmp_path) -> None:
    report, html = rebuilt(tmp_path, manifest={"tuning": TUNING})
    assert report["tuning"] == TUNING
    shown = section(html, "How the settings were chosen")
    strips = re.findall(r'<svg class="strip".*?</svg>', shown)
    assert [strip.count("<circle") for strip in strips] == [3 + 1, 3 + 1]  # a dot a trial, the chosen one over it
    assert "3 random trials" in shown and "100, 101" in shown and "All trials (6)" in shown
    assert len(re.findall(r"chosen</span>", shown)) == 2
    page = Page(html)
    assert page.active() == [] and page.open == []


def test_a_study_without_trials_says_nothing_of_them(tmp_path) -> None:
    report, html = rebuilt(tmp_path, manifest={})
    assert report["tuning"] == {} and "How the settings were chosen" not in html


# --- learned judges


def test_each_judge_is_a_row_with_what_it_is_worth(tmp_path) -> None:
    manifest = {"judges": [["reward model, seed 0", DONE], ["gold judge, seed 1", DONE | {"part": "gold"}],
                           ["nothing measured", {"steps": 3}]]}  # fmt: skip
    report, html = rebuilt(tmp_path, manifest=manifest)
    assert [row["label"] for row in report["judges"]] == ["reward model, seed 0", "gold judge, seed 1"]
    row = report["judges"][0]
    low, high = wilson(90, 120)
    assert row["held_out"] == {"name": "all", "value": 0.75, "low": low, "high": high, "pairs": 120}
    assert {share["name"]: share["value"] for share in row["by_kind"]} == {"harmful": 0.6, "benign": 60 / 70}
    assert row["longer_wins"]["value"] == 0.55 and row["equal_length"]["value"] == 0.4
    assert (row["ece"], row["by_chance"]) == (0.0719, 0.0432)
    assert [(s["name"], s["value"]) for s in row["elsewhere"]] == [
        ("harmless pairs, left out of training", 0.75), ("SFT's own samples, ordered by gold", 0.5)
    ]  # fmt: skip
    shown = section(html, "What the learned judges are worth")
    for text in ("1,080 training pairs (reward model)", "0.750", "of 120", "0.072", "(0.043)", "gold judge, seed 1"):
        assert text in shown
    assert "nothing measured" not in shown and Page(html).active() == []


def test_no_judge_no_table(tmp_path) -> None:
    report, html = rebuilt(tmp_path, manifest={})
    assert report["judges"] == [] and "What the learned judges are worth" not in html


def test_text_of_trials_and_judges_is_inert(tmp_path) -> None:
    hostile = trials("dpo", QUIRKY, [[1.0], [2.0]], 1, key=QUIRKY) | {"ranges": {QUIRKY: [1, 2]}}
    manifest = {"tuning": TUNING | {"arms": [hostile]}, "judges": [[QUIRKY, DONE | {"part": QUIRKY, "family": QUIRKY}]]}
    page = Page(rebuilt(tmp_path, manifest=manifest)[1])
    assert page.active() == [] and page.open == [] and "".join(page.text).count("<script>alert(1)</script>") >= 6


# --- intervals over prompts alone


def test_one_seed_is_compared_over_prompts_by_a_t_interval(tmp_path) -> None:
    """Means over samples give a difference per prompt; its t interval has n - 1 degrees of freedom. t(0.975, 3) is
    3.182446."""
    run = build_run(tmp_path, replace(LIGHT, seeds=(4,), prompts=4, samples=2))
    rows = over_prompts(load(run), load(run).primary)
    gold = {}
    for arm in ("ppo", "dpo", "sft"):
        (folder,) = (p for p in (run / "cells").iterdir() if p.name in (f"shifted-{arm}-4", f"{arm}-4"))
        lines = [json.loads(line) for line in (folder / "scores.jsonl").read_text().splitlines()]
        gold[arm] = {row["prompt"]: np.mean(row["gold"]) for row in lines
                     if (row["pick"], row["split"], row["decoding"]) == ("selected", "test", "sampled")}  # fmt: skip
    for a, b in (("ppo", "dpo"), ("ppo", "sft")):
        (row,) = (row for row in rows if (row.a, row.b) == (a, b))
        d = np.array([gold[a][prompt] - gold[b][prompt] for prompt in gold[a]])
        half = 3.182446 * d.std(ddof=1) / 2
        assert (row.interval.low, row.interval.high) == pytest.approx((d.mean() - half, d.mean() + half), rel=1e-5)
        assert row.family == "exploratory" and row.p_adjusted is None
    assert {(row.a, row.b) for row in rows} >= {("ppo", "dpo"), ("dpo+ppo", "dpo"), ("dpo", "sft"), ("ppo", "sft")}


def test_it_is_shown_for_one_seed_and_never_changes_the_verdict(tmp_path) -> None:
    report, html = rebuilt(tmp_path / "one", manifest={}, seeds=(4,))
    assert report["over_prompts"] and "Over prompts alone" in html
    assert set(report["over_prompts"][0]) == set(report["comparisons"][0])
    assert report["verdict"]["answer"] == "cannot-tell"
    report, html = rebuilt(tmp_path / "two", manifest={}, seeds=(4, 5))
    assert report["over_prompts"] == [] and "Over prompts alone" not in html


# --- costs that nobody knows


def test_unknown_costs_are_not_shown_and_decide_nothing(tmp_path) -> None:
    known, page = rebuilt(tmp_path / "known", manifest={})
    assert known["verdict"]["cheapest"] is not None and "<h2>Cost</h2>" in page
    report, html = rebuilt(tmp_path / "unknown", manifest={"budget": {"rule": "unknown"}})
    assert report["verdict"]["cheapest"] is None
    assert report["verdict"]["best"] == known["verdict"]["best"]
    assert "<h2>Cost</h2>" not in html and ">FLOPs</th>" not in html and ">FLOPs</th>" in page
    assert "what these checkpoints cost is not known here" in html
    assert Page(html).active() == [] and Page(html).open == []


def test_among_equals_of_unknown_cost_none_is_called_the_cheapest(tmp_path) -> None:
    means = {arm: 0.5 + 1e-4 * i for i, arm in enumerate(LIGHT.means)}
    quiet = {"means": means, "noise_sd": 0.01, "seed_sd": 0.001, "prompt_sd": 0.01, "margin": {"absolute": 1.0}}
    report, _ = rebuilt(tmp_path, manifest={"budget": {"rule": "unknown"}}, **quiet)
    assert report["verdict"]["answer"] == "no-difference"
    text = report["verdict"]["text"]
    assert "what they cost is not known here" in text and "cheapest" not in text


def test_a_set_of_best_arms_of_unknown_cost_is_answered_by_the_highest(tmp_path) -> None:
    """PPO and both are not parted, DPO is beaten: with costs the cheaper one is named, without them the higher one."""
    means = {"sft": 0.0, "dpo": 0.2, "dpo-iter": 0.2, "ppo": 2.0, "dpo+ppo": 2.001}
    known, _ = rebuilt(tmp_path / "known", manifest={}, means=means)
    unknown, _ = rebuilt(tmp_path / "unknown", manifest={"budget": {"rule": "unknown"}}, means=means)
    assert set(known["verdict"]["best"]) == set(unknown["verdict"]["best"]) == {"ppo", "dpo+ppo"}
    gold = {arm["name"]: arm["metrics"]["test/sampled/gold"]["mean"] for arm in unknown["arms"]}
    assert known["verdict"]["answer"] == "ppo"
    assert unknown["verdict"]["answer"] == max(("ppo", "dpo+ppo"), key=gold.__getitem__)
    assert "is the highest of them" in unknown["verdict"]["text"]
