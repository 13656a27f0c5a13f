"""Nothing that is read can run: no pickle, no code of a model's author, no evaluation of what a file says."""

from __future__ import annotations

import ast
import json
import os
import pickle
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tests.reliability.figures import record

from program import trueline
from trueline.commands.resolve import resolve
from trueline.data.chat import ChatTokenizer
from trueline.errors import InputError
from trueline.models.checkpoints import load_decoder

SOURCE = Path(__file__).resolve().parents[2] / "src" / "trueline"
CHILD = SOURCE / "sandbox"
"""Programs are run there, in a process of their own behind walls: the one place that may compile text."""


class TestOurOwnCode:
    CALLS = {"eval", "exec", "compile", "__import__"}
    MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal", "joblib"}
    ATTRIBUTES = {("torch", "load"), ("os", "system"), ("os", "popen"), ("yaml", "load"), ("tempfile", "mktemp")}
    KEYWORDS = {"shell": True, "trust_remote_code": True, "allow_pickle": True, "weights_only": False}

    @pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda p: str(p.relative_to(SOURCE)))
    def test_nothing_unpickles_or_evaluates(self, path) -> None:
        found = [self._fault(node) for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))]
        found = [fault for fault in found if fault]
        if CHILD in path.parents:
            found = [fault for fault in found if fault not in ("exec", "compile", "__import__")]
        assert not found

    def _fault(self, node: ast.AST) -> str:
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            return next((name for name in names if name.partition(".")[0] in self.MODULES), "")
        if not isinstance(node, ast.Call):
            return ""
        if isinstance(node.func, ast.Name) and node.func.id in self.CALLS:
            return node.func.id
        if isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name):
            pair = (node.func.value.id, node.func.attr)
            if pair in self.ATTRIBUTES:
                return ".".join(pair)
        for keyword in node.keywords:
            if isinstance(keyword.value, ast.Constant) and (keyword.arg, keyword.value.value) in self.KEYWORDS.items():
                return f"{keyword.arg}={keyword.value.value}"
        return ""

    @pytest.mark.parametrize(
        "text", ["import pickle", "torch.load(p)", "eval(x)", "run(c, shell=True)", "m(trust_remote_code=True)"]
    )
    def test_the_check_sees_faults(self, text) -> None:
        assert any(self._fault(node) for node in ast.walk(ast.parse(text)))

    def test_no_address_but_the_machines_own_is_listened_on(self) -> None:
        for path in SOURCE.rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            assert "0.0.0.0" not in text and 'bind(("",' not in text and "host=''" not in text, path


class Bomb:
    """Unpickled, it writes the canary."""

    def __init__(self, canary: Path) -> None:
        self.canary = str(canary)

    def __reduce__(self):
        return (os.system, (f"touch {self.canary}",))


def _header(values: object) -> bytes:
    text = json.dumps(values).encode()
    return struct.pack("<Q", len(text)) + text


def _tensor(shape: list[int], offsets: list[int], dtype: str = "F32") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def _index(folder: Path, target: str) -> None:
    (folder / "model.safetensors").unlink()
    weights = {"weight_map": {"model.embed_tokens.weight": target}, "metadata": {}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(weights))


def _only(folder: Path, name: str, data: bytes) -> None:
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(data)


def _config(folder: Path, **changes) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


CODE = "import os\nos.system('touch {canary}')\nclass Model: pass\n"
ATTACKS = {
    "a pickle for weights": lambda f, bomb: _only(f, "pytorch_model.bin", bomb),
    "torch's own zip of a pickle": lambda f, bomb: (torch.save({"w": torch.ones(1)}, f / "pytorch_model.bin"),
                                                  (f / "model.safetensors").unlink()),
    "a pickle that is called safetensors": lambda f, bomb: (f / "model.safetensors").write_bytes(bomb),
    "a pickle beside an index": lambda f, bomb: (_index(f, "pytorch_model.bin"),
                                                 (f / "pytorch_model.bin").write_bytes(bomb)),
    "an index that leaves the folder": lambda f, bomb: _index(f, "../../outside.safetensors"),
    "an index with an absolute path": lambda f, bomb: _index(f, "/etc/passwd"),
    "code of the model's author": lambda f, bomb: (
        _config(f, model_type="evil", architectures=["Evil"],
                auto_map={"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}),
        (f / "evil.py").write_text(CODE.format(canary=f.parent / "canary"))),
    "a header longer than the file": lambda f, bomb: (f / "model.safetensors").write_bytes(
        struct.pack("<Q", 2**62) + b"{}"),
    "a tensor that lies outside the file": lambda f, bomb: (f / "model.safetensors").write_bytes(
        _header({"model.embed_tokens.weight": _tensor([2**20, 2**20], [0, 2**42])}) + bytes(64)),
    "tensors that overlap": lambda f, bomb: (f / "model.safetensors").write_bytes(
        _header({"a": _tensor([4], [0, 16]), "b": _tensor([4], [0, 16])}) + bytes(16)),
    "a negative shape": lambda f, bomb: (f / "model.safetensors").write_bytes(
        _header({"model.embed_tokens.weight": _tensor([-1, 4], [0, 16])}) + bytes(16)),
    "a header that is no object": lambda f, bomb: (f / "model.safetensors").write_bytes(_header([1, 2]) + bytes(16)),
    "a header of deep nesting": lambda f, bomb: (f / "model.safetensors").write_bytes(
        struct.pack("<Q", 200_000) + b"[" * 200_000),
    "a shape of astronomic size": lambda f, bomb: _config(f, hidden_size=2**40, vocab_size=2**40),
    "a tokenizer that is no JSON": lambda f, bomb: (f / "tokenizer.json").write_bytes(bomb),
}  # fmt: skip


@pytest.fixture(scope="module")
def policy(tiny_world) -> Path:
    """A good model's folder."""
    return tiny_world.cells["sft"] / "model"


@pytest.mark.integration
@pytest.mark.parametrize("name", ATTACKS)
def test_a_malicious_model_is_refused_unread(name, policy, tmp_path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for path in policy.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    save_file({"model.embed_tokens.weight": torch.ones(4, 4)}, tmp_path / "outside.safetensors")
    canary = tmp_path / "canary"
    ATTACKS[name](folder, pickle.dumps(Bomb(canary)))
    with pytest.raises(InputError) as caught:
        resolve("dialogue", [f"model.path={folder}"], quick=False)  # what every command does first
        load_decoder(folder)
        ChatTokenizer.load(folder)
    assert str(folder) in str(caught.value) and caught.value.remedy
    assert not canary.exists()
    record("H15", f"model-{list(ATTACKS).index(name)}", attacks=1, refused=1)


@pytest.mark.integration
def test_the_command_says_so_in_one_line(policy, tmp_path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for path in policy.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    _only(folder, "pytorch_model.bin", pickle.dumps(Bomb(tmp_path / "canary")))
    ended = trueline("sft", "dialogue", f"model.path={folder}", "-o", "run", cwd=tmp_path)
    assert ended.returncode == 2 and "Traceback" not in ended.stderr and ended.stderr.count("\n") == 1
    assert "pickled weights are never read" in ended.stderr and not (tmp_path / "canary").exists()


@pytest.mark.integration
def test_the_bomb_would_go_off(tmp_path) -> None:
    """Positive control: unpickled, it does."""
    pickle.loads(pickle.dumps(Bomb(tmp_path / "canary")))
    assert (tmp_path / "canary").exists()
