"""What the rows of `trueline judge` amount to: pass@k, n@k, what went wrong; as plain values and as text."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console

from trueline.commands.judged_rows import JudgedRow
from trueline.data.code_formats import Problem
from trueline.evaluation.passk import (
    Estimate,
    Trial,
    bootstrap,
    breakdown,
    clustered_n_at_k,
    n_at_k,
    pass_at_ks,
    tally,
)

__all__ = ["KS", "show", "summarise"]

KS = (1, 5, 10, 100, 1000)


def summarise(rows: Sequence[JudgedRow], problems: Sequence[Problem], *, submit: int, cluster: bool) -> dict[str, Any]:
    """The metrics of docs/code.md over the problems that have samples; `problems` are those of the rows, in order.

    A k above the fewest judged samples of any problem is left out, and `notes` says so; n@k is over the problems that
    have public tests, all judged samples of a problem being its k.
    """
    ids = [problem.task_id for problem in problems]
    counts = tally((task, row.verdict) for task, row in zip(ids, rows))
    found = pass_at_ks(counts.values(), KS)
    parts = breakdown((row.verdict, row.error) for row in rows)
    trials: dict[str, list[Trial]] = {}
    for task, row in zip(ids, rows):
        if row.public is not None and row.verdict != "infrastructure":
            trials.setdefault(task, []).append(Trial(row.public, row.verdict == "pass", row.cluster))
    return {
        "problems": len(counts),
        "samples": len(rows),
        "pass@k": {str(k): _plain(estimate) for k, estimate in found.items()},
        "n@k": _submitted(trials, submit, n_at_k),
        "clustered_n@k": _submitted(trials, submit, clustered_n_at_k) if cluster else None,
        "breakdown": {"judged": parts.judged, "shares": dict(parts.shares)},
        "infrastructure": parts.infrastructure,
        "notes": _notes(counts, found),
    }


def _submitted(trials: Mapping[str, Sequence[Trial]], submit: int, metric: Any) -> dict[str, Any] | None:
    if not trials:
        return None
    ks = [len(found) for found in trials.values()]
    estimate = bootstrap([metric(found, submit) for found in trials.values()])
    return {"n": submit, "k": [min(ks), max(ks)], **_plain(estimate)}


def _plain(estimate: Estimate) -> dict[str, Any]:
    bounds = {name: getattr(estimate, name) for name in ("low", "high")}
    known = {name: value if math.isfinite(value) else None for name, value in bounds.items()}
    return {"mean": estimate.mean, **known, "problems": estimate.problems}


def _notes(counts: Mapping[str, Any], found: Mapping[int, Estimate]) -> list[str]:
    most, fewest = max(t.n for t in counts.values()), min(t.n for t in counts.values())
    left_out = [k for k in KS if fewest < k <= most]
    notes = []
    if left_out:
        short = sum(t.n < left_out[0] for t in counts.values())
        named = ", ".join(map(str, left_out))
        notes.append(f"k of {named} left out: {short} of {len(counts)} problems have fewer judged samples")
    unjudged = sum(t.n == 0 for t in counts.values())
    if unjudged:
        notes.append(f"no pass@k: of {unjudged} problems no sample could be judged")
    return notes


# --- text ----------------------------------------------------------------------------------------------------------


def show(console: Console, summary: Mapping[str, Any]) -> None:
    """Print a summary, with what the command knows beside it."""
    for line in _lines(summary):
        console.print(line, markup=False, emoji=False, soft_wrap=True)


def _lines(summary: Mapping[str, Any]) -> Iterator[str]:
    for k, estimate in summary["pass@k"].items():
        yield _estimate(f"pass@{k}", estimate)
    for name, label in (("n@k", ""), ("clustered_n@k", " clustered")):
        if found := summary[name]:
            low, high = found["k"]
            k = low if low == high else f"{low}-{high}"
            yield _estimate(f"{found['n']}@{k}{label}", found) + ", by the public tests"
    shares = summary["breakdown"]["shares"]
    shown = ", ".join(f"{name} {100 * share:.1f}%" for name, share in shares.items() if share or name == "pass")
    yield f"{summary['breakdown']['judged']} samples of {_problems(summary['problems'])} judged: {shown or 'none'}"
    if summary["infrastructure"]:
        yield (
            f"not judged, for the machinery failed: {summary['infrastructure']}. These count nowhere; the same command "
            "judges them again"
        )
    if summary["problems_without_samples"]:
        yield f"without samples, and in none of these numbers: {_problems(summary['problems_without_samples'])}"
    if summary["dropped_rows"]:
        yield f"bad rows dropped: {summary['dropped_rows']}"
    yield from summary["notes"]
    yield f"tier {', '.join(summary['tiers'])}; {len(summary['incidents'])} incidents"
    yield from (f"  {incident}" for incident in summary["incidents"][:20])
    if summary["judged_now"]:
        yield (
            f"{summary['judged_now']} samples in {summary['seconds']:.1f} s, {summary['samples_per_second']:.0f} a "
            f"second; {summary['programs_run']} programs run, equal ones once"
        )
    yield f"rows: {summary['out']}"


def _estimate(label: str, found: Mapping[str, Any]) -> str:
    if found["low"] is None:
        return f"{label:<20} {found['mean']:.4f} (one problem: no interval)"
    low, high, problems = found["low"], found["high"], found["problems"]
    return f"{label:<20} {found['mean']:.4f}  95% {low:.4f} to {high:.4f} over {_problems(problems)}"


def _problems(count: int) -> str:
    return f"{count} problem" + "s" * (count != 1)
