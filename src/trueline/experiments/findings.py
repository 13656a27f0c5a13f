"""The paper's eight findings as differences between rows that run here, and the word for each of them.

arXiv 2404.10719 reports single runs without intervals. Each finding is turned into one declared difference, oriented so
that the paper's direction is positive, on at least five seeds; what else it says stands beside it as parts, which do
not decide. Holm's correction is over the eight together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from trueline.experiments.ablations import Ablation, Setting, design_named
from trueline.experiments.contrasts import ALPHA, METRIC, kl_curves
from trueline.experiments.parts import gold_margin, gold_sd
from trueline.experiments.rows import Row
from trueline.experiments.shift import tables_of
from trueline.study.comparisons import arm_interval, differences
from trueline.study.matrix import ArmRuns
from trueline.study.statistics import Interval, holm, kl_matched, paired_interval, seed_interval

__all__ = [
    "GROUPS",
    "WIDTHS",
    "Finding",
    "Group",
    "Part",
    "findings_of",
    "outcome",
    "rows_of",
]

REPRODUCED, NOT, REVERSED, UNDECIDED = "reproduced", "not reproduced", "reversed", "undecided"
WIDTHS = (32, 0, 128)
"""Hidden sizes of `tiny` for the finding on the base model; 0 is its own 64."""
SAFE = "test/sampled/safe"


@dataclass(frozen=True)
class Group:
    """Rows that run in one directory: a task under some settings of its own. `free`: the rows say how much they draw,
    and no cap holds besides."""

    name: str
    task: str
    settings: tuple[str, ...] = ()
    free: bool = True


LIGHT = ("evaluate.samples=6", "select.prompts=60", "train.snapshots=5")
"""How programs are measured here: five seeds of many rows, so less of each than in a study."""
GROUPS = (
    Group("dialogue", "dialogue"),
    Group("code", "code", LIGHT),
    Group("safe-dialogue", "safe-dialogue", free=False),
    *(
        Group(
            f"{task}-width-{width or 64}",
            task,
            (*light, *((f"model.width={width}",) if width else ())),
            free=task == "dialogue",  # a cap of FLOPs would cut wider models short; one of executions cuts all alike
        )
        for task, light in (("dialogue", ()), ("code", LIGHT))
        for width in WIDTHS
    ),
)

PEOPLE = {"world": {"pairs_from": "people", "shift": 1.0}}
"""Pairs of people's programs in a style of their own, as a study's variant has them."""


def rows_of(group: Group, sections: Mapping[str, Any], *, verified: bool) -> list[Row]:
    """What runs in the group. Rows of an ablation's designs have the names that `trueline ablate` gives them."""
    if "width" in group.name:
        return [Row("sft", "sft"), Row("ppo", "ppo")]
    if group.task == "safe-dialogue":
        wanted = [table for table in tables_of(sections) if table.name in ("safety", "reference")]
        return list({row.name: row for table in wanted for row in table.rows}.values())
    setting = Setting(sections, verified)
    names = ("ladder", "reference") if verified else ("ladder", "reference", "beta")
    rows = {"sft": Row("sft", "sft")}
    for design in (design_named(name, setting) for name in names):
        for row in design.rows:
            key = row.name if row.name == "sft" else f"{design.name}: {row.name}"
            rows[key] = replace(row, name=key)
    if verified:
        rows |= {
            "dpo on people's pairs": Row("dpo on people's pairs", "dpo", PEOPLE),
            "dpo-iter": Row("dpo-iter", "dpo-iter"),
        }
    return list(rows.values())


@dataclass(frozen=True)
class Part:
    """A difference (or a level) beside the declared one; `paper` is the sign that the paper's has, 0 for a level."""

    what: str
    interval: Interval
    unit: str
    paper: int = 1
    level: bool = False


@dataclass(frozen=True)
class Finding:
    """`effect` is the declared difference, positive in the paper's direction; None where it cannot be formed."""

    id: str
    claim: str
    declared: str
    effect: Interval | None
    unit: str
    margin: float
    parts: tuple[Part, ...]
    seeds: int
    command: str
    p_adjusted: float = 1.0
    outcome: str = UNDECIDED


