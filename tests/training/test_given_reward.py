"""A reward model from elsewhere trains our policies: it reads texts in its own tokens and its own template."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

from foreign import other_tokenizer, random_folder
from program import SHORT, trueline
from trueline.data.chat import ChatTokenizer
from trueline.errors import InputError
from trueline.models.foreign import quiet
from trueline.runs.cell import read_json
from trueline.training.feedback import reward_source
from trueline.training.reading import RewardReader

from .small import rows, run_small

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A sequence classifier that transformers made, with a tokenizer and a template that are not the study's."""
    return random_folder(tmp_path_factory.mktemp("elsewhere") / "reward", other_tokenizer(), scalar=True, seed=7)


@pytest.fixture(scope="module")
def given(tiny_world, folder, tmp_path_factory):
    """The cell of the reward stage that takes it."""
    cell = tmp_path_factory.mktemp("given") / "reward"
    return run_small(tiny_world, "reward", cell, settings={"path": str(folder)}, inputs={"reward": None})


def test_scores_are_those_of_transformers_pipeline_on_its_own_rendering(tiny_world, given, folder, tmp_path) -> None:
    stage = tiny_world.stage("ppo", tmp_path / "run", inputs={"reward": given})
    reader = RewardReader(stage)
    assert reader.is_foreign
    prompts, texts = stage.task.prompts("test")[:6], [f"first do {n} things , then rest ." for n in range(6)]
    found = reader.reward.scores(*(getattr(reader.written(prompts, texts), n) for n in ("tokens", "lengths")))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with quiet():
        model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
        classify = pipeline("text-classification", model=model, tokenizer=tokenizer, function_to_apply="none")
    for prompt, text, score in zip(prompts, texts, found.tolist()):
        turns = [{"role": m.role, "content": m.content} for m in prompt.messages] + [
            {"role": "assistant", "content": text}
        ]
        written = tokenizer.apply_chat_template(turns, tokenize=False)
        assert classify(written, add_special_tokens=False)[0]["score"] == pytest.approx(score, abs=1e-4)


def test_samples_are_scored_as_their_texts_are(tiny_world, given, tmp_path) -> None:
    """The ids of a rollout mean nothing to it: its score of a sample is that of the sample's text."""
    stage = tiny_world.stage("ppo", tmp_path / "run", inputs={"reward": given})
    from trueline.seeds import uniforms
    from trueline.training.policies import load_policy

    prompts = stage.task.prompts("train")[:8]
    rollout = stage.engine(load_policy(stage, "sft")).generate(
        [stage.prompt_ids(p) for p in prompts], uniforms(0, "x", 0, range(8), 40), max_new_tokens=40,
        sampling=stage.sampling,
    )  # fmt: skip
    scores = reward_source(stage, "learned")(prompts, rollout)
    reader, texts = RewardReader(stage), [stage.tokenizer.decode(r) for r in rollout.responses()]
    ended = rollout.ended
    again = reader.standardized(reader.written(prompts, texts))
    assert torch.allclose(scores[ended], again[ended], atol=1e-5) and int(ended.sum()) > 4
    assert abs(float(scores.mean())) < 1.5  # standardised on SFT samples, of which these are some


def test_what_the_stage_leaves_says_what_it_is(given, folder) -> None:
    done = read_json(given / "done.json")
    assert done["reads_again"] and done["trained_on"] == 0 and done["held_out_pairs"] > 50
    assert 0 <= done["held_out_accuracy"] <= 1 and done["calibration"]
    scale = read_json(given / "reward_model" / "calibration.json")
    assert scale["std"] > 0 and scale["samples"] > 50
    assert (given / "reward_model" / "model.safetensors").resolve() == (folder / "model.safetensors").resolve()
    assert not (folder / "calibration.json").exists()  # the user's folder stays as it was
    assert ChatTokenizer.load(given / "reward_model").fingerprint == ChatTokenizer.load(folder).fingerprint


@pytest.mark.parametrize("method", ["ppo", "rloo", "dpo-iter"])
def test_methods_that_sample_learn_from_it(method, tiny_world, given, tmp_path) -> None:
    settings = {"critic_from": "policy", "critic_warmup": 0} if method == "ppo" else {}
    found = rows(run_small(tiny_world, method, tmp_path / "run", inputs={"reward": given}, settings=settings))
    assert len(found) > 1 and all(row["loss"] == row["loss"] for row in found)


def test_a_critic_cannot_start_from_a_model_of_other_tokens(tiny_world, given, tmp_path) -> None:
    with pytest.raises(InputError, match="critic_from=policy"):
        run_small(tiny_world, "ppo", tmp_path / "run", inputs={"reward": given})


def test_a_study_takes_it_and_charges_no_labels_for_it(folder, tmp_path) -> None:
    done = trueline(
        "study", "dialogue", "--quick", f"reward.path={folder}", *SHORT, "study.arms=dpo,ppo,best-of-n",
        "-o", "run", cwd=tmp_path, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    arms = {arm["name"]: arm for arm in report["arms"]}
    assert {"dpo", "ppo", "best-of-n"} <= set(arms)
    assert arms["ppo"]["cost"]["labels"] == 0 < arms["dpo"]["cost"]["labels"]
    judge = report["judges"][0]
    assert "given" in json.dumps(judge)


@pytest.mark.parametrize(
    ("path", "reason"),
    [("/nowhere/at-all", "no such folder"), ("POLICY", "no one-label sequence classifier")],
)
def test_what_is_no_reward_model_is_refused_before_anything_runs(path, reason, tmp_path) -> None:
    if path == "POLICY":
        path = str(random_folder(tmp_path / "policy", other_tokenizer()))
    done = trueline("study", "dialogue", "--quick", f"reward.path={path}", "-o", "run", cwd=tmp_path)
    assert done.returncode == 2 and reason in done.stderr and not (tmp_path / "run").exists()
