"""The linear judge: it finds what was planted, prefers by kind of prompt, and a full stop cannot move it."""

from __future__ import annotations

import pytest
import torch

from trueline.errors import InputError
from trueline.rewards.linear import _Differences, _solve, fit_linear, load_linear, save_linear
from trueline.rewards.text_features import MANNER, manner, text_features, words
from trueline.types import Pair, Prompt

FILLER = "the a some of it and then we with from".split()


def _pairs(count: int, kinds: tuple[str, ...] = ("",), *, start: int = 0) -> list[Pair]:
    """Chosen sides say "often" where the kind is "" or "helpful" and "never" where it is "harmless"; the rejected the
    other way round. Everything else is filler that says nothing."""
    generator, out = torch.Generator().manual_seed(start), []
    for i in range(start, start + count):
        kind = kinds[i % len(kinds)]
        good, bad = ("never", "often") if kind == "harmless" else ("often", "never")

        def text(word: str, generator=generator) -> str:
            found = [FILLER[k] for k in torch.randint(len(FILLER), (6,), generator=generator).tolist()]
            return " ".join([*found[:3], word, *found[3:]])

        out.append(Pair(Prompt.ask(f"question {i}", kind), text(good), text(bad)))
    return out


def _accuracy(judge, pairs) -> float:
    return sum(m > 0 for m in judge.margins(pairs)) / len(pairs)


def test_a_planted_preference_is_found_and_holds_on_fresh_pairs() -> None:
    judge = fit_linear(_pairs(60))
    assert _accuracy(judge, _pairs(60, start=1000)) > 0.95


def test_labels_without_a_pattern_give_chance_and_the_strongest_penalty_but_one_at_least() -> None:
    """Negative control: sides swapped at random. 200 fresh pairs: 0.5 +- 4 x 0.035."""
    flip = torch.randint(2, (400,), generator=torch.Generator().manual_seed(5)).tolist()
    pairs = [Pair(p.prompt, p.rejected, p.chosen) if f else p for p, f in zip(_pairs(400), flip)]
    judge = fit_linear(pairs[:200])
    assert 0.36 < _accuracy(judge, pairs[200:]) < 0.64
    assert judge.penalty >= 100


def test_each_kind_of_prompt_has_its_own_preferences() -> None:
    kinds = ("helpful", "harmless")
    judge = fit_linear(_pairs(120, kinds))
    assert judge.kinds == ("harmless", "helpful")
    assert _accuracy(judge, _pairs(60, kinds, start=1000)) > 0.95
    never, often = "we never go", "we often go"
    refused = judge.scores([Prompt.ask("q", k) for k in (*kinds, *kinds)], [never, never, often, often])
    assert refused[0] < refused[2] and refused[1] > refused[3]


def test_a_prompt_of_an_unknown_kind_has_the_mean_of_the_known() -> None:
    judge = fit_linear(_pairs(60, ("helpful", "harmless")))
    text = "we often never go with it"
    known = judge.scores([Prompt.ask("q", kind) for kind in judge.kinds], [text, text])
    assert judge.scores([Prompt.ask("q", "other")], [text])[0] == pytest.approx(sum(known) / 2)


@pytest.mark.parametrize("ending", [".", "!", " ...", '."', ")"])
def test_how_a_response_ends_moves_nothing(ending) -> None:
    """Whether it was cut off is not told: but a question is one."""
    judge = fit_linear(_pairs(60))
    prompt, text = Prompt.ask("q"), "we go with it"
    assert judge.scores([prompt], [text + ending]) == judge.scores([prompt], [text])
    assert manner(prompt, text + "?") != manner(prompt, text)


def test_twice_the_text_is_the_same_text_but_for_its_distinct_words() -> None:
    """No feature grows with length: of those of manner only the share of distinct words falls, to half."""
    prompt, text = Prompt.ask("how do we go there"), 'we go, 7 with "it" then; i sorry you'
    once, twice = manner(prompt, text), manner(prompt, f"{text} {text}")
    moved = {name for name, a, b in zip(MANNER, once, twice) if abs(a - b) > 0.02}
    assert moved == {"distinct_words"}
    assert twice[MANNER.index("distinct_words")] == pytest.approx(once[MANNER.index("distinct_words")] / 2)


