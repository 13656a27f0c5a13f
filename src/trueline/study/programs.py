"""What a report on programs has beside the common part: tiers, what became of the programs, their pairs, the sandbox.

Everything here is for studies whose gold is hidden tests; a prompt's `kind` is its tier.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from trueline.study.matrix import ArmRuns, Manifest, Study
from trueline.study.statistics import Interval
from trueline.study.tiers import Panel, Tier, TierRow, estimate, tier_panels, tier_rows, tiers

__all__ = [
    "Outcomes",
    "PairRow",
    "Programs",
    "by_example",
    "outcomes",
    "pair_rows",
    "programs",
    "programs_json",
    "unjudged",
]

FATES = ("pass", "wrong", "runtime", "syntax", "limit")
LIMITS = ("timeout", "memory", "output")
UNSAFE = "unsafe"
_PASS = re.compile(r"pass@(\d+)")
_SUBMITTED = re.compile(r"\d+@(\d+)")


@dataclass(frozen=True)
class Outcomes:
    """What became of one arm's programs: `shares` of those that were judged add up to 1.

    `example_only` is the share that passes the tests of its prompt and fails a hidden one; None where that is not
    known. `several` holds what all samples of a prompt give together, the largest pass@k and n@k, by their names.
    """

    arm: str
    shares: Mapping[str, float]
    not_judged: int
    samples: int
    example_only: float | None
    several: Mapping[str, Interval | None]

    @property
    def bar(self) -> tuple[tuple[str, float, float], ...]:
        """(fate, where it begins, how wide it is) in percent."""
        ends = np.cumsum([100 * self.shares[name] for name in FATES])
        return tuple(
            (n, round(e - 100 * self.shares[n], 3), round(100 * self.shares[n], 3)) for n, e in zip(FATES, ends)
        )


@dataclass(frozen=True)
class PairRow:
    """The pairs of one variant: counts are means over seeds, `buckets` the shares of all pairs by edit distance."""

    label: str
    pairs: float
    prompts: float
    buckets: Mapping[str, float]


@dataclass(frozen=True)
class Programs:
    """The parts of the page that only studies of programs have."""

    tiers: tuple[Tier, ...]
    rows: tuple[TierRow, ...]
    panels: tuple[Panel, ...]
    outcomes: tuple[Outcomes, ...]
    pairs: tuple[PairRow, ...]
    sandbox: Mapping[str, Any]
    by_example: bool

    @property
    def unsafe(self) -> bool:
        return UNSAFE in self.sandbox.get("tiers", ())

    @property
    def largest(self) -> tuple[str, ...]:
        """The names of the largest pass@k, without repeats."""
        return tuple(dict.fromkeys(f"pass@{tier.k}" for tier in self.tiers if tier.k > 1))

    @property
    def opens(self) -> frozenset[int]:
        """The places of the table's columns that begin a tier."""
        counts = [len(tier.columns) for tier in self.tiers]
        return frozenset(sum(counts[:i]) for i in range(len(counts)))

    @property
    def shown(self) -> bool:
        """Whether it is known what the prompts' own examples say."""
        return any(row.example_only is not None for row in self.outcomes)


def programs(study: Study) -> Programs | None:
    """Everything the templates need; None where gold is not hidden tests."""
    if not study.manifest.by_tests:
        return None
    found = tiers(study.primary, study.manifest.metric)
    return Programs(
        tiers=found,
        rows=tier_rows(study.primary, found),
        panels=tier_panels(study.primary, found),
        outcomes=outcomes(study),
        pairs=pair_rows(study),
        sandbox=study.manifest.sandbox,
        by_example=by_example(study.manifest),
    )


def programs_json(study: Study) -> dict[str, Any]:
    """What `report.json` says of programs, under this one key; nothing where gold is not hidden tests."""
    if not study.manifest.by_tests:
        return {}
    fates = {
        row.arm: {"shares": dict(row.shares), "not_judged": row.not_judged, "samples": row.samples}
        | {"example_only": row.example_only}
        for row in outcomes(study)
    }
    found = [asdict(tier) | {"metrics": tier.columns} for tier in tiers(study.primary, study.manifest.metric)]
    pairs = {name: list(seeds) for name, seeds in study.manifest.pairs.items()}
    return {"programs": {"tiers": found, "outcomes": fates, "pairs": pairs, "sandbox": dict(study.manifest.sandbox)}}


