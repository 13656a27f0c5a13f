"""`trueline evaluate`: folders that transformers alone wrote, judged as a study judges its arms."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from rich.console import Console
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from foreign import other_tokenizer, random_folder, resaved
from program import trueline
from trueline.commands.evaluate import evaluate_folders
from trueline.commands.resolve import resolve
from trueline.errors import InputError
from trueline.runs.cell import read_json, read_jsonl

# --- bad input


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    """`fine`, and one broken folder for each thing that can be wrong."""
    root = tmp_path_factory.mktemp("folders")
    fine = random_folder(root / "fine", other_tokenizer())
    for name in ("weightless", "pickled", "damaged", "untokenized", "adapter", "strange"):
        shutil.copytree(fine, root / name)
    (root / "weightless" / "model.safetensors").unlink()
    (root / "pickled" / "model.safetensors").rename(root / "pickled" / "pytorch_model.bin")
    (root / "damaged" / "model.safetensors").write_bytes(b"\xff" * 64)
    (root / "untokenized" / "tokenizer.json").unlink()
    for path in (root / "adapter").iterdir():
        path.unlink()
    (root / "adapter" / "adapter_config.json").write_text('{"base_model_name_or_path": "/nowhere/base"}')
    (root / "adapter" / "adapter_model.safetensors").write_bytes(b"")
    config = json.loads((fine / "config.json").read_text())
    (root / "strange" / "config.json").write_text(json.dumps(config | {"model_type": "mamba"}))
    random_folder(root / "short", other_tokenizer(), max_position_embeddings=48)
    random_folder(root / "scalar", other_tokenizer(), scalar=True)
    random_folder(root / "labels", other_tokenizer(), scalar=True, num_labels=3)
    random_folder(root / "few", other_tokenizer(), vocab_size=100, eos_token_id=3)
    return root


BAD = {
    "no-sft": ("dpo=fine ppo=fine", "no checkpoint is named sft", "sft=FOLDER dpo=FOLDER"),
    "nothing": ("", "no checkpoint is named sft", "sft=FOLDER dpo=FOLDER"),
    "sft-alone": ("sft=fine", "nothing to be compared with", "dpo=FOLDER"),
    "sft-and-a-judge": ("sft=fine judge=fine", "nothing to be compared with", "dpo=FOLDER"),
    "uneven": ("sft=fine dpo=fine,fine ppo=fine,fine,fine", "dpo has 2 folders, another arm 3", "one for all seeds"),
    "best-of-n": ("sft=fine best-of-n=fine", "best-of-n is no checkpoint", "leave it out"),
    "two-judges": ("sft=fine dpo=fine judge=fine,fine", "judge has several folders", "give one"),
    "nowhere": ("sft=fine dpo=absent", "no such folder", "Hugging Face model folder"),
    "weightless": ("sft=fine dpo=weightless", "no safetensors weights", "save_pretrained"),
    "pickled": ("sft=fine dpo=pickled", "only pytorch_model.bin", "pickled weights are never read"),
    "damaged": ("sft=fine dpo=damaged", "damaged weights", "copy or save the file again"),
    "adapter": ("sft=fine dpo=adapter", "no such folder: /nowhere/base", "Hugging Face model folder"),
    "untokenized": ("sft=fine dpo=untokenized", "no tokenizer.json", "save_pretrained"),
    "strange": ("sft=fine dpo=strange", "models of type 'mamba' have no key-value cache", "use a transformer"),
    "short-context": ("sft=fine dpo=short", "the context is 48 tokens, prompt and response may take 64", "lower"),
    "few-embeddings": ("sft=fine dpo=few", "100 embeddings for a tokenizer of 300", "that belongs to the model"),
    "bad-seed": ("sft=fine dpo=fine,weightless", "no safetensors weights", "save_pretrained"),
    "bad-judge": ("sft=fine dpo=fine judge=weightless", "no safetensors weights", "save_pretrained"),
    "policy-as-judge": ("sft=fine dpo=fine judge=fine", "no one-label sequence classifier", "num_labels=1"),
    "policy-as-reward": ("sft=fine dpo=fine reward=fine", "no one-label sequence classifier", "num_labels=1"),
    "labels": ("sft=fine dpo=fine judge=labels", "a classifier of 3 labels, not of one", "num_labels=1"),
    "judge-as-policy": ("sft=fine dpo=scalar", "a classifier, not a language model", "judge=FOLDER"),
}


@pytest.fixture
def unloaded(monkeypatch) -> None:
    """No tensor is read."""
    from trueline.models.folders import StoredRows

    def loaded(self, name, *rows):
        raise AssertionError(f"{name} was loaded")

    monkeypatch.setattr(StoredRows, "read", loaded)


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_measured_is_told_before_a_model_is_loaded(case, folders, unloaded, tmp_path) -> None:
    arguments, reason, remedy = BAD[case]
    given = dict(item.split("=") for item in arguments.split())
    found = {name: [folders / folder for folder in value.split(",")] for name, value in given.items()}
    _, sections, task = resolve("dialogue", [], quick=False)
    with pytest.raises(InputError) as caught:
        evaluate_folders(task, sections, found, tmp_path / "out", "command", console=Console(quiet=True))
    assert reason in caught.value.reason and caught.value.remedy and remedy in caught.value.remedy
    assert not (tmp_path / "out").exists()


def test_comparisons_of_other_prompts_say_nothing_of_a_tasks_structures(folders, unloaded, tmp_path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"prompt": "Question?", "chosen": "Yes.", "rejected": "No."}) + "\n")
    _, sections, task = resolve("dialogue", [f"data.path={path}"], quick=False)
    found = {name: [folders / "fine"] for name in ("sft", "dpo")}
    with pytest.raises(InputError, match="none of its 1 prompts is one of dialogue's") as caught:
        evaluate_folders(task, sections, found, tmp_path / "out", "command", console=Console(quiet=True))
    assert caught.value.field == "data.path" and not (tmp_path / "out").exists()


# --- for real

SMALL = ("evaluate.test_prompts=10", "evaluate.samples=2", "select.prompts=6", "evaluate.shown=6", "train.workers=1")
PROMPT_TOKENS = 24  # the dialogue world's: what is longer loses its oldest part, judges' prompts too


@pytest.fixture(scope="module")
def given(tiny_world, tmp_path_factory) -> Path:
    """`sft` and two policies near it (`dpo-0`, `dpo-1`) with its tokenizer, `theirs` with another one; one-label
    classifiers with either; comparisons to hold structures against."""
    root, source = tmp_path_factory.mktemp("given"), tiny_world.cells["sft"] / "model"
    resaved(source, root / "sft")
    for seed in range(2):
        resaved(source, root / f"dpo-{seed}", noise=0.02, seed=seed)
    random_folder(root / "theirs", other_tokenizer())
    random_folder(root / "scalar", AutoTokenizer.from_pretrained(source), scalar=True)
    random_folder(root / "other-scalar", other_tokenizer(), scalar=True, seed=6)
    pairs = read_jsonl(tiny_world.cells["pairs"] / "pairs.jsonl")
    rows = [{key: p[key] for key in ("prompt", "chosen", "rejected")} for p in pairs if p["part"] == "training"]
    (root / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def run(given: Path, *arguments: str) -> dict:
    ended = trueline("evaluate", *arguments, *SMALL, cwd=given, timeout=280)
    assert ended.returncode == 0, ended.stderr[-3000:]
    directory = given / arguments[arguments.index("-o") + 1]
    return {"report": read_json(directory / "report.json"), "directory": directory, "said": ended.stdout,
            "html": (directory / "report.html").read_text(encoding="utf-8"),
            "manifest": read_json(directory / "manifest.json")}  # fmt: skip


@pytest.fixture(scope="module")
def seeds(given) -> dict:
    """Two seeds of DPO, one SFT for both, a checkpoint with another tokenizer, a reward model, comparisons."""
    return run(given, "dialogue", "sft=sft", "dpo=dpo-0,dpo-1", "theirs=theirs", "reward=scalar",
               "data.path=pairs.jsonl", "-o", "seeds")  # fmt: skip


ONE = ("dialogue", "sft=sft", "ppo=dpo-0", "dpo=dpo-1", "judge=other-scalar", "-o", "one")


@pytest.fixture(scope="module")
def one(given) -> dict:
    """A checkpoint of each arm, and a judge with a tokenizer of its own."""
    return run(given, *ONE)


def arms(made: dict) -> dict[str, dict]:
    return {arm["name"]: arm for arm in made["report"]["arms"]}


def cells(made: dict, arm: str) -> list[Path]:
    rows = read_json(made["directory"] / "index.json")["cells"]
    return [made["directory"] / "cells" / row["cell"] for row in rows if row["arm"] == arm]


STUDY = {"schema", "task", "world", "seeds", "arms", "comparisons", "verdict", "variants", "over_prompts",
         "diagnostics", "threats", "tuning", "judges", "gates", "incidents", "probes", "command",
         "own_data_command"}  # fmt: skip


@pytest.mark.integration
def test_the_report_has_the_form_of_a_studys(seeds, one) -> None:
    for made in (seeds, one):
        report = made["report"]
        assert set(report) == STUDY and report["task"] == "dialogue"
        for arm in report["arms"]:
            assert set(arm) == {"name", "variant", "metrics", "cost", "picks", "collapsed"}
        assert report["verdict"]["cheapest"] is None and "<h2>Cost</h2>" not in made["html"]
        assert "not known here" in report["threats"][0]
        assert report["verdict"]["text"][:30] in " ".join(made["said"].split())
    assert seeds["report"]["seeds"] == [0, 1] and one["report"]["seeds"] == [0]


@pytest.mark.integration
def test_several_folders_are_seeds_and_one_stands_for_all(seeds) -> None:
    gold = {name: arm["metrics"]["test/sampled/gold"]["per_seed"] for name, arm in arms(seeds).items()}
    assert len(gold["dpo"]) == 2 and gold["dpo"][0] != gold["dpo"][1]
    assert gold["sft"][0] == gold["sft"][1] and gold["theirs"][0] == gold["theirs"][1]
    interval = arms(seeds)["dpo"]["metrics"]["test/sampled/gold"]["ci95"]
    assert None not in interval and seeds["report"]["over_prompts"] == []


@pytest.mark.integration
def test_kl_is_measured_to_sft_whoever_wrote_the_tokenizers_files(seeds) -> None:
    """transformers writes the files anew: the tokenizer is the same."""
    metrics = {name: arm["metrics"] for name, arm in arms(seeds).items()}
    assert metrics["sft"]["test/sampled/kl"]["mean"] == pytest.approx(0, abs=1e-4)
    assert metrics["dpo"]["test/sampled/kl"]["mean"] > 0.05
    others = {"test/sampled/kl_k3", "test/sampled/entropy", "test/greedy/gold", "shifted/sampled/gold"}
    assert others <= set(metrics["dpo"])


@pytest.mark.integration
def test_kl_to_sft_of_another_tokenizer_is_refused_with_the_reason(seeds) -> None:
    metrics = arms(seeds)["theirs"]["metrics"]
    assert not {key for key in metrics if key.rsplit("/", 1)[1] in ("kl", "kl_k3", "entropy")}
    assert {"test/sampled/gold", "test/sampled/length", "test/sampled/proxy", "test/sampled/outside"} <= set(metrics)
    reason = "theirs: its tokenizer is not SFT's"
    assert reason in " ".join(seeds["said"].split()) and any(reason in threat for threat in seeds["report"]["threats"])
    for cell in cells(seeds, "theirs"):
        assert all("kl" not in row for row in read_jsonl(cell / "scores.jsonl"))
        assert {row["kl"] for row in read_jsonl(cell / "samples.jsonl")} == {None}
        (point,) = read_json(cell / "evaluation.json")["curve"]
        assert not {key for key in point["metrics"] if key.startswith("pairs/")}


@pytest.mark.integration
def test_structures_are_held_against_the_comparisons_that_are_given(seeds, one, tiny_world) -> None:
    """For the kind of prompt that each is of, which the task knows and the file does not. A random model's text is
    like nothing in them."""
    shares = {name: arm["metrics"]["test/sampled/outside"]["mean"] for name, arm in arms(seeds).items()}
    assert set(shares) == {"sft", "dpo", "theirs"} and shares["theirs"] == 1
    (cell,) = (seeds["directory"] / "cells").glob("given-pairs-*")
    held, drawn = (
        [(row["kind"], row["chosen"], row["rejected"]) for row in read_jsonl(folder / "pairs.jsonl")]
        for folder in (cell, tiny_world.cells["pairs"])
    )
    assert held == drawn and {kind for kind, *_ in held} == {"benign", "harmful"}
    assert not any("outside" in key for arm in one["report"]["arms"] for key in arm["metrics"])


@pytest.mark.integration
def test_a_reward_model_that_is_handed_in_is_the_proxy_on_the_scale_of_sft(seeds, given) -> None:
    """Mean 0 and standard deviation 1 over SFT samples on other prompts: 20 test samples lie within four standard
    errors of 0. Gold stays the embedded judge's."""
    proxy = [v for row in read_jsonl(cells(seeds, "sft")[0] / "scores.jsonl") for v in row["proxy"]
             if (row["pick"], row["split"], row["decoding"]) == ("selected", "test", "sampled")]  # fmt: skip
    assert len(proxy) == 20 and abs(sum(proxy) / 20) < 4 / 20**0.5
    assert seeds["manifest"]["gold"]["kind"] == "embedded"
    scale = read_json(next(seeds["directory"].glob("cells/given-*/reward_model/calibration.json")))
    assert scale["std"] > 0 and scale["samples"] > 100
    assert not (given / "scalar" / "calibration.json").exists()  # the user's folder is left alone


