"""Did what was measured before training tell the runs that collapsed from those that did not?

A probe flags risks; whether its figures foresee anything is a question of its own, asked here of finished runs. The
figure of merit is the area under the ROC curve: the probability that a run that collapsed has the higher figure than
one that did not (Hanley and McNeil 1982), 0.5 for a figure that knows nothing. Two of them: over all runs, where a
figure may merely know the dial of the world, and among runs of one and the same place, where it cannot.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trueline.seeds import generator

__all__ = ["FIGURES", "Foresight", "Observation", "area", "figures_of", "foresight", "sentence"]

ENOUGH = 5
"""Runs of each kind below which nothing is concluded."""
DRAWS = 2000


@dataclass(frozen=True)
class Observation:
    """One run: the probe's figures (None where there is none), whether it collapsed, and the place and seed that it
    shares its world with. Runs of one `cluster` are not independent: the bootstrap draws clusters."""

    figures: Mapping[str, float | None]
    collapsed: bool
    place: str
    cluster: str


@dataclass(frozen=True)
class Foresight:
    """Of one figure: `auc` over all runs, with a bootstrap interval over clusters; `within` over pairs of runs of one
    place (None where no place has both kinds)."""

    name: str
    auc: float | None
    low: float
    high: float
    within: float | None
    runs: int
    collapsed: int

    @property
    def enough(self) -> bool:
        """Whether there are runs of both kinds to speak of."""
        return min(self.collapsed, self.runs - self.collapsed) >= ENOUGH

    @property
    def word(self) -> str:
        """`too few` runs of a kind; `foresees` or `points the other way` where the interval leaves 0.5 out; `knows
        nothing` otherwise."""
        if not self.enough or self.auc is None:
            return "too few"
        if self.low > 0.5:
            return "foresees"
        return "points the other way" if self.high < 0.5 else "not told apart from chance"


def _at(*path: str) -> Callable[[Mapping[str, Any]], float | None]:
    def read(probe: Mapping[str, Any]) -> float | None:
        value: Any = probe
        for name in path:
            value = value.get(name) if isinstance(value, Mapping) else None
        return None if value is None else float(value)

    return read


def _foreign(probe: Mapping[str, Any]) -> float | None:
    share = _at("producible", "pairs")(probe)
    return None if share is None else 1.0 - share


def _constant(probe: Mapping[str, Any]) -> float | None:
    """The largest ratio of any set of fixed answers and any kind of prompt."""
    sets = (probe.get("constant") or {}).get("sets", {})
    found = [part["ratio"] for one in sets.values() for part in (one["all"], *one["kinds"].values())]
    known = [ratio for ratio in found if ratio is not None]
    return max(known) if known else None


FIGURES: Mapping[str, Callable[[Mapping[str, Any]], float | None]] = {
    "likelihood gap per token": _at("likelihood", "gap", "mean"),
    "pairs that SFT does not produce": _foreign,
    "reward models disagree, own samples": _at("disagreement", "own", "rank"),
    "constant answer, all prompts": _at("constant", "sets", "own", "all", "ratio"),
    "constant answer, worst kind of prompt": _constant,
    "best-of-n gain by the proxy": _at("best_of", "proxy", "mean"),
    "best-of-n gain in gold": _at("best_of", "gold", "mean"),
}
"""What of a probe might foresee something; the last one needs a judge that no learner has."""


def figures_of(probe: Mapping[str, Any]) -> dict[str, float | None]:
    """The figures of one `probe.json`."""
    return {name: read(probe) for name, read in FIGURES.items()}


def area(positive: Sequence[float], negative: Sequence[float]) -> float | None:
    """P(positive > negative) + P(equal) / 2; None where one side is empty."""
    if not len(positive) or not len(negative):
        return None
    a, b = np.asarray(positive, dtype=np.float64)[:, None], np.asarray(negative, dtype=np.float64)[None, :]
    return float((a > b).mean() + 0.5 * (a == b).mean())


def foresight(observations: Sequence[Observation], *, draws: int = DRAWS, seed: int = 0) -> list[Foresight]:
    """Every figure that any run has, in the order of `FIGURES`. Percentile intervals over clusters drawn anew."""
    names = [name for name in FIGURES if any(o.figures.get(name) is not None for o in observations)]
    return [_of(name, [o for o in observations if o.figures.get(name) is not None], draws, seed) for name in names]


def _of(name: str, known: Sequence[Observation], draws: int, seed: int) -> Foresight:
    values = np.array([o.figures[name] for o in known], dtype=np.float64)
    fallen = np.array([o.collapsed for o in known])
    clusters = sorted({o.cluster for o in known})
    members = [np.array([i for i, o in enumerate(known) if o.cluster == c]) for c in clusters]
    rng = generator(seed, f"foresight/{name}")
    areas = []
    for _ in range(draws):
        rows = np.concatenate([members[i] for i in rng.integers(0, len(members), len(members))])
        found = area(values[rows][fallen[rows]], values[rows][~fallen[rows]])
        if found is not None:
            areas.append(found)
    low, high = np.percentile(areas, [2.5, 97.5]) if areas else (0.0, 1.0)
    auc = area(values[fallen], values[~fallen])
    return Foresight(name, auc, float(low), float(high), _within(known, values), len(known), int(fallen.sum()))


def _within(known: Sequence[Observation], values: np.ndarray) -> float | None:
    """Mean over pairs of a collapsed and another run of one place."""
    scores = []
    for i, one in enumerate(known):
        for j, other in enumerate(known):
            if one.collapsed and not other.collapsed and one.place == other.place:
                scores.append((values[i] > values[j]) + 0.5 * (values[i] == values[j]))
    return float(np.mean(scores)) if scores else None


def sentence(arm: str, found: Sequence[Foresight]) -> str:
    """What the figures knew of one arm's collapses, in a line."""
    if not found:
        return f"{arm}: nothing was measured before training."
    runs, fallen = max(f.runs for f in found), max(f.collapsed for f in found)
    if not any(f.enough for f in found):
        return f"{arm}: {fallen} of {runs} runs collapsed; that is too few of one kind to say what foresees it."
    telling = [f for f in found if f.word == "foresees"]
    if not telling:
        return f"{arm}: {fallen} of {runs} runs collapsed, and no figure told them apart from the others."
    best = max(telling, key=lambda f: f.auc or 0.0)
    inside = "" if best.within is None else f"; among runs of one place {best.within:.2f}"
    return (
        f"{arm}: {fallen} of {runs} runs collapsed; {best.name} told them apart best, area {best.auc:.2f} "
        f"[{best.low:.2f}, {best.high:.2f}]{inside}."
    )
