"""Which rows a step reads: every row once an epoch, wherever a run begins and whatever the batch size."""

from __future__ import annotations

import pytest

from trueline.training.sft import epoch_rows


@pytest.mark.parametrize(("batch", "count"), [(4, 20), (7, 20), (20, 20), (64, 20), (1, 5)])
def test_epochs_laid_end_to_end_hold_every_row_once_each(batch, count) -> None:
    steps = -(-3 * count // batch)
    read = [row for step in range(steps) for row in epoch_rows(0, "sft/order", step, batch, count)][: 3 * count]
    epochs = [read[i * count : (i + 1) * count] for i in range(3)]
    assert all(sorted(epoch) == list(range(count)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_a_step_is_a_function_of_its_number_alone() -> None:
    assert epoch_rows(0, "sft/order", 9, 8, 30) == epoch_rows(0, "sft/order", 9, 8, 30)
    assert epoch_rows(1, "sft/order", 9, 8, 30) != epoch_rows(0, "sft/order", 9, 8, 30)
    assert epoch_rows(0, "reward/order", 9, 8, 30) != epoch_rows(0, "sft/order", 9, 8, 30)
