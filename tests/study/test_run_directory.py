"""Reading a run directory: pairing by prompt, broken files named with their place, no model in sight."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

from trueline.errors import InputError
from trueline.study.comparisons import arm_interval
from trueline.study.diagnostics import collapse_marks, diagnose
from trueline.study.matrix import load, paired

from .study_builder import ARMS, MEANS, Spec, build_run

GOLD = "test/sampled/gold"


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return build_run(tmp_path_factory.mktemp("runs") / "run", Spec(prompts=12, arms=("sft", "dpo", "ppo", "rloo")))


@pytest.fixture
def run(original, tmp_path):
    """A copy that a test may break."""
    return shutil.copytree(original, tmp_path / "run")


def rewrite(path, change):
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row) + "\n" for row in change(rows)))


class TestReading:
    def test_stages_are_no_arms_and_sft_is_shared(self, run):
        study = load(run)
        assert [v.name for v in study.variants] == ["shifted", "no-shift"]
        assert "reward" not in study.primary.arms
        addresses = [[cell.address for cell in v.arms["sft"].cells] for v in study.variants]
        assert addresses[0] == addresses[1] == ["sft-0", "sft-1", "sft-2"]

    def test_matrix_is_the_mean_over_samples(self, run):
        prompts, matrix = load(run).primary.arms["ppo"].table(GOLD)
        rows = [json.loads(line) for line in (run / "cells/shifted-ppo-1/scores.jsonl").read_text().splitlines()]
        mine = next(
            r
            for r in rows
            if (r["pick"], r["split"], r["decoding"], r["prompt"]) == ("selected", "test", "sampled", prompts[4])
        )
        assert matrix.shape == (3, 12) and matrix[1, 4] == pytest.approx(np.mean(mine["gold"]))

    def test_pairing_is_by_prompt_not_by_row(self, run):
        before = paired(*(load(run).primary.arms[a] for a in ("ppo", "dpo")), GOLD)
        rewrite(run / "cells/shifted-dpo-0/scores.jsonl", lambda rows: rows[::-1])
        after = paired(*(load(run).primary.arms[a] for a in ("ppo", "dpo")), GOLD)
        assert np.array_equal(np.sort(before), np.sort(after)) and np.array_equal(before, after)

    def test_a_prompt_without_a_score_is_dropped_from_the_pair(self, run):
        def blank(rows):
            rows[0]["gold"] = [None, None]
            return rows

        rewrite(run / "cells/shifted-dpo-0/scores.jsonl", blank)
        arms = load(run).primary.arms
        assert paired(arms["ppo"], arms["dpo"], GOLD).shape == (3, 11)
        assert paired(arms["ppo"], arms["rloo"], GOLD).shape == (3, 12)

    def test_different_prompts_are_refused(self, run):
        for seed in range(3):
            rewrite(
                run / f"cells/shifted-dpo-{seed}/scores.jsonl",
                lambda rows: [row | {"prompt": "other " + row["prompt"]} for row in rows],
            )
        arms = load(run).primary.arms
        with pytest.raises(InputError, match="different prompts"):
            paired(arms["ppo"], arms["dpo"], GOLD)

    def test_margin_in_standard_deviations_of_sft(self, run):
        study = load(run)
        pools = [[v for row in cell.scores["selected", "test", "sampled"].values() for v in row["gold"]]
                 for cell in study.primary.arms["sft"].cells]  # fmt: skip
        assert study.margin == pytest.approx(0.1 * np.sqrt(np.mean([np.var(p, ddof=1) for p in pools])))

    def test_a_metric_without_raw_scores_falls_back_to_seeds(self, run):
        interval, per_seed = arm_interval(load(run).primary.arms["dpo"], "test/sampled/outside")
        assert per_seed == [0.31] * 3 and interval.mean == pytest.approx(0.31)


class TestBadDirectories:
    @pytest.mark.parametrize(
        "name", ["manifest.json", "index.json", "cells/sft-0/evaluation.json", "cells/sft-0/scores.jsonl"]
    )
    def test_missing_file(self, run, name):
        (run / name).unlink()
        with pytest.raises(InputError, match="no such file") as error:
            load(run)
        assert error.value.where.endswith(name) and error.value.remedy

    def test_broken_line_is_named(self, run):
        path = run / "cells/shifted-dpo-1/scores.jsonl"
        lines = path.read_text().splitlines()
        path.write_text("\n".join([*lines[:2], '{"pick": ', *lines[2:]]))
        with pytest.raises(InputError) as error:
            load(run)
        assert error.value.where.endswith("scores.jsonl:3")

    @pytest.mark.parametrize("change", [{"schema": 2}, {"schema": None}, {"metric": "gold"}, {"seeds": []}])
    def test_another_schema(self, run, change):
        manifest = json.loads((run / "manifest.json").read_text())
        (run / "manifest.json").write_text(json.dumps(manifest | change))
        with pytest.raises(InputError, match=next(iter(change))):
            load(run)

    def test_incomplete_manifest(self, run):
        manifest = json.loads((run / "manifest.json").read_text())
        del manifest["world"]
        (run / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(InputError, match="world"):
            load(run)

    def test_missing_cell_says_which(self, run):
        index = json.loads((run / "index.json").read_text())
        index["cells"] = [r for r in index["cells"] if (r["arm"], r["seed"]) != ("ppo", 2)]
        (run / "index.json").write_text(json.dumps(index))
        with pytest.raises(InputError, match=r"'ppo' and seeds \[2\]"):
            load(run)

    def test_a_cell_of_another_shape(self, run):
        path = run / "cells/shifted-ppo-0/evaluation.json"
        evaluation = json.loads(path.read_text())
        del evaluation["picks"]
        path.write_text(json.dumps(evaluation))
        with pytest.raises(InputError, match="picks"):
            load(run)


class TestDiagnostics:
    def flags(self, study, variant="shifted"):
        return {(flag.name, flag.arm) for flag in diagnose(study) if flag.variant == variant}

    def test_a_collapse_of_one_seed_is_marked_although_the_mean_is_fine(self, make_study):
        study = make_study(ends={("ppo", 1): -0.5})
        arms = study.primary.arms
        assert collapse_marks(arms["ppo"], arms["sft"], GOLD) == (False, True, False)
        assert np.mean(arms["ppo"].figure(GOLD, "end")) > np.mean(arms["sft"].figure(GOLD))
        raised = self.flags(study)
        assert ("collapse", "ppo") in raised and ("proxy-gold divergence", "ppo") in raised
        assert ("collapse", "dpo") not in raised and ("proxy-gold divergence", "dpo") not in raised

    def test_each_of_the_others_on_the_arm_that_has_it_and_not_beside_it(self, make_study):
        raised = self.flags(make_study(arms=ARMS))
        assert ("both log-probs fall", "dpo") in raised and ("both log-probs fall", "rloo") not in raised
        assert ("mass outside the pairs", "dpo") in raised and ("mass outside the pairs", "ppo") not in raised
        assert ("over-refusal", "ppo") in raised and ("over-refusal", "dpo") not in raised
        assert ("length drift", "dpo") in raised and ("length drift", "sft-chosen") not in raised
        assert not any(arm == "sft" for _, arm in raised)

    def test_absent_metrics_raise_nothing(self, make_study):
        raised = {name for name, _ in self.flags(make_study(signatures=False))}
        assert not raised & {"mass outside the pairs", "over-refusal"}

    def test_sft_below_itself_is_no_collapse(self, make_study):
        study = make_study(ends={("sft", 0): MEANS["sft"] - 0.4})
        assert ("collapse", "sft") not in self.flags(study)


def test_judging_needs_no_model_and_no_plotting():
    code = (
        "import sys, trueline.study.report; print([m for m in ('torch', 'matplotlib', 'jinja2') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
