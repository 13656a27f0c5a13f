"""A judge of another family than the policies' reward model: a regularised linear Bradley-Terry fit to text features.

It sees text, not tokens, shares no weights with any policy and is fitted in seconds, to the same optimum every time.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import softplus

from trueline.data.splits import conversation_id
from trueline.errors import InputError
from trueline.rewards.text_features import BUCKETS, MANNER, size, text_features
from trueline.types import Pair, Prompt

__all__ = ["PENALTIES", "LinearJudge", "fit_linear", "load_linear", "save_linear"]

PENALTIES = (1.0, 10.0, 100.0, 300.0, 1000.0)
"""Candidates for the weight of half the squared norm, against the sum of the loss over pairs."""
_FOLDS = 3
_LEAST = 10
_FILES = ("weights.safetensors", "judge.json")


@dataclass(frozen=True)
class LinearJudge:
    """r(prompt, response) = weights . features, less `mean`, over `std`.

    `losses` holds the cross-validated loss per pair of each candidate penalty; `penalty` is the one that was taken.
    """

    weights: Tensor
    kinds: tuple[str, ...]
    penalty: float
    losses: dict[str, float] = field(default_factory=dict)
    mean: float = 0.0
    std: float = 1.0

    def scores(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[float]:
        """One score a row. Raises ValueError where the two differ in length."""
        rows = [text_features(p, t, self.kinds) for p, t in zip(prompts, texts, strict=True)]
        raw = [sum(v * w for v, w in zip(values, self.weights[keys].tolist())) for keys, values in map(_split, rows)]
        return [(score - self.mean) / self.std for score in raw]

    def margins(self, pairs: Sequence[Pair]) -> list[float]:
        """r(chosen) - r(rejected) of each pair."""
        prompts = [p.prompt for p in pairs]
        sides = zip(self.scores(prompts, [p.chosen for p in pairs]), self.scores(prompts, [p.rejected for p in pairs]))
        return [chosen - rejected for chosen, rejected in sides]

    def standardized(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> LinearJudge:
        """The same judge in units of these texts: their mean is 0 and their standard deviation 1."""
        raw = torch.tensor(replace(self, mean=0.0, std=1.0).scores(prompts, texts), dtype=torch.float64)
        return replace(self, mean=float(raw.mean()), std=max(float(raw.std()), 1e-6))


def fit_linear(pairs: Sequence[Pair], *, penalties: Sequence[float] = PENALTIES) -> LinearJudge:
    """Minimise sum over pairs of -log sigmoid(w . (f(chosen) - f(rejected))) + penalty / 2 |w|^2.

    Features of manner are scaled to unit variance over the pairs first. The penalty is the one with the least
    cross-validated loss; the folds keep a conversation together. A single candidate is taken as it is. Raises
    InputError for fewer than 10 pairs.
    """
    if len(pairs) < _LEAST:
        raise InputError(
            f"{len(pairs)} pairs to learn a judge from", field="pairs", remedy=f"at least {_LEAST} are needed"
        )
    kinds = tuple(sorted({p.prompt.kind for p in pairs}))
    data = _Differences.of(pairs, kinds)
    if len(penalties) == 1:
        return LinearJudge(_solve(data, penalties[0]) / data.scale, kinds, penalties[0])
    folds = torch.tensor([int(conversation_id(p.prompt), 16) % _FOLDS for p in pairs])
    losses = {penalty: _cross_validated(data, folds, penalty) for penalty in penalties}
    penalty = min(losses, key=lambda p: (losses[p], -p))
    weights = _solve(data, penalty) / data.scale
    return LinearJudge(weights, kinds, penalty, {f"{p:g}": loss for p, loss in losses.items()})


def save_linear(judge: LinearJudge, folder: Path) -> None:
    """`weights.safetensors` and `judge.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({"weights": judge.weights}, folder / _FILES[0])
    about = {"family": "linear", "kinds": list(judge.kinds), "penalty": judge.penalty, "losses": judge.losses}
    about |= {"mean": judge.mean, "std": judge.std, "manner": list(MANNER), "buckets": BUCKETS}
    (folder / _FILES[1]).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


def load_linear(folder: Path) -> LinearJudge:
    """Raises InputError where the folder holds no judge, or one of other features than this version's."""
    try:
        about = json.loads((folder / _FILES[1]).read_text(encoding="utf-8"))
        weights = load_file(folder / _FILES[0])["weights"]
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"holds no linear judge ({error})", where=str(folder), remedy="fit it again") from None
    if about["manner"] != list(MANNER) or len(weights) != size(about["kinds"]) or about["buckets"] != BUCKETS:
        raise InputError("a judge of other features", where=str(folder), remedy="fit it again with this version")
    return LinearJudge(weights, tuple(about["kinds"]), about["penalty"], about["losses"], about["mean"], about["std"])


# --- the fit -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Differences:
    """f(chosen) - f(rejected) of `count` pairs: entry `values[i]` in row `rows[i]`, column `columns[i]`."""

    rows: Tensor
    columns: Tensor
    values: Tensor
    count: int
    scale: Tensor

    @classmethod
    def of(cls, pairs: Sequence[Pair], kinds: Sequence[str]) -> _Differences:
        rows, columns, values = [], [], []
        for number, pair in enumerate(pairs):
            held: dict[int, float] = {}
            for side, sign in ((pair.chosen, 1.0), (pair.rejected, -1.0)):
                for key, value in text_features(pair.prompt, side, kinds):
                    held[key] = held.get(key, 0.0) + sign * value
            kept = [(key, value) for key, value in held.items() if value]
            rows += [number] * len(kept)
            columns += [key for key, _ in kept]
            values += [value for _, value in kept]
        column, value = torch.tensor(columns), torch.tensor(values, dtype=torch.float64)
        square = torch.zeros(size(kinds), dtype=torch.float64).index_add(0, column, value * value)
        scale = torch.ones(size(kinds), dtype=torch.float64)
        named = len(MANNER) * len(kinds)
        scale[:named] = (square[:named] / len(pairs)).sqrt().clamp(min=1e-9)
        scale[:named][square[:named] == 0] = 1.0
        return cls(torch.tensor(rows), column, value / scale[column], len(pairs), scale)

    def margins(self, weights: Tensor) -> Tensor:
        products = self.values * weights[self.columns]
        return torch.zeros(self.count, dtype=torch.float64).index_add(0, self.rows, products)

    def gradient(self, slopes: Tensor) -> Tensor:
        """d/dw of sum over pairs of slope x margin."""
        products = self.values * slopes[self.rows]
        return torch.zeros_like(self.scale).index_add(0, self.columns, products)


def _cross_validated(data: _Differences, folds: Tensor, penalty: float) -> float:
    loss = 0.0
    for fold in range(_FOLDS):
        held = folds == fold
        if bool(held.all()):  # one conversation: nothing to fit on
            return float("nan")
        margins = data.margins(_solve(data, penalty, kept=~held))
        loss += float(softplus(-margins[held]).sum())
    return loss / len(folds)


@torch.no_grad()
def _solve(data: _Differences, penalty: float, kept: Tensor | None = None) -> Tensor:
    """The optimum over the pairs where `kept`, by L-BFGS from zero; the problem is strictly convex."""
    share = torch.ones(data.count, dtype=torch.float64) if kept is None else kept.double()
    weights = torch.zeros_like(data.scale)
    optimizer = torch.optim.LBFGS([weights], max_iter=40, tolerance_grad=1e-5, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        margins = data.margins(weights)
        weights.grad = (data.gradient(-share * torch.sigmoid(-margins)) + penalty * weights) / data.count
        return ((share * softplus(-margins)).sum() + 0.5 * penalty * weights.square().sum()) / data.count

    optimizer.step(closure)
    return weights


def _split(row) -> tuple[list[int], list[float]]:
    pairs = list(row)
    return [key for key, _ in pairs], [value for _, value in pairs]
