"""report.json keeps its contract; report.html is inert, whole, self-contained and the same bytes every time."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace

import pytest

from trueline.study.matrix import load
from trueline.study.page import seconds, si, signed, visible
from trueline.study.plots import figures
from trueline.study.report import build

from .conftest import LIGHT
from .pages import Page
from .study_builder import ARMS, QUIRKY, Spec, build_run

TOP = {"schema", "task", "world", "seeds", "arms", "comparisons", "verdict", "variants", "diagnostics", "threats",
       "over_prompts", "tuning", "judges", "gates", "incidents", "probes"}  # fmt: skip
ARM = {"name", "variant", "metrics", "cost", "picks", "collapsed"}
COST = {"seconds", "flops", "sampled_tokens", "trained_tokens", "reward_calls", "labels", "peak_memory_bytes"}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A full study with both variants, and its report."""
    run = build_run(
        tmp_path_factory.mktemp("full"),
        replace(LIGHT, arms=ARMS, second_variant=True, splits=Spec().splits, ends={("ppo", 1): -0.5}),
    )
    return run, build(run), (run / "report.html").read_text(encoding="utf-8")


class TestJson:
    def test_contract(self, built):
        run, report, _ = built
        assert json.loads((run / "report.json").read_text()) == report
        assert set(report) == TOP | {"command", "own_data_command"}
        assert set(report["verdict"]) == {"answer", "best", "cheapest", "metric", "margin", "text"}
        for arm in report["arms"]:
            assert set(arm) == ARM and set(arm["cost"]) == COST and set(arm["picks"]) == {"end", "proxy", "selected"}
            assert set(arm["metrics"]["test/sampled/gold"]) == {"mean", "ci95", "per_seed"}
            assert len(arm["collapsed"]) == len(arm["metrics"]["test/sampled/gold"]["per_seed"]) == 3
        for row in report["comparisons"]:
            assert set(row) == {"a", "b", "metric", "difference", "ci95", "p_adjusted", "family"}
        assert [arm["name"] for arm in report["arms"]][:2] == ["sft", "sft-chosen"]

    def test_numbers_belong_together(self, built):
        report = built[1]
        gold = {a["name"]: a["metrics"]["test/sampled/gold"] for a in report["arms"]}
        lead = report["comparisons"][0]
        assert (lead["a"], lead["b"], lead["family"]) == ("ppo", "dpo", "declared")
        assert lead["difference"] == pytest.approx(gold["ppo"]["mean"] - gold["dpo"]["mean"])
        assert lead["ci95"][0] < lead["difference"] < lead["ci95"][1]
        assert gold["ppo"]["mean"] == pytest.approx(sum(gold["ppo"]["per_seed"]) / 3)

    def test_variants_have_the_same_shape_and_no_declared_family_of_their_own(self, built):
        report = built[1]
        primary, other = report["variants"]
        assert primary["arms"] == report["arms"] and set(other["arms"][0]) == ARM
        assert [arm["name"] for arm in other["arms"]] == ["sft", "dpo", "ppo", "dpo+ppo"]
        assert {row["family"] for row in other["comparisons"]} == {"exploratory"}

    def test_one_seed_claims_no_interval(self, tmp_path):
        report = build(build_run(tmp_path, replace(LIGHT, seeds=(3,))))
        assert all(m["ci95"] == [None, None] for arm in report["arms"] for m in arm["metrics"].values())
        assert all(row["ci95"] == [None, None] for row in report["comparisons"])
        assert report["verdict"]["answer"] == "cannot-tell"
        assert "no interval" in (tmp_path / "report.html").read_text(encoding="utf-8")

    def test_same_directory_same_bytes_in_another_process(self, built):
        run, _, html = built
        first = (run / "report.json").read_bytes(), html.encode()
        code = f"from trueline.study.report import build; build({str(run)!r})"
        subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"PYTHONHASHSEED": "7"})
        assert ((run / "report.json").read_bytes(), (run / "report.html").read_bytes()) == first
        assert not list(run.glob("*.part"))


