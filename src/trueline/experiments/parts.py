"""What an experiment of rows found, as JSON and as parts of a page: rows, effects, curves, what held."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from trueline.experiments.contrasts import METRIC, Effect, sentence
from trueline.study.comparisons import arm_interval
from trueline.study.diagnostics import collapse_marks
from trueline.study.document import Bar, Figure, Mark, Table, interval_text
from trueline.study.drawing import lines
from trueline.study.matrix import ArmRuns
from trueline.study.statistics import Interval, seed_interval

__all__ = [
    "curve_figure",
    "effect_json",
    "effect_table",
    "gold_margin",
    "gold_sd",
    "interval_json",
    "mapping_text",
    "row_json",
    "row_table",
]

PICKS = ("selected", "proxy", "end")
X_LABELS = {
    "step": "updates of a batch",
    "sampled_tokens": "sampled tokens",
    "trained_tokens": "trained tokens",
    "flops": "FLOPs",
}


def gold_sd(sft: ArmRuns) -> float:
    """Standard deviation of single SFT responses' gold, within seeds."""
    tables = [cell.scores.get(("selected", "test", "sampled"), {}) for cell in sft.cells]
    pools = [[v for row in t.values() for v in row.get("gold", ()) if v is not None] for t in tables]
    return float(np.sqrt(np.mean([np.var(pool, ddof=1) for pool in pools])))


def gold_margin(study: Any, sft: ArmRuns, verified: bool) -> float:
    """The smallest difference that matters, as in a study."""
    return study.margin_pass if verified else study.margin * gold_sd(sft)


def interval_json(interval: Interval | None) -> dict[str, Any] | None:
    """Mean, bounds (null where there are none) and p."""
    if interval is None:
        return None
    bounds = [interval.low, interval.high] if interval.finite else [None, None]
    return {"mean": interval.mean, "ci95": bounds, "p": interval.p}


def row_json(row: ArmRuns, sft: ArmRuns | None, metrics: Sequence[str] = (METRIC,)) -> dict[str, Any]:
    """Figures of each pick with intervals and per seed, curves, what was spent, and which seeds end below SFT."""
    picks: dict[str, Any] = {}
    for pick in PICKS:
        found = {key: arm_interval(row, key, pick) for key in metrics}
        picks[pick] = {
            key: interval_json(value[0]) | {"per_seed": value[1]} for key, value in found.items() if value is not None
        }
    return {
        "name": row.name,
        "seeds": [cell.seed for cell in row.cells],
        "picks": picks,
        "kl": row.figure("test/sampled/kl"),
        "collapsed": list(collapse_marks(row, sft, METRIC)),
        "curve": [
            [
                {"step": p.step, "sampled_tokens": p.sampled_tokens, "flops": p.flops, **_curve_point(p)}
                for p in cell.curve
            ]
            for cell in row.cells
        ],
        "cost": {name: row.charged(name) for name in ("seconds", "flops", "sampled_tokens", "reward_calls", "labels")},
    }


def _curve_point(point: Any) -> dict[str, Any]:
    names = ("gold", "kl", "proxy", "outside", "entropy", "length")
    found = {name: point.metrics.get(f"selection/sampled/{name}") for name in names}
    found |= {name: point.metrics.get(f"pairs/{name}") for name in ("logps_chosen", "logps_rejected")}
    return {name: value for name, value in found.items() if value is not None}


def effect_json(effect: Effect, unit: str) -> dict[str, Any]:
    """One declared difference with everything that was seen of it."""
    c = effect.contrast
    return {
        "what": c.what,
        "regime": c.regime,
        "a": c.a,
        "b": c.b,
        "outcome": effect.word,
        "selected": interval_json(effect.selected),
        "p_adjusted": effect.p_adjusted,
        "end": interval_json(effect.end),
        "per_seed": list(effect.per_seed),
        "at_equal_kl": [
            {"fraction": m.fraction, "kl": m.kl, "a": m.gold_a, "b": m.gold_b} | (interval_json(m.interval) or {})
            for m in effect.at_kl
        ],
        "sentence": sentence(effect, unit),
    }


