"""Every answer is reachable, and nothing is answered that the numbers do not carry."""

from __future__ import annotations

import re

import pytest

from trueline.study.comparisons import CANDIDATES, compare, find
from trueline.study.verdict import judge

from .study_builder import FLOPS, MEANS

WEAK = {"kind": "learned", "accuracy": 0.6, "accuracy_ci95": [0.55, 0.65]}
FAIR = {"kind": "learned", "accuracy": 0.7, "accuracy_ci95": [0.66, 0.74]}
UNKNOWN = {"kind": "learned", "accuracy": None, "accuracy_ci95": None}
PPO_DEAR = FLOPS | {"ppo": 9e12}
EQUAL = MEANS | {"dpo": 1.5, "dpo-iter": 1.5, "ppo": 1.5, "dpo+ppo": 1.5}
TIGHT = {"seed_sd": 0.001, "noise_sd": 0.02, "prompt_sd": 0.1, "margin": {"absolute": 0.1}}

CASES = {
    # name: (changes, answer, best, what the text must say)
    "ppo and both not separated, ppo cheaper": (
        {"means": MEANS | {"ppo": 1.9, "dpo+ppo": 1.9}},
        "ppo",
        {"ppo", "dpo+ppo"},
        "PPO is the cheapest",
    ),
    "ppo and both not separated, both cheaper": (
        {"means": MEANS | {"ppo": 1.9, "dpo+ppo": 1.9}, "flops": PPO_DEAR},
        "dpo+ppo",
        {"ppo", "dpo+ppo"},
        "DPO+PPO is the cheapest",
    ),
    "ppo alone": ({"means": MEANS | {"dpo+ppo": 1.2}}, "ppo", {"ppo"}, "PPO is the best arm"),
    "dpo alone": ({"means": MEANS | {"dpo": 2.9}}, "dpo", {"dpo"}, "below DPO"),
    "dpo-iter alone": ({"means": MEANS | {"dpo-iter": 2.9}}, "dpo-iter", {"dpo-iter"}, "DPO-Iter is the best arm"),
    "both alone": ({"means": MEANS | {"dpo+ppo": 2.9}}, "dpo+ppo", {"dpo+ppo"}, "DPO+PPO is the best arm"),
    "best alone although ppo and dpo are not separated": (
        {"means": MEANS | {"ppo": 1.0, "dpo": 1.0, "dpo+ppo": 2.9}},
        "dpo+ppo",
        {"dpo+ppo"},
        "not separated",
    ),
    "all within the margin": (
        {"means": EQUAL} | TIGHT,
        "no-difference",
        {"dpo", "dpo-iter", "ppo", "dpo+ppo"},
        "within the margin",
    ),
    "all equal but too wide for the margin": (
        {"means": EQUAL, "seed_sd": 0.3, "prompt_sd": 0.2, "margin": {"absolute": 0.2}},
        "cannot-tell",
        {"dpo", "dpo-iter", "ppo", "dpo+ppo"},
        "seeds would settle",
    ),
    "one seed": ({"seeds": (0,)}, "cannot-tell", {"dpo", "dpo-iter", "ppo", "dpo+ppo"}, "at least three"),
    "weak learned gold": ({"gold": WEAK}, "cannot-tell", {"dpo", "dpo-iter", "ppo", "dpo+ppo"}, "too near to chance"),
    "unknown learned gold": ({"gold": UNKNOWN}, "cannot-tell", {"dpo", "dpo-iter", "ppo", "dpo+ppo"}, "unknown"),
    "fair learned gold": ({"gold": FAIR, "means": MEANS | {"dpo+ppo": 1.2}}, "ppo", {"ppo"}, "PPO is the best arm"),
    "no dpo": ({"arms": ("sft", "ppo", "dpo-iter")}, "ppo", {"ppo"}, "DPO did not run"),
    "one candidate": ({"arms": ("sft", "ppo", "rloo")}, "cannot-tell", {"ppo"}, "at least two"),
}


@pytest.mark.parametrize("name", CASES)
def test_cases(make_study, name):
    changes, answer, best, phrase = CASES[name]
    verdict = judge(make_study(**changes))
    assert (verdict.answer, set(verdict.best)) == (answer, best), verdict.text
    assert phrase in verdict.text
    assert verdict.cheapest in verdict.best


