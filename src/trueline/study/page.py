"""Turns a judged study into one self-contained HTML page; every string from data or a model is escaped."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trueline.study.comparisons import CANDIDATES, Comparison, arm_interval, compare, controlled, over_prompts
from trueline.study.diagnostics import LOUD, Flag, collapse_marks, diagnose
from trueline.study.gates import allowed, measured
from trueline.study.judges import judge_rows
from trueline.study.matrix import ArmRuns, Study, Variant
from trueline.study.plots import MARKS, figures, slug
from trueline.study.probes import COLUMNS
from trueline.study.programs import programs
from trueline.study.statistics import Interval
from trueline.study.trials import trial_table
from trueline.study.verdict import CANNOT_TELL, NO_DIFFERENCE, Verdict, display

__all__ = ["render", "si", "visible"]

STRIP = 180
PROMPTS_SHOWN, PROMPTS_MORE = 2, 8


@dataclass(frozen=True)
class Strip:
    """Where an interval lies on its row's scale, in pixels from 0 to `STRIP`; without bounds only the mean is drawn."""

    mean: float
    low: float | None
    high: float | None
    reference: float | None


@dataclass(frozen=True)
class Cells:
    """One row of the arm table."""

    arm: str
    gold: Interval
    strip: Strip
    kl: float | None
    length: float | None
    collapsed: int


