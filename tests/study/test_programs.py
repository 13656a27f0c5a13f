"""A study of programs: figures by tier, what became of the programs, their pairs and the sandbox, and only there."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from math import sqrt

import pytest
from rich.console import Console

from trueline.commands.screen import show_arms
from trueline.study.design import Node
from trueline.study.diagnostics import LOUD, diagnose
from trueline.study.matrix import load
from trueline.study.plots import MARKS, slug
from trueline.study.programs import outcomes, pair_rows, programs
from trueline.study.record import _program_pairs
from trueline.study.report import build, summarize
from trueline.study.tiers import tier_panels, tier_rows, tiers
from trueline.study.verdict import display, judge

from .conftest import LIGHT
from .pages import Page
from .study_builder import PASS, QUIRKY, TIERS, build_run

ARMS = ("sft", "best-of-n", "dpo", "dpo-nll", "dpo-iter", "ppo", "dpo+ppo")
SPEC = replace(LIGHT, prompts=12, arms=ARMS, means=dict(PASS), tiers=TIERS, samples=5, signatures=False)
METRIC = "test/sampled/gold"
SECTIONS = ("By tier", "What became of the programs", "Programs side by side", "The pairs", "The sandbox")

# [seed][prompt]: two samples each of two introductory prompts and one interview prompt; None: not judged
PPO = (([1, 1], [1, 0], [0, 0]), ([1, 0], [0, 0], [1, None]))
SFT = (([1, 0], [0, 0], [0, 0]), ([1, 0], [0, 0], [0, 0]))
SHOWN = [1, 0]  # of each prompt the first sample passes the example, the second does not
KINDS = ("introductory", "introductory", "interview")


def _rows(seed, kinds=KINDS):
    rows = []
    for number, (gold, kind) in enumerate(zip(seed, kinds)):
        known = [value for value in gold if value is not None]
        figures = {"pass@1": sum(known) / len(known)} | ({"pass@2": max(known)} if len(known) == 2 else {})
        named = {key: [v] for n, v in figures.items() for key in (n, *([f"{n}_{kind}"] if kind else []))}
        row = {"pick": "selected", "split": "test", "decoding": "sampled", "prompt": f"p{number}", "kind": kind}
        rows.append(row | {"gold": gold, "proxy": SHOWN} | named)
    return rows


def _hand_built(directory, kinds=KINDS, **changes):
    """A study of sft and ppo whose raw scores are those above."""
    run = build_run(directory, replace(SPEC, arms=("sft", "ppo"), seeds=(0, 1), **changes))
    for arm, seeds in (("sft", SFT), ("shifted-ppo", PPO)):
        for number, seed in enumerate(seeds):
            cell, lines = run / "cells" / f"{arm}-{number}", (json.dumps(row) + "\n" for row in _rows(seed, kinds))
            (cell / "scores.jsonl").write_text("".join(lines))
            told = json.loads((cell / "evaluation.json").read_text())
            kept = {k: v for k, v in told["figures"]["selected"].items() if "greedy" not in k and "hard" not in k}
            told["figures"]["selected"] = kept
            (cell / "evaluation.json").write_text(json.dumps(told))
    return run


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A study of programs with both variants and a sandbox that failed now and then, and its report."""
    spec = replace(SPEC, second_variant=True, unjudged=("dpo",), response="def f(xs):\n    if xs:\n        return 1\n")
    run = build_run(tmp_path_factory.mktemp("programs"), spec)
    return run, build(run), (run / "report.html").read_text(encoding="utf-8")


