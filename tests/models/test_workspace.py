"""Memory that training passes hand on: aligned views, one spare piece, two passes alive at once, nothing twice."""

from __future__ import annotations

import subprocess
import sys
import weakref

import pytest
import torch

from program import ENVIRONMENT
from trueline.models import workspace
from trueline.models.decoder import DecoderConfig
from trueline.models.packed_trunk import hidden_at
from trueline.models.tiny import make_decoder

SHAPE = DecoderConfig(
    vocab_size=40, hidden_size=32, intermediate_size=64, num_layers=2, num_heads=2, num_kv_heads=2, head_dim=16,
    max_positions=16, pad_id=0, end_id=1,
)  # fmt: skip


@pytest.fixture(autouse=True)
def empty():
    workspace.release()
    yield
    workspace.release()


def test_views_have_their_shapes_and_do_not_overlap() -> None:
    shapes = [(3, 5), (16,), (2, 2, 2), (1, 1)]
    memory, views = workspace.lend("trunk", shapes)
    assert [tuple(v.shape) for v in views] == shapes
    for number, view in enumerate(views):
        view.fill_(number)
    assert all((view == number).all() for number, view in enumerate(views))
    assert all(view.data_ptr() % 64 == memory.data_ptr() % 64 for view in views)


def test_what_is_given_back_is_lent_again_if_it_is_large_enough() -> None:
    memory, _ = workspace.lend("trunk", [(100, 10)])
    workspace.give_back("trunk", memory)
    again, _ = workspace.lend("trunk", [(50, 10)])
    assert again.data_ptr() == memory.data_ptr()
    workspace.give_back("trunk", again)
    larger, _ = workspace.lend("trunk", [(200, 10)])
    assert len(larger) >= 2000


def test_two_passes_at_once_have_memory_of_their_own() -> None:
    (first, (a,)), (second, (b,)) = workspace.lend("trunk", [(8, 8)]), workspace.lend("trunk", [(8, 8)])
    a.fill_(1.0)
    b.fill_(2.0)
    assert (a == 1).all() and first.data_ptr() != second.data_ptr()
    workspace.give_back("trunk", first)
    workspace.give_back("trunk", second)
    third, _ = workspace.lend("trunk", [(8, 8)])
    fourth, _ = workspace.lend("trunk", [(8, 8)])
    assert third.data_ptr() != fourth.data_ptr()


def test_only_the_largest_spare_piece_is_kept_until_it_is_released() -> None:
    small, _ = workspace.lend("trunk", [(10,)])
    large, _ = workspace.lend("trunk", [(1000,)])
    workspace.give_back("trunk", large)
    workspace.give_back("trunk", small)
    assert {use: len(piece) for use, piece in workspace._spare.items()} == {"trunk": len(large)}
    workspace.release()
    assert not workspace._spare
    workspace.trim()  # whatever the C library has or has not


def test_each_use_has_its_own_spare_piece() -> None:
    memory, _ = workspace.lend("trunk", [(1000,)])
    workspace.give_back("trunk", memory)
    other, _ = workspace.lend("head", [(10,)])
    again, _ = workspace.lend("trunk", [(10,)])
    assert other.data_ptr() != memory.data_ptr() == again.data_ptr()


def test_views_in_bf16_lie_one_behind_the_other() -> None:
    shapes = [(3, 5), (7, 2)]
    _, (half,) = workspace.lend("head", [(workspace.floats_of_low(29, pieces=2),)])
    first, second = workspace.low(half, *shapes)
    first.fill_(1.0)
    second.fill_(2.0)
    assert (first == 1).all() and (second == 2).all() and first.dtype == torch.bfloat16
    assert [tuple(v.shape) for v in (first, second)] == shapes


def test_recomputed_logits_are_not_kept_from_the_first_pass(monkeypatch) -> None:
    from trueline.models import scoring

    model, lent = make_decoder(SHAPE, seed=0), []
    monkeypatch.setattr(scoring, "_KEEP", 0)
    monkeypatch.setattr(scoring, "_CHUNK", 4)
    lend = workspace.lend

    def watched(use, shapes):
        memory, views = lend(use, shapes)
        if use == "head":
            lent.append(weakref.ref(memory))
        return memory, views

    monkeypatch.setattr(workspace, "lend", watched)
    tokens = torch.randint(3, 40, (3, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(3, 9, dtype=torch.bool)
    mask[:, 2:7] = True
    loss = scoring.response_logprobs(model, tokens, mask, scoring.Sampling())[0].sum()
    assert (len(lent), sum(memory() is not None for memory in lent)) == (4, 0)
    loss.backward()
    assert len(lent) == 8


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the C library's own count of its heap")
def test_the_heap_does_not_grow_with_the_number_of_passes() -> None:
    """Tensors of many sizes, allocated one by one, leave holes that the next ones do not fit; and the library of the
    bf16 products kept what it had compiled for every number of rows (16 MB a pass of this small model)."""
    subprocess.run([sys.executable, "-c", PASSES], check=True, env=ENVIRONMENT)


PASSES = """
import ctypes, torch
from trueline.models.decoder import DecoderConfig
from trueline.models.scoring import Sampling, response_logprobs
from trueline.models.tiny import make_decoder

class Heap(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in "arena a b c d e f used free keep".split()]

library = ctypes.CDLL(None)
if not hasattr(library, "mallinfo2"):
    raise SystemExit(0)
library.mallinfo2.restype = Heap
shape = DecoderConfig(
    vocab_size=512, hidden_size=128, intermediate_size=384, num_layers=2, num_heads=4, num_kv_heads=4, head_dim=32,
    max_positions=64, pad_id=0, end_id=1,
)
model, sizes = make_decoder(shape, seed=0), []
model.trunk.precision = "bf16"
for number in range(20):
    tokens = torch.randint(3, 512, (48 - number, 64))
    mask = torch.zeros(tokens.shape, dtype=torch.bool)
    mask[:, 20:] = True
    response_logprobs(model, tokens, mask, Sampling())[0].sum().backward()
    sizes.append(library.mallinfo2().arena / 2**20)
assert sizes[-1] < sizes[4] + 40, sizes
"""


def test_a_policy_and_a_critic_may_both_wait_for_their_backward_pass() -> None:
    """Two graphs of one trunk's kind alive at a time: gradients as if each had been alone."""
    tokens = torch.randint(3, 40, (3, 9), generator=torch.Generator().manual_seed(0))
    wanted = torch.zeros(3, 9, dtype=torch.bool)
    wanted[:, 2:5] = True

    def gradients(together: bool) -> list[torch.Tensor]:
        models = [make_decoder(SHAPE, seed=s) for s in (0, 1)]
        losses = []
        for model in models:
            losses.append(hidden_at(model.trunk, tokens, wanted).square().sum())
            if not together:
                losses[-1].backward()
        for loss in losses if together else ():
            loss.backward()
        return [p.grad for model in models for p in model.trunk.parameters()]

    assert all(torch.equal(a, b) for a, b in zip(gradients(True), gradients(False)))