@dataclass(frozen=True)
class Evidence:
    """The finished rows by group, with the designs' names resolved from the settings that they ran under."""

    runs: Mapping[str, Mapping[str, ArmRuns]]
    sections: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def effect(self, group: str, a: str, b: str, key: str = METRIC, pick: str = "selected") -> Interval:
        """Row a - row b."""
        rows = self.runs[group]
        gap = differences(rows[a], rows[b], key, pick)
        if gap is None:
            raise KeyError(f"{group}: {a} and {b} have no {key}")
        return paired_interval(gap)

    def per_seed(self, group: str, a: str, b: str) -> np.ndarray:
        """Mean difference of each seed."""
        return differences(self.runs[group][a], self.runs[group][b], METRIC).mean(axis=1)

    def margin(self, group: str, *, verified: bool) -> float:
        """The smallest difference that matters."""
        sections, rows = self.sections[group], self.runs[group]
        return gold_margin(sections["study"], rows["SFT" if "SFT" in rows else "sft"], verified)

    def design(self, group: str, name: str) -> Ablation:
        """A design as it was built for the group."""
        return design_named(name, Setting(self.sections[group], group == "code"))


def outcome(effect: Interval | None, p_adjusted: float, margin: float) -> str:
    """`reproduced` and `reversed` where the difference is separated from 0 at 5% after Holm, by its sign; `not
    reproduced` where the whole interval lies below the margin: an effect of a size that matters is ruled out;
    otherwise `undecided`."""
    if effect is None or not effect.finite:
        return UNDECIDED
    if p_adjusted < ALPHA:
        return REPRODUCED if effect.mean > 0 else REVERSED
    return NOT if effect.high < margin else UNDECIDED


def findings_of(
    runs: Mapping[str, Mapping[str, ArmRuns]], sections: Mapping[str, Mapping[str, Any]]
) -> tuple[Finding, ...]:
    """The eight, in the paper's order, corrected over all of them."""
    evidence = Evidence(runs, sections)
    found = [make(evidence) for make in MAKERS]
    adjusted = holm([f.effect.p if f.effect else 1.0 for f in found])
    return tuple(
        Finding(**(vars(f) | {"p_adjusted": p, "outcome": outcome(f.effect, p, f.margin)}))
        for f, p in zip(found, adjusted)
    )


def _seeds(e: Evidence, *groups: str) -> int:
    return min(len(run.cells) for group in groups for run in e.runs[group].values())


def advantage_norm(e: Evidence) -> Finding:
    a, b = "ladder: + advantage norm", "ladder: baseline"
    parts = (
        Part("the same on dialogue, a dense reward", e.effect("dialogue", a, b), "gold"),
        Part("PPO without any key less SFT, code", e.effect("code", b, "sft"), "pass@1", -1),
        Part("at the end of training, code", e.effect("code", a, b, pick="end"), "pass@1"),
    )
    return Finding(
        "advantage-norm",
        "Advantage normalisation rescues PPO where the reward is sparse (10/0): without it PPO is below SFT; with a "
        "dense reward it does the least.",
        "PPO with small batches on code: normalised less raw advantages",
        e.effect("code", a, b),
        "pass@1",
        e.margin("code", verified=True),
        parts,
        _seeds(e, "code", "dialogue"),
        "trueline ablate code ladder",
    )


def batch(e: Evidence) -> Finding:
    a, b = "ladder: + large batch", "ladder: + advantage norm"
    code = e.per_seed("code", a, b) / gold_sd(e.runs["code"]["sft"])
    dialogue = e.per_seed("dialogue", a, b) / gold_sd(e.runs["dialogue"]["sft"])
    parts = (
        Part("code", e.effect("code", a, b), "pass@1"),
        Part("dialogue", e.effect("dialogue", a, b), "gold", 0),
        Part("code, at equal KL", _at_equal_kl(e, "code", a, b) or _nothing(), "pass@1"),
        Part("dialogue, at equal KL", _at_equal_kl(e, "dialogue", a, b) or _nothing(), "gold", 0),
    )
    return Finding(
        "batch",
        "A large batch helps code more than dialogue.",
        "large less small batch at equal samples, code less dialogue, each in standard deviations of SFT's responses",
        seed_interval(list(code - dialogue)),
        "standard deviations",
        e.sections["code"]["study"].margin,
        parts,
        _seeds(e, "code", "dialogue"),
        "trueline ablate code ladder; trueline ablate dialogue ladder",
    )