def _by_transformers(folder: Path, prompt: str, response: str) -> float:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    turns = [{"role": role, "content": text} for role, _, text in (line.partition(": ") for line in prompt.split("\n"))]
    asked = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    whole = tokenizer.apply_chat_template([*turns, {"role": "assistant", "content": response}], return_dict=False)
    with torch.no_grad():
        model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
        answer = whole[len(asked) :]
        ids = asked[-(model.config.max_position_embeddings - len(answer)) :] + answer
        return float(model(input_ids=torch.tensor([ids])).logits[0, 0])


@pytest.mark.integration
def test_a_judge_that_is_handed_in_is_gold_as_transformers_scores_it(one, given) -> None:
    """Read with its own tokenizer, its scores put on the scale that was measured on SFT's samples."""
    assert one["manifest"]["gold"]["kind"] == "given"
    (path,) = one["directory"].glob("cells/given-*/reward_model/calibration.json")
    scale, equal = read_json(path), []
    for arm in ("sft", "dpo"):
        for row in read_jsonl(cells(one, arm)[0] / "samples.jsonl"):
            score = _by_transformers(given / "other-scalar", row["prompt"], row["response"])
            equal.append(abs((score - scale["mean"]) / scale["std"] - row["gold"]) < 1e-3)
    # One that was cut off has no end token, the template always writes it.
    assert len(equal) >= 36 and sum(equal) > 0.8 * len(equal)


