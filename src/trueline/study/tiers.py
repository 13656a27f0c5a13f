"""The figures of programs by tier: pass@1, the largest pass@k and greedy decoding, in a table and in panels."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from trueline.study.comparisons import arm_interval
from trueline.study.matrix import ArmRuns, Variant
from trueline.study.statistics import Interval

__all__ = ["Dot", "Panel", "Tier", "TierRow", "estimate", "tier_keys", "tier_panels", "tier_rows", "tiers"]

_ORDER = ("introductory", "interview", "competition")  # APPS; other kinds by what SFT solves of them, easiest first
_PASS = re.compile(r"pass@(\d+)")

# pixels of a panel: names on the left, the gain on the right
PANEL_WIDTH, LEFT, RIGHT, TOP, ROW = 270, 94, 230, 24, 21


@dataclass(frozen=True)
class Tier:
    """The prompts of one kind in one split; all of them where `kind` is empty. `k` is the largest of pass@k there."""

    label: str
    split: str
    kind: str
    prompts: int
    k: int

    def key(self, name: str, decoding: str = "sampled") -> str:
        """The metric key of a figure per prompt, such as `pass@1`, on this tier."""
        return f"{self.split}/{decoding}/{name}" + (f"_{self.kind}" if self.kind else "")

    @property
    def columns(self) -> dict[str, str]:
        """What a reader calls it -> metric key."""
        largest = {f"pass@{self.k}": self.key(f"pass@{self.k}")} if self.k > 1 else {}
        return {"pass@1": self.key("pass@1")} | largest | {"greedy": self.key("pass@1", "greedy")}


@dataclass(frozen=True)
class TierRow:
    """One arm: per tier and column its interval, None where it has none, and whether it is the column's highest."""

    arm: str
    cells: tuple[tuple[Interval | None, bool], ...]


@dataclass(frozen=True)
class Dot:
    """One arm's pass@1 in a panel, in pixels; without bounds only the mean is drawn. `gain` is over SFT."""

    arm: str
    y: int
    mean: float
    low: float | None
    high: float | None
    gain: float | None


@dataclass(frozen=True)
class Panel:
    """pass@1 of all arms on one tier, on a scale of its own from 0; `ticks` are (pixel, text)."""

    tier: Tier
    dots: tuple[Dot, ...]
    reference: float | None
    ticks: tuple[tuple[float, str], ...]
    height: int
    width: int = PANEL_WIDTH
    top: int = TOP


def tiers(variant: Variant, metric: str) -> tuple[Tier, ...]:
    """The kinds of the metric's split, then those of the other splits; a split without kinds is one tier."""
    arm, own = variant.arms.get("sft") or next(iter(variant.arms.values())), metric.split("/")[0]
    splits = {split for pick, split, decoding in arm.cells[0].scores if (pick, decoding) == ("selected", "sampled")}
    return tuple(
        tier for split in (own, *sorted(splits - {own})) for tier in _tiers_of(arm, split, own) if split in splits
    )


def _tiers_of(arm: ArmRuns, split: str, own: str) -> Iterator[Tier]:
    table = arm.cells[0].scores.get(("selected", split, "sampled"), {})
    names = {name for row in table.values() for name in row}
    k = max((int(found[1]) for name in names if (found := _PASS.fullmatch(name))), default=1)
    kinds = Counter(n.removeprefix("pass@1_") for row in table.values() for n in row if n.startswith("pass@1_"))
    if not kinds:
        yield Tier("all prompts" if split == own else split, split, "", len(table), k)
    plain = split == own or set(kinds) == {split}
    found = [Tier(kind if plain else f"{kind} ({split})", split, kind, count, k) for kind, count in kinds.items()]
    yield from sorted(found, key=lambda tier: _difficulty(arm, tier))


def _difficulty(arm: ArmRuns, tier: Tier) -> tuple[int, float, str]:
    known, solved = _ORDER.index(tier.kind) if tier.kind in _ORDER else len(_ORDER), estimate(arm, tier.key("pass@1"))
    return known, -solved.mean if solved else 0.0, tier.kind


def tier_keys(arm: ArmRuns) -> set[str]:
    """The metric keys of single tiers, such as `test/sampled/pass@10_interview`, that the raw scores have."""
    tables = ((k, table) for cell in arm.cells for k, table in cell.scores.items() if k[0] == "selected")
    keys = {
        f"{split}/{decoding}/{name}" for (_, split, decoding), table in tables for r in table.values() for name in r
    }
    return {key for key in keys if re.match(r"(pass|\d+)@\d+_", key.split("/", 2)[2])}


def estimate(arm: ArmRuns, key: str) -> Interval | None:
    """The interval of one arm's metric, None where it has none."""
    found = arm_interval(arm, key)
    return found[0] if found else None


def tier_rows(variant: Variant, found: Sequence[Tier]) -> tuple[TierRow, ...]:
    """One row per arm with the columns of all tiers in order."""
    keys = [key for tier in found for key in tier.columns.values()]
    figures = {name: [estimate(arm, key) for key in keys] for name, arm in variant.arms.items()}
    highest = [max((cell.mean for cell in column if cell), default=np.inf) for column in zip(*figures.values())]
    return tuple(
        TierRow(name, tuple((c, c is not None and c.mean >= top - 1e-9) for c, top in zip(cells, highest)))
        for name, cells in figures.items()
    )


def tier_panels(variant: Variant, found: Sequence[Tier]) -> tuple[Panel, ...]:
    """One panel a tier. Each has its own scale: what is a large gain on a hard tier is a small one on an easy tier."""
    figures = ({name: estimate(arm, tier.key("pass@1")) for name, arm in variant.arms.items()} for tier in found)
    return tuple(_panel(tier, cells) for tier, cells in zip(found, figures))


def _panel(tier: Tier, cells: Mapping[str, Interval | None]) -> Panel:
    known = {name: cell for name, cell in cells.items() if cell}
    step, count = _scale(max((i.high if i.finite else i.mean for i in known.values()), default=1.0))
    limit, sft, dots = step * count, known.get("sft"), []
    for row, (name, cell) in enumerate(known.items()):
        bounds = (_place(cell.low, limit), _place(cell.high, limit)) if cell.finite else (None, None)
        gain = cell.mean - sft.mean if sft and name != "sft" else None
        dots.append(Dot(name, TOP + ROW * row + ROW // 2, _place(cell.mean, limit), *bounds, gain))
    ticks = tuple((_place(i * step, limit), f"{i * step:.2f}") for i in range(count + 1))
    return Panel(tier, tuple(dots), _place(sft.mean, limit) if sft else None, ticks, TOP + ROW * len(dots) + 22)


def _scale(high: float) -> tuple[float, int]:
    """Step and number of steps of an axis from 0 that reaches `high`, at most 1."""
    high = min(high, 1.0)
    step = next(s for s in (0.02, 0.05, 0.1, 0.25) if high <= 4 * s + 1e-9)
    return step, max(1, int(np.ceil(high / step - 1e-9)))


def _place(value: float, limit: float) -> float:
    """Pixels; a t interval that reaches outside of what a share can be is cut there."""
    return round(LEFT + (RIGHT - LEFT) * min(max(value, 0.0), limit) / limit, 2)
