"""Memory that training passes hand on: aligned views, one spare piece, two passes alive at once, nothing twice."""

from __future__ import annotations

import pytest
import torch

from trueline.models import workspace


@pytest.fixture(autouse=True)
def empty():
    workspace.release()
    yield
    workspace.release()


def test_views_have_their_shapes_and_do_not_overlap() -> None:
    shapes = [(3, 5), (16,), (2, 2, 2), (1, 1)]
    memory, views = workspace.lend(shapes)
    assert [tuple(v.shape) for v in views] == shapes
    for number, view in enumerate(views):
        view.fill_(number)
    assert all((view == number).all() for number, view in enumerate(views))
    assert all(view.data_ptr() % 64 == memory.data_ptr() % 64 for view in views)


def test_what_is_given_back_is_lent_again_if_it_is_large_enough() -> None:
    memory, _ = workspace.lend([(100, 10)])
    workspace.give_back(memory)
    again, _ = workspace.lend([(50, 10)])
    assert again.data_ptr() == memory.data_ptr()
    workspace.give_back(again)
    larger, _ = workspace.lend([(200, 10)])
    assert len(larger) >= 2000


def test_two_passes_at_once_have_memory_of_their_own() -> None:
    (first, (a,)), (second, (b,)) = workspace.lend([(8, 8)]), workspace.lend([(8, 8)])
    a.fill_(1.0)
    b.fill_(2.0)
    assert (a == 1).all() and first.data_ptr() != second.data_ptr()
    workspace.give_back(first)
    workspace.give_back(second)
    third, _ = workspace.lend([(8, 8)])
    fourth, _ = workspace.lend([(8, 8)])
    assert third.data_ptr() != fourth.data_ptr()


def test_only_the_largest_spare_piece_is_kept_until_it_is_released() -> None:
    small, _ = workspace.lend([(10,)])
    large, _ = workspace.lend([(1000,)])
    workspace.give_back(large)
    workspace.give_back(small)
    assert [len(piece) for piece in workspace._spare] == [len(large)]
    workspace.release()
    assert not workspace._spare
    workspace.trim()  # whatever the C library has or has not


def test_a_policy_and_a_critic_may_both_wait_for_their_backward_pass() -> None:
    """Two graphs of one trunk's kind alive at a time: gradients as if each had been alone."""
    from trueline.models.decoder import DecoderConfig
    from trueline.models.packed_trunk import hidden_at
    from trueline.models.tiny import make_decoder

    shape = DecoderConfig(
        vocab_size=40, hidden_size=32, intermediate_size=64, num_layers=2, num_heads=2, num_kv_heads=2, head_dim=16,
        max_positions=16, pad_id=0, end_id=1,
    )  # fmt: skip
    tokens = torch.randint(3, 40, (3, 9), generator=torch.Generator().manual_seed(0))
    wanted = torch.zeros(3, 9, dtype=torch.bool)
    wanted[:, 2:5] = True

    def gradients(together: bool) -> list[torch.Tensor]:
        models = [make_decoder(shape, seed=s) for s in (0, 1)]
        losses = []
        for model in models:
            losses.append(hidden_at(model.trunk, tokens, wanted).square().sum())
            if not together:
                losses[-1].backward()
        for loss in losses if together else ():
            loss.backward()
        return [p.grad for model in models for p in model.trunk.parameters()]

    assert all(torch.equal(a, b) for a, b in zip(gradients(True), gradients(False)))