class TestTiers:
    def test_figures_and_intervals_equal_those_by_hand(self, tmp_path):
        study = load(_hand_built(tmp_path))
        easy, middle = tiers(study.primary, METRIC)
        assert (easy.label, easy.prompts, easy.k, middle.label, middle.prompts) == (
            "introductory",
            2,
            2,
            "interview",
            1,
        )
        assert easy.columns == {
            "pass@1": "test/sampled/pass@1_introductory",
            "pass@2": "test/sampled/pass@2_introductory",
            "greedy": "test/greedy/pass@1_introductory",
        }
        cells = [cell for cell, _ in next(r for r in tier_rows(study.primary, (easy, middle)) if r.arm == "ppo").cells]
        # pass@1 of the two prompts is 1 and 1/2, then 1/2 and 0: seeds have 3/4 and 1/4. Their standard error is
        # sqrt(1/8) / sqrt(2) = 1/4, and t(0.975, 1) = 12.7062; the crossed interval is narrower (sqrt(1/8) on 2 df).
        assert cells[0].mean == 0.5 and cells[0].high - 0.5 == pytest.approx(12.7062 / 4, rel=1e-4)
        assert 4.3027 * sqrt(1 / 8) < 12.7062 / 4
        assert cells[1].mean == 0.75  # pass@2: 1 and 1, then 1 and 0
        assert cells[2] is None  # nothing was decoded greedily
        assert cells[3].mean == 0.5  # of the judged samples of the interview prompt: 0 of 2, then 1 of 1

    def test_the_highest_of_a_column_is_marked_and_ties_are_too(self, tmp_path):
        study = load(_hand_built(tmp_path))
        rows = {
            row.arm: [best for _, best in row.cells] for row in tier_rows(study.primary, tiers(study.primary, METRIC))
        }
        # SFT has 1/4 and 1/2 on introductory problems. On the interview one PPO's pass@2 is not known in the second
        # seed, and SFT's 0 stands alone.
        assert rows == {"ppo": [True, True, False, True, False, False], "sft": [False] * 4 + [True, False]}
        equal = replace(study.primary, arms={"sft": study.primary.arms["ppo"], "ppo": study.primary.arms["ppo"]})
        assert all(row.cells[0][1] for row in tier_rows(equal, tiers(equal, METRIC)))

    def test_own_split_first_then_the_others_known_kinds_in_their_order(self, built):
        study = load(built[0])
        assert [tier.label for tier in tiers(study.primary, METRIC)] == [*TIERS["test"], "hard"]

    def test_unknown_kinds_stand_by_what_sft_solves_of_them(self, tmp_path):
        study = load(_hand_built(tmp_path, kinds=("b", "a", "a")))
        assert [tier.label for tier in tiers(study.primary, METRIC)] == ["b", "a"]

    def test_prompts_without_kinds_are_one_tier(self, tmp_path):
        study = load(_hand_built(tmp_path, kinds=("", "", "")))
        (tier,) = tiers(study.primary, METRIC)
        assert (tier.label, tier.kind, tier.columns["pass@1"]) == ("all prompts", "", "test/sampled/pass@1")

    def test_panels_put_gains_over_sft_to_scale(self, tmp_path):
        study = load(_hand_built(tmp_path))
        panel = tier_panels(study.primary, tiers(study.primary, METRIC))[0]
        sft, ppo = panel.dots
        pixels = {text: x for x, text in panel.ticks}
        assert sft.mean == panel.reference == pixels["0.25"] and ppo.mean == pixels["0.50"]
        assert (sft.gain, ppo.gain) == (None, 0.25)
        assert (ppo.low, ppo.high) == (pixels["0.00"], pixels["1.00"])  # cut where a share ends