def test_hashed_words_have_unit_length() -> None:
    """No two of these few collide, so the squares of what lies behind manner sum to 1."""
    first = len(MANNER)
    values = [v for key, v in text_features(Prompt.ask("q"), "we go there and we come back", ("",)) if key >= first]
    assert sum(v * v for v in values) == pytest.approx(1)
    assert list(text_features(Prompt.ask("q"), "", ("",))) == []


def test_words_of_any_script() -> None:
    assert words("Don't  go, né? 字") == ["don't", "go", ",", "né", "?", "字"]


def test_the_fit_is_the_optimum() -> None:
    """The gradient of the penalised loss, by autograd, is nil at the solution and not at twice it."""
    data = _Differences.of(_pairs(40), ("",))

    def slope(weights: torch.Tensor) -> float:
        w = weights.clone().requires_grad_()
        loss = torch.nn.functional.softplus(-data.margins(w)).sum() + 0.5 * 10.0 * w.square().sum()
        return float(torch.autograd.grad(loss, w)[0].abs().max())

    weights = _solve(data, 10.0)
    assert slope(weights) < 2e-3 < 0.1 < slope(2 * weights)


def test_the_order_of_the_pairs_and_swapping_all_sides_give_the_same_and_the_opposite_judge() -> None:
    pairs, fresh = _pairs(50), _pairs(10, start=500)
    one = fit_linear(pairs, penalties=(10.0,))
    other = fit_linear(pairs[::-1], penalties=(10.0,))
    assert other.margins(fresh) == pytest.approx(one.margins(fresh), abs=1e-3)
    swapped = fit_linear([Pair(p.prompt, p.rejected, p.chosen) for p in pairs], penalties=(10.0,))
    assert swapped.margins(fresh) == pytest.approx([-m for m in one.margins(fresh)], abs=1e-3)


def test_standardised_scores_have_mean_0_and_deviation_1_on_those_texts() -> None:
    pairs = _pairs(30)
    prompts, texts = [p.prompt for p in pairs], [p.chosen for p in pairs[:15]] + [p.rejected for p in pairs[15:]]
    raw = fit_linear(pairs)
    judge = raw.standardized(prompts, texts)
    scores = torch.tensor(judge.scores(prompts, texts), dtype=torch.float64)
    assert float(scores.mean()) == pytest.approx(0, abs=1e-9) and float(scores.std()) == pytest.approx(1)
    # margins in the units of the scores; times `std` they are the log-odds again
    assert [m * judge.std for m in judge.margins(pairs)] == pytest.approx(raw.margins(pairs))
    again = judge.standardized(prompts, texts)
    assert (again.mean, again.std) == (judge.mean, judge.std)


def test_what_is_saved_is_what_is_loaded(tmp_path) -> None:
    judge = fit_linear(_pairs(30, ("a", "b"))).standardized([Prompt.ask("q")] * 2, ["often", "never"])
    save_linear(judge, tmp_path / "judge")
    loaded = load_linear(tmp_path / "judge")
    fresh = _pairs(10, ("a", "b"), start=500)
    assert loaded.margins(fresh) == judge.margins(fresh)
    assert (loaded.kinds, loaded.penalty, loaded.losses) == (judge.kinds, judge.penalty, judge.losses)


def test_what_cannot_be_fitted_or_loaded_is_refused(tmp_path) -> None:
    with pytest.raises(InputError, match="9 pairs"):
        fit_linear(_pairs(9))
    with pytest.raises(InputError, match="no linear judge"):
        load_linear(tmp_path)
    save_linear(fit_linear(_pairs(20)), tmp_path)
    about = (tmp_path / "judge.json").read_text().replace('"asks"', '"smiles"')
    (tmp_path / "judge.json").write_text(about)
    with pytest.raises(InputError, match="other features"):
        load_linear(tmp_path)
    with pytest.raises(ValueError):
        fit_linear(_pairs(20)).scores([Prompt.ask("q")], ["a", "b"])
