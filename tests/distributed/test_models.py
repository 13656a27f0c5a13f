"""What else lies in parts: a model whose layers are computed again, and one of another architecture."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch
from tests.distributed.test_equality import _gap
from tests.distributed.test_losses import _port, _start
from tests.distributed.together import run_together
from tests.training.small import rows, small
from transformers import AutoModelForCausalLM, GPTNeoXConfig

from foreign import other_tokenizer
from program import trueline
from trueline.models.checkpoints import load_decoder
from trueline.models.foreign import quiet

pytestmark = pytest.mark.integration

SHORT = ("model.max_prompt_tokens=50", "model.max_new_tokens=30", "sft.epochs=1", "sft.batch_size=32", "dpo.epochs=1",
         "dpo.batch_size=25", "train.max_steps=3", "train.workers=1")  # fmt: skip


def test_layers_that_are_computed_again(tiny_world, tmp_path) -> None:
    for name, size, again in (("plain", 1, False), ("again", 2, True)):
        run_together(size, "dpo", tmp_path / name, tiny_world, small("dpo"), gradient_checkpointing=again)
    assert _gap(rows(tmp_path / "plain"), rows(tmp_path / "again")) < 1e-10


def _losses(run: Path) -> list[float]:
    for path in run.glob("cells/*/metrics.jsonl"):
        if json.loads((path.parent / "config.json").read_text())["method"] == "dpo":
            return [json.loads(line)["loss"] for line in path.read_text().splitlines()]
    return []


@pytest.mark.nightly
def test_another_architecture(tmp_path) -> None:
    tokenizer, draw = other_tokenizer(), random.Random(0)
    torch.manual_seed(0)
    config = GPTNeoXConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=128, bos_token_id=0, eos_token_id=3, pad_token_id=1,
    )  # fmt: skip
    with quiet():
        AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "neox")
    tokenizer.save_pretrained(tmp_path / "neox")
    pairs = [
        {"prompt": f"how do i make tea for {i} ?", "chosen": f"first boil water for {i} .",
         "rejected": draw.choice(["no .", "i can not help ."])} for i in range(120)
    ]  # fmt: skip
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    stage = ("dpo", "pairs", "data.path=pairs.jsonl", "model.path=neox", *SHORT)
    alone = trueline(*stage, "-o", "one", cwd=tmp_path)
    assert alone.returncode == 0, alone.stderr
    port = _port()
    for process in [_start(tmp_path, rank, 2, port, *stage, "-o", "two") for rank in range(2)]:
        with process:
            assert process.wait(120) == 0, process.stderr.read()
    one, two = _losses(tmp_path / "one"), _losses(tmp_path / "two")
    assert len(one) == len(two) == 3 and max(abs(a - b) for a, b in zip(one, two)) < 1e-5
    (folder,) = [p.parent for p in (tmp_path / "two" / "cells").glob("*/model/config.json")
                 if json.loads((p.parent.parent / "config.json").read_text())["method"] == "dpo"]  # fmt: skip
    assert load_decoder(folder).parameter_count == load_decoder(tmp_path / "neox").parameter_count
