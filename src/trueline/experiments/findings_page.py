"""The findings as JSON, as a page and as the table of docs/findings.md."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from trueline.experiments.findings import Finding, Part
from trueline.study.document import Bar, Document, Mark, Section, Table, Text, interval_text

__all__ = ["finding_json", "findings_page", "markdown", "tally"]

LEAD = (
    "Each finding is one declared difference, oriented so that the paper's direction is positive. Reproduced and "
    "reversed: separated from 0 at 5% after Holm over the eight. Not reproduced: the whole interval lies below the "
    "smallest difference that matters. Undecided: these runs do not say."
)


def tally(findings: Sequence[Finding]) -> str:
    """How many of each."""
    counts = Counter(f.outcome for f in findings)
    order = ("reproduced", "not reproduced", "reversed", "undecided")
    return ", ".join(f"{counts[word]} {word}" for word in order if counts[word])


def finding_json(finding: Finding) -> dict[str, Any]:
    """A row of findings.json."""
    effect = finding.effect
    finite = effect is not None and effect.finite
    return {
        "id": finding.id,
        "claim": finding.claim,
        "declared": finding.declared,
        "outcome": finding.outcome,
        "effect": None if effect is None else effect.mean,
        "ci95": [effect.low, effect.high] if finite else [None, None],
        "unit": finding.unit,
        "margin": finding.margin,
        "p": None if effect is None else effect.p,
        "p_adjusted": finding.p_adjusted,
        "seeds": finding.seeds,
        "parts": [_part_json(part) for part in finding.parts],
        "command": finding.command,
    }


def _part_json(part: Part) -> dict[str, Any]:
    bounds = [part.interval.low, part.interval.high] if part.interval.finite else [None, None]
    mean = part.interval.mean if np.isfinite(part.interval.mean) else None
    return {"what": part.what, "effect": mean, "ci95": bounds, "unit": part.unit, "paper_sign": part.paper}


def findings_page(findings: Sequence[Finding], threat: str, command: str) -> Document:
    """One table of the eight, then each with its parts."""
    digits = 3
    rows = [
        (
            f.id,
            Mark(f.outcome) if f.outcome in ("reproduced", "reversed") else f.outcome,
            interval_text(f.effect, digits),
            f.unit,
            f"{f.p_adjusted:.3f}" if f.p_adjusted >= 0.001 else "< 0.001",
            str(f.seeds),
        )
        for f in findings
    ]
    table = Table(("finding", "so", ">effect", "unit", ">p (Holm)", ">seeds"), rows)
    sections = [Section("The eight findings", [Text(LEAD, "note"), table])]
    sections += [_section(f) for f in findings]
    facts = (
        ("Findings", str(len(findings))),
        ("Seeds", f"at least {min(f.seeds for f in findings)}"),
    )
    title = f"Of eight findings of the paper, {tally(findings)} on the embedded worlds"
    return Document("findings", "arXiv 2404.10719", title, "", sections, facts, threat, command)


def _section(finding: Finding) -> Section:
    listed = [Part(finding.declared, finding.effect, finding.unit)] if finding.effect is not None else []
    listed += list(finding.parts)
    reach: dict[str, float] = {}
    for part in listed:
        if part.interval.finite:
            ends = (abs(part.interval.low), abs(part.interval.high))
            reach[part.unit] = max(reach.get(part.unit, 1e-9), *ends)
    rows = [
        (
            part.what,
            interval_text(part.interval, 3, sign=not part.level),
            Bar(part.interval, -reach[part.unit], reach[part.unit], 0.0) if part.interval.finite else "",
            part.unit,
            {1: "more", -1: "less", 0: ""}[part.paper],
        )
        for part in listed
    ]
    table = Table(("difference", ">mean [95%]", "", "unit", "paper says"), rows)
    return Section(f"{finding.id}: {finding.outcome}", [Text(finding.claim, "lead"), table])


def markdown(findings: Sequence[Finding]) -> str:
    """The table of docs/findings.md."""
    head = "| finding | the paper says | declared difference | effect [95%] | p (Holm) | seeds | so |\n"
    head += "| --- | --- | --- | --- | --- | --- | --- |\n"
    lines = [
        f"| {f.id} | {f.claim} | {f.declared} | {interval_text(f.effect, 3)} {f.unit} | {f.p_adjusted:.3f} | {f.seeds} "
        f"| **{f.outcome}** |"
        for f in findings
    ]
    return head + "\n".join(lines) + "\n"