TESTED = {"kind": "tests", "accuracy": None, "accuracy_ci95": None}
SILENT = {"seed_sd": 0.0, "noise_sd": 0.0, "prompt_sd": 0.0, "margin": {"absolute": 0.02}}


@pytest.mark.parametrize(
    ("means", "gold", "told"),
    [
        ({}, TESTED, False),
        ({"sft": 0.5}, TESTED, True),  # one arm that solves something is enough, a floor too
        ({}, {"kind": "embedded"}, True),  # 0 is a judge's score like any other
    ],
)
def test_programs_that_all_fail_tell_nothing(make_study, means, gold, told):
    verdict = judge(make_study(means=dict.fromkeys(MEANS, 0.0) | means, gold=gold, **SILENT))
    assert (verdict.answer == "no-difference") is told
    assert ("no program of any arm passed" in verdict.text) is not told
    assert told or (verdict.answer, set(verdict.best)) == ("cannot-tell", set(CANDIDATES))


def test_the_text_is_two_to_four_sentences_and_leads_with_ppo_against_dpo(make_study):
    study = make_study(
        ends={("ppo", 1): -0.5}, means=MEANS | {"best-of-n": 3.0}, arms=("sft", "best-of-n", *CANDIDATES)
    )
    verdict = judge(study)
    assert 2 <= len(re.findall(r"[.] (?=[A-Z])|[.]$", verdict.text)) <= 4
    assert verdict.text.startswith(verdict.lead) and verdict.lead.startswith("PPO scores")
    assert "95% interval" in verdict.lead and "gold points" in verdict.lead and study.manifest.world in verdict.lead


def test_a_collapse_is_said(make_study):
    assert "PPO ended below SFT in 1 of 3 seeds (collapsed)" in judge(make_study(ends={("ppo", 1): -0.5})).text
    assert "collapsed" not in judge(make_study()).text


def test_a_best_arm_no_better_than_sft_is_said(make_study):
    low = {"dpo": 0.1, "dpo-iter": 0.1, "ppo": 0.3, "dpo+ppo": 0.2}
    assert "not shown to be better than SFT" in judge(make_study(means=MEANS | low)).text


def test_a_best_arm_worse_than_sft_is_said(make_study):
    low = {"dpo": -0.9, "dpo-iter": -0.9, "ppo": -0.5, "dpo+ppo": -0.9}
    assert "PPO, the highest of the candidates, is worse than SFT" in judge(make_study(means=MEANS | low)).text


@pytest.mark.parametrize("floor,words", [("best-of-n", "best-of-n beats"), ("sft-chosen", "SFT on chosen beats")])
def test_a_floor_that_beats_the_best_is_said(make_study, floor, words):
    arms = ("sft", floor, *CANDIDATES)
    assert words in judge(make_study(means=MEANS | {floor: 3.0}, arms=arms)).text.replace("Best-of", "best-of")
    assert words not in judge(make_study(arms=arms)).text


def test_separation_in_the_family_needs_holm(make_study):
    """A raw p below 0.05 that Holm raises above it does not separate."""
    study = make_study(means=EQUAL | {"ppo": 1.8}, seeds=(0, 1, 2, 3))
    rows = [row for row in compare(study, study.primary) if row.family == "declared"]
    assert [(row.a, row.b) for row in rows] == [
        ("ppo", "dpo"),
        ("ppo", "dpo-iter"),
        ("dpo+ppo", "ppo"),
        ("dpo+ppo", "dpo"),
    ]
    assert all(row.p_adjusted >= row.interval.p for row in rows)
    assert all(row.separated == (row.p_adjusted < 0.05) for row in rows)
    assert sorted(row.p_adjusted for row in rows)[0] == pytest.approx(4 * min(row.interval.p for row in rows))


def test_pairs_outside_the_family_are_exploratory(make_study):
    study = make_study()
    row = find(compare(study, study.primary), "dpo+ppo", "dpo-iter")
    assert row.family == "exploratory" and row.p_adjusted is None


def test_cannot_tell_says_what_it_would_take(make_study):
    ran = {"means": EQUAL, "seed_sd": 0.8, "arms": ("sft", "dpo", "ppo"), "margin": {"absolute": 0.3}}
    found = re.search(r"about (\d+) seeds would settle PPO against DPO", judge(make_study(**ran, prompt_sd=0.1)).text)
    assert found and 3 < int(found[1]) < 20
    assert "add evaluation prompts first" in judge(make_study(**ran, prompt_sd=4.0)).text