def render(study: Study, verdict: Verdict) -> str:
    """The page as text: no script, no request, style inline, the same bytes for the same study."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("trueline.study"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=visible,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"allowed": allowed, "measured": measured}
    environment.filters |= {"si": si, "show": display, "slug": slug, "signed": signed, "num": number, "secs": seconds}
    return environment.get_template("report.html").render(_context(study, verdict))


def visible(value: Any) -> Any:
    """Text with what cannot be seen spelled out, so that a reader sees what the model wrote: `⟨U+202E⟩`.

    Control, bidirectional, zero-width and private characters, and unpaired surrogates. Our own markup and values that
    are no text pass through.
    """
    if not isinstance(value, str) or hasattr(value, "__html__"):
        return value
    hidden = {c for c in value if c not in "\n\t" and unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")}
    return value.translate({ord(c): f"⟨U+{ord(c):04X}⟩" for c in hidden}) if hidden else value


def number(value: float | None, digits: int = 2) -> str:
    """A figure for a table; an en dash where there is none."""
    return (
        "–"
        if value is None or not np.isfinite(value)
        else f"{_no_minus_zero(value, digits):.{digits}f}".replace("-", "−")
    )


def signed(value: float | None, digits: int = 2) -> str:
    """As `number`, with its sign always shown."""
    return (
        "–"
        if value is None or not np.isfinite(value)
        else f"{_no_minus_zero(value, digits):+.{digits}f}".replace("-", "−")
    )


def _no_minus_zero(value: float, digits: int) -> float:
    """What is shown as zero has no sign of its own."""
    return round(value, digits) + 0.0


def si(value: float | None) -> str:
    """Three digits and an SI prefix: 1.5e12 is `1.50 T`."""
    if not value:
        return "0"
    power = int(min(max(np.floor(np.log10(abs(value)) / 3), 0), 6))
    return f"{value / 1000**power:.3g}{' ' if power else ''}{' kMGTPE'[power].strip()}"


def seconds(value: float) -> str:
    """A duration in the unit that a reader would use."""
    for limit, unit in ((90, "s"), (5400, "min")):
        if value < limit:
            return f"{value / (1 if unit == 's' else 60):.3g} {unit}"
    return f"{value / 3600:.3g} h"


def _context(study: Study, verdict: Verdict) -> dict[str, Any]:
    primary, metric = study.primary, study.manifest.metric
    rows = compare(study, primary)
    return {
        "m": study.manifest,
        "incidents": study.incidents,
        "verdict": verdict,
        "answer": _answer(verdict),
        "lead": verdict.lead.partition(f" in {study.manifest.world}"),
        "rest": verdict.text.removeprefix(verdict.lead).strip(),
        "primary": primary,
        "arms": primary.arms.values(),
        "table": _table(study, primary, metric),
        "scale": _scale(_estimates(primary, metric).values()),
        "variants": _beside_variants(study, metric),
        "plots": figures(study),
        "marks": {arm: MARKS.get(arm) for arm in primary.arms},
        "picks": [_picks(primary, arm, metric) for arm in primary.arms.values()],
        "others": _other_keys(primary, metric),
        "declared": [row for row in rows if row.family == "declared"],
        "exploratory": [row for row in rows if row.family != "declared"],
        "over_prompts": over_prompts(study, primary),
        "trained_here": study.trained_here,
        "controlled": _controlled(rows, controlled(study, primary)),
        "samples": _samples(primary),
        "growing": _growing(primary),
        "flags": _by_name(diagnose(study)),
        "behaviour": _behaviour(primary),
        "tuning": trial_table(study.manifest.tuning),
        "probes": study.manifest.probes,
        "probe_columns": COLUMNS,
        "judges": judge_rows(study.manifest.judges, study.manifest.gold_name),
        "split": metric.split("/")[0],
        "strip_width": STRIP,
        "prompts_shown": PROMPTS_SHOWN,
        "gold_name": study.manifest.gold_name,
        "gold_title": study.manifest.gold_name if study.manifest.by_tests else study.manifest.gold_name.capitalize(),
        "programs": programs(study),
        "loud": LOUD,
    }


def _answer(verdict: Verdict) -> str:
    words = {NO_DIFFERENCE: "No difference that matters", CANNOT_TELL: "Cannot tell"}
    return words.get(verdict.answer) or display(verdict.answer)


def _table(study: Study, variant: Variant, metric: str) -> list[Cells]:
    known = _estimates(variant, metric)
    scale = _scale(known.values())
    reference, stem = known.get("sft"), metric.rsplit("/", 1)[0]
    return [
        Cells(
            name,
            interval,
            _strip(interval, scale, reference),
            _mean(variant.arms[name], f"{stem}/kl"),
            _mean(variant.arms[name], f"{stem}/length"),
            _collapsed(variant, variant.arms[name], metric),
        )
        for name, interval in known.items()
    ]


def _estimates(variant: Variant, metric: str) -> dict[str, Interval]:
    estimates = {name: arm_interval(arm, metric) for name, arm in variant.arms.items()}
    return {name: estimate[0] for name, estimate in estimates.items() if estimate is not None}


def _scale(intervals: Iterable[Interval]) -> tuple[float, float]:
    ends = [v for i in intervals for v in (i.mean, i.low, i.high) if np.isfinite(v)]
    low, high = min(ends, default=0.0), max(ends, default=1.0)
    return (low, high) if high > low else (low - 1.0, high + 1.0)


def _strip(interval: Interval, scale: tuple[float, float], reference: Interval | None) -> Strip:
    def place(value: float) -> float:
        return round(6 + (STRIP - 12) * (value - scale[0]) / (scale[1] - scale[0]), 2)

    bounds = (place(interval.low), place(interval.high)) if interval.finite else (None, None)
    return Strip(place(interval.mean), *bounds, place(reference.mean) if reference else None)


def _beside_variants(study: Study, metric: str) -> dict[str, Any]:
    """Rows of arms that ran in more than one variant; one common scale, so that the rows can be compared by eye."""
    estimates = {v.name: _estimates(v, metric) for v in study.variants}
    scale = _scale(interval for arms in estimates.values() for interval in arms.values())
    rows = []
    for name in study.primary.arms:
        ran = [v for v in study.variants if name in estimates[v.name]]
        for variant in ran if len(ran) > 1 else ():
            gold, marks = (
                estimates[variant.name][name],
                collapse_marks(variant.arms[name], variant.arms.get("sft"), metric),
            )
            strip = _strip(gold, scale, estimates[variant.name].get("sft"))
            collapsed = 0 if name == "sft" else sum(marks)
            rows.append({"arm": name, "label": variant.label, "gold": gold, "strip": strip, "collapsed": collapsed})
    return {"rows": rows, "scale": scale}


def _collapsed(variant: Variant, arm: ArmRuns, metric: str) -> int:
    """In how many seeds the arm ends below SFT; SFT itself is what others are held against."""
    return 0 if arm.name == "sft" else sum(collapse_marks(arm, variant.arms.get("sft"), metric))


def _picks(variant: Variant, arm: ArmRuns, metric: str) -> dict[str, Any]:
    golds = {pick: arm.figure(metric, pick) or [] for pick in ("end", "proxy", "selected")}
    return {"arm": arm.name, "golds": golds, "collapsed": _collapsed(variant, arm, metric), "seeds": len(arm.cells)}


def _other_keys(variant: Variant, metric: str) -> dict[str, Any]:
    """Selected checkpoints under other decodings and prompts, beside the metric of the verdict."""
    name = metric.rsplit("/", 1)[1]
    measured = _measured(variant)
    keys = [metric, *sorted((k for k in measured - {metric} if k.endswith(f"/{name}")), key=_reading_order)]
    return {"keys": keys, "rows": {a: [arm_interval(arm, k) for k in keys] for a, arm in variant.arms.items()}}


def _measured(variant: Variant) -> set[str]:
    """The metric keys that any arm has at its selected checkpoint."""
    return {key for arm in variant.arms.values() for cell in arm.cells for key in cell.figures.get("selected", {})}


def _reading_order(key: str) -> tuple[int, str, bool]:
    """The test prompts first, then the other splits; sampled before greedy."""
    split, decoding, _ = key.split("/", 2)
    return (split != "test", split, decoding != "sampled")


def _behaviour(variant: Variant) -> dict[str, Any]:
    names = ("outside", "broken", "refusal_benign", "refusal_harmful", "helpfulness", "safety", "kl", "kl_k3", "proxy")
    measured = _measured(variant)
    kinds = sorted(k.removeprefix("test/sampled/") for k in measured if k.startswith("test/sampled/gold_"))
    names = [n for n in (*kinds, *names) if f"test/sampled/{n}" in measured]
    present = [n for n in names if any(arm.figure(f"test/sampled/{n}") for arm in variant.arms.values())]
    rows = {a: [_mean(arm, f"test/sampled/{n}") for n in present] for a, arm in variant.arms.items()}
    return {"names": present, "rows": rows, "shares": {"outside", "broken", "refusal_benign", "refusal_harmful"}}


def _controlled(selected: Sequence[Comparison], rows: Sequence[Comparison]) -> dict[str, Any]:
    """One row per pair, one column per way of holding something equal; the selected checkpoints stand first."""
    pairs: dict[tuple[str, str], dict[str, tuple[Comparison, str]]] = {}
    for row in rows:
        kind, _, nats = row.metric.partition(" at ")[2].partition(" (")
        pairs.setdefault((row.a, row.b), {})[kind] = (row, nats.rstrip(")"))
    for row in selected:
        if (row.a, row.b) in pairs:
            pairs[row.a, row.b]["selected"] = (row, "")
    kinds = sorted({kind for cells in pairs.values() for kind in cells}, key=_kind_order)
    return {"kinds": kinds, "rows": pairs}


def _kind_order(kind: str) -> tuple[int, float]:
    share = kind.removesuffix("% KL")
    return (2, float(share)) if share != kind else (0 if kind == "selected" else 1, 0.0)


def _by_name(flags: Iterable[Flag]) -> dict[str, list[Flag]]:
    groups: dict[str, list[Flag]] = {}
    for flag in flags:
        groups.setdefault(flag.name, []).append(flag)
    return groups


def _samples(variant: Variant) -> list[dict[str, Any]]:
    """The first seed's selected responses, arm beside arm on the same prompt."""
    prompts: dict[str, dict[str, Any]] = {}
    for arm in variant.arms.values():
        for row in arm.cells[0].samples:
            if row.get("pick") == "selected":
                where = f"{row.get('split', '')}, {row.get('decoding', '')}"
                key = f"{row.get('prompt_id')}/{where}"
                entry = prompts.setdefault(key, {"prompt": row.get("prompt", ""), "where": where, "cards": {}})
                entry["cards"].setdefault(arm.name, row)
    return list(prompts.values())[:PROMPTS_MORE]


def _growing(variant: Variant) -> list[dict[str, Any]]:
    """One prompt per arm, sampled while it trained."""
    arms = []
    for name in (n for n in (*CANDIDATES, "rloo", "sft-chosen", "sft") if n in variant.arms):
        rows = [r for r in variant.arms[name].cells[0].samples if r.get("pick") == "training"]
        first = rows[0].get("prompt_id") if rows else None
        rows = sorted((r for r in rows if r.get("prompt_id") == first), key=lambda r: r.get("step") or 0)
        if rows:
            arms.append({"arm": name, "prompt": rows[0].get("prompt", ""), "rows": _spread(rows, 6)})
    return arms


def _spread(rows: Sequence[Mapping[str, Any]], count: int) -> list[Mapping[str, Any]]:
    """At most `count` rows, evenly spread, first and last included."""
    places = sorted({round(i * (len(rows) - 1) / max(count - 1, 1)) for i in range(count)})
    return [rows[i] for i in places]


def _mean(arm: ArmRuns, key: str) -> float | None:
    values = arm.figure(key)
    return float(np.mean(values)) if values else None
