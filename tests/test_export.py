"""What `trueline train` leaves beside the weights: cards that say what was done and found, files other tools read."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from program import SHORT, trueline
from trueline.commands import export
from trueline.errors import InputError
from trueline.models.foreign import quiet
from trueline.runs.cell import read_json
from trueline.types import Message, Pair, Prompt

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def left(tmp_path_factory):
    """A short study, and PPO trained from its report."""
    folder = tmp_path_factory.mktemp("export")
    study = trueline("study", "dialogue", "--quick", *SHORT, "--seeds", "0,1", "-o", "study", cwd=folder, timeout=280)
    assert study.returncode == 0, study.stderr
    done = trueline("train", "study/report.json", "arm=ppo", "-o", "out", cwd=folder, timeout=280)
    assert done.returncode == 0, done.stderr
    return folder


def test_every_folder_has_a_card_that_says_what_was_done_and_found(left) -> None:
    report = read_json(left / "study" / "report.json")
    for name, word in (("model", "the policy"), ("critic", "the critic"), ("reward_model", "the reward model")):
        text = (left / "out" / name / "README.md").read_text()
        head = yaml.safe_load(text.split("---")[1])
        assert head["library_name"] == "transformers" and head["tags"][:2] == ["trueline", "ppo"]
        assert word in text and "PPO: maximise score" in text and report["verdict"]["text"] in text
        row = next(r for r in report["comparisons"] if (r["a"], r["b"]) == ("ppo", "dpo"))
        low, high = row["ci95"]
        assert f"| ppo - dpo | {row['difference']:+.3f} | {low:+.3f} to {high:+.3f} |" in text
        assert "trueline train" in text and all(threat in text for threat in report["threats"])
    assert head["pipeline_tag"] == "text-classification"


def test_the_reward_model_beside_it_reads_as_reward_benchs_loader_reads(left) -> None:
    """A sequence classifier by its Auto class, texts in its own template, in a batch padded on either side."""
    folder = left / "out" / "reward_model"
    kept = read_json(folder / "examples.json")["examples"]
    with quiet():
        model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    texts = []
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for row in kept:
        turns = [*row["prompt"], {"role": "assistant", "content": row["response"]}]
        texts.append(tokenizer.apply_chat_template(turns, tokenize=False))
    for side in ("right", "left"):
        tokenizer.padding_side = side
        batch = tokenizer(texts, padding=True, return_tensors="pt", add_special_tokens=False)
        with torch.no_grad():
            scores = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, 0].tolist()
        assert scores == pytest.approx([row["score"] for row in kept], abs=1e-4)


def test_the_answers_are_in_alpaca_evals_form_and_both_models_answer_the_same(left) -> None:
    files = {name: json.loads((left / "out" / "evaluation" / f"alpaca_eval_{name}.json").read_text())
             for name in ("ppo", "sft")}  # fmt: skip
    assert [set(row) for rows in files.values() for row in rows[:1]] == [
        {"instruction", "output", "generator", "dataset"}
    ] * 2
    assert [row["instruction"] for row in files["ppo"]] == [row["instruction"] for row in files["sft"]]
    assert len(files["ppo"]) > 50 and files["ppo"][0]["generator"] == "ppo"
    assert any(a["output"] != b["output"] for a, b in zip(files["ppo"], files["sft"]))


def test_the_harness_finds_its_tasks_and_their_rows(left, tmp_path) -> None:
    pair = Pair(Prompt((Message("user", "may i ?"),)), "yes .", "no .")
    task = SimpleNamespace(name="two-words", prompts=lambda split: [pair.prompt] * 3)
    sections = {"model": SimpleNamespace(max_prompt_tokens=24, max_new_tokens=8)}
    found = export.write_evaluation_files(tmp_path, task, sections, {"ppo": left / "out" / "model"}, [pair])
    assert {path.name for path in found} == {
        "alpaca_eval_ppo.json", "two_words_prompts.jsonl", "trueline_two_words_generate.yaml", "two_words_pairs.jsonl",
        "trueline_two_words_preference.yaml",
    }  # fmt: skip
    for kind, rows in (("generate", 3), ("preference", 1)):
        config = yaml.safe_load((tmp_path / "evaluation" / f"trueline_two_words_{kind}.yaml").read_text())
        data = config["dataset_kwargs"]["data_files"]["test"]
        lines = [json.loads(line) for line in Path(data).read_text(encoding="utf-8").splitlines()]
        assert len(lines) == rows and config["task"] == f"trueline_two_words_{kind}"
        assert lines[0]["prompt"].endswith("<|assistant|>")
    assert lines[0]["sides"] == ["yes .", "no ."] and config["doc_to_target"] == 0


def test_a_push_is_refused_before_training_where_nobody_is_logged_in(left, monkeypatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name, reason in (("nobody", "is not OWNER/NAME"), ("a/b/c", "is not OWNER/NAME"), ("me/it", "who you are")):
        with pytest.raises(InputError, match=reason):
            export.check_push(name)
    done = trueline("train", "study/report.json", "arm=dpo", "-o", "pushed", "--push", "nobody", cwd=left)
    assert done.returncode == 2 and not (left / "pushed").exists()


def test_a_push_makes_a_private_repository_of_what_was_left_and_nothing_else(left, monkeypatch) -> None:
    calls = []

    class Hub:
        def create_repo(self, name, **settings):
            calls.append((name, settings))
            return f"https://hub/{name}"

        def upload_folder(self, **settings):
            calls.append(settings)

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    assert export.push(left / "out", "me/it") == "https://hub/me/it"
    assert calls[0] == ("me/it", {"private": True, "exist_ok": True})
    patterns = calls[1]["allow_patterns"]
    assert "model/**" in patterns and not any(pattern.startswith("cells") for pattern in patterns)
