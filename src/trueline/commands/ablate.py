"""`trueline ablate`: one change at a time, the same seeds, intervals and corrected tests; what each key did."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from trueline.commands.experiment import run_rows, seeds_or
from trueline.experiments.ablations import DESIGNS, FLOOR, Ablation, Setting, ablation_of_keys, design_named
from trueline.experiments.contrasts import UNDECIDED, Effect, effects, sentence
from trueline.experiments.overoptimisation import overoptimisation_json
from trueline.experiments.overoptimisation_page import overoptimisation_parts
from trueline.experiments.parts import (
    curve_figure,
    effect_json,
    effect_table,
    gold_margin,
    mapping_text,
    row_json,
    row_table,
)
from trueline.experiments.rows import Row
from trueline.runs.cell import write_json
from trueline.study.document import Document, Fold, Section, Table, Text, save
from trueline.study.matrix import ArmRuns
from trueline.tasks.task import Task
from trueline.training.pages import arms

__all__ = ["DEFAULT_DESIGNS", "ablate", "designs_text"]

DEFAULT_DESIGNS = ("ladder", "batch", "norm", "reference", "value")
"""What `trueline ablate TASK` runs: the paper's Table 3, and the designs that separate what it mixes."""
SEEDS = 5


def ablate(
    asked: Sequence[str], task: Task, sections: Mapping[str, Any], directory: Path, command: str, console: Console
) -> dict[str, Any]:
    """Run the designs (or keys) that were asked for; writes ablation.json and ablation.html and returns the former."""
    began = time.perf_counter()
    sections = seeds_or(sections, SEEDS)
    setting = Setting(sections, task.verified)
    designs = _designs(asked, setting)
    # Rows say how many samples they draw: no cap cuts one of them short.
    free = dict(sections) | {"study": sections["study"].model_copy(update={"budget": 0.0})}
    rows = run_rows("ablate", _rows_of(designs), task, free, directory, command, console)
    unit = "pass@1" if task.verified else "gold"
    margin = gold_margin(sections["study"], rows["sft"], task.verified)
    found = {design.name: effects(_of(design, rows), design.contrasts, margin) for design in designs}
    record = {
        "task": task.name,
        "designs": [
            {
                "name": design.name,
                "question": design.question,
                "notes": list(design.notes),
                "rows": [
                    row_json(rows[_key(design, row)], rows["sft"])
                    | {"name": row.name, "settings": mapping_text(row.changes)}
                    for row in design.rows
                ],
                "effects": [effect_json(effect, unit) for effect in found[design.name]],
                **_more(design, rows),
            }
            for design in designs
        ],
        "metric": "test/sampled/gold",
        "unit": unit,
        "margin": margin,
        "seeds": list(sections["study"].seeds),
        "seconds": round(time.perf_counter() - began, 1),
        "command": command,
    }
    write_json(directory / "ablation.json", record)
    save(_page(designs, rows, found, task, unit, margin, command), directory / "ablation.html")
    for design in designs:
        console.print(f"\n{design.name}: {design.question}", markup=False)
        for effect in found[design.name]:
            console.print(f"  {sentence(effect, unit)}", markup=False)
    console.print(f"\n{record['seconds']:.0f} s. Page: {directory / 'ablation.html'}", markup=False)
    return record


def _designs(asked: Sequence[str], setting: Setting) -> list[Ablation]:
    keys = [name for name in asked if "." in name]
    named = [name for name in asked if "." not in name] or ([] if keys else list(DEFAULT_DESIGNS))
    designs = [design_named(name, setting) for name in named]
    return designs + ([ablation_of_keys(keys, setting, arms())] if keys else [])


def _more(design: Ablation, rows: Mapping[str, ArmRuns]) -> dict[str, Any]:
    """What a design has beside its rows and effects."""
    if design.name != "overoptimisation":
        return {}
    return {"overoptimisation": overoptimisation_json(_of(design, rows), FLOOR)}


def _key(design: Ablation, row: Row) -> str:
    """Rows of different designs may share a name; SFT is one for all."""
    return row.name if row.name == "sft" else f"{design.name}: {row.name}"


def _rows_of(designs: Sequence[Ablation]) -> list[Row]:
    """Every row of every design, and SFT, which all are seen beside."""
    rows = {"sft": Row("sft", "sft")}
    for design in designs:
        rows |= {_key(design, row): replace(row, name=_key(design, row)) for row in design.rows}
    return list(rows.values())


def _of(design: Ablation, rows: Mapping[str, ArmRuns]) -> dict[str, ArmRuns]:
    """The design's own rows under the names that it gives them."""
    return {row.name: replace(rows[_key(design, row)], name=row.name) for row in design.rows}


def _page(
    designs: Sequence[Ablation],
    rows: Mapping[str, ArmRuns],
    found: Mapping[str, Sequence[Effect]],
    task: Task,
    unit: str,
    margin: float,
    command: str,
) -> Document:
    everything = [effect for group in found.values() for effect in group]
    counts = {word: sum(e.word == word for e in everything) for word in ("helped", "hurt", "no visible effect")}
    seeds = len(rows["sft"].cells)
    title = (
        f"{len(everything)} changes on {task.place}: {counts['helped']} helped, {counts['hurt']} hurt, "
        f"{counts['no visible effect']} had no visible effect, "
        f"{len(everything) - sum(counts.values())} are undecided"
    )
    sections = [_section(design, rows, found[design.name], unit) for design in designs]
    facts = (
        ("Seeds", str(seeds)),
        ("Rows", str(len(rows))),
        ("Smallest difference that matters", f"{margin:.3g} {unit}"),
        ("Designs", ", ".join(design.name for design in designs)),
    )
    lead = (
        "Differences are paired by seed and prompt, at the checkpoint that the selection prompts pick; intervals are "
        "95% over seeds and prompts, p is Holm's over the differences of a design. Undecided means that these runs do "
        "not say."
    )
    threats = task.threats()
    return Document("ablate", f"{task.name} · {seeds} seeds", title, lead, sections, facts, threats[0], command)


def _section(design: Ablation, rows: Mapping[str, ArmRuns], found: Sequence[Effect], unit: str) -> Section:
    own = _of(design, rows)
    said = [Text(sentence(effect, unit)) for effect in found if effect.word != UNDECIDED]
    rest = [Text(sentence(effect, unit)) for effect in found if effect.word == UNDECIDED]
    curve = curve_figure(
        f"curve-{design.name}",
        "Whole curves",
        [row for row in own.values() if row.name != "sft"],
        design.x,
        unit,
        "Mean over seeds at each checkpoint. The end of a line is the end of training.",
    )
    settings = Table(
        ("row", "arm", "settings that are not the task's own"),
        [(row.name, row.arm, mapping_text(row.changes)) for row in design.rows],
    )
    parts = [
        Text(design.question, "lead"),
        *said,
        *([Fold(f"Undecided here, {len(rest)} of {len(found)}", rest)] if rest else []),
        effect_table(found),
        row_table(list(own.values()), rows["sft"], unit),
        *(overoptimisation_parts(own, FLOOR, unit) if design.name == "overoptimisation" else []),
        *([curve] if curve else []),
        *(Text(note, "note") for note in design.notes),
        Fold("Settings of the rows", (settings,)),
    ]
    return Section(design.name.capitalize(), parts)


def designs_text() -> str:
    """The designs with their first lines, for `--help`."""
    return "; ".join(f"{name}: {(f.__doc__ or '').strip().splitlines()[0]}" for name, f in DESIGNS.items())