@pytest.mark.integration
def test_one_checkpoint_an_arm_is_compared_over_prompts_alone(one) -> None:
    report = one["report"]
    assert report["verdict"]["answer"] == "cannot-tell"
    pairs = {(row["a"], row["b"]): row for row in report["over_prompts"]}
    assert {("ppo", "dpo"), ("dpo", "sft"), ("ppo", "sft")} <= set(pairs)
    lead = pairs["ppo", "dpo"]
    gold = {name: arm["metrics"]["test/sampled/gold"]["mean"] for name, arm in arms(one).items()}
    assert lead["difference"] == pytest.approx(gold["ppo"] - gold["dpo"])
    assert lead["ci95"][0] < lead["difference"] < lead["ci95"][1]
    assert "Over prompts alone" in one["html"]


@pytest.mark.integration
def test_the_same_command_again_measures_nothing_anew(one, given) -> None:
    def measured() -> dict[str, int]:
        found = one["directory"].glob("cells/*/*")
        return {str(p): p.stat().st_mtime_ns for p in found if "given-" not in p.parent.name and p.is_file()}

    before, report = measured(), (one["directory"] / "report.json").read_bytes()
    run(given, *ONE)
    assert before and measured() == before
    assert (one["directory"] / "report.json").read_bytes() == report


