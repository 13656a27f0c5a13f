"""The random streams: Philox against the published vectors, and draws that depend on nothing but their own name."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trueline.seeds import derive, generator, permutation, philox4x32, uniforms

# `philox4x32 10` rows of Random123's tests/kat_vectors: counter (4 words), key (2 words), result (4 words).
KNOWN_ANSWERS = [
    "00000000 00000000 00000000 00000000 00000000 00000000 6627e8d5 e169c58d bc57ac4c 9b00dbd8",
    "ffffffff ffffffff ffffffff ffffffff ffffffff ffffffff 408f276d 41c83b0e a20bc7c6 6d5451fd",
    "243f6a88 85a308d3 13198a2e 03707344 a4093822 299f31d0 d16cfe09 94fdcceb 5001e420 24126ea1",
]


@pytest.mark.parametrize("row", KNOWN_ANSWERS)
def test_philox_known_answers(row: str) -> None:
    words = [int(word, 16) for word in row.split()]
    assert philox4x32(np.array([words[:4]], dtype=np.uint32), (words[4], words[5])).tolist() == [words[6:]]


def test_philox_rows_are_independent_blocks() -> None:
    counters = np.array([[int(w, 16) for w in row.split()[:4]] for row in KNOWN_ANSWERS], dtype=np.uint64)
    together = philox4x32(counters, (7, 9))
    alone = np.concatenate([philox4x32(counters[i : i + 1], (7, 9)) for i in range(3)])
    assert (together == alone).all()


def test_philox_names_a_wrong_shape() -> None:
    with pytest.raises(ValueError, match="counters"):
        philox4x32(np.zeros((2, 3), dtype=np.uint64), (0, 0))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 2**63), min_size=1, max_size=9), st.integers(0, 2**32 - 1), st.integers(1, 11))
def test_a_row_depends_on_its_own_id_alone(ids: list[int], step: int, width: int) -> None:
    """Not on the batch, its order, or how many draws are taken of it."""
    rows = uniforms(3, "rollout", step, ids, width + 5)
    backwards = uniforms(3, "rollout", step, ids[::-1], width)[::-1]
    assert (rows[:, :width] == backwards).all()
    assert (rows[-1:] == uniforms(3, "rollout", step, ids[-1:], width + 5)).all()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(0, 2**63))
def test_uniforms_lie_inside_the_open_interval(seed: int, sample: int) -> None:
    draws = uniforms(seed, "x", 0, [sample], 64)
    assert draws.dtype == np.float64
    assert ((draws > 0) & (draws < 1)).all()


def test_extreme_words_stay_inside_the_open_interval() -> None:
    """(0 + 1/2) / 2^32 > 0 and (2^32 - 1 + 1/2) / 2^32 < 1: both are exact in float64."""
    words = np.array([0, 2**32 - 1], dtype=np.uint32)
    low, high = (words + 0.5) / 2.0**32
    assert 0 < low == 2.0**-33 and 1 > high == 1 - 2.0**-33


def test_each_part_of_the_name_matters() -> None:
    base = uniforms(0, "a", 0, [0], 16)
    for other in (uniforms(1, "a", 0, [0], 16), uniforms(0, "b", 0, [0], 16), uniforms(0, "a", 1, [0], 16),
                  uniforms(0, "a", 0, [1], 16), uniforms(0, "a", 0, [2**32], 16)):  # fmt: skip
        assert not (base == other).any()


def test_uniforms_are_uniform() -> None:
    """Chi-square over 64 bins of 65536 draws: mean 63, standard deviation sqrt(126) = 11.2; six of them is 131."""
    draws = uniforms(0, "chi", 0, range(4096), 16).ravel()
    counts = np.bincount((draws * 64).astype(int), minlength=64)
    assert ((counts - 1024.0) ** 2 / 1024.0).sum() < 131
    assert abs(np.corrcoef(draws[:-1], draws[1:])[0, 1]) < 6 / np.sqrt(len(draws))


def test_derived_seeds_and_generators_are_functions_of_their_name() -> None:
    assert derive(0, "a", 1, 2) == derive(0, "a", 1, 2) < 2**63
    assert len({derive(s, p, i) for s in range(5) for p in "abc" for i in range(20)}) == 300
    assert (generator(0, "a", 1).random(4) == generator(0, "a", 1).random(4)).all()
    assert not (generator(0, "a", 1).random(4) == generator(0, "a", 2).random(4)).any()


def test_permutation_visits_each_item_once_and_changes_with_the_epoch() -> None:
    first, second = permutation(0, "order", 0, 50), permutation(0, "order", 1, 50)
    assert sorted(first) == sorted(second) == list(range(50))
    assert (first != second).any()
