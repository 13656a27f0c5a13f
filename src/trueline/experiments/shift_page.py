"""What `trueline shift` found, as JSON and as a page: rows beside the paper's figures, and which differences agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from trueline.experiments.parts import PICKS, interval_json, row_json
from trueline.experiments.shift import Table
from trueline.experiments.shift_findings import NAMES, SHARES, Finding, key_of, sentence, tally
from trueline.study.comparisons import arm_interval
from trueline.study.diagnostics import collapse_marks
from trueline.study.document import Bar, Document, Figure, Fold, Mark, Section, Text, interval_text
from trueline.study.document import Table as Grid
from trueline.study.drawing import SERIES, TEXT, draw
from trueline.study.matrix import ArmRuns
from trueline.study.statistics import Interval

__all__ = ["record_of", "shift_page"]

COLUMNS = ("helpfulness", "harm", "safe", "refusal_benign", "helpfulness_benign", "refusal_harmful", "refusal", "gold")
"""Of the row tables and of the record, those that were measured."""
PICK_NAMES = {
    "selected": "at the checkpoint that the selection prompts pick",
    "proxy": "at the checkpoint that the proxy picks",
    "end": "at the end of training",
}


def record_of(table: Table, rows: Mapping[str, ArmRuns], sft: ArmRuns, findings: Sequence[Finding]) -> dict[str, Any]:
    """A table as JSON: rows with every pick, the paper's figures, findings, sentences."""
    metrics = [key_of(m) for m in (*_measured(rows), "kl", "kl_start", "length")]
    return {
        "name": table.name,
        "source": table.source,
        "question": table.question,
        "rows": [
            row_json(rows[row.name], sft, metrics)
            | {"base": row.base if row.based else "", "paper": dict(table.paper.get(row.name, {}))}
            for row in table.rows
        ],
        "findings": [_finding_json(f) for f in findings],
        "sentences": [sentence(group) for group in _by_claim(findings)],
        "tally": tally(findings),
        "scale": table.scale,
        "notes": list(table.notes),
    }


def _finding_json(f: Finding) -> dict[str, Any]:
    paper = f.claim.paper.get(f.metric)
    return {
        "what": f.claim.what,
        "a": f.claim.a,
        "b": f.claim.b,
        "less": list(f.claim.less) if f.claim.less else None,
        "metric": f.metric,
        "direction": f.direction,
        "paper": list(paper) if paper else None,
        "pick": f.claim.pick,
        "judged": interval_json(f.judged),
        "p_adjusted": f.p_adjusted,
        "p_table": f.p_table,
        "beside": interval_json(f.beside),
        "outcome": f.word,
        "firm": f.firm,
    }


def _by_claim(findings: Sequence[Finding]) -> list[list[Finding]]:
    groups: dict[str, list[Finding]] = {}
    for finding in findings:
        groups.setdefault(finding.claim.what, []).append(finding)
    return list(groups.values())


def _measured(rows: Mapping[str, ArmRuns]) -> list[str]:
    """The metrics that some row has; the refusal rate of texts where no judge knows of requests."""
    return [m for m in COLUMNS if any(row.figure(key_of(m)) is not None for row in rows.values())]


def shift_page(
    tables: Sequence[Table],
    rows: Mapping[str, ArmRuns],
    findings: Mapping[str, Sequence[Finding]],
    subject: str,
    threat: str,
    command: str,
) -> Document:
    """The page: a section a table."""
    everything = [f for group in findings.values() for f in group]
    seeds = len(rows["SFT"].cells)
    title = f"Distribution shift: {tally(everything)}"
    lead = (
        "Every row is trained at every seed with what comes before it shared. A difference agrees with the paper where "
        "it is separated from zero, corrected over the metrics of its pair of rows, and has the paper's sign; it "
        "disagrees where it is separated with the other sign; otherwise these runs do not say. Firmly: with the "
        "correction over the whole table as well. Intervals are 95% over seeds and prompts, without correction; those "
        "of the proxy's pick are over seeds alone."
    )
    facts = (("Seeds", str(seeds)), ("Rows", str(len(rows))), ("Differences looked at", str(len(everything))))
    sections = [_section(table, rows, findings[table.name]) for table in tables]
    return Document("shift", f"{subject} · {seeds} seeds", title, lead, sections, facts, threat, command)


def _section(table: Table, rows: Mapping[str, ArmRuns], findings: Sequence[Finding]) -> Section:
    own = {row.name: rows[row.name] for row in table.rows}
    metrics = _measured(own)
    picture = _picture(table.name, own)
    parts = [
        Text(f"{table.question} {tally(findings)}", "lead"),
        *(Text(sentence(group)) for group in _by_claim(findings)),
        _row_grid(table, own, rows["SFT"], metrics, "selected"),
        *([picture] if picture else []),
        _finding_grid(findings),
        *(Fold(f"Rows {PICK_NAMES[pick]}", (_row_grid(table, own, rows["SFT"], metrics, pick),)) for pick in PICKS[1:]),
        *(Text(note, "note") for note in table.notes),
    ]
    return Section(f"{table.title} ({table.source})", parts)