def ema(e: Evidence) -> Finding:
    pairs = {group: _ema_rows(e, group) for group in ("code", "dialogue")}
    rung = "ladder: + EMA reference", "ladder: + large batch"
    parts = [Part("added last, code", e.effect("code", *rung), "pass@1")]
    parts += [Part("added last, dialogue", e.effect("dialogue", *rung), "gold")]
    parts += [Part("at equal KL, dialogue", _at_equal_kl(e, "dialogue", *pairs["dialogue"]) or _nothing(), "gold")]
    parts += [Part("at the selected checkpoint, code", e.effect("code", *pairs["code"]), "pass@1")]
    return Finding(
        "ema-reference",
        "A reference that follows the policy (EMA) helps, hard tasks most; to be seen at equal KL to SFT.",
        "PPO on code, EMA less fixed reference at the same KL coefficient, at equal KL to SFT",
        _at_equal_kl(e, "code", *pairs["code"]),
        "pass@1",
        e.margin("code", verified=True),
        tuple(parts),
        _seeds(e, "code", "dialogue"),
        "trueline ablate code reference",
    )


def _ema_rows(e: Evidence, group: str) -> tuple[str, str]:
    """The slowest moving reference against the fixed one, both at the task's own KL coefficient."""
    own = "KL {:g}".format(float(f"{e.sections[group]['ppo'].kl_coef:.3g}"))
    contrast = next(c for c in e.design(group, "reference").contrasts if c.regime == own)
    return f"reference: {contrast.a}", f"reference: {contrast.b}"


def _at_equal_kl(e: Evidence, group: str, a: str, b: str) -> Interval | None:
    left, right = kl_curves(e.runs[group][a]), kl_curves(e.runs[group][b])
    if any(len(curve) < 2 for curve in (*left, *right)):
        return None
    held = [match.interval for match in kl_matched(left, right) if match.interval is not None]
    return held[-1] if held else None


def _nothing() -> Interval:
    return Interval(float("nan"), float("-inf"), float("inf"), float("inf"), 0.0, 1.0)


def shifted_reference(e: Evidence) -> Finding:
    group = "safe-dialogue"
    rows = e.runs[group]
    gaps = [differences(rows[f"{arm}, safe SFT"], rows[arm], SAFE) for arm in ("DPO", "PPO")]
    parts = (
        Part("SFT on the safe responses before DPO", paired_interval(gaps[0]), "safety rate"),
        Part("the same before PPO", paired_interval(gaps[1]), "safety rate", 0),
        Part("DPO less the SFT that it starts from", e.effect(group, "DPO", "SFT", SAFE), "safety rate", 0),
        Part("a weak base for SFT, DPO", e.effect(group, "DPO, weak base", "DPO"), "gold", -1),
        Part("a weak base for SFT, PPO", e.effect(group, "PPO, weak base", "PPO"), "gold", 0),
    )
    return Finding(
        "shifted-reference",
        "DPO from a reference that the pairs are shifted from collapses; SFT on the pairs' domain mends much of it; "
        "PPO moves little.",
        "what SFT on the safe responses gives DPO less what it gives PPO, safety rate",
        paired_interval(gaps[0] - gaps[1]),
        "safety rate",
        0.02,
        parts,
        _seeds(e, group),
        "trueline shift safe-dialogue",
    )


def off_policy_code(e: Evidence) -> Finding:
    row = "dpo on people's pairs"
    level = arm_interval(e.runs["code"][row], METRIC, "end")
    parts = (
        Part("SFT less DPO, selected checkpoint", e.effect("code", "sft", row), "pass@1"),
        Part("DPO at the end of training", level[0] if level else _nothing(), "pass@1", 0, level=True),
        Part("SFT less DPO-Iter, selected checkpoint", e.effect("code", "sft", "dpo-iter"), "pass@1"),
        Part("SFT less DPO-Iter, end of training", e.effect("code", "sft", "dpo-iter", pick="end"), "pass@1"),
    )
    return Finding(
        "off-policy-code",
        "DPO on pairs of people's programs collapses to 0; DPO-Iter wins a part back and stays below SFT.",
        "SFT less DPO on people's pairs, at the end of training",
        e.effect("code", "sft", row, pick="end"),
        "pass@1",
        e.margin("code", verified=True),
        parts,
        _seeds(e, "code"),
        "trueline study code",
    )