class TestPage:
    def test_self_contained_and_inert(self, built):
        page = Page(built[2])
        assert page.active() == [] and page.open == []
        policy = [v for t, n, v in page.attributes if t == "meta" and n == "content" and "default-src" in v]
        assert policy == ["default-src 'none'; style-src 'unsafe-inline'; img-src data:"]

    def test_figures_do_not_clash(self, built):
        page = Page(built[2])
        assert len(page.ids) == len(set(page.ids)) and len([i for i in page.ids if i.endswith("-title")]) == 8
        wanted = re.findall(r"(?:url\(|href=\")#([\w.-]+)", built[2])
        assert wanted and set(wanted) <= set(page.ids)

    def test_colours_follow_the_page(self, built):
        assert not re.search(r"#0a000\d|#010203|#040506", built[2])
        drawn = set(re.findall(r"stroke: var\((--[\w-]+)\)", built[2]))
        assert {"--dpo", "--ppo", "--dpo-ppo", "--line"} <= drawn
        for theme in re.findall(r":root\{(.*?)\}", built[2], re.S):
            assert all(f"{name}:" in theme for name in drawn)

    def test_says_the_answer_and_its_world_first(self, built):
        _, report, html = built
        heading = re.sub(r"<[^>]+>", "", re.search(r"<h1>(.*?)</h1>", html, re.S)[1])
        assert heading.startswith("PPO scores") and report["world"] in heading
        assert html.index(report["threats"][0]) < html.index("<h2>")
        assert html.count("collapsed 1/3") >= 3

    def test_a_metric_that_no_arm_has_leaves_its_figure_out(self, tmp_path):
        names = [plot.name for plot in figures(load(build_run(tmp_path, replace(LIGHT, signatures=False))))]
        assert "outside" not in names and "gold-kl" in names


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    changes = {"world": QUIRKY, "response": QUIRKY, "seeds": (0, 1)}
    run = build_run(tmp_path_factory.mktemp("hostile"), replace(LIGHT, **changes))
    manifest = json.loads((run / "manifest.json").read_text())
    manifest |= {"threats": [QUIRKY], "settings": {"ppo": {QUIRKY: QUIRKY}}, "versions": {QUIRKY: QUIRKY}}
    manifest |= {"command": QUIRKY, "own_data_command": QUIRKY, "objectives": {"ppo": QUIRKY}, "task": QUIRKY}
    manifest["variants"][0]["label"] = QUIRKY
    (run / "manifest.json").write_text(json.dumps(manifest))
    for cell in (run / "cells").iterdir():
        rows = [json.loads(line) | {"prompt": QUIRKY} for line in (cell / "samples.jsonl").read_text().splitlines()]
        (cell / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    build(run)
    return (run / "report.html").read_text(encoding="utf-8")


class TestHostileText:
    def test_nothing_becomes_an_element(self, hostile):
        page = Page(hostile)
        assert page.active() == [] and page.open == []
        assert "".join(page.text).count("<script>alert(1)</script>") > 20

    def test_nothing_is_hidden(self, hostile):
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2066-\u2069\ufeff]", hostile)
        assert "⟨U+202E⟩evil⟨U+2066⟩" in hostile and "⟨U+001B⟩" in hostile and "⟨U+D800⟩" in hostile

    def test_templates_in_text_stay_text(self, hostile):
        assert "{{ 7*7 }}" in hostile and " 49 " not in hostile

    def test_the_check_itself_can_fail(self):
        for bad in ("<script>1</script>", '<img src="x">', '<p onclick="x">', '<p style="background:url(http://x)">'):
            assert Page(bad).active()
        with pytest.raises(AssertionError):
            Page("<p></svg></p>")


def test_what_befell_the_run_is_told_once_with_its_count(tmp_path):
    run = build_run(tmp_path / "run", LIGHT)
    assert build(run)["incidents"] == [] and "On the way" not in (run / "report.html").read_text(encoding="utf-8")
    rows = [{"what": "a worker process died", "in_a_row": n} for n in (1, 2)]
    rows.append({"what": "went on with other versions", "changes": ["torch 2.11, now <b>2.13</b>"]})
    (run / "incidents.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    told = ["a worker process died (2 times)", "went on with other versions: torch 2.11, now <b>2.13</b>"]
    assert build(run)["incidents"] == told
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "On the way" in page and "died (2 times)" in page and "&lt;b&gt;2.13" in page


def test_visible_leaves_text_alone():
    assert visible("naïve 日本語\n\tok") == "naïve 日本語\n\tok"
    assert visible("a\u200bb\rc") == "a⟨U+200B⟩b⟨U+000D⟩c"
    assert visible(3) == 3


def test_figures_of_speech():
    assert [si(v) for v in (0, 950, 2400, 1.5e12)] == ["0", "950", "2.4 k", "1.5 T"]
    assert [seconds(v) for v in (4.84, 150, 9000)] == ["4.84 s", "2.5 min", "2.5 h"]
    assert [signed(v) for v in (-0.5, 0.25, None, float("inf"))] == ["−0.50", "+0.25", "–", "–"]