def _row_grid(table: Table, own: Mapping[str, ArmRuns], sft: ArmRuns, metrics: Sequence[str], pick: str) -> Grid:
    """Rows with every metric, KL to where training started, the paper's figures, and a mark of collapse."""
    paper = list(dict.fromkeys(name for figures in table.paper.values() for name in figures))
    body = []
    for row in table.rows:
        runs, known = own[row.name], table.paper.get(row.name, {})
        fallen = 0 if row.name == "SFT" else sum(collapse_marks(runs, sft, key_of("gold")))
        body.append(
            (
                row.name,
                *(_shown(runs, metric, pick) for metric in metrics),
                _kl_to_start(runs, pick),
                *(f"{known[name]:g}".replace("-", "−") if name in known else "–" for name in paper),
                Mark(f"ends below SFT {fallen}/{len(runs.cells)}" if fallen else ""),
            )
        )
    columns = ("row", *(f">{NAMES[m]}{', %' if m in SHARES else ''}" for m in metrics), ">KL to start")
    columns += (*(f">paper: {NAMES[name]}" for name in paper), "")
    return Grid(columns, body, f"{PICK_NAMES[pick].capitalize()}. {table.scale.capitalize()}.")


def _shown(runs: ArmRuns, metric: str, pick: str) -> str:
    found = arm_interval(runs, key_of(metric), pick)
    if found is None:
        return "–"
    scale, digits = (100.0, 1) if metric in SHARES else (1.0, 2)
    interval = Interval(*(scale * v for v in (found[0].mean, found[0].low, found[0].high)), 0.0, 1.0, 1.0)
    return interval_text(interval, digits, sign=False)


def _kl_to_start(runs: ArmRuns, pick: str) -> float | None:
    """Mean over seeds; rows that begin at SFT have it as their KL to SFT."""
    found = runs.figure(key_of("kl_start"), pick) or runs.figure(key_of("kl"), pick)
    return None if found is None else float(np.mean(found))


def _finding_grid(findings: Sequence[Finding]) -> Grid:
    reach: dict[str, float] = {}
    for f in findings:
        ends = [abs(v) for v in (f.judged.low, f.judged.high, f.judged.mean) if np.isfinite(v)]
        reach[f.metric] = max([reach.get(f.metric, 0.0), *ends])
    rows = []
    for f in findings:
        paper = f.claim.paper.get(f.metric)
        rows.append(
            (
                f.claim.what,
                NAMES[f.metric],
                interval_text(f.judged),
                Bar(f.judged, -reach[f.metric], reach[f.metric], 0.0),
                *(f"{p:.3f}" if p >= 0.001 else "< 0.001" for p in (f.p_adjusted, f.p_table)),
                interval_text(f.beside),
                f"{paper[0] - paper[1]:+.3g}".replace("-", "−") if paper else ("more" if f.direction > 0 else "less"),
                Mark(f.word) if f.word == "disagrees" else f.word,
            )
        )
    columns = ("difference", "of", ">here", "", ">p (pair)", ">p (table)", ">at the other checkpoint", ">paper", "so")
    return Grid(
        columns,
        rows,
        "Shares as shares here, in percent in the paper; bars of one metric have one scale. p is Holm's over the "
        "metrics of the pair of rows, and over the table. The other checkpoint is the last one, or, of the rows with "
        "DPO-Iter, which are judged there, the selected one.",
    )


def _picture(name: str, own: Mapping[str, ArmRuns]) -> Figure | None:
    """Helpfulness where it is harmless against safety where it is not: over-refusal is at the lower right."""
    points = {}
    for row, runs in own.items():
        x, y = runs.figure(key_of("safe")), runs.figure(key_of("helpfulness_benign"))
        if x is not None and y is not None:
            points[row] = (100 * float(np.mean(x)), float(np.mean(y)))
    if not points:
        return None

    def paint(axes: Any) -> None:
        for i, (row, (x, y)) in enumerate(points.items()):
            colour = SERIES[
                3 if row.startswith("PPO") else 1 if row.startswith("DPO-Iter") else 0 if "DPO" in row else 6
            ]
            axes.plot([x], [y], marker="o", markersize=5, color=colour, markeredgewidth=0.0, clip_on=False)
            axes.annotate(str(i + 1), (x, y), xytext=(4, 3), textcoords="offset points", fontsize=8, color=TEXT)

    legend = "; ".join(f"{i + 1} {row}" for i, row in enumerate(points))
    svg = draw(
        f"{name}-plane",
        "Help against safety",
        paint,
        xlabel="safe answers to harmful requests, %",
        ylabel="helpfulness on harmless requests",
    )
    return Figure("Help against safety", svg, f"Means over seeds, selected checkpoints. {legend}.")


def _colour(row: str) -> str:
    """One colour a method."""
    return SERIES[next((i for i, arm in enumerate(("PPO", "DPO-Iter", "DPO")) if row.startswith(arm)), 3)]