@pytest.mark.integration
def test_comparisons_of_a_file_bring_their_own_judges(given) -> None:
    """Without an embedded judge two are fitted on parts of the file that nobody trained on, and the density beside."""
    made = run(given, "pairs", "sft=sft", "dpo=dpo-0", "data.path=pairs.jsonl", "sft.epochs=1",
               "model.max_prompt_tokens=24", "model.max_new_tokens=40", "-o", "files")  # fmt: skip
    gold = made["manifest"]["gold"]
    assert gold["kind"] == "learned" and 0 <= gold["accuracy"] <= 1 and len(gold["accuracy_ci95"]) == 2
    assert any("gold judge" in row["label"] for row in made["report"]["judges"])
    metrics = arms(made)["dpo"]["metrics"]
    assert {"test/sampled/gold", "test/sampled/kl", "test/sampled/outside"} <= set(metrics)
    assert made["report"]["verdict"]["answer"] == "cannot-tell"


def test_adapters_are_checkpoints_too(folders, tmp_path) -> None:
    """Adapters that peft can read, named by arm; a reward model's adapter is no policy."""
    from trueline.commands.checkpoints import check_checkpoint
    from trueline.models.adapters import LoraSettings, fresh_adapter
    from trueline.models.checkpoints import save_model
    from trueline.models.heads import scalar_from

    policy = fresh_adapter(folders / "fine", LoraSettings(4, 8.0), seed=0)
    save_model(policy, tmp_path / "policy")
    save_model(scalar_from(policy, bias=False), tmp_path / "reward")
    for name in ("policy", "reward"):
        other_tokenizer().save_pretrained(tmp_path / name)
    _, sections, _ = resolve("dialogue", ["model.max_prompt_tokens=40"], True)
    check_checkpoint("dpo", tmp_path / "policy", sections)
    check_checkpoint("judge", tmp_path / "reward", sections)
    with pytest.raises(InputError, match="a classifier, not a language model"):
        check_checkpoint("dpo", tmp_path / "reward", sections)
    with pytest.raises(InputError, match="no one-label sequence classifier"):
        check_checkpoint("judge", tmp_path / "policy", sections)
