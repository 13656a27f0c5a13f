"""Batches of ids: what is padded, what counts, what is refused; and the grouping into micro-batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trueline.data.batches import Tokenized, collate, common_prompts, micro_batches


def test_collate_by_hand() -> None:
    batch = collate([Tokenized((5, 6), (7,)), Tokenized((8,), (9, 10, 11))], pad_id=3)
    assert batch.tokens.tolist() == [[5, 6, 7, 3], [8, 9, 10, 11]]
    assert batch.response_mask.tolist() == [[False, False, True, False], [False, True, True, True]]
    assert batch.lengths.tolist() == [3, 4]
    assert (len(batch), batch.total_tokens) == (2, 7)
    assert (batch.tokens.dtype, batch.response_mask.dtype) == (torch.long, torch.bool)
    assert batch.to(torch.device("cpu")).tokens.tolist() == batch.tokens.tolist()


def test_the_pad_id_may_be_a_real_token() -> None:
    """The mask and the lengths say what counts, not the id."""
    batch = collate([Tokenized((3,), (3, 3)), Tokenized((1,), (2,))], pad_id=3)
    assert batch.response_mask.tolist() == [[False, True, True], [False, True, False]]


@pytest.mark.parametrize(
    ("items", "named"),
    [
        ([], "items"),
        ([Tokenized((1,), (2,)), Tokenized((), (2,))], r"items\[1\]"),
        ([Tokenized((1,), (2,)), Tokenized((1,), (2,)), Tokenized((1, 2), ())], r"items\[2\]"),
    ],
)
def test_collate_names_what_it_refuses(items, named) -> None:
    with pytest.raises(ValueError, match=named):
        collate(items, pad_id=0)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 90), max_size=60), st.integers(1, 400))
def test_each_row_once_and_within_the_limit(lengths: list[int], limit: int) -> None:
    groups = list(micro_batches(lengths, limit))
    assert sorted(np.concatenate(groups).tolist() if groups else []) == list(range(len(lengths)))
    for group in groups:
        assert len(group) * max(lengths[i] for i in group) <= limit or len(group) == 1


def test_groups_are_of_similar_length_and_as_few_as_that_allows() -> None:
    """Sorted 1 1 2 2 8 8 with room for 8: two ones and two twos fill 4 x 2 = 8, each eight stands alone."""
    groups = [sorted(group.tolist()) for group in micro_batches([8, 1, 2, 8, 2, 1], 8)]
    assert groups == [[1, 2, 4, 5], [0], [3]]


def test_rows_that_share_a_prompt_stay_in_one_micro_batch() -> None:
    """Four prompts of three rows; three rows of at most 12 tokens fit into 40, four of them do not."""
    lengths, alike = [5, 9, 4, 12, 7, 6, 11, 3, 10, 8, 12, 5], [0, 1, 2, 3] * 3
    groups = [group.tolist() for group in micro_batches(lengths, 40, alike)]
    assert sorted(row for group in groups for row in group) == list(range(12))
    for group in groups:
        assert len(group) * max(lengths[row] for row in group) <= 40
    for prompt in range(4):
        assert sum(any(alike[row] == prompt for row in group) for group in groups) == 1


def test_a_prompt_with_more_rows_than_fit_is_split_and_no_row_is_lost() -> None:
    groups = [group.tolist() for group in micro_batches([10] * 9 + [2], 40, [0] * 9 + [1])]
    assert sorted(row for group in groups for row in group) == list(range(10))
    assert max(map(len, groups)) == 4 and groups[0] == [9]  # shorter prompts first; they are not mixed in
    assert [group.tolist() for group in micro_batches([50, 60], 40, [0, 0])] == [[0], [1]]  # one row at least


def test_prompts_are_common_where_their_tokens_are() -> None:
    tokens = torch.tensor([[1, 2, 3, 9], [1, 2, 4, 9], [1, 2, 3, 8], [1, 2, 3, 9]])
    assert common_prompts(tokens, torch.tensor([3, 3, 3, 3])) == [0, 1, 0, 0]
    assert common_prompts(tokens, torch.tensor([2, 2, 3, 4])) == [0, 0, 1, 2]