class TestOutcomes:
    def test_shares_add_up_to_one_and_what_was_not_judged_is_counted_apart(self, built):
        found = {row.arm: row for row in outcomes(load(built[0]))}
        assert set(found) == set(ARMS)
        for row in found.values():
            assert sum(row.shares.values()) == pytest.approx(1) and next(iter(row.shares)) == "pass"
            ends = [x + width for _, x, width in row.bar]
            assert row.bar[0][1] == 0 and ends[-1] == pytest.approx(100, abs=0.01)
        # 12 prompts, 5 samples and 3 seeds; of the arm dpo the first sample of each prompt
        assert (found["dpo"].not_judged, found["dpo"].samples) == (36, 180)
        assert (found["ppo"].not_judged, found["ppo"].samples) == (0, 180)

    def test_pass_is_the_share_of_the_judged_samples(self, built):
        study = load(built[0])
        for row in outcomes(study):
            cells = study.primary.arms[row.arm].cells
            shares = []
            for cell in cells:
                gold = [v for r in cell.scores["selected", "test", "sampled"].values() for v in r["gold"]]
                shares.append(sum(v for v in gold if v) / sum(v is not None for v in gold))
            assert row.shares["pass"] == pytest.approx(sum(shares) / 3)

    def test_passing_only_the_example_by_hand(self, tmp_path):
        found = {row.arm: row for row in outcomes(load(_hand_built(tmp_path)))}
        # the first samples of PPO pass their example; of these p2 of the first seed and p1 of the second fail
        assert found["ppo"].example_only == pytest.approx(2 / 11)
        assert found["sft"].example_only == pytest.approx(4 / 12)
        assert (found["ppo"].not_judged, found["ppo"].samples) == (1, 12)

    def test_a_reward_model_is_no_example(self, tmp_path):
        run = _hand_built(tmp_path)
        manifest = json.loads((run / "manifest.json").read_text())
        (run / "manifest.json").write_text(json.dumps(manifest | {"judges": [["reward model, shifted, seed 0", {}]]}))
        study = load(run)
        assert all(row.example_only is None for row in outcomes(study)) and not programs(study).shown

    def test_the_largest_pass_at_k_and_n_at_k_have_one_name_for_all_arms(self, built):
        found = {row.arm: row.several for row in outcomes(load(built[0]))}
        assert all(set(several) == {"pass@5", "1@5"} for several in found.values())
        assert found["ppo"]["pass@5"] is not None and found["dpo"]["pass@5"] is None  # four judged samples at most


class TestPairs:
    def test_counts_are_means_over_seeds_and_buckets_shares(self, built):
        own, people = pair_rows(load(built[0]))
        assert (own.label, people.label) == ("pairs of foreign style (shift 1.0)", "pairs of people's programs")
        assert (own.pairs, own.prompts) == (100, 91)  # 90, 91 and 92 prompts
        assert own.buckets == {"under 0.1": 0.6, "0.1 to 0.3": 0.3, "0.3 to 0.6": 0.08, "0.6 and more": 0.02}

    def test_the_record_takes_them_from_the_pairs_of_programs_alone(self, tmp_path):
        nodes, cells = [], {}
        for arm, variant, done in (
            ("pairs", "main", {"pairs": 5, "prompts": 4, "edit_distance": {"under 0.1": 5}, "flops": 1.0}),
            ("pairs", "people", {"pairs": 3, "prompts": 3, "edit_distance": {"under 0.1": 3}}),
            ("pairs-half", "main", {"pairs": 2, "prompts": 2, "edit_distance": {"under 0.1": 2}}),
            ("pairs", "dialogue", {"pairs": 9, "prompts": 9}),
        ):
            node = Node(f"{arm}/{variant}", "pairs", "pairs", arm, variant, 7, None, None)
            (tmp_path / arm / variant).mkdir(parents=True)
            (tmp_path / arm / variant / "done.json").write_text(json.dumps(done))
            nodes, cells = [*nodes, node], cells | {node.key: tmp_path / arm / variant}
        assert _program_pairs(nodes, cells) == {
            "main": [{"seed": 7, "pairs": 5, "prompts": 4, "edit_distance": {"under 0.1": 5}}],
            "people": [{"seed": 7, "pairs": 3, "prompts": 3, "edit_distance": {"under 0.1": 3}}],
        }


class TestFlags:
    def test_a_sound_sandbox_raises_none(self, make_study):
        study = make_study(
            **{name: getattr(SPEC, name) for name in ("arms", "means", "tiers", "samples", "signatures")}
        )
        assert not {flag.name for flag in diagnose(study)} & set(LOUD)

    def test_every_failure_of_the_machinery_stands_first(self, built):
        run, _, _ = built
        study = load(run)
        broken = {"tiers": ["unsafe"], "incidents": ["program 3: worker 12: hung", "worker 9: died"], "executions": 40}
        flags = diagnose(replace(study, manifest=replace(study.manifest, sandbox=broken)))
        assert [flag.name for flag in flags[:3]] == list(LOUD)
        assert (flags[0].value, flags[1].value) == (40, 2)
        # 36 of the 180 sampled on test and of the 180 on hard; 12 + 12 greedy ones a seed were judged
        assert flags[2].arm == "dpo" and flags[2].value == pytest.approx(72 / 432)

    def test_no_flag_speaks_of_gold(self, built):
        flags = [flag for flag in diagnose(load(built[0]))]
        assert not [flag for flag in flags if "gold" in flag.name + flag.text]


