"""Tuning: the same number of random trials for every arm, over declared log ranges, scored on the selection split."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field, ValidationError, create_model

from trueline.config import Section
from trueline.errors import InputError
from trueline.runs.cell import read_json
from trueline.seeds import generator
from trueline.study.design import Design, trial_key
from trueline.types import Arm

__all__ = ["Ranges", "Trial", "best_of", "check_ranges", "draw", "read_trials", "record_of", "tune_section"]

Ranges = Mapping[str, tuple[float, float]]
METRIC = "selection/sampled/gold"


@dataclass(frozen=True)
class Trial:
    """One setting of one arm: the selection judge's score of its best checkpoint and of its last, per tuning seed."""

    arm: str
    number: int
    settings: Mapping[str, float]
    scores: tuple[float, ...]
    ends: tuple[float, ...]

    @property
    def score(self) -> float:
        """What trials are ranked by: the mean over tuning seeds of the best checkpoint."""
        return float(np.mean(self.scores))


def tune_section(arms: Mapping[str, Arm]) -> type[Section]:
    """`tune.*`: for each section that an arm reads, the log ranges of its keys."""
    fields: dict[str, Any] = {
        arm.section: (
            dict[str, tuple[float, float]],
            Field(dict(arm.search), description=f"log ranges that tuning draws {arm.name}'s settings from"),
        )
        for arm in arms.values()
        if arm.section
    }
    return create_model("Tune", __base__=Section, __doc__="`tune.*`", **fields)


def check_ranges(name: str, section: Section, ranges: Ranges) -> None:
    """Raise InputError, naming `tune.<name>`, for a range that cannot be searched."""

    def refuse(reason: str, remedy: str) -> InputError:
        return InputError(reason, where="settings", field=f"tune.{name}", remedy=remedy)

    fields = type(section).model_fields
    numbers = [key for key, field in fields.items() if field.annotation in (int, float)]
    if not ranges:
        raise refuse("no range at all", f"give one, for example {{{numbers[0]}: [low, high]}}, or study.trials=0")
    for key, (low, high) in ranges.items():
        if key not in numbers:
            near = difflib.get_close_matches(key, numbers, 1)
            what = f"{name}.{key} is not a number" if key in fields else f"{name} has no setting {key!r}"
            raise refuse(what, f"did you mean {near[0]}?" if near else f"one of {', '.join(numbers)}")
        if not 0 < low < high:
            raise refuse(
                f"{key}: [{low:g}, {high:g}] is no log range", "give two numbers above 0, the smaller one first"
            )
        for end in (low, high):
            try:
                type(section).model_validate(section.model_dump() | {key: _typed(section, key, end)})
            except ValidationError as error:
                raise refuse(
                    f"{key}: {end:g} cannot be used ({error.errors()[0]['msg'].lower()})", "narrow the range"
                ) from None


def draw(section: Section, ranges: Ranges, trials: int, seed: int, name: str) -> list[dict[str, float]]:
    """`trials` settings, log-uniform over the ranges (Bergstra and Bengio 2012, Random search).

    Each range is cut into as many slices of equal log width as there are trials, and each slice is used once, in an
    order of its own for each key (a Latin hypercube): few trials then cover every range. A function of seed and name.
    """
    rng = generator(seed, f"tuning/{name}")
    columns: dict[str, list[float]] = {}
    for key, (low, high) in ranges.items():
        places = (rng.permutation(trials) + rng.random(trials)) / trials
        values = np.exp(np.log(low) + places * (np.log(high) - np.log(low)))
        columns[key] = [_typed(section, key, min(max(float(f"{v:.3g}"), low), high)) for v in values]
    return [{key: column[i] for key, column in columns.items()} for i in range(trials)]


def read_trials(
    design: Design, drawn: Mapping[str, Sequence[Mapping[str, float]]], cells: Mapping[str, Path]
) -> list[Trial]:
    """What the finished trials scored."""
    found = []
    for arm, settings in drawn.items():
        for number, values in enumerate(settings):
            scores, ends = [], []
            for seed in design.sections["study"].tuning_seeds:
                selection = read_json(cells[trial_key(design, arm, number, seed)] / "selection.json")
                gold = {point["step"]: point["metrics"][METRIC] for point in selection["curve"]}
                scores.append(gold[selection["picks"]["selected"]])
                ends.append(gold[selection["picks"]["end"]])
            found.append(Trial(arm, number, dict(values), tuple(scores), tuple(ends)))
    return found


def best_of(trials: Sequence[Trial], arm: str) -> Trial:
    """The arm's trial with the highest score; of equal ones the first."""
    return max((trial for trial in trials if trial.arm == arm), key=lambda trial: trial.score)


def record_of(design: Design, trials: Sequence[Trial], ranges: Mapping[str, Ranges]) -> dict[str, Any]:
    """What the manifest keeps: every trial, not the chosen ones alone."""
    study = design.sections["study"]
    arms = list(dict.fromkeys(trial.arm for trial in trials))
    rows = []
    for arm in arms:
        chosen = best_of(trials, arm).number
        rows.append(
            {
                "arm": arm,
                "section": design.arms[arm].section,
                "ranges": {key: list(ends) for key, ends in ranges[arm].items()},
                "chosen": chosen,
                "trials": [asdict(trial) for trial in trials if trial.arm == arm],
            }
        )
    return {"trials": study.trials, "seeds": list(study.tuning_seeds), "metric": METRIC, "arms": rows}


def _typed(section: Section, key: str, value: float) -> float:
    return round(value) if type(section).model_fields[key].annotation is int else value