def filters(e: Evidence) -> Finding:
    group, a, b = "safe-dialogue", "DPO, safe SFT, no dual pairs", "DPO, safe SFT"
    help_, refuse = "test/sampled/helpfulness", "test/sampled/refusal_benign"
    parts = (
        Part("helpfulness of the same rows", e.effect(group, a, b, help_), "helpfulness", -1),
        Part(
            "leaving dual-unsafe pairs out alone",
            e.effect(group, "DPO, safe SFT, no dual-unsafe", b, SAFE),
            "safety rate",
        ),
        Part(
            "PPO's refusals of harmless requests", e.effect(group, "PPO, no dual pairs", "PPO", refuse), "refusal rate"
        ),
        Part("PPO's helpfulness", e.effect(group, "PPO, no dual pairs", "PPO", help_), "helpfulness", -1),
    )
    return Finding(
        "filters",
        "Leaving pairs of two unsafe and of two safe sides out helps DPO's safety and costs helpfulness; it makes PPO "
        "refuse.",
        "DPO from the safe SFT, without dual pairs less with all, safety rate",
        e.effect(group, a, b, SAFE),
        "safety rate",
        0.02,
        parts,
        _seeds(e, group),
        "trueline shift safe-dialogue",
    )


def base_size(e: Evidence) -> Finding:
    gains = {
        task: [e.per_seed(f"{task}-width-{width or 64}", "ppo", "sft") for width in WIDTHS]
        for task in ("code", "dialogue")
    }
    slopes = {task: _slopes(values) for task, values in gains.items()}
    parts = [Part("the same on dialogue", seed_interval(list(slopes["dialogue"])), "gold per doubling")]
    for task, unit in (("code", "pass@1"), ("dialogue", "gold")):
        parts += [
            Part(
                f"PPO less SFT at width {width or 64}, {task}",
                e.effect(f"{task}-width-{width or 64}", "ppo", "sft"),
                unit,
                0,
            )
            for width in WIDTHS
        ]
    groups = [f"{task}-width-{width or 64}" for task in gains for width in WIDTHS]
    return Finding(
        "base-size",
        "What PPO gains over SFT grows with the base model.",
        "PPO less SFT on code, slope over the binary logarithm of the width (32, 64, 128), per doubling",
        seed_interval(list(slopes["code"])),
        "pass@1 per doubling",
        e.margin("code-width-64", verified=True),
        tuple(parts),
        _seeds(e, *groups),
        "trueline findings",
    )


def _slopes(gains: Sequence[np.ndarray]) -> np.ndarray:
    """Least-squares slope of each seed's gains over log2 of the width."""
    x = np.log2([width or 64 for width in WIDTHS])
    centred = x - x.mean()
    return centred @ np.stack(gains) / (centred @ centred)


def inside_beta(e: Evidence) -> Finding:
    """Both ends must be worse than the inside: the smaller of the two differences, with the larger p (an intersection
    of two tests needs no correction: Berger 1982)."""
    rows = [row.name for row in e.design("dialogue", "beta").rows if row.arm == "ppo"]
    none, half, own, double = (f"beta: {name}" for name in rows)
    runs = e.runs["dialogue"]
    ends = {}
    for name, end in (("no KL at all", none), ("twice the coefficient", double)):
        gaps = [differences(runs[inside], runs[end], METRIC) for inside in (half, own)]
        ends[name] = paired_interval((gaps[0] + gaps[1]) / 2)
    weakest = min(ends.values(), key=lambda interval: interval.mean)
    effect = Interval(**(vars(weakest) | {"p": max(i.p for i in ends.values())}))
    parts = [Part(f"inside less {name}", interval, "gold") for name, interval in ends.items()]
    parts += [
        Part(f"PPO, {name.split(', ')[1]}", arm_interval(runs[f"beta: {name}"], METRIC)[0], "gold", 0, level=True)
        for name in rows
    ]
    return Finding(
        "beta",
        "The KL's strength has an inside optimum: none at all and twice as much are both worse (PPO on HH-RLHF).",
        "PPO on dialogue, mean of half and the whole coefficient less the better end (none, twice)",
        effect,
        "gold",
        e.margin("dialogue", verified=False),
        tuple(parts),
        _seeds(e, "dialogue"),
        "trueline ablate dialogue beta",
    )


MAKERS: tuple[Callable[[Evidence], Finding], ...] = (
    advantage_norm, batch, ema, shifted_reference, off_policy_code, filters, base_size, inside_beta,
)  # fmt: skip
