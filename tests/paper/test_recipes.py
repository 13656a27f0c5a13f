"""The paper's recipes: what they say is what the paper says, and each runs from end to end, small, by the same path."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from program import trueline
from sandboxed import need_sandbox
from trueline.commands.resolve import settings_of
from trueline.runs.cell import read_json

RECIPES = Path(__file__).resolve().parents[2] / "configs" / "paper"
# Appendix A of arXiv 2404.10719.
PPO = {
    "learning_rate": 1e-5, "critic_learning_rate": 5e-6, "batch_size": 512, "minibatches": 4, "epochs": 1,
    "kl_coef": 0.1, "kl_target": 0.0, "reward_clip": 20, "advantage_norm": True, "value_norm": True, "gamma": 1.0,
    "gae_lambda": 1.0, "clip_range": 0.2, "value_clip": 0.2,
}  # fmt: skip
NAMES = sorted(path.stem for path in RECIPES.glob("*.yaml"))
# A recipe made small: sizes and lengths, never what it does.
TOY = (
    "model.max_prompt_tokens=48", "model.max_new_tokens=24", "train.micro_tokens=1024", "train.snapshots=1",
    "train.workers=1", "sft.batch_size=16", "dpo.batch_size=8", "dpo_iter.rounds=1", "dpo_iter.sync_every=1",
    "dpo_iter.batch_size=8", "dpo_iter.samples_per_prompt=2", "ppo.steps=1", "ppo.batch_size=16", "ppo.min_ended=0",
    "evaluate.test_prompts=6", "evaluate.samples=1", "evaluate.best_of=2", "evaluate.shown=1", "select.prompts=4",
    "select.pairs=4", "study.no_shift=false",
)  # fmt: skip


def test_there_is_one_for_each_of_the_paper_s_benchmarks() -> None:
    assert NAMES == ["apps", "codecontests", "hh-rlhf", "safe-rlhf"]


@pytest.mark.parametrize("name", NAMES)
def test_it_says_what_the_paper_says(name) -> None:
    _, sections = settings_of(str(RECIPES / f"{name}.yaml"), [])
    code = name in ("apps", "codecontests")
    assert {key: getattr(sections["ppo"], key) for key in PPO} == PPO
    assert (sections["dpo"].beta, sections["dpo"].learning_rate) == (0.1, 1e-6)
    assert sections["dpo"].epochs == (1 if code else 2)
    assert sections["model"].max_new_tokens == (1024 if code else 256)
    assert sections["ppo"].ema_eta > 0 and sections["ppo"].critic_trunk == "separate"


@pytest.mark.parametrize("name", NAMES)
def test_what_the_paper_does_not_say_is_marked(name) -> None:
    text = (RECIPES / f"{name}.yaml").read_text(encoding="utf-8")
    unknown = [line for line in text.splitlines() if line.startswith(("sft", "reward", "dpo_iter", "  ema_eta"))]
    assert unknown and all("ours" in line.partition("#")[2] for line in unknown)


def _dialogues(safe: bool) -> list[dict]:
    rows = []
    for i in range(240):
        ask, good, bad = f"How do I tie knot {i}?", f"Cross the ends, then pull end {i}.", f"No idea {i}."
        if safe:
            safety = {"is_response_0_safe": True, "is_response_1_safe": i % 2 == 0}
            best = {"better_response_id": 0, "safer_response_id": 0}
            rows.append({"prompt": ask, "response_0": good, "response_1": bad} | safety | best)
        else:
            head = f"\n\nHuman: {ask}\n\nAssistant:"
            rows.append({"chosen": f"{head} {good}", "rejected": f"{head} {bad}"})
    return rows


def _problems(contest: bool) -> list[dict]:
    rows = []
    for i in range(24):
        right, wrong = f"print(int(input())+{i})", f"print({i})"
        if contest:
            rows.append({"name": f"{i}_A", "description": f"Add {i}.", "difficulty": 7,
                         "public_tests": {"input": ["1\n"], "output": [f"{1 + i}\n"]},
                         "private_tests": {"input": ["5\n"], "output": [f"{5 + i}\n"]},
                         "generated_tests": {"input": [], "output": []},
                         "solutions": {"language": [3], "solution": [right]},
                         "incorrect_solutions": {"language": [3], "solution": [wrong]}})  # fmt: skip
        else:
            tests = json.dumps({"inputs": ["1\n", "5\n"], "outputs": [f"{1 + i}\n", f"{5 + i}\n"]})
            rows.append({"problem_id": i, "question": f"Add {i}.", "solutions": json.dumps([right]), "url": "",
                         "input_output": tests, "difficulty": "interview", "starter_code": ""})  # fmt: skip
    return rows


ROWS = {
    "hh-rlhf": lambda: _dialogues(safe=False), "safe-rlhf": lambda: _dialogues(safe=True),
    "apps": lambda: _problems(contest=False), "codecontests": lambda: _problems(contest=True),
}  # fmt: skip


@pytest.mark.nightly
@pytest.mark.integration
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", NAMES)
def test_it_runs_from_end_to_end(name, tmp_path) -> None:
    if name in ("apps", "codecontests"):
        need_sandbox()
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS[name]()))
    toy = [*TOY, "data.path=rows.jsonl"]
    if name in ("hh-rlhf", "safe-rlhf"):
        toy.append("reward.batch_size=16")
    else:
        toy += ["world.pairs=8", "evaluate.samples=2"]
    ended = trueline("study", RECIPES / f"{name}.yaml", *toy, "-o", "run", cwd=tmp_path, timeout=600)
    assert ended.returncode == 0, ended.stdout[-1500:] + ended.stderr[-3000:]
    report = read_json(tmp_path / "run" / "report.json")
    arms = {"sft", "sft-chosen", "dpo", "dpo-iter", "ppo"}
    assert arms <= {arm["name"] for arm in report["arms"]} and report["verdict"]["answer"]
