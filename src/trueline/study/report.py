"""`report.json` and `report.html` of a run directory, rebuilt at any time without a model."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from trueline.study.comparisons import Comparison, arm_interval, compare, controlled, over_prompts
from trueline.study.diagnostics import collapse_marks, diagnose
from trueline.study.judges import judge_rows
from trueline.study.matrix import SCHEMA, ArmRuns, Study, Variant, load
from trueline.study.page import render
from trueline.study.programs import programs_json
from trueline.study.tiers import tier_keys
from trueline.study.verdict import Verdict, judge

__all__ = ["build", "summarize"]

COSTS = ("seconds", "flops", "sampled_tokens", "trained_tokens", "reward_calls", "labels", "peak_memory_bytes")


def build(directory: Path) -> dict[str, Any]:
    """Judges a run directory and writes `report.json` and `report.html` into it; returns what the JSON holds.

    The same run directory gives the same bytes. InputError where the directory is not a finished study.
    """
    directory = Path(directory)
    study = load(directory)
    verdict = judge(study)
    report = summarize(study, verdict)
    _replace(directory / "report.json", json.dumps(report, indent=1, allow_nan=False) + "\n")
    _replace(directory / "report.html", render(study, verdict))
    return report


def summarize(study: Study, verdict: Verdict) -> dict[str, Any]:
    """What `report.json` holds. `arms` and `comparisons` are the primary variant's; infinite bounds are null."""
    manifest, variants = study.manifest, [_variant(study, variant) for variant in study.variants]
    primary = next(v for v in variants if v["primary"])
    judged = asdict(verdict) | {"best": list(verdict.best)}
    return {
        "schema": SCHEMA,
        "task": manifest.task,
        "world": manifest.world,
        "seeds": list(manifest.seeds),
        "arms": primary["arms"],
        "comparisons": primary["comparisons"],
        "verdict": {k: judged[k] for k in ("answer", "best", "cheapest", "metric", "margin", "text")},
        "variants": variants,
        "over_prompts": [_comparison(row) for row in over_prompts(study, study.primary)],
        "diagnostics": [asdict(flag) for flag in diagnose(study)],
        "threats": list(manifest.threats),
        "tuning": dict(manifest.tuning),
        "probes": {name: list(rows) for name, rows in manifest.probes.items()},
        "gates": [dict(gate) for gate in manifest.gates],
        "incidents": list(study.incidents),
        "judges": [asdict(row) for row in judge_rows(manifest.judges, manifest.gold_name)],
        "command": manifest.command,
        "own_data_command": manifest.own_data_command,
        **programs_json(study),
    }


def _variant(study: Study, variant: Variant) -> dict[str, Any]:
    rows = (*compare(study, variant), *controlled(study, variant))
    return {
        "name": variant.name,
        "label": variant.label,
        "primary": variant.primary,
        "arms": [_arm(study, variant, arm) for arm in variant.arms.values()],
        "comparisons": [_comparison(row) for row in rows],
    }


def _arm(study: Study, variant: Variant, arm: ArmRuns) -> dict[str, Any]:
    keys = {key for cell in arm.cells for key in cell.figures.get("selected", {})}
    keys = sorted(keys | (tier_keys(arm) if study.manifest.by_tests else set()))
    picks = {pick: _pick(arm, pick) for pick in ("end", "proxy", "selected")}
    return {
        "name": arm.name,
        "variant": variant.name,
        "metrics": {key: value for key in keys if (value := _metric(arm, key)) is not None},
        "cost": {name: arm.charged(name) for name in COSTS},
        "picks": picks,
        "collapsed": list(collapse_marks(arm, variant.arms.get("sft"), study.manifest.metric)),
    }


def _metric(arm: ArmRuns, key: str) -> dict[str, Any] | None:
    estimate = arm_interval(arm, key)
    if estimate is None:
        return None
    interval, per_seed = estimate
    return {"mean": interval.mean, "ci95": [_number(interval.low), _number(interval.high)], "per_seed": per_seed}


def _pick(arm: ArmRuns, pick: str) -> dict[str, Any]:
    """Steps per seed and the mean of every figure that all seeds have at this pick."""
    keys = sorted({key for cell in arm.cells for key in cell.figures.get(pick, {})})
    values = {key: arm.figure(key, pick) for key in keys}
    means = {key: float(np.mean(v)) for key, v in values.items() if v is not None}
    return {"steps": [cell.picks.get(pick) for cell in arm.cells], "metrics": means}


def _comparison(row: Comparison) -> dict[str, Any]:
    interval = row.interval
    return {
        "a": row.a,
        "b": row.b,
        "metric": row.metric,
        "difference": interval.mean if interval else None,
        "ci95": [_number(interval.low), _number(interval.high)] if interval else [None, None],
        "p_adjusted": row.p_adjusted,
        "family": row.family,
    }


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _replace(path: Path, text: str) -> None:
    """A reader sees the old file or the new one, never half of one."""
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8", newline="\n")
    os.replace(part, path)
