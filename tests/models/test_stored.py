"""A folder's weights read by rows, and a policy whose products are in bf16 already."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from program import ENVIRONMENT
from trueline.distributed.sharding import whole
from trueline.errors import InputError
from trueline.models.checkpoints import Stored, load_decoder, load_scalar, save_model
from trueline.models.decoder import DecoderConfig
from trueline.models.heads import scalar_from
from trueline.models.scoring import Sampling
from trueline.models.tiny import make_decoder
from trueline.rollout.native import NativeEngine

SHAPE = DecoderConfig(vocab_size=37, hidden_size=16, intermediate_size=24, num_layers=2, num_heads=4, num_kv_heads=2,
                      head_dim=4, max_positions=64)  # fmt: skip
VARIANTS = [
    pytest.param(replace(SHAPE, family=family, tied=tied), id=f"{family}{'-tied' * tied}")
    for family in ("llama", "qwen2", "qwen3")
    for tied in (False, True)
]


@pytest.mark.parametrize("shape", VARIANTS)
@pytest.mark.parametrize("kind", ["policy", "reward"])
def test_rows_put_together_are_the_model(shape, kind, tmp_path) -> None:
    model = make_decoder(shape, 3)
    if kind == "reward":
        model = scalar_from(model, bias=False)
        torch.nn.init.normal_(model.score.weight)
    save_model(model, tmp_path)
    stored = Stored(tmp_path, kind)
    assert Stored.has(tmp_path) and all(p.is_meta for p in stored.model.parameters())
    loaded = load_decoder(tmp_path) if kind == "policy" else load_scalar(tmp_path, bias=False)
    assert {name for name, _ in stored.model.named_parameters()} == {name for name, _ in loaded.named_parameters()}
    for name, wanted in loaded.named_parameters(remove_duplicate=False):
        for size in (1, 2, 3, 5):
            share = -(-len(wanted) // size)
            parts = [stored.rows(name, min(len(wanted), r * share), min(len(wanted), (r + 1) * share))
                     for r in range(size)]  # fmt: skip
            assert torch.equal(torch.cat(parts), wanted), (name, size)
            assert sum(len(part) for part in parts) == len(wanted)


def test_weights_that_are_not_the_models_are_refused_before_one_is_read(tmp_path) -> None:
    save_model(make_decoder(SHAPE, 3), tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    name = "model.layers.1.self_attn.v_proj.weight"
    for changed, reason in (
        ({k: t for k, t in tensors.items() if k != name}, "missing weights: trunk.blocks.1.attention.qkv.weight"),
        (tensors | {name: tensors[name][:, :-1].contiguous()}, "wrong shapes: trunk.blocks.1.attention.qkv.weight"),
        (tensors | {"model.extra": torch.tensor(1.0)}, "weights that nothing reads"),
    ):
        save_file(changed, path)
        for read in (lambda: Stored(tmp_path, "policy"), lambda: load_decoder(tmp_path)):
            with pytest.raises(InputError, match=reason):
                read()


@pytest.mark.parametrize("shape", VARIANTS)
def test_a_policy_whose_products_are_in_bf16_samples_the_same(shape, monkeypatch) -> None:
    policy = make_decoder(shape, 5)
    policy.trunk.precision = "bf16"
    low = whole(policy, low=True)
    assert whole(policy) is policy
    assert {p.dtype for p in low.parameters()} == {torch.bfloat16, torch.float32}
    assert low.trunk.embed.weight.data_ptr() == policy.trunk.embed.weight.data_ptr()  # shared: nothing rounds it
    assert low.head.weight.dtype == low.trunk.blocks[0].down.weight.dtype == torch.bfloat16
    assert policy.trunk.blocks[0].down.weight.dtype == torch.float32
    monkeypatch.setattr("trueline.rollout.native.can_generate", lambda *_: False)  # the plain loop, as on a GPU
    prompts = [[1 + i % 7, 4, 9, i % 5][: 2 + i % 3] for i in range(12)]
    uniforms = np.random.default_rng(0).random((len(prompts), 20))
    made = []
    for model in (policy, low):
        engine = NativeEngine(pad_id=0, end_id=2)
        engine.load_weights(model, 0)
        made.append(engine.generate(prompts, uniforms, max_new_tokens=20, sampling=Sampling()))
    one, two = made
    assert torch.equal(one.tokens, two.tokens) and torch.equal(one.logprobs, two.logprobs)
    assert one.response_mask.sum() > 100


def test_keys_and_values_take_the_precision_of_the_products() -> None:
    """Rounded when they are kept or when they are read, a step's numbers are the same."""
    policy = make_decoder(SHAPE, 5)
    assert policy.trunk.cache(2, 8).keys.dtype == torch.float32
    policy.trunk.precision = "bf16"
    assert policy.trunk.cache(2, 8).keys.dtype == torch.bfloat16
    tokens, lengths = torch.randint(3, 37, (3, 6)), torch.tensor([6, 4, 5])
    found = []
    for dtype in (torch.bfloat16, torch.float32):
        cache = policy.trunk.cache(3, 12)
        cache.keys, cache.values = cache.keys.to(dtype), cache.values.to(dtype)
        with torch.no_grad():
            hidden = [policy.trunk.prefill(tokens, lengths, cache)]
            hidden += [policy.trunk.decode(torch.tensor([7, 8, 9]), lengths + i, cache) for i in range(4)]
        found.append(torch.stack(hidden))
    assert torch.equal(*found)


def test_a_model_on_no_device_imports_no_compiler(tmp_path) -> None:
    """torch imports it to fill a meta tensor with normal numbers: 80 MB and a second in every process."""
    save_model(make_decoder(SHAPE, 3), tmp_path)
    asked = (
        "import sys; from pathlib import Path; from trueline.models.checkpoints import Stored, load_decoder; "
        f"load_decoder(Path({str(tmp_path)!r})); Stored(Path({str(tmp_path)!r}), 'policy'); "
        "print([name for name in ('sympy', 'torch._dynamo') if name in sys.modules])"
    )
    said = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, env=ENVIRONMENT, check=True)
    assert said.stdout.strip() == "[]"