def by_example(manifest: Manifest) -> bool:
    """Whether the proxy is the tests that a prompt shows: so it is where no reward model was trained."""
    return manifest.by_tests and not any(str(label).startswith("reward model") for label, _ in manifest.judges)


def outcomes(study: Study) -> tuple[Outcomes, ...]:
    """Per arm, at the selected checkpoint on the sampled prompts of the verdict; arms without parts are left out."""
    stem, public = study.manifest.metric.rsplit("/", 1)[0], _examples_say_something(study)
    arms, found = study.primary.arms.values(), []
    together = [name for pattern in (_PASS, _SUBMITTED) if (name := _largest(arms, stem, pattern))]
    for arm in arms:
        parts = {n: arm.figure(f"{stem}/{n}") for n in ("gold", "wrong", "runtime", "syntax", *LIMITS)}
        if any(values is None for values in parts.values()):
            continue
        means = {name: float(np.mean(values)) for name, values in parts.items()}
        shares = {"pass": means["gold"]} | {name: means[name] for name in FATES[1:4]}
        shares["limit"] = sum(means[name] for name in LIMITS)
        missing, samples = unjudged(arm, stem)
        only = _example_only(arm, stem) if public else None
        several = {name: estimate(arm, f"{stem}/{name}") for name in together}
        found.append(Outcomes(arm.name, shares, missing, samples, only, several))
    return tuple(found)


def unjudged(arm: ArmRuns, stem: str = "") -> tuple[int, int]:
    """How many samples of the selected checkpoints the sandbox could not judge, and of how many; over all seeds.

    `stem` is `<split>/<decoding>`; all that were sampled where there is none.
    """
    gold = [value for row in _score_rows(arm, stem) for value in row.get("gold", ())]
    return sum(value is None or not np.isfinite(value) for value in gold), len(gold)


def _score_rows(arm: ArmRuns, stem: str) -> Iterator[Mapping[str, Sequence[float]]]:
    for cell in arm.cells:
        for (pick, split, decoding), table in cell.scores.items():
            if pick == "selected" and stem in ("", f"{split}/{decoding}"):
                yield from table.values()


def _examples_say_something(study: Study) -> bool:
    """Not where another proxy was scored, and not where no prompt shows a test: then all of none pass."""
    stem = study.manifest.metric.rsplit("/", 1)[0]
    shares = [share for arm in study.primary.arms.values() for share in arm.figure(f"{stem}/public") or ()]
    return by_example(study.manifest) and any(share < 1.0 for share in shares)


def _example_only(arm: ArmRuns, stem: str) -> float | None:
    both = [
        (shown, right)
        for row in _score_rows(arm, stem)
        for shown, right in zip(row.get("proxy", ()), row.get("gold", ()))
        if shown is not None and right is not None
    ]
    return float(np.mean([shown == 1.0 and right == 0.0 for shown, right in both])) if both else None


def _largest(arms: Iterable[ArmRuns], stem: str, pattern: re.Pattern[str]) -> str:
    """The name of that form with the most samples; empty where there is none but pass@1, which stands elsewhere."""
    names = {name for arm in arms for row in _score_rows(arm, stem) for name in row if pattern.fullmatch(name)}
    return max(names - {"pass@1"}, key=lambda name: int(pattern.fullmatch(name)[1]), default="")


def pair_rows(study: Study) -> tuple[PairRow, ...]:
    """One row per variant that the manifest knows the pairs of."""
    labels = {variant.name: variant.label for variant in study.variants}
    known = ((labels.get(name, name), seeds) for name, seeds in study.manifest.pairs.items() if seeds)
    return tuple(_pair_row(label, seeds) for label, seeds in known)


def _pair_row(label: str, seeds: Sequence[Mapping[str, Any]]) -> PairRow:
    counts = Counter()
    for seed in seeds:
        counts.update(seed["edit_distance"])
    total = max(sum(counts.values()), 1)
    mean = {name: float(np.mean([seed[name] for seed in seeds])) for name in ("pairs", "prompts")}
    return PairRow(label, mean["pairs"], mean["prompts"], {name: count / total for name, count in counts.items()})
