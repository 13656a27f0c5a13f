"""A user's folder and file from end to end: another architecture, whole weights and adapters, an own template."""

from __future__ import annotations

import json
import random

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, GPTNeoXConfig, MistralConfig

from foreign import other_tokenizer
from program import trueline
from trueline.models.checkpoints import load_decoder, load_scalar
from trueline.models.foreign import quiet

pytestmark = pytest.mark.integration

SHAPE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
         "max_position_embeddings": 128, "bos_token_id": 0, "eos_token_id": 3, "pad_token_id": 1}  # fmt: skip
SHORT = ("model.max_prompt_tokens=50", "model.max_new_tokens=30", "sft.epochs=1", "reward.epochs=1",
         "ppo.batch_size=16", "dpo_iter.rounds=1", "train.max_steps=2", "--seeds", "0")  # fmt: skip


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    """Two folders that transformers wrote, a file of pairs, a template."""
    root, tokenizer, draw = tmp_path_factory.mktemp("ground"), other_tokenizer(), random.Random(0)
    configs = {
        "neox": GPTNeoXConfig(vocab_size=len(tokenizer), **SHAPE),
        "mistral": MistralConfig(vocab_size=len(tokenizer), num_key_value_heads=2, **SHAPE),
    }
    for name, config in configs.items():
        torch.manual_seed(0)
        with quiet():
            AutoModelForCausalLM.from_config(config).save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    rows = []
    for number in range(120):
        thing = draw.choice(["tea", "bread", "soup", "rice"])
        rows.append({"prompt": f"how do i make {thing} for {number} ?", "chosen": f"first boil water , then {thing} .",
                     "rejected": draw.choice(["no .", "i can not help ."])})  # fmt: skip
    (root / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    (root / "own.jinja").write_text("{% for m in messages %}[{{ m.role }}] {{ m.content }}{{ eos_token }}{% endfor %}"
                                    "{% if add_generation_prompt %}[assistant] {% endif %}")  # fmt: skip
    return root


def cells(directory) -> dict[str, object]:
    index = json.loads((directory / "index.json").read_text())["cells"]
    return {row["arm"].removeprefix("stage:"): directory / "cells" / row["cell"] for row in index}


@pytest.mark.nightly
@pytest.mark.parametrize("stage", ["ppo", "dpo-iter"])
def test_another_architecture_trains_all_its_weights(ground, tmp_path, stage) -> None:
    done = trueline(stage, "pairs", f"data.path={ground / 'pairs.jsonl'}", f"model.path={ground / 'neox'}", *SHORT,
                    "-o", "run", cwd=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = cells(tmp_path / "run")
    rows = [json.loads(line) for line in (found[stage] / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
    with quiet():
        policy = AutoModelForCausalLM.from_pretrained(found[stage] / "model")
        reward = AutoModelForSequenceClassification.from_pretrained(found["reward"] / "reward_model")
    assert policy.config.model_type == reward.config.model_type == "gpt_neox" and reward.config.num_labels == 1
    start = load_decoder(ground / "neox").state_dict()
    assert any(
        not torch.equal(start[key], tensor) for key, tensor in load_decoder(found[stage] / "model").state_dict().items()
    )


def test_adapters_train_on_a_base_that_stays(ground, tmp_path) -> None:
    before = (ground / "mistral" / "model.safetensors").read_bytes()
    done = trueline("ppo", "pairs", f"data.path={ground / 'pairs.jsonl'}", f"model.path={ground / 'mistral'}", *SHORT,
                    "model.lora_rank=4", f"model.chat_template={ground / 'own.jinja'}",
                    "train.gradient_checkpointing=true",
                    "-o", "run", cwd=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (ground / "mistral" / "model.safetensors").read_bytes() == before
    found = cells(tmp_path / "run")
    policy, sft = (load_decoder(found[name] / "model") for name in ("ppo", "sft"))
    assert policy.trunk.base is sft.trunk.base
    assert any(not torch.equal(a, b) for a, b in zip(policy.parameters(), sft.parameters()))
    reward = load_scalar(found["reward"] / "reward_model", bias=False)
    assert reward.trunk.base is sft.trunk.base and reward.score.weight.abs().max() > 0
    first = json.loads((found["ppo"] / "metrics.jsonl").read_text().splitlines()[0])
    assert abs(first["objective/kl_reference"]) < 1e-3  # the reference is SFT's adapter, not the bare base
    assert "[assistant]" in (found["ppo"] / "model" / "chat_template.jinja").read_text()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("model.path=/nowhere/at-all", "no such folder"),
        ("model.quantize=4bit", "train adapters"),
        ("model.lora_rank=4 model.lora_targets=nothing_of_the_kind", "lora_targets"),
        ("model.lora_rank=4 model.quantize=4bit", "CUDA"),
        ("model.chat_template=absent.jinja", "model.chat_template"),
    ],
)
def test_settings_that_cannot_be_used(ground, tmp_path, more, said) -> None:
    done = trueline("sft", "pairs", f"data.path={ground / 'pairs.jsonl'}", f"model.path={ground / 'neox'}", *SHORT,
                    *more.split(), "-o", "run", cwd=tmp_path)  # fmt: skip
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr
