"""Reads a run directory into frozen nouns: a study of variants, arms and cells, and score matrices `[seed, prompt]`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from trueline.errors import InputError
from trueline.runs.cell import read_jsonl
from trueline.study.statistics import Array, sample_means

__all__ = ["ArmRuns", "Cell", "Checkpoint", "Manifest", "Study", "Variant", "load", "paired", "read_cell"]

SCHEMA = 1
STAGE = "stage:"  # index rows of stages (SFT, pairs, reward model) are not arms
REMEDY = "point at a directory that `trueline study` wrote, or finish it with --resume"


@dataclass(frozen=True)
class Manifest:
    """`manifest.json`: what was asked, on what, and what the answer holds for."""

    task: str
    world: str
    seeds: tuple[int, ...]
    arms: tuple[str, ...]
    metric: str
    margin: float | Mapping[str, float]
    gold: Mapping[str, Any]
    command: str
    own_data_command: str
    threats: tuple[str, ...]
    model: Mapping[str, Any] = field(default_factory=dict)
    budget: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    objectives: Mapping[str, str] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    tuning: Mapping[str, Any] = field(default_factory=dict)
    judges: tuple[Any, ...] = ()
    sandbox: Mapping[str, Any] = field(default_factory=dict)
    pairs: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    probes: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    """Variant -> what was measured before training, a row per seed (`study/probes.py`)."""
    gates: tuple[Mapping[str, Any], ...] = ()
    """What had to hold in every run (docs/preflight.md), each where it came closest to failing."""

    @property
    def by_tests(self) -> bool:
        """Whether gold is what hidden tests say of a program."""
        return self.gold.get("kind") == "tests"

    @property
    def gold_name(self) -> str:
        """What a reader calls the metric of the verdict: the gold of one program, over programs, is pass@1."""
        return "pass@1" if self.by_tests else self.metric.rsplit("/", 1)[1]


@dataclass(frozen=True)
class Checkpoint:
    """One evaluated point of a training curve; what was spent is counted from the start of the arm."""

    step: int
    flops: float
    sampled_tokens: int
    trained_tokens: int
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Cell:
    """One arm trained with one seed. `scores[(pick, split, decoding)][prompt][name]` is a list over samples."""

    arm: str
    seed: int
    address: str
    curve: tuple[Checkpoint, ...]
    picks: Mapping[str, int]
    figures: Mapping[str, Mapping[str, float]]
    scores: Mapping[tuple[str, str, str], Mapping[str, Mapping[str, Sequence[float]]]]
    samples: tuple[Mapping[str, Any], ...]
    own: Mapping[str, float]
    charged: Mapping[str, float]
    collapsed: bool
    analytic_kl: float | None = None


@dataclass(frozen=True)
class ArmRuns:
    """The cells of one arm, one per seed in the study's order."""

    name: str
    cells: tuple[Cell, ...]
    _tables: dict[tuple[str, str], Any] = field(default_factory=dict, repr=False, compare=False)  # what `table` made

    def figure(self, key: str, pick: str = "selected") -> list[float] | None:
        """A figure per seed, None unless every seed has it."""
        values = [cell.figures.get(pick, {}).get(key) for cell in self.cells]
        return [float(v) for v in values] if all(v is not None and np.isfinite(v) for v in values) else None

    def table(self, key: str, pick: str = "selected") -> tuple[tuple[str, ...], Array] | None:
        """Prompt ids and the matrix `[seed, prompt]` of a metric key, from the raw scores; None where there are none.

        Only prompts that every seed scored with a finite number are kept.
        """
        if (key, pick) not in self._tables:
            self._tables[key, pick] = self._table(key, pick)
        return self._tables[key, pick]

    def _table(self, key: str, pick: str) -> tuple[tuple[str, ...], Array] | None:
        split, decoding, name = key.split("/", 2)
        tables = [cell.scores.get((pick, split, decoding), {}) for cell in self.cells]
        prompts = [p for p in tables[0] if all(name in table.get(p, {}) for table in tables)]
        if not prompts:
            return None
        means = sample_means([[table[p][name] for p in prompts] for table in tables])
        kept = np.isfinite(means).all(axis=0)
        return (tuple(p for p, keep in zip(prompts, kept) if keep), means[:, kept]) if kept.any() else None

    def curve(self, key: str) -> list[list[tuple[Checkpoint, float]]]:
        """Per seed, the checkpoints that have this metric, with its value."""
        return [
            [(point, float(point.metrics[key])) for point in cell.curve if _finite(point.metrics.get(key))]
            for cell in self.cells
        ]

    def charged(self, name: str) -> float:
        """Mean over seeds of what the arm is charged with; of memory, which does not add up, the largest."""
        values = [float(cell.charged.get(name) or 0.0) for cell in self.cells]
        return max(values) if name == "peak_memory_bytes" else float(np.mean(values))

    def own(self, name: str) -> float:
        """As `charged`, of what this arm alone spent."""
        values = [float(cell.own.get(name) or 0.0) for cell in self.cells]
        return max(values) if name == "peak_memory_bytes" else float(np.mean(values))


@dataclass(frozen=True)
class Variant:
    """One setting of the world (shifted, no shift) with the arms that ran in it."""

    name: str
    label: str
    primary: bool
    arms: Mapping[str, ArmRuns]


@dataclass(frozen=True)
class Study:
    """A run directory in memory."""

    manifest: Manifest
    variants: tuple[Variant, ...]
    incidents: tuple[str, ...] = ()
    """What befell the run's own machinery on the way: workers that died, machines that were lost, other versions."""

    @property
    def primary(self) -> Variant:
        return next(v for v in self.variants if v.primary)

    @property
    def trained_here(self) -> bool:
        """Whether the arms were trained here; what a checkpoint from elsewhere cost is not known."""
        return self.manifest.budget.get("rule") != "unknown"

    @cached_property
    def gold_sd(self) -> float | None:
        """Standard deviation of single SFT responses' gold scores, within seeds; the unit of a relative margin."""
        sft = self.primary.arms.get("sft")
        if sft is None:
            return None
        split, decoding, name = self.manifest.metric.split("/", 2)
        tables = [cell.scores.get(("selected", split, decoding), {}) for cell in sft.cells]
        pools = [[v for row in t.values() for v in row.get(name, ()) if _finite(v)] for t in tables]
        return float(np.sqrt(np.mean([np.var(p, ddof=1) for p in pools]))) if all(len(p) > 1 for p in pools) else None

    @cached_property
    def margin(self) -> float:
        """The smallest difference that matters, in units of the metric."""
        margin = self.manifest.margin
        if isinstance(margin, Mapping):
            return float(margin["absolute"])
        if self.gold_sd is None:
            reason = "a margin in standard deviations of SFT's gold needs the arm sft and its scores"
            raise InputError(reason, where="manifest.json", field="margin", remedy="add the arm sft")
        return float(margin) * self.gold_sd


def paired(a: ArmRuns, b: ArmRuns, key: str, pick: str = "selected") -> Array | None:
    """`[seed, prompt]` of a - b over the prompts that both scored, None where one has no raw scores of this metric."""
    left, right = a.table(key, pick), b.table(key, pick)
    if left is None or right is None:
        return None
    column = {prompt: j for j, prompt in enumerate(right[0])}
    shared = [(i, column[prompt]) for i, prompt in enumerate(left[0]) if prompt in column]
    if not shared:
        reason = f"{a.name} and {b.name} were scored on different prompts"
        raise InputError(reason, where="scores.jsonl", field=key, remedy=REMEDY)
    i, j = (list(column) for column in zip(*shared))
    return left[1][:, i] - right[1][:, j]


def load(directory: Path) -> Study:
    """Reads a run directory. InputError where a file is missing, broken, or of another schema."""
    directory = Path(directory)
    raw = _json(directory / "manifest.json")
    if not isinstance(raw, dict) or raw.get("schema") != SCHEMA:
        found = raw.get("schema") if isinstance(raw, dict) else type(raw).__name__
        reason = f"this version reads schema {SCHEMA}, the file has {found!r}"
        raise InputError(reason, where=str(directory / "manifest.json"), field="schema", remedy=REMEDY)
    manifest = _manifest(raw, directory / "manifest.json")
    index = _json(directory / "index.json")
    if not isinstance(index, dict) or not isinstance(index.get("cells"), list):
        raise InputError("not a list", where=str(directory / "index.json"), field="cells", remedy=REMEDY)
    rows = [row for row in index["cells"] if not str(row.get("arm")).startswith(STAGE)]
    addresses = {(row.get("variant"), row.get("arm"), row.get("seed")): row.get("cell") for row in rows}
    variants = tuple(_variant(directory, manifest, spec, addresses) for spec in raw["variants"])
    if sum(v.primary for v in variants) != 1:
        where = str(directory / "manifest.json")
        raise InputError("exactly one variant must be the primary one", where=where, field="variants", remedy=REMEDY)
    return Study(manifest, variants, _incidents(directory))


def _incidents(directory: Path) -> tuple[str, ...]:
    """Each with how often it happened."""
    path = directory / "incidents.jsonl"
    rows = list(read_jsonl(path)) if path.exists() else []
    told = Counter(": ".join([str(row["what"]), *row.get("changes", ())]) for row in rows)
    return tuple(what if times == 1 else f"{what} ({times} times)" for what, times in told.items())


def _manifest(raw: Mapping[str, Any], path: Path) -> Manifest:
    fields = {name: raw[name] for name in Manifest.__dataclass_fields__ if name in raw}
    for name in ("seeds", "arms", "threats", "judges"):
        if isinstance(fields.get(name), list):
            fields[name] = tuple(fields[name])
    try:
        manifest = Manifest(**fields)
        names = [spec["name"] for spec in raw["variants"]]
    except (KeyError, TypeError) as error:
        raise InputError(f"incomplete: {error}", where=str(path), remedy=REMEDY) from error
    if not (manifest.seeds and manifest.arms and names):
        raise InputError("no seed, arm or variant", where=str(path), field="seeds, arms, variants", remedy=REMEDY)
    if manifest.metric.count("/") < 2:
        reason = f"{manifest.metric!r} is not <split>/<decoding>/<name>"
        raise InputError(reason, where=str(path), field="metric", remedy=REMEDY)
    return manifest


def _variant(directory: Path, manifest: Manifest, spec: Mapping[str, Any], addresses: Mapping) -> Variant:
    arms = {}
    for arm in spec.get("arms") or manifest.arms:
        missing = [s for s in manifest.seeds if not addresses.get((spec["name"], arm, s))]
        if missing:
            reason = f"no cell for arm {arm!r} and seeds {missing} in variant {spec['name']!r}"
            raise InputError(reason, where=str(directory / "index.json"), field="cells", remedy=REMEDY)
        cells = (read_cell(directory / "cells", arm, s, addresses[(spec["name"], arm, s)]) for s in manifest.seeds)
        arms[arm] = ArmRuns(arm, tuple(cells))
    return Variant(spec["name"], spec.get("label", spec["name"]), bool(spec.get("primary")), arms)


def read_cell(cells: Path, arm: str, seed: int, address: str) -> Cell:
    """The evaluated cell at an address, called `arm`. InputError where a file is missing or of another schema."""
    folder = cells / address
    evaluation, cost, clock = (_json(folder / f"{name}.json") for name in ("evaluation", "cost", "clock"))
    try:
        return Cell(
            arm=arm,
            seed=seed,
            address=address,
            curve=tuple(Checkpoint(**{k: p[k] for k in Checkpoint.__dataclass_fields__}) for p in evaluation["curve"]),
            picks=evaluation["picks"],
            figures=evaluation["figures"],
            scores=_scores(_rows(folder / "scores.jsonl")),
            samples=tuple(_rows(folder / "samples.jsonl")),
            own=cost["own"] | clock["own"],
            charged=cost["charged"] | clock["charged"],
            collapsed=bool(evaluation["collapsed"]),
            analytic_kl=evaluation.get("analytic_kl"),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"not a cell of this schema: {error!r}", where=str(folder), remedy=REMEDY) from error


def _scores(rows: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str, str], dict[str, dict[str, list[float]]]]:
    tables: dict[tuple[str, str, str], dict[str, dict[str, list[float]]]] = {}
    for row in rows:
        prompt = tables.setdefault((row["pick"], row["split"], row["decoding"]), {}).setdefault(str(row["prompt"]), {})
        for name, values in row.items():
            if isinstance(values, list):
                prompt.setdefault(name, []).extend(values)
    return tables


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and bool(np.isfinite(value))


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError("no such file", where=str(path), remedy=REMEDY) from None
    except (OSError, ValueError) as error:
        raise InputError(f"cannot be read as JSON: {error}", where=str(path), remedy=REMEDY) from error


def _rows(path: Path) -> list[dict[str, Any]]:
    rows, number = [], 0
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):  # noqa: B007 - the handler below names the line
                if line.strip():
                    rows.append(json.loads(line))
    except FileNotFoundError:
        raise InputError("no such file", where=str(path), remedy=REMEDY) from None
    except ValueError as error:
        raise InputError(f"cannot be read as JSON: {error}", where=f"{path}:{number}", remedy=REMEDY) from error
    return rows
