"""`trueline map`: DPO, DPO-Iter, PPO and both over any two dials; which wins where, by how much, at what cost."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from trueline.commands.experiment import run_rows
from trueline.errors import InputError
from trueline.experiments.contrasts import METRIC
from trueline.experiments.map_page import boundary, foresight_parts, map_page, summary
from trueline.experiments.parts import interval_json, row_json
from trueline.experiments.rows import Row, read_probes
from trueline.experiments.worldmap import ARMS, PICKS, Dial, Place, default_dials, lead, places_of, rows_of
from trueline.runs.cell import write_json
from trueline.study.comparisons import LEAD
from trueline.study.diagnostics import collapse_marks
from trueline.study.document import save
from trueline.study.foresight import Foresight, Observation, figures_of, foresight, sentence
from trueline.study.verdict import display
from trueline.tasks.task import Task

__all__ = ["draw_map"]


def draw_map(
    dials: Sequence[Dial],
    task: Task,
    sections: Mapping[str, Any],
    directory: Path,
    command: str,
    console: Console,
) -> dict[str, Any]:
    """Run the grid; writes map.json and map.html and returns the former. `dials`: two, or none for the task's own."""
    began = time.perf_counter()
    dials = list(dials) or default_dials(sections)
    if len(dials) != 2:
        raise InputError(
            f"a map has two dials, {len(dials)} given",
            where="command line",
            field="KEY=A,B,C",
            remedy="name two settings with their values, for example world.shift=0,1 world.pairs=300,3000",
        )
    x, y = dials
    arms = [arm for arm in ARMS if arm in sections["study"].arms]
    if len(arms) < 2:
        remedy = f"name two of {', '.join(ARMS)}"
        raise InputError("a map compares arms", where="settings", field="study.arms", remedy=remedy)
    rows = rows_of(sections, x, y, arms)
    runs = run_rows("map", list(rows.values()), task, sections, directory, command, console)
    places = places_of(rows, runs, arms)
    known = _foresight(directory, rows, places)
    unit = "pass@1" if task.verified else "gold"
    record = {
        "task": task.name,
        "dials": [{"name": dial.name, "values": list(dial.values)} for dial in (x, y)],
        "arms": arms,
        "summary": {pick: summary(places, pick) for pick in PICKS},
        "places": [_place_json(place, x, y) for place in places],
        "foresight": {arm: [vars(f) | {"word": f.word} for f in found] for arm, found in known.items()},
        "boundary": {pick: boundary(lead(places, *LEAD, pick)) for pick in ("selected", "end")},
        "metric": "test/sampled/gold",
        "unit": unit,
        "seeds": list(sections["study"].seeds),
        "seconds": round(time.perf_counter() - began, 1),
        "command": command,
    }
    write_json(directory / "map.json", record)
    save(map_page(x, y, places, task, unit, foresight_parts(known), command), directory / "map.html")
    for arm, found in known.items():
        console.print(sentence(display(arm), found), markup=False)
    for said in record["summary"].values():
        console.print(f"{said}.", markup=False)
    console.print(f"\n{record['seconds']:.0f} s. Page: {directory / 'map.html'}", markup=False)
    return record


def _foresight(
    directory: Path, rows: Mapping[tuple[int, int, str], Row], places: Sequence[Place]
) -> dict[str, list[Foresight]]:
    """For each arm, what the figures of the probe knew of its collapses; empty without probes."""
    probes = read_probes(directory)
    found: dict[str, list[Foresight]] = {}
    for arm in places[0].arms if probes else ():
        seen = []
        for place in places:
            name = rows[place.x, place.y, arm].name
            marks = collapse_marks(place.arms[arm], place.sft, METRIC)
            for cell, collapsed in zip(place.arms[arm].cells, marks):
                figures = figures_of(probes[name, cell.seed])
                seen.append(Observation(figures, bool(collapsed), f"{place.x}/{place.y}", f"{place.x}/{cell.seed}"))
        found[arm] = foresight(seen)
    return found


def _place_json(place: Place, x: Dial, y: Dial) -> dict[str, Any]:
    return {
        x.name: x.values[place.x],
        y.name: y.values[place.y],
        "wins": {
            pick: {
                "arm": win.arm,
                "next": win.next,
                "by": interval_json(win.by),
                "seeds_ahead": win.seeds,
                "best": list(win.best),
                "certain": win.certain,
            }
            for pick, win in place.wins.items()
        },
        "collapsed": dict(place.collapsed),
        "sft": row_json(place.sft, None)["picks"]["selected"],
        "arms": {arm: row_json(run, place.sft) for arm, run in place.arms.items()},
    }
