"""What a run does not go on with: other data, other settings, another model, another format, a second process."""

from __future__ import annotations

import json
import shutil

import pytest
from tests.program import trueline

from trueline.errors import RunError
from trueline.runs import checkpoint
from trueline.runs.checkpoint import ModuleState

pytestmark = pytest.mark.integration

PAIRS = (
    "sft", "pairs", "data.path=pairs.jsonl", "model.max_prompt_tokens=64", "model.max_new_tokens=32", "train.workers=1",
    "sft.epochs=1", "train.max_steps=2", "train.snapshots=1", "-o", "run",
)  # fmt: skip


def _pairs(count: int, end: str) -> str:
    rows = [{"prompt": f"What is {i}?", "chosen": f"It is {i}, {end}.", "rejected": f"No {i}."} for i in range(count)]
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A folder with a finished run on a file of pairs."""
    folder = tmp_path_factory.mktemp("pairs")
    (folder / "pairs.jsonl").write_text(_pairs(400, "truly"))
    ended = trueline(*PAIRS, cwd=folder)
    assert ended.returncode == 0, ended.stderr
    return folder


def _refused(folder, *arguments: str) -> str:
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    ended = trueline(*arguments, cwd=folder)
    assert ended.returncode == 2 and "Traceback" not in ended.stderr and ended.stderr.count("\n") == 1, ended.stderr
    assert all(path.read_bytes() == data for path, data in before.items() if path.name != ".lock")
    return ended.stderr


def test_a_file_that_was_changed_is_named_with_both_digests(ran) -> None:
    """Every count is as before: only the content tells."""
    held = (ran / "pairs.jsonl").read_text()
    (ran / "pairs.jsonl").write_text(_pairs(400, "not so"))
    said = _refused(ran, *PAIRS)
    (ran / "pairs.jsonl").write_text(held)
    assert "inputs.data.path: pairs.jsonl was " in said and "holds another run" in said and "another -o DIR" in said


def test_a_file_that_was_moved_is_the_same_input(ran) -> None:
    shutil.copytree(ran, ran.with_name("moved"))
    folder = ran.with_name("moved")
    before = {path.name for path in (folder / "run" / "cells").iterdir()}
    ended = trueline(*PAIRS, cwd=folder)
    assert ended.returncode == 0, ended.stderr
    assert {path.name for path in (folder / "run" / "cells").iterdir()} == before


def test_every_setting_that_differs_is_named(ran) -> None:
    said = _refused(ran, *PAIRS, "sft.learning_rate=0.5", "dpo.beta=0.7")
    assert "sft.learning_rate was " in said and "is 0.5" in said and "dpo.beta was 0.1, is 0.7" in said


def test_a_setting_that_changes_no_result_is_no_other_run(ran) -> None:
    ended = trueline(*PAIRS, "train.micro_tokens=4096", cwd=ran)
    assert ended.returncode == 0, ended.stderr


def test_a_model_folder_whose_weights_were_changed_is_another_input(ran, tmp_path) -> None:
    cell = next(path.parent for path in (ran / "run" / "cells").glob("*/model"))
    shutil.copytree(cell / "model", tmp_path / "policy")
    (tmp_path / "pairs.jsonl").write_text((ran / "pairs.jsonl").read_text())
    arguments = (*PAIRS, "model.path=policy")
    assert trueline(*arguments, cwd=tmp_path).returncode == 0
    weights = tmp_path / "policy" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert "inputs.model.path: " in _refused(tmp_path, *arguments)


def test_a_second_process_on_a_run_is_refused(ran) -> None:
    from trueline.runs.lock import held

    with held(ran / "run"):
        ended = trueline(*PAIRS, cwd=ran)
    assert ended.returncode == 1 and "is at work here" in ended.stderr and "Traceback" not in ended.stderr


@pytest.mark.parametrize("written", [1, 4])
def test_a_checkpoint_of_another_format_is_not_begun_anew_without_a_word(tmp_path, written) -> None:
    import torch
    from torch import nn

    torch.manual_seed(0)
    checkpoint.save(tmp_path, 4, {"policy": ModuleState(nn.Linear(2, 2))})
    path = tmp_path / "step-00000004" / "MANIFEST.json"
    manifest = json.loads(path.read_text()) | {"format": written}
    manifest["seal"] = checkpoint._seal(manifest)
    if written == 1:  # the first format had no seal
        del manifest["seal"]
    path.write_text(json.dumps(manifest))
    with pytest.raises(RunError, match=f"format {written}; this version reads 2 and 3"):
        checkpoint.newest(tmp_path)
