"""The trials of tuning as the report shows them: a strip of all of them beside the chosen one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["TrialRow", "TrialTable", "trial_table"]

WIDTH = 320


@dataclass(frozen=True)
class TrialRow:
    """One arm: the strip's places in pixels (every trial, and the chosen one), and what was chosen."""

    arm: str
    places: tuple[float, ...]
    chosen: float
    settings: str
    score: float
    spread: tuple[float, float]
    trials: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True)
class TrialTable:
    """All arms on one scale, so that rows can be compared by eye."""

    rows: tuple[TrialRow, ...]
    scale: tuple[float, float]
    trials: int
    seeds: tuple[int, ...]
    ranges: Mapping[str, Mapping[str, Any]]
    width: int = WIDTH


def trial_table(tuning: Mapping[str, Any]) -> TrialTable | None:
    """From the manifest's record of tuning; None where nothing was tuned."""
    if not tuning:
        return None
    scores = {row["arm"]: [float(np.mean(t["scores"])) for t in row["trials"]] for row in tuning["arms"]}
    everything = [score for arm in scores.values() for score in arm]
    low, high = min(everything), max(everything)
    low, high = (low, high) if high > low else (low - 1.0, high + 1.0)

    def place(score: float) -> float:
        return round(6 + (WIDTH - 12) * (score - low) / (high - low), 2)

    rows = []
    for row in tuning["arms"]:
        own, chosen = scores[row["arm"]], row["chosen"]
        trials = tuple(
            {
                "settings": _settings(trial["settings"]),
                "scores": trial["scores"],
                "score": score,
                "end": float(np.mean(trial["ends"])),
                "chosen": trial["number"] == chosen,
            }
            for trial, score in zip(row["trials"], own)
        )
        rows.append(
            TrialRow(
                row["arm"],
                tuple(place(score) for score in own),
                place(own[chosen]),
                trials[chosen]["settings"],
                own[chosen],
                (min(own), max(own)),
                trials,
            )
        )
    ranges = {
        row["section"]: {key: f"{ends[0]:g} to {ends[1]:g}" for key, ends in row["ranges"].items()}
        for row in tuning["arms"]
    }
    return TrialTable(tuple(rows), (low, high), tuning["trials"], tuple(tuning["seeds"]), ranges)


def _settings(values: Mapping[str, float]) -> str:
    return ", ".join(f"{key} {value:g}" for key, value in values.items())
