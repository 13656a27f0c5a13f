"""A study on a file of problems, its checkpoints measured on another file, and what is refused, as a user sees it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from program import trueline
from sandboxed import need_sandbox
from trueline.runs.cell import read_json, read_jsonl

SMALL = Path(__file__).resolve().parents[1] / "data" / "code_small.jsonl"
LIGHT = (
    "--quick", "study.arms=sft,best-of-n,dpo,dpo-iter,ppo", "world.pairs=8", "sft.epochs=2", "dpo.batch_size=8",
    "dpo_iter.sync_every=1", "dpo_iter.batch_size=8", "ppo.steps=1", "ppo.batch_size=16", "train.snapshots=1",
    "model.max_new_tokens=48", "evaluate.samples=2", "evaluate.best_of=2", "train.workers=1",
)  # fmt: skip


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    need_sandbox()
    folder = tmp_path_factory.mktemp("study")
    ran = trueline("study", "problems", f"data.path={SMALL}", *LIGHT, "-o", folder / "run", cwd=folder, timeout=280)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return folder / "run"


def cells(study: Path, arm: str) -> list[Path]:
    rows = read_json(study / "index.json")["cells"]
    return [study / "cells" / row["cell"] for row in rows if row["arm"] == arm]


@pytest.mark.integration
def test_a_model_from_nothing_solves_nothing_and_the_verdict_says_why(study) -> None:
    report, manifest = read_json(study / "report.json"), read_json(study / "manifest.json")
    solved = [arm["metrics"]["test/sampled/gold"]["mean"] for arm in report["arms"]]
    assert solved == [0.0] * 5
    assert report["verdict"]["answer"] == "cannot-tell"
    assert "no program of any arm passed its tests" in report["verdict"]["text"]
    assert manifest["gold"]["kind"] == "tests" and manifest["sandbox"]["executions"] > 0
    assert manifest["data"]["problems"] == {"train": 15, "selection": 2, "test": 7}
    assert "the problems of code_small.jsonl" in (study / "report.html").read_text(encoding="utf-8")


@pytest.mark.integration
def test_pairs_fall_back_on_the_files_solutions_in_code_blocks(study) -> None:
    (cell,) = cells(study, "stage:pairs")
    rows, cost = read_jsonl(cell / "pairs.jsonl"), read_json(cell / "cost.json")["own"]
    assert rows and all(row["chosen"].startswith("```python\n") and list(row["meta"]) == ["task_id"] for row in rows)
    assert cost["labels"] == 0 <= cost["reward_calls"] <= 8 * 5  # those that were cut off were not run


@pytest.mark.integration
def test_checkpoints_are_measured_on_problems_without_solutions(study, tmp_path) -> None:
    """Nothing is trained there, so nothing need be imitated."""
    rows = [json.loads(line) | {"solutions": []} for line in SMALL.read_text(encoding="utf-8").splitlines()]
    (tmp_path / "bare.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (sft,), (dpo,) = cells(study, "stage:sft"), cells(study, "stage:dpo")
    limits = ("model.max_prompt_tokens=256", "model.max_new_tokens=48", "evaluate.samples=2", "train.workers=1")
    ran = trueline("evaluate", "problems", "data.path=bare.jsonl", f"sft={sft}", f"dpo={dpo}", *limits, "-o", "run",
                   cwd=tmp_path, timeout=200)  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert {arm["name"] for arm in read_json(tmp_path / "run" / "report.json")["arms"]} == {"sft", "dpo"}
    refused = trueline("study", "problems", "data.path=bare.jsonl", "-o", "other", cwd=tmp_path)
    assert refused.returncode == 2 and "nothing to imitate" in refused.stderr and refused.stderr.count("\n") == 1
    assert not (tmp_path / "other").exists()


@pytest.mark.integration
@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("mbpp",), "data.path: no file of problems is named"),
        (("problems", "data.path=few.jsonl"), "few.jsonl: rows: 5 usable problems"),
        (("problems", "data.path=pairs.jsonl"), "pairs.jsonl:1: no known format of problems"),
        (("problems", f"data.path={SMALL}", "data.format=hh"), "data.format: expected one of auto"),
        (("pairs", f"data.path={SMALL}"), "code_small.jsonl:1: chosen: missing"),
    ],
)
def test_what_cannot_be_used_is_one_line_and_exit_code_2(given, said, tmp_path) -> None:
    lines = SMALL.read_text(encoding="utf-8").splitlines(keepends=True)
    (tmp_path / "few.jsonl").write_text("".join(lines[:5]))
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "Hi", "chosen": "Hello", "rejected": "No"}\n' * 20)
    ran = trueline("study", *given, "-o", "run", cwd=tmp_path)
    assert ran.returncode == 2 and said in ran.stderr and ran.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.integration
def test_an_arm_of_the_study_can_be_trained_on_all_problems(study, tmp_path) -> None:
    ran = trueline("train", study / "report.json", "arm=dpo", "-o", "out", cwd=tmp_path, timeout=200)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert (tmp_path / "out" / "model" / "config.json").is_file()
    made = [read_json(path) for path in (tmp_path / "out" / "cells").glob("*/config.json")]
    assert {cell["arm"] for cell in made} >= {"sft", "pairs", "dpo"} and all(c["data"]["everything"] for c in made)
