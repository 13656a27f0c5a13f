"""The page of `trueline map`: which method wins where, the line on which PPO and DPO change places, and every seed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from trueline.experiments.contrasts import METRIC
from trueline.experiments.worldmap import PICKS, Dial, Place, lead
from trueline.study.comparisons import LEAD, arm_interval
from trueline.study.document import Document, Figure, Mark, Section, Table, Text, figure_text, interval_text
from trueline.study.drawing import GRID, TEXT, Tile, draw, tile_map
from trueline.study.foresight import Foresight, sentence
from trueline.study.plots import MARKS, slug
from trueline.study.verdict import display

__all__ = ["boundary", "foresight_parts", "map_page", "summary"]

PICKED = {
    "selected": "at the checkpoint that the selection prompts pick",
    "proxy": "at the checkpoint with the highest proxy reward",
    "end": "at the end of training",
}


def boundary(grid: np.ndarray) -> list[list[tuple[float, float]]]:
    """The lines on which the grid `[y, x]` crosses 0, linear between places; points (x, y) in steps of the grid. A
    difference that is shown as 0.00 has no sign."""
    grid = np.round(grid, 2)
    if min(grid.shape) < 2 or not (np.nanmin(grid, initial=0.0) < 0 < np.nanmax(grid, initial=0.0)):
        return []
    from matplotlib.figure import Figure as Canvas

    found = Canvas().add_subplot().contour(np.ma.masked_invalid(grid), levels=[0.0]).allsegs[0]
    return [[(float(px), float(py)) for px, py in line] for line in found if len(line) > 1]


def summary(places: Sequence[Place], pick: str = "selected") -> str:
    """Who is ahead at how many places, and at how many of them every other arm is behind."""
    wins = [place.wins[pick] for place in places if pick in place.wins]
    counts = Counter(win.arm for win in wins).most_common()
    certain = sum(win.certain for win in wins)
    said = ", ".join(f"{display(arm)} at {count}" for arm, count in counts)
    sure = "at none of them are all others behind for certain"
    if certain:
        sure = f"at {certain} of them all others are behind"
    return f"Ahead {PICKED[pick]}: {said} of {len(wins)} places; {sure}"


def map_page(
    x: Dial, y: Dial, places: Sequence[Place], task: Any, unit: str, foresight: Sequence[Any], command: str
) -> Document:
    """The whole page. `foresight` are parts that say what the probe knew before training."""
    seeds = len(places[0].sft.cells)
    facts = (
        ("Dials", f"{x.name}, {y.name}"),
        ("Places", str(len(places))),
        ("Seeds at each", str(seeds)),
        ("Arms", ", ".join(display(arm) for arm in places[0].arms)),
    )
    text = (
        "A tile shows the arm with the highest mean, its lead on the next arm, and in how many seeds it had it. Strong "
        "colour: every other arm is behind (Holm within the place, 5%); pale: some are not told apart from it. "
        "▼ says in how many seeds an arm ended below SFT: outcomes come in two kinds, and a mean hides it."
    )
    sections = [
        Section(
            "Which method wins where", [Text(text, "note"), *(_winners(x, y, places, pick, unit) for pick in PICKS)]
        ),
        Section("PPO against DPO", _lead_parts(x, y, places, unit)),
        Section("Every seed at the end of training", _dots(x, y, places, unit)),
        Section("In numbers", [_numbers(x, y, places, unit)]),
        *([Section("What was known before training", list(foresight))] if foresight else []),
    ]
    threats = task.threats()
    note = "Places are compared within themselves, on the same seeds; nothing is corrected over the places together."
    title = summary(places)
    return Document("map", f"{task.name} · {seeds} seeds a place", title, note, sections, facts, threats[0], command)


def foresight_parts(known: Mapping[str, Sequence[Foresight]]) -> list[Any]:
    """A sentence for each arm, and the areas of every figure."""
    if not known:
        return []
    note = Text(
        "Area under the ROC curve of each figure of the probe against the collapses of each arm: 0.5 knows nothing. "
        "Intervals draw the seeds of a column anew. In brackets: among runs of one and the same place, where a figure "
        "cannot live on knowing the dial. Figures flag risks; this is what they foresaw here.",
        "note",
    )
    names = list(dict.fromkeys(f.name for found in known.values() for f in found))
    rows = [
        (name, *(_area_text(next(f for f in found if f.name == name)) for found in known.values())) for name in names
    ]
    columns = ("figure", *(f">{display(arm)}, {found[0].collapsed}/{found[0].runs}" for arm, found in known.items()))
    return [note, *(Text(sentence(display(arm), found)) for arm, found in known.items()), Table(columns, rows)]


def _area_text(found: Foresight) -> str:
    if found.auc is None:
        return "–"
    within = f" ({figure_text(found.within)})" if found.within is not None else ""
    return f"{figure_text(found.auc)} [{figure_text(found.low)}, {figure_text(found.high)}]{within}"


def _grid(places: Sequence[Place], make: Any) -> list[list[Any]]:
    table: dict[int, dict[int, Any]] = {}
    for place in places:
        table.setdefault(place.y, {})[place.x] = make(place)
    return [[row[i] for i in sorted(row)] for _, row in sorted(table.items())]


def _winners(x: Dial, y: Dial, places: Sequence[Place], pick: str, unit: str) -> Figure:
    tiles = _grid(places, lambda place: _tile(place, pick))
    title = {"selected": "Selected checkpoints", "proxy": "Picked by the proxy", "end": "At the end of training"}[pick]
    svg = tile_map(f"map-{pick}", title, tiles, rows=y.texts, columns=x.texts, xlabel=x.name, ylabel=y.name)
    return Figure(title, svg, f"{summary(places, pick)}. Numbers: {unit} above the next arm, seeds.")


def _tile(place: Place, pick: str) -> Tile:
    win = place.wins.get(pick)
    fallen = [f"{display(arm)} {n}/{len(place.sft.cells)}" for arm, n in place.collapsed.items() if n]
    warning = "" if not fallen else f"▼ {', '.join(fallen)}" if len(fallen) < 3 else f"▼ {len(fallen)} arms"
    if win is None:
        return Tile("var(--muted)", 0.1, ("not comparable",), warning)
    by = f"{figure_text(win.by.mean, 2, sign=True)} on {display(win.next)} ({win.seeds}/{len(place.sft.cells)})"
    others = [display(arm) for arm in win.best[1:]]
    rest = "none told apart" if len(win.best) == len(place.arms) else f"or {', '.join(others)}" if others else ""
    lines = [display(win.arm), by, *([rest] if rest else [])]
    return Tile(f"var(--{slug(win.arm)})", 0.85 if win.certain else 0.28, lines, warning)


def _lead_parts(x: Dial, y: Dial, places: Sequence[Place], unit: str) -> list[Any]:
    a, b = LEAD
    parts: list[Any] = []
    for pick in ("selected", "end"):
        grid = lead(places, a, b, pick)
        reach = float(np.nanmax(np.abs(grid))) if np.isfinite(grid).any() else 1.0
        tiles = [
            [
                Tile(
                    f"var(--{slug(a if value > 0 else b)})" if round(value, 2) else "var(--muted)",
                    0.08 + 0.72 * abs(value) / max(reach, 1e-12),
                    (figure_text(value, 2, sign=True),),
                )
                if np.isfinite(value)
                else Tile("var(--muted)", 0.1, ("–",))
                for value in row
            ]
            for row in grid
        ]
        lines = boundary(grid)
        title = f"{display(a)} − {display(b)}, {'selected checkpoints' if pick == 'selected' else 'end of training'}"
        svg = tile_map(
            f"lead-{pick}", title, tiles, rows=y.texts, columns=x.texts, xlabel=x.name, ylabel=y.name,
            paths=lines, size=(120, 64),
        )  # fmt: skip
        said = (
            "The dashed line is where the two change places, linear between neighbouring places."
            if lines
            else f"{display(a if np.nanmean(grid) > 0 else b)} is nowhere behind: they do not change places."
        )
        parts.append(Figure(title, svg, f"Mean difference in {unit}. {said}"))
    return parts


def _dots(x: Dial, y: Dial, places: Sequence[Place], unit: str) -> list[Any]:
    """A figure for each value of the second dial: every seed of every arm at the end of training, SFT as a line."""
    arms = list(places[0].arms)
    figures = []
    values = [v for p in places for run in (*p.arms.values(), p.sft) for v in run.figure(METRIC, "end") or ()]
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    for j, text in enumerate(y.texts):
        row = sorted((place for place in places if place.y == j), key=lambda place: place.x)

        def paint(axes: Any, row: Sequence[Place] = row) -> None:
            step = len(arms) + 1.5
            for place in row:
                start = place.x * step
                for k, arm in enumerate(arms):
                    ends = place.arms[arm].figure(METRIC, "end") or []
                    colour, marker, _ = MARKS[arm]
                    axes.plot(
                        [start + k] * len(ends), ends, color=colour, marker=marker, linestyle="none", markersize=5
                    )
                floor = place.sft.figure(METRIC)
                if floor:
                    mean = float(np.mean(floor))
                    axes.plot(
                        [start - 0.6, start + len(arms) - 0.4], [mean, mean], color=TEXT, linestyle="--", linewidth=1
                    )
            axes.set_xticks([place.x * step + (len(arms) - 1) / 2 for place in row], [x.texts[p.x] for p in row])
            axes.set_ylim(low - 0.06 * (high - low), high + 0.06 * (high - low))
            for place in row[1:]:
                axes.axvline(place.x * step - 1.25, color=GRID, linewidth=0.8)

        title = f"{y.name} = {text}"
        svg = draw(f"dots-{j}", title, paint, xlabel=x.name, ylabel=unit, colours=_colours(arms))
        figures.append(Figure(title, svg, "From left to right: " + ", ".join(display(arm) for arm in arms) + "."))
    note = Text("Each mark is one seed. The dashed line is the mean of SFT.", "note")
    return [note, *figures]


def _colours(arms: Sequence[str]) -> dict[str, str]:
    return {MARKS[arm][0]: f"var(--{slug(arm)})" for arm in arms}


def _numbers(x: Dial, y: Dial, places: Sequence[Place], unit: str) -> Table:
    rows = []
    for place in places:
        for arm, run in place.arms.items():
            found = {pick: arm_interval(run, METRIC, pick) for pick in PICKS}
            win = place.wins.get("selected")
            fallen = place.collapsed[arm]
            rows.append(
                (
                    x.texts[place.x],
                    y.texts[place.y],
                    display(arm),
                    *(interval_text(found[p][0], sign=False) if found[p] else "–" for p in PICKS),
                    Mark(f"{fallen}/{len(run.cells)}") if fallen else "",
                    f"{run.charged('flops'):.2g}",
                    f"{run.charged('seconds'):.0f}",
                    "ahead" if win and win.arm == arm else "level" if win and arm in win.best else "",
                )
            )
    columns = (
        x.name, y.name, "arm", f">{unit}, selected", ">by proxy", ">at the end", ">below SFT", ">FLOPs", ">seconds",
        "selected",
    )  # fmt: skip
    return Table(
        columns,
        rows,
        "FLOPs and seconds: what an arm is charged with. Level: not told apart from the one ahead.",
    )