def row_table(rows: Sequence[ArmRuns], sft: ArmRuns | None, unit: str, note: str = "") -> Table:
    """The rows with their gold at the selected checkpoint, as number and bar, at the end, KL, and a mark."""
    found = [(row, arm_interval(row, METRIC), arm_interval(row, METRIC, "end")) for row in rows]
    ends = [v for _, s, _ in found if s for v in (s[0].low, s[0].high, s[0].mean) if np.isfinite(v)]
    low, high = (min(ends), max(ends)) if ends else (0.0, 1.0)
    floor = arm_interval(sft, METRIC)[0].mean if sft is not None else None
    body = []
    for row, selected, end in found:
        if selected is None:
            continue
        kl = row.figure("test/sampled/kl")
        moved = sft is not None and row.name != "sft" and (kl is None or max(kl) > 0)  # SFT sampled anew is no arm
        fallen = sum(collapse_marks(row, sft, METRIC)) if moved else 0
        body.append(
            (
                row.name,
                interval_text(selected[0], sign=False),
                Bar(selected[0], low, high, floor),
                interval_text(end[0], sign=False) if end else "–",
                float(np.mean(kl)) if kl else None,
                Mark(f"ends below SFT {fallen}/{len(row.cells)}" if fallen else ""),
            )
        )
    columns = ("row", f">{unit}, selected", "", f">{unit}, at the end", ">KL to SFT", "")
    return Table(columns, body, note)


def effect_table(effects: Sequence[Effect], note: str = "") -> Table:
    """The declared differences: what and where, how much, corrected p, at the end, at equal KL, the word for it."""
    ends = [v for e in effects for v in (e.selected.low, e.selected.high) if np.isfinite(v)]
    reach = max((abs(v) for v in ends), default=1.0)
    rows = [
        (
            f"{e.contrast.what} ({e.contrast.regime})" if e.contrast.regime else e.contrast.what,
            interval_text(e.selected),
            Bar(e.selected, -reach, reach, 0.0),
            f"{e.p_adjusted:.3f}" if e.p_adjusted >= 0.001 else "< 0.001",
            interval_text(e.end),
            interval_text(e.at_kl[-1].interval) if e.at_kl else "not comparable",
            Mark(e.word) if e.word in ("helped", "hurt") else e.word,
        )
        for e in effects
    ]
    columns = ("change", ">difference", "", ">p (Holm)", ">at the end", ">at equal KL", "so")
    return Table(columns, rows, note)


def curve_figure(name: str, title: str, rows: Sequence[ArmRuns], x: str, unit: str, caption: str = "") -> Figure | None:
    """Mean gold of the checkpoints on the selection prompts over `x`, over seeds in the order of checkpoints."""
    series = {}
    for row in rows:
        curves = row.curve("selection/sampled/gold")
        count = min(map(len, curves), default=0)
        if count < 2:
            continue
        xs = np.mean([[float(getattr(p, x)) for p, _ in curve[:count]] for curve in curves], axis=0)
        ys = np.array([[value for _, value in curve[:count]] for curve in curves])
        half = [_half(ys[:, i]) for i in range(count)] if len(rows) <= 3 and len(ys) > 1 else None
        series[row.name] = (xs, ys.mean(axis=0), half)
    if not series:
        return None
    svg = lines(name, title, dict(list(series.items())[:8]), xlabel=X_LABELS[x], ylabel=f"{unit}, selection prompts")
    return Figure(title, svg, caption)


def _half(values: np.ndarray) -> float:
    interval = seed_interval(list(values))
    return interval.high - interval.mean if interval.finite else 0.0


def mapping_text(values: Mapping[str, Any]) -> str:
    """Settings of a row in a line."""
    return ", ".join(
        f"{section}.{key}={value}" for section, changes in values.items() for key, value in changes.items()
    )