class TestReport:
    def test_json_has_every_tier(self, built):
        run, report, _ = built
        assert json.loads((run / "report.json").read_text()) == report
        arm = next(arm for arm in report["arms"] if arm["name"] == "ppo")
        wanted = [f"test/sampled/pass@{k}_{kind}" for k in (1, 5) for kind in TIERS["test"]]
        wanted += ["test/greedy/pass@1_interview", "hard/sampled/1@5_hard"]
        for key in wanted:
            low, high = arm["metrics"][key]["ci95"]
            assert low <= arm["metrics"][key]["mean"] <= high and len(arm["metrics"][key]["per_seed"]) == 3
        told = report["programs"]
        assert [tier["label"] for tier in told["tiers"]] == [*TIERS["test"], "hard"]
        assert told["outcomes"]["dpo"]["not_judged"] == 36 and told["sandbox"]["executions"] == 33341
        assert len(told["pairs"]["shifted"]) == 3

    def test_raw_scores_name_the_tiers_where_the_figures_do_not(self, tmp_path):
        study = load(_hand_built(tmp_path))
        report = summarize(study, judge(study))
        assert report["arms"][1]["metrics"]["test/sampled/pass@1_introductory"]["per_seed"] == [0.75, 0.25]

    def test_the_page_has_its_sections_and_says_pass_at_1(self, built):
        run, report, html = built
        page = Page(html)
        assert page.active() == [] and page.open == []
        assert all(f"<h2>{title}</h2>" in html for title in SECTIONS)
        assert "<h2>The same arms on other pairs</h2>" in html and "<h2>Samples</h2>" not in html
        assert report["verdict"]["text"].startswith("PPO solves 0.") and "(pass@1; 95% interval +" in html
        assert "standard deviations of SFT" not in report["verdict"]["text"]
        own = json.loads((run / "manifest.json").read_text())
        said = "".join(page.text).replace(own["threats"][0], "").partition("Repeat it")[0]
        assert "gold" not in said.lower().partition("}")[2].rpartition("}")[2] and "pass@1" in said

    def test_code_keeps_its_lines_and_its_verdict(self, built):
        html = built[2]
        assert "<pre>def f(xs):\n    if xs:\n        return 1\n (ppo)</pre>" in html
        for word in ("✓ passes", "✗ fails", "– not judged"):
            assert word in html
        assert "wrong at hidden test 2 of 6: f([1, 2]) is 3, got 4" in html

    def test_cost_is_in_programs(self, built):
        html = built[2]
        assert ">Programs run</th>" in html and ">Reward calls</th>" not in html and "FLOPs, own" in html
        assert ">115%</td>" in html  # 7,680 calls, charged 1.2 times, of a cap of 8,000
        assert "Budget: executions, cap 8 k." in html

    def test_samples_not_judged_are_loud_and_a_sound_sandbox_is_not(self, built):
        html = built[2]
        assert '<span class="mark">samples not judged</span>' in html and '<span class="mark">36 of 180</span>' in html
        assert "not contained" not in html.lower()

    def test_one_seed_says_that_it_carries_no_interval(self, tmp_path):
        report = build(build_run(tmp_path, replace(SPEC, arms=("sft", "dpo", "ppo"), seeds=(3,))))
        html = (tmp_path / "report.html").read_text(encoding="utf-8")
        assert "one seed carries no interval" in html and "95% intervals over seeds and prompts, cut" not in html
        assert "in pass@1 on one seed" in report["verdict"]["text"]

    def test_the_screen_says_pass_at_1(self, built, capsys):
        show_arms(Console(width=160), built[1])
        said = capsys.readouterr().out
        assert "pass@1" in said and "gold" not in said

    def test_nothing_of_it_is_told_of_another_task(self, tmp_path):
        report = build(build_run(tmp_path, replace(LIGHT, arms=("sft", "dpo"), seeds=(0, 1))))
        html = (tmp_path / "report.html").read_text(encoding="utf-8")
        assert programs(load(tmp_path)) is None and "programs" not in report
        for word in (
            *SECTIONS,
            "pass@",
            "Programs run",
            "hidden tests",
            "sandbox",
            "--best:",
            'class="panel',
        ):
            assert word not in html

    def test_dpo_with_nll_has_a_name_and_a_look_of_its_own(self, built):
        assert display("dpo-nll") == "DPO with NLL" and slug("dpo-nll") == "dpo-nll"
        colour, *look = MARKS["dpo-nll"]
        assert [colour in mark or look == list(mark[1:]) for mark in MARKS.values()].count(True) == 1
        assert built[2].count("--dpo-nll:#") == 2 and "DPO with NLL" in built[2]


