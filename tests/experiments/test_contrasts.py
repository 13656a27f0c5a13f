"""What a change did, in words that claim no more than the runs show."""

from __future__ import annotations

import numpy as np
import pytest
from tests.experiments.arm_runs import arm_of, drawn

from trueline.experiments.contrasts import HELPED, HURT, NONE, UNDECIDED, Contrast, effects, sentence, word
from trueline.study.statistics import seed_interval

MARGIN = 0.1


def rows_of(*means: float, **how: float):
    return {f"row {i}": arm_of(f"row {i}", drawn(mean, start=i, **how)) for i, mean in enumerate(means)}


@pytest.mark.parametrize(
    "gap, seed_sd, expected",
    [(0.5, 0.02, HELPED), (-0.5, 0.02, HURT), (0.0, 0.01, NONE), (0.2, 0.6, UNDECIDED)],
)
def test_the_word_follows_the_interval(gap, seed_sd, expected) -> None:
    (effect,) = effects(rows_of(0.0, gap, seed_sd=seed_sd), [Contrast("a key", "row 1", "row 0")], MARGIN)
    assert effect.word == expected
    said = sentence(effect, "gold")
    assert {HELPED: "helped by", HURT: "hurt: ", NONE: "no visible effect", UNDECIDED: "undecided"}[expected] in said


def test_a_difference_that_holm_takes_back_is_undecided() -> None:
    """Five seeds with a p near .03: helped when it is asked alone, undecided among five others."""
    gaps = np.array([0.9, 0.2, 0.7, 0.25, 0.6])
    rows = {"base": arm_of("base", np.zeros((5, 4))), "better": arm_of("better", np.tile(gaps[:, None], 4))}
    rows |= {f"same {i}": arm_of(f"same {i}", np.tile((gaps - gaps.mean())[:, None], 4)) for i in range(5)}
    asked = Contrast("a key", "better", "base")
    assert seed_interval(list(gaps)).p < 0.05
    assert effects(rows, [asked], 0.01)[0].word == HELPED
    family = [asked, *(Contrast("nothing", f"same {i}", "base") for i in range(5))]
    first = effects(rows, family, 0.01)[0]
    assert first.word == UNDECIDED and first.p_adjusted == pytest.approx(6 * first.selected.p)
    assert "the same sign in all 5 seeds" in sentence(first, "gold")


def test_one_seed_never_says_more_than_undecided() -> None:
    rows = {"a": arm_of("a", [[1.0, 1.1]]), "b": arm_of("b", [[0.0, 0.1]])}
    (effect,) = effects(rows, [Contrast("a key", "a", "b")], MARGIN)
    assert effect.word == UNDECIDED
    assert word(seed_interval([0.01]), 1.0, MARGIN) == UNDECIDED


def test_two_rows_on_one_curve_differ_nowhere_at_equal_kl() -> None:
    """One of them only went further: that is no lift."""
    kls = np.array([0.0, 0.5, 1.0, 2.0, 4.0])
    short = [[(kl, 0.3 * np.sqrt(kl)) for kl in kls[:4]]] * 3
    long = [[(kl, 0.3 * np.sqrt(kl)) for kl in kls]] * 3
    rows = {
        "long": arm_of("long", 0.6 + np.tile([[0.01], [0.0], [-0.01]], 4), curve=long),
        "short": arm_of("short", np.full((3, 4), 0.42), curve=short),
    }
    (effect,) = effects(rows, [Contrast("more steps", "long", "short")], MARGIN)
    assert effect.word == HELPED and effect.selected.mean == pytest.approx(0.18)
    assert [m.interval.mean for m in effect.at_kl] == pytest.approx([0.0, 0.0, 0.0], abs=1e-12)


def test_rows_that_did_not_run_are_left_out() -> None:
    rows = rows_of(0.0, 0.5)
    found = effects(rows, [Contrast("x", "row 1", "gone"), Contrast("y", "row 1", "row 0")], MARGIN)
    assert [e.contrast.what for e in found] == ["y"]
