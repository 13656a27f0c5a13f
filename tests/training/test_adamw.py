"""Our AdamW is torch's, bit for bit, without the import of its compiler."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from trueline.training.adamw import AdamW


def models() -> tuple[torch.nn.Module, torch.nn.Module]:
    torch.manual_seed(0)
    one = torch.nn.Sequential(torch.nn.Linear(7, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3), torch.nn.Linear(3, 3))
    other = torch.nn.Sequential(torch.nn.Linear(7, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3), torch.nn.Linear(3, 3))
    other.load_state_dict(one.state_dict())
    return one, other


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_every_step_is_torchs(weight_decay) -> None:
    one, other = models()
    settings = {"betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": weight_decay}
    ours = AdamW(one.parameters(), lr=1e-2, **settings)
    theirs = torch.optim.AdamW(other.parameters(), lr=1e-2, fused=True, **settings)
    for step in range(6):
        x = torch.randn(4, 7, generator=torch.Generator().manual_seed(step))
        for model, optimizer in ((one, ours), (other, theirs)):
            optimizer.param_groups[0]["lr"] = 1e-2 / (step + 1)
            optimizer.zero_grad()
            inner = model[:3](x)
            (model[3](inner) if step % 2 else inner).square().sum().backward()  # at times without the last
            optimizer.step()
        assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters()))
    for index, slot in theirs.state_dict()["state"].items():
        assert {k: torch.equal(v, ours.state_dict()["state"][index][k]) for k, v in slot.items()} == dict.fromkeys(
            ("step", "exp_avg", "exp_avg_sq"), True
        )


def test_a_state_that_is_loaded_continues_alike() -> None:
    one, other = models()
    first, second = AdamW(one.parameters(), lr=1e-2), AdamW(other.parameters(), lr=1e-2)

    def step(model, optimizer) -> None:
        optimizer.zero_grad()
        model(torch.ones(2, 7)).square().sum().backward()
        optimizer.step()

    step(one, first)
    other.load_state_dict(one.state_dict())
    copied = {i: {k: v.clone() for k, v in slot.items()} for i, slot in first.state_dict()["state"].items()}
    second.load_state_dict({"state": copied})
    step(one, first)
    step(other, second)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters()))


def test_torchs_compiler_is_not_imported() -> None:
    code = (
        "import sys, torch\nfrom trueline.training.step import make_optimizer\n"
        "m = torch.nn.Linear(2, 2); o = make_optimizer(m, 1e-3)\n"
        "m(torch.ones(1, 2)).sum().backward(); o.step(); o.zero_grad()\n"
        "torch.nn.utils.clip_grad_norm_(m.parameters(), 1.0)\n"
        "print('torch._dynamo' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
