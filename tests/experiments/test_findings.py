"""The word for each finding, and the differences that are declared."""

from __future__ import annotations

import json

import numpy as np
import pytest
from tests.experiments.arm_runs import arm_of, drawn

from trueline.commands.resolve import resolve
from trueline.experiments.findings import GROUPS, WIDTHS, findings_of, outcome, rows_of
from trueline.experiments.findings_page import finding_json, findings_page, markdown, tally
from trueline.study.statistics import Interval, seed_interval


def interval(mean: float, half: float, p: float) -> Interval:
    return Interval(mean, mean - half, mean + half, half / 2, 4.0, p)


@pytest.mark.parametrize(
    "mean, half, p, expected",
    [
        (0.5, 0.2, 0.001, "reproduced"),
        (-0.5, 0.2, 0.001, "reversed"),
        (0.02, 0.05, 0.5, "not reproduced"),
        (-0.3, 0.35, 0.1, "not reproduced"),
        (0.1, 0.3, 0.5, "undecided"),
        (0.5, 0.2, 0.06, "undecided"),  # Holm took it back
    ],
)
def test_outcomes(mean, half, p, expected) -> None:
    assert outcome(interval(mean, half, p), p, 0.1) == expected


def test_what_cannot_be_formed_is_undecided() -> None:
    assert outcome(None, 1.0, 0.1) == outcome(seed_interval([0.3]), 1.0, 0.1) == "undecided"


@pytest.fixture(scope="module")
def evidence():
    """Every row of every group with made-up scores: 0 unless `LEVELS` says otherwise."""
    runs, used = {}, {}
    for group in GROUPS:
        _, sections, task = resolve(group.task, list(group.settings), False)
        rows = rows_of(group, sections, verified=task.verified)
        used[group.name] = sections
        made = {}
        for k, row in enumerate(rows):
            level = LEVELS.get((group.name, row.name), 0.0)
            more = {f"test/sampled/{m}": level + np.linspace(0, 0.01, 5) for m in METRICS}
            curve = [[(kl, level * np.sqrt(kl) + 0.001 * s) for kl in (0.0, 0.5, 1.0, 2.0)] for s in range(5)]
            made[row.name] = arm_of(row.name, drawn(level, start=k), curve=curve, more=more)
        runs[group.name] = made
    return runs, used


METRICS = ("safe", "helpfulness", "refusal_benign")
LEVELS = {
    ("code", "ladder: + advantage norm"): 0.3,
    ("code", "ladder: + large batch"): 0.6,
    ("code", "ladder: + EMA reference"): 0.6,
    ("code", "dpo on people's pairs"): -0.5,
    ("safe-dialogue", "DPO, safe SFT"): 0.3,
    ("safe-dialogue", "DPO, safe SFT, no dual pairs"): 0.1,
    ("code-width-64", "ppo"): 0.2,
    ("code-width-128", "ppo"): 0.4,
    ("dialogue", "beta: ppo, kl_coef 0.0391"): 0.5,
    ("dialogue", "beta: ppo, kl_coef 0.0782"): 0.5,
}


def test_each_finding_reads_its_rows(evidence) -> None:
    found = {f.id: f for f in findings_of(*evidence)}
    assert list(found) == [
        "advantage-norm",
        "batch",
        "ema-reference",
        "shifted-reference",
        "off-policy-code",
        "filters",
        "base-size",
        "beta",
    ]
    means = {name: f.effect.mean for name, f in found.items()}
    assert means["advantage-norm"] == pytest.approx(0.3, abs=0.05)
    assert means["off-policy-code"] == pytest.approx(0.5, abs=0.05)
    assert means["shifted-reference"] == pytest.approx(0.3, abs=0.02)
    assert means["filters"] == pytest.approx(-0.2, abs=0.02) and found["filters"].outcome == "reversed"
    assert means["base-size"] == pytest.approx(0.2, abs=0.05)  # per doubling
    assert means["beta"] == pytest.approx(0.5, abs=0.05)
    assert means["ema-reference"] == pytest.approx(0.0, abs=0.02)
    assert found["ema-reference"].outcome == "not reproduced"
    assert all(f.seeds == 5 for f in found.values())


def test_batch_is_compared_in_units_of_its_own_task(evidence) -> None:
    """0.3 on code, where SFT's responses spread by about 0.4, and nothing on dialogue."""
    from trueline.experiments.parts import gold_sd

    batch = {f.id: f for f in findings_of(*evidence)}["batch"]
    assert batch.effect.mean == pytest.approx(0.3 / gold_sd(evidence[0]["code"]["sft"]), abs=0.15)


def test_the_correction_is_over_the_eight(evidence) -> None:
    found = findings_of(*evidence)
    smallest = min(f.effect.p for f in found)
    assert min(f.p_adjusted for f in found) == pytest.approx(8 * smallest)


def test_json_page_and_table_say_the_same(evidence) -> None:
    found = findings_of(*evidence)
    rows = json.loads(json.dumps([finding_json(f) for f in found], allow_nan=False))
    for row in rows:
        assert row["outcome"] in ("reproduced", "not reproduced", "reversed", "undecided")
        assert len(row["ci95"]) == 2 and row["seeds"] >= 5 and row["command"].startswith("trueline ")
    html = findings_page(found, "a world of ours", "trueline findings").html()
    table = markdown(found)
    for f in found:
        assert f"**{f.outcome}**" in next(line for line in table.splitlines() if line.startswith(f"| {f.id} "))
        assert f"{f.id}: {f.outcome}" in html
    assert tally(found) in html


def test_three_widths_of_tiny() -> None:
    assert [group.name for group in GROUPS if group.task == "code"][1:] == [
        "code-width-32",
        "code-width-64",
        "code-width-128",
    ]
    assert WIDTHS == (32, 0, 128)
