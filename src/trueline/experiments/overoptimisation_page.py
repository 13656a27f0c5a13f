"""The parts of an ablation's page on over-optimisation: curves over sqrt(KL), fits, the floor, early stopping."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from trueline.experiments.overoptimisation import (
    FORMS,
    Curve,
    above_floor,
    curves_of,
    early_stopping,
    fit,
    floor_curves,
)
from trueline.study.document import Figure, Table, figure_text, interval_text
from trueline.study.drawing import SERIES, TEXT, draw
from trueline.study.matrix import ArmRuns

__all__ = ["overoptimisation_parts"]


def overoptimisation_parts(rows: Mapping[str, ArmRuns], floor_row: str, unit: str) -> list[Any]:
    """Figures for every row that moves, then the tables."""
    floor = floor_curves(rows[floor_row])
    moving = {name: curves_of(row) for name, row in rows.items() if name != floor_row}
    moving = {name: curves for name, curves in moving.items() if len(curves) == len(rows[name].cells)}
    figures = [_figure(i, name, curves, floor, unit) for i, (name, curves) in enumerate(moving.items())]
    return [*figures, _fits({**moving, "best-of-n": list(floor)}), _floor_table(moving, floor), _stops(rows, moving)]


def _figure(number: int, name: str, curves: Sequence[Curve], floor: Sequence[Curve], unit: str) -> Figure:
    def paint(axes: Any) -> None:
        for curve in curves:
            axes.plot(curve.d, curve.proxy, color=SERIES[1], linewidth=0.8, alpha=0.5)
            axes.plot(curve.d, curve.gold, color=SERIES[0], linewidth=0.8, alpha=0.5)
        count = min(len(c.d) for c in curves)
        mean = [np.mean([getattr(c, k)[:count] for c in curves], axis=0) for k in ("d", "proxy", "gold")]
        axes.plot(mean[0], mean[1], color=SERIES[1], linewidth=2.2, label="proxy")
        axes.plot(mean[0], mean[2], color=SERIES[0], linewidth=2.2, label="gold")
        low = np.mean([c.gold for c in floor], axis=0)
        axes.plot(floor[0].d, low, color=TEXT, linewidth=1.6, linestyle="--", label="best-of-n, gold")
        axes.axhline(0.0, color=TEXT, linewidth=0.6)
        axes.legend(frameon=False, fontsize=10, labelcolor=TEXT, loc="best")

    svg = draw(f"over-{number}", name, paint, xlabel="square root of KL to SFT", ylabel=f"gain in {unit} and proxy")
    return Figure(
        name, svg, "Thin lines are seeds. Where the proxy goes on rising and gold falls, it is being exploited."
    )


def _fits(moving: Mapping[str, Sequence[Curve]]) -> Table:
    rows = []
    for name, curves in moving.items():
        for form in FORMS:
            found = fit(curves, form)
            if found is None:
                continue
            peak = "–" if found.peak is None or found.peak > 20 else figure_text(found.peak, 1)
            rows.append(
                (name, form, interval_text(found.alpha), interval_text(found.beta), figure_text(found.left), peak)
            )
    columns = ("row", "form", ">alpha", ">beta", ">variance left", ">peak at sqrt(KL)")
    note = (
        "Gold over d = sqrt(KL): best-of-n d (alpha − beta d), RL d (alpha − beta log d), per seed. A beta above 0 "
        "bends the curve down; a fit that leaves much of the variance describes nothing."
    )
    return Table(columns, rows, note)


def _floor_table(moving: Mapping[str, Sequence[Curve]], floor: Sequence[Curve]) -> Table:
    reach = float(np.mean([c.d[-1] for c in floor]))
    places = [share * reach for share in (0.25, 0.5, 0.75, 0.95)]
    rows = []
    for name, curves in moving.items():
        gaps = [above_floor(curves, floor, d) for d in places]
        rows.append((name, *("not comparable" if gap is None else interval_text(gap) for gap in gaps)))
    columns = ("row", *(f">sqrt(KL) {d:.2f}" for d in places))
    return Table(columns, rows, "Gain in gold less best-of-n's at the same distance; each against its own SFT figure.")


def _stops(rows: Mapping[str, ArmRuns], moving: Mapping[str, Any]) -> Table:
    body = []
    for name in moving:
        found = early_stopping(rows[name])
        shown = (interval_text(found[pick], sign=False) for pick in ("end", "proxy", "selected"))
        body.append((name, *shown, f"{found['proxy_is_end']}/{len(rows[name].cells)}"))
    columns = (
        "row",
        ">at the end",
        ">stopped by held-out reward",
        ">stopped by held-out gold",
        ">the first two are one",
    )
    return Table(columns, body, "Test gold of the checkpoint that each rule of stopping picks.")
