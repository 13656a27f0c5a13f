"""The table of learned judges: what the reward models and the gold stand-in are worth, from their `done.json`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from trueline.study.statistics import wilson

__all__ = ["JudgeRow", "Share", "judge_rows"]


@dataclass(frozen=True)
class Share:
    """A share of pairs that were ordered rightly, with its 95% Wilson interval."""

    name: str
    value: float
    low: float
    high: float
    pairs: int


@dataclass(frozen=True)
class JudgeRow:
    """One learned judge. `held_out` is None where no pair was kept out; `elsewhere` are other distributions.

    `by_chance` is the calibration error that a perfectly calibrated judge would show on so many pairs.
    """

    label: str
    trained_on: str
    held_out: Share | None
    by_kind: tuple[Share, ...]
    longer_wins: Share | None
    equal_length: Share | None
    ece: float | None
    by_chance: float | None
    elsewhere: tuple[Share, ...]


_WORLDS = {"elsewhere": "{kind} pairs, left out of training", "own_samples": "SFT's own samples, ordered by {gold}"}


def judge_rows(cells: Iterable[tuple[str, Mapping[str, Any]]], gold: str = "gold") -> list[JudgeRow]:
    """One row per (label, contents of `done.json`), in their order.

    Each seed has a row of its own: seeds share pairs, so a pooled interval would be too narrow. A stage that measured
    nothing is left out. `gold` is what the study calls the order of SFT's own samples.
    """
    return [_row(label, done, gold) for label, done in cells if "accuracy" in done]


def _row(label: str, done: Mapping[str, Any], gold: str) -> JudgeRow:
    accuracy, calibration = done["accuracy"], done.get("calibration") or {}
    within = accuracy.get("in_distribution", {})
    return JudgeRow(
        label,
        f"{done['trained_on']:,} {done['part']} pairs ({done['family']})",
        _share("all", within),
        tuple(_kinds(within)),
        _share("all", accuracy.get("longer_wins", {})),
        _share("all", accuracy.get("equal_length", {})),
        calibration.get("ece"),
        calibration.get("by_chance"),
        tuple(_elsewhere(accuracy, gold)),
    )


def _share(name: str, counts: Mapping[str, Mapping[str, float]], shown: str = "") -> Share | None:
    if name not in counts or not counts[name]["pairs"]:
        return None
    right, pairs = counts[name]["right"], int(counts[name]["pairs"])
    low, high = wilson(round(right), pairs)
    return Share(shown or name, right / pairs, low, high, pairs)


def _kinds(counts: Mapping[str, Mapping[str, float]]) -> list[Share]:
    found = (_share(name, counts) for name in counts if name != "all")
    return [share for share in found if share is not None]


def _elsewhere(accuracy: Mapping[str, Any], gold: str) -> list[Share]:
    found = []
    for world, words in _WORLDS.items():
        counts = accuracy.get(world, {})
        if world == "elsewhere":
            found += [_share(kind, counts, words.format(kind=kind)) for kind in counts if kind != "all"]
        else:
            found.append(_share("all", counts, words.format(gold=gold)))
    return [share for share in found if share is not None]