LEADS = {
    "separated": (
        {"ppo": 0.6, "dpo": 0.3},
        "PPO solves 0.3[0-9] more of the problems than DPO \\(pass@1; 95% interval ",
    ),
    "the other way round": ({"ppo": 0.3, "dpo": 0.6}, "PPO solves 0.[23][0-9] less of the problems than DPO"),
    "not separated": ({"ppo": 0.5, "dpo": 0.5}, "PPO and DPO are not separated: PPO minus DPO is .0.0[0-9] in pass@1 "),
}


@pytest.mark.parametrize("means, says", LEADS.values(), ids=LEADS)
def test_the_lead_is_in_problems_solved(means, says, make_study):
    verdict = judge(
        make_study(arms=("sft", "dpo", "ppo"), means=PASS | means, tiers=TIERS, samples=8, prompts=36, signatures=False)
    )
    assert re.match(says, verdict.lead) and "gold" not in verdict.text and verdict.lead.endswith("100 pairs.")
    assert re.search(r"other figures: 0\.\d\d of the problems beside 0\.\d\d, Holm p", verdict.text)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    evil = {"test": (QUIRKY, "</svg><script>alert(2)</script>"), "hard": ('"><img src=x onerror=alert(3)>',)}
    changes = {"arms": ("sft", "dpo", "ppo"), "tiers": evil, "response": QUIRKY, "seeds": (0, 1)}
    run = build_run(tmp_path_factory.mktemp("hostile"), replace(SPEC, **changes))
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["sandbox"] = {"tiers": [QUIRKY, "unsafe"], "incidents": [QUIRKY], "executions": 3}
    manifest["pairs"] = {QUIRKY: [{"seed": 0, "pairs": 1, "prompts": 1, "edit_distance": {QUIRKY: 1}}]}
    (run / "manifest.json").write_text(json.dumps(manifest))
    for cell in (run / "cells").iterdir():
        rows = [json.loads(line) for line in (cell / "samples.jsonl").read_text().splitlines()]
        rows = [row | {"prompt": QUIRKY, "note": QUIRKY} for row in rows]
        (cell / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    build(run)
    return (run / "report.html").read_text(encoding="utf-8")


class TestHostilePrograms:
    def test_nothing_becomes_an_element(self, hostile):
        page = Page(hostile)
        assert page.active() == [] and page.open == []
        assert "".join(page.text).count("<script>alert(1)</script>") > 20
        assert "</svg><script>alert(2)</script>" in "".join(page.text)

    def test_nothing_is_hidden(self, hostile):
        assert "⟨U+202E⟩evil⟨U+2066⟩" in hostile and "\u202e" not in hostile and "\x1b" not in hostile
        assert "{{ 7*7 }}" in hostile

    def test_what_was_not_contained_is_said_at_the_top(self, hostile):
        assert hostile.index("<b>Not contained:</b>") < hostile.index("<h2>")
        assert '<span class="mark">not contained</span>' in hostile and "none (unsafe)" in hostile
