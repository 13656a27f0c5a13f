"""Which method wins where: the same arms over a grid of two dials, and what the grid says of each of its places.

A dial is any setting that says what the arms are given: the world's own (`world.shift`), the feedback, the budget, an
arm's settings. How things are measured is no dial. At every place of the grid all arms run on the same seeds; the
winner is the arm with the highest mean, and the set beside it are those that the runs cannot tell from it.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trueline.config import load
from trueline.errors import InputError
from trueline.experiments.contrasts import ALPHA, METRIC
from trueline.experiments.rows import Row, with_changes
from trueline.study.comparisons import arm_interval, differences
from trueline.study.diagnostics import collapse_marks
from trueline.study.matrix import ArmRuns
from trueline.study.statistics import Interval, holm, paired_interval

__all__ = ["ARMS", "PICKS", "Dial", "Place", "Win", "default_dials", "dials_of", "lead", "places_of", "rows_of"]

ARMS = ("dpo", "dpo-iter", "ppo", "dpo+ppo")
PICKS = ("selected", "proxy", "end")
FIXED = ("data", "model", "train", "tune", "evaluate", "select", "probe")
"""Sections that say how things are measured, or what is trained at all."""
FREE_IN_STUDY = ("budget", "feedback")


@dataclass(frozen=True)
class Dial:
    """`section.key` and the values that it takes, in the user's order; `texts` are those values as the user wrote them
    (of a set: joined by "+")."""

    section: str
    key: str
    values: tuple[Any, ...]
    texts: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.section}.{self.key}"


@dataclass(frozen=True)
class Win:
    """Who is ahead at a place, for one pick of checkpoints. `best` holds the winner and every arm that is not separated
    from it (Holm over the winner's differences); `by` is the difference to the next arm, `seeds` how often it was
    ahead of that one."""

    arm: str
    next: str
    by: Interval
    seeds: int
    best: tuple[str, ...]

    @property
    def certain(self) -> bool:
        """Whether every other arm is behind."""
        return self.best == (self.arm,)


@dataclass(frozen=True)
class Place:
    """One cell of the grid: its indices, its arms, who wins by each pick, and how many seeds of each arm collapsed (end
    of training below SFT)."""

    x: int
    y: int
    arms: Mapping[str, ArmRuns]
    sft: ArmRuns
    wins: Mapping[str, Win]
    collapsed: Mapping[str, int]


def dials_of(sections: Mapping[str, Any], items: Sequence[str]) -> tuple[list[Dial], list[str]]:
    """`KEY=A,B,C` as dials; what is a setting of one value after all (a list that is a value) comes back.

    Of a setting that is itself a list, the parts of one value are joined by "+": `world.coverage=help,help+refusal`.
    """
    dials, rest = [], []
    for item in items:
        name, _, text = item.partition("=")
        section, _, key = name.partition(".")
        field = type(sections[section]).model_fields.get(key) if section in sections else None
        if field is None:
            raise InputError("no such setting", where="command line", field=name, remedy="see --help")
        several = _is_list(field.annotation)
        if several and "+" not in text:
            rest.append(item)
            continue
        if section in FIXED or (section == "study" and key not in FREE_IN_STUDY):
            reason = "says how things are measured or what is run: it is no dial"
            raise InputError(reason, where="command line", field=name, remedy="dials: world.*, study.budget, an arm's")
        texts = tuple(part.strip() for part in text.split(",") if part.strip())
        if len(set(texts)) != len(texts) or len(texts) < 2:
            raise InputError(
                "a dial takes two values or more, each once", where="command line", field=name, remedy="KEY=A,B"
            )
        values = tuple(_value(sections[section], section, key, t.replace("+", ",") if several else t) for t in texts)
        dials.append(Dial(section, key, values, texts))
    return dials, rest


def _is_list(annotation: Any) -> bool:
    options = (
        typing.get_args(annotation)
        if typing.get_origin(annotation) in (typing.Union, types.UnionType)
        else (annotation,)
    )
    return any(typing.get_origin(option) is tuple for option in options)


def _value(own: Any, section: str, key: str, text: str) -> Any:
    """The value as the command line reads it, checked beside the section's other settings."""
    given = getattr(load({section: type(own)}, overrides=[f"{section}.{key}={text}"])[section], key)
    return getattr(with_changes(own, {key: given}, section), key)


def default_dials(sections: Mapping[str, Any]) -> list[Dial]:
    """Shift and the number of pairs where the world has both; else a budget and the number of pairs. InputError where
    a task has no two dials that everybody would look at first."""
    fields, world = type(sections["world"]).model_fields, sections["world"]
    own = getattr(world, "pairs", 0)
    if "shift" in fields and "pairs" in fields and not _pays_for_pairs(sections) and own:
        counts = (max(1, own // 8), own, 4 * own)
        return [
            Dial("world", "shift", (0.0, 0.5, 1.0), ("0", "0.5", "1")),
            Dial("world", "pairs", counts, tuple(map(str, counts))),
        ]
    if _pays_for_pairs(sections) and "pairs_from" in fields:
        cap = sections["study"].budget
        caps = (cap / 4, cap / 2, cap)
        return [
            Dial("study", "budget", caps, tuple(f"{c:g}" for c in caps)),
            Dial("world", "pairs_from", ("samples", "people"), ("samples", "people")),
        ]
    raise InputError(
        "this task's world has no two dials by itself",
        where="command line",
        field="KEY=A,B,C",
        remedy="name two, for example study.budget=1e12,4e12 dpo.beta=0.05,0.1,0.5",
    )


def _pays_for_pairs(sections: Mapping[str, Any]) -> bool:
    """Whether the cap on executions decides how many pairs there are."""
    return sections["study"].budget_rule == "executions" and sections["study"].budget > 0


def rows_of(sections: Mapping[str, Any], x: Dial, y: Dial, arms: Sequence[str]) -> dict[tuple[int, int, str], Row]:
    """A row for each place and arm, SFT first. Where pairs are a dial and FLOPs are capped, the cap grows with the
    pairs above the task's own number: the reward model's and DPO's passes over them are charged to it."""
    if "pairs" in (x.key, y.key) and _pays_for_pairs(sections):
        reason = "executions are what is shared out here, and pairs cost them"
        raise InputError(reason, where="command line", field="world.pairs", remedy="use the dial study.budget")
    rows = {}
    for i, left in enumerate(x.values):
        for j, right in enumerate(y.values):
            changes: dict[str, dict[str, Any]] = {}
            for dial, value in ((x, left), (y, right)):
                changes.setdefault(dial.section, {})[dial.key] = value
            _grow_cap(changes, sections)
            place = f"{x.texts[i]} · {y.texts[j]}"
            for arm in ("sft", *arms):
                rows[i, j, arm] = Row(f"{arm} @ {place}", arm, changes, probe=sections["study"].probe)
    return rows


def _grow_cap(changes: dict[str, dict[str, Any]], sections: Mapping[str, Any]) -> None:
    study, own = sections["study"], getattr(sections["world"], "pairs", 0)
    pairs = changes.get("world", {}).get("pairs")
    if pairs and own and pairs > own and study.budget and "budget" not in changes.get("study", {}):
        changes.setdefault("study", {})["budget"] = study.budget * pairs / own


def places_of(
    rows: Mapping[tuple[int, int, str], Row], runs: Mapping[str, ArmRuns], arms: Sequence[str]
) -> list[Place]:
    """What was found at each place, in the order of the grid."""
    found = []
    for i, j in dict.fromkeys((i, j) for i, j, _ in rows):
        own = {arm: runs[rows[i, j, arm].name] for arm in arms}
        sft = runs[rows[i, j, "sft"].name]
        wins = {pick: win for pick in PICKS if (win := _win(own, pick)) is not None}
        collapsed = {arm: sum(collapse_marks(run, sft, METRIC)) for arm, run in own.items()}
        found.append(Place(i, j, own, sft, wins, collapsed))
    return found


def _win(arms: Mapping[str, ArmRuns], pick: str) -> Win | None:
    means = {arm: found[0].mean for arm, run in arms.items() if (found := arm_interval(run, METRIC, pick)) is not None}
    if len(means) < 2:
        return None
    top, *others = sorted(means, key=means.__getitem__, reverse=True)
    gaps = {other: differences(arms[top], arms[other], METRIC, pick) for other in others}
    intervals = {other: paired_interval(gap) for other, gap in gaps.items() if gap is not None}
    adjusted = dict(zip(intervals, holm([interval.p for interval in intervals.values()])))
    ahead = int((gaps[others[0]].mean(axis=1) > 0).sum())
    best = (top, *(other for other in others if adjusted[other] >= ALPHA))
    return Win(top, others[0], intervals[others[0]], ahead, best)


def lead(places: Sequence[Place], a: str, b: str, pick: str) -> np.ndarray:
    """Mean difference a - b at each place as `[y, x]`; nan where there is none."""
    grid = np.full((1 + max(p.y for p in places), 1 + max(p.x for p in places)), np.nan)
    for place in places:
        gap = differences(place.arms[a], place.arms[b], METRIC, pick) if {a, b} <= set(place.arms) else None
        if gap is not None:
            grid[place.y, place.x] = float(gap.mean())
    return grid
