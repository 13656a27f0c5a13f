"""What the report says of the probe, and what the alarm on falling log-probs tells the reader to do."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from tests.program import ENVIRONMENT
from tests.study.study_builder import Spec, build_run

from trueline.study.diagnostics import BEFORE, diagnose
from trueline.study.matrix import load
from trueline.study.probes import probe_row, risks
from trueline.study.report import build


def part(ratio, text="no ."):
    return {"ratio": ratio, "text": text}


def probe(*, gap=0.1, produced=0.9, rank=0.1, ratio=0.3, worst=0.5, share=0.9):
    return {
        "likelihood": {"gap": {"mean": gap}},
        "producible": {"pairs": produced},
        "disagreement": {"own": {"rank": rank}},
        "best_of": {"proxy": {"mean": 1.1}, "gold": {"mean": 9.9}, "share": share},
        "constant": {"sets": {"own": {"all": part(ratio), "kinds": {"benign": part(worst, "sorry .")}}}},
    }


def test_a_row_holds_what_is_known_without_a_judge() -> None:
    row = probe_row(probe())
    assert row["likelihood gap per token"] == 0.1 and row["answer"] == "sorry ."
    assert "best-of-n gain in gold" not in row and 9.9 not in row.values()
    assert probe_row({})["answer"] == "" and probe_row({})["transferred share"] is None


def test_nothing_is_flagged_where_nothing_is_past_its_threshold() -> None:
    assert list(risks([probe_row(probe())] * 3)) == [] == list(risks([]))


@pytest.mark.parametrize(
    "changed, name, said",
    [
        ({"gap": 2.0}, "pairs are foreign to SFT", "2.0 nats a token"),
        ({"produced": 0.2}, "pairs are foreign to SFT", "80% of the pairs"),
        ({"rank": 0.45}, "reward models disagree", "45%"),
        ({"worst": 1.6}, "a fixed answer is paid more", '"sorry ."'),
        ({"share": 0.2}, "best-of-n gain is one model's own", "20%"),
    ],
)
def test_each_risk_has_its_sentence(changed, name, said) -> None:
    ((found, value, text),) = risks([probe_row(probe(**changed))] * 3)
    assert (
        found == name
        and said in text
        and value == pytest.approx(next(iter(changed.values())) if "produced" not in changed else 0.8)
    )


def test_the_mean_over_seeds_decides_and_missing_figures_say_nothing() -> None:
    rows = [probe_row(probe(rank=0.5)), probe_row(probe(rank=0.2)), probe_row({})]
    assert [name for name, _, _ in risks(rows)] == ["reward models disagree"]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    run = build_run(tmp_path_factory.mktemp("probes") / "run", Spec())
    manifest = json.loads((run / "manifest.json").read_text())
    rows = [{"seed": s} | probe_row(probe(gap=1.5)) for s in (0, 1, 2)]
    (run / "manifest.json").write_text(json.dumps(manifest | {"probes": {"shifted": rows}}))
    return run


@pytest.mark.integration
def test_of_answers_that_are_named_as_often_the_first_seeds_is_shown(tmp_path) -> None:
    """Sets have no order that another process shares: the same directory must give the same bytes."""
    run = build_run(tmp_path / "run", Spec())
    manifest = json.loads((run / "manifest.json").read_text())
    told = [f"answer {n} ." for n in range(3)]
    rows = [{"seed": s} | probe_row(probe(worst=1.6)) | {"answer": told[s]} for s in range(3)]
    (run / "manifest.json").write_text(json.dumps(manifest | {"probes": {"shifted": rows}}))
    pages = set()
    for seed in ("1", "2", "3"):
        environment = ENVIRONMENT | {"PYTHONHASHSEED": seed}
        subprocess.run([sys.executable, "-m", "trueline", "report", run], env=environment, check=True, stdout=-3)
        pages.add((run / "report.json").read_bytes() + (run / "report.html").read_bytes())
    assert len(pages) == 1 and b"answer 0 ." in pages.pop()


def test_the_report_shows_it_before_the_arms_and_flags_it(directory) -> None:
    report = build(directory)
    assert [row["seed"] for row in report["probes"]["shifted"]] == [0, 1, 2]
    flag = next(f for f in report["diagnostics"] if f["name"] == "pairs are foreign to SFT")
    assert (flag["variant"], flag["arm"]) == ("shifted", BEFORE)
    page = (directory / "report.html").read_text()
    assert "<h2>Before training</h2>" in page and "likelihood gap, nats per token" in page
    assert "Log-ratio to the start, on pairs and on own samples" in page


def test_the_alarm_says_what_to_do_and_only_to_arms_that_learn_from_pairs(directory) -> None:
    flags = {f.arm: f.text for f in diagnose(load(directory)) if f.name == "both log-probs fall"}
    assert "dpo" in flags
    for remedy in ("SFT on the chosen sides", "NLL", "DPO-positive", "DPO-Iter", "PPO"):
        assert remedy in flags["dpo"]
    assert all("NLL" not in text for arm, text in flags.items() if arm in ("ppo", "dpo-iter", "rloo"))


def test_a_study_without_a_probe_has_no_such_section(tmp_path) -> None:
    run = build_run(tmp_path / "run", Spec(second_variant=False))
    build(run)
    assert "Before training" not in (run / "report.html").read_text()
