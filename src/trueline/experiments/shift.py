"""The rows of `trueline shift`: what distribution shift does to DPO and to PPO, and what mends it, as in the paper.

Three tables of arXiv 2404.10719 as rows of one run: SafeRLHF (tables 2 and 13), coverage (table 12), the reference
model (table 9). Each table carries the paper's own figures and the differences that are looked at; a table whose dials
the task does not have is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from trueline.experiments.rows import Row

__all__ = ["WEAK_SHARE", "Claim", "Table", "claimed_metrics", "tables_of"]

SAFE_SFT = {"sft_chosen": {"on": "safe"}}
"""What makes SFT on the safe responses of the arm `sft-chosen`; all pairs, whatever the row's filter."""
WEAK_SHARE = 1 / 2
"""Of SFT's passes: what stands for the pretrained model in the reference comparison. In the embedded worlds half of its
answers are whole text then; with a sixth none is, and neither method finds anything to learn from."""


@dataclass(frozen=True, eq=False)
class Claim:
    """One difference, row `a` against row `b`, judged at the checkpoint `pick`. `paper` maps metrics to the paper's two
    figures (a, b); where there is a direction in its words alone, `words` maps the metric to its sign. With `less` the
    difference is (a - b) less that of these two rows: which of two methods loses more."""

    what: str
    a: str
    b: str
    paper: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    words: Mapping[str, int] = field(default_factory=dict)
    less: tuple[str, str] | None = None
    pick: Literal["selected", "end"] = "selected"

    def directions(self) -> dict[str, int]:
        """Metric -> +1 or -1, the sign of the paper's difference."""
        signs = {name: 1 if a > b else -1 for name, (a, b) in self.paper.items() if a != b}
        return signs | dict(self.words)


@dataclass(frozen=True)
class Table:
    """Rows of one table of the paper. `paper` maps rows to its figures by metric, `scale` says what those are."""

    name: str
    title: str
    question: str
    source: str
    rows: tuple[Row, ...]
    claims: tuple[Claim, ...]
    paper: Mapping[str, Mapping[str, float]]
    scale: str
    notes: tuple[str, ...] = ()


def claimed_metrics(tables: tuple[Table, ...]) -> list[str]:
    """Every metric that some claim is about."""
    return list(dict.fromkeys(name for table in tables for claim in table.claims for name in claim.directions()))


def tables_of(sections: Mapping[str, Any]) -> tuple[Table, ...]:
    """The tables that the task's world has the dials for."""
    fields = type(sections["world"]).model_fields
    safety = (_safety(),) if "filter" in fields else ()
    partial = _partial(fields)
    return (*safety, *((_coverage(*partial),) if partial else ()), _reference(sections))


# --- SafeRLHF: tables 2 and 13

_SAFETY_FIGURES = {  # table 2, and of table 13 the two PPO rows with filters
    "SFT": (-2.62, 1.50, 41.6),
    "DPO": (-4.19, -0.97, 55.4),
    "DPO, safe SFT": (-1.62, -3.50, 71.8),
    "DPO, safe SFT, no dual-unsafe": (2.46, -4.88, 80.8),
    "DPO, safe SFT, no dual pairs": (-2.86, -6.82, 95.8),
    "DPO-Iter, round 1": (-3.22, -5.23, 86.7),
    "DPO-Iter, round 2": (-3.27, -8.83, 99.7),
    "DPO-Iter, round 3": (-3.26, -10.21, 99.9),
    "DPO-Iter, round 4": (-2.96, -11.07, 99.9),
    "PPO": (1.69, -12.08, 99.5),
    "PPO, safe SFT": (4.47, -12.33, 99.6),
    "PPO, no dual-unsafe": (5.88, -9.12, 92.6),
    "PPO, no dual pairs": (-8.04, -4.51, 94.9),
}
_SAFETY_CLAIMS = (
    # what, row, against; metrics that the paper's difference is too small in to be one, or that words alone speak of
    ("DPO from the general SFT, against that SFT", "DPO", "SFT", ()),
    ("SFT on the safe responses before DPO", "DPO, safe SFT", "DPO", ()),
    ("Leaving dual-unsafe pairs out, DPO", "DPO, safe SFT, no dual-unsafe", "DPO, safe SFT", ()),
    (
        "Leaving dual-safe pairs out as well, DPO",
        "DPO, safe SFT, no dual pairs",
        "DPO, safe SFT, no dual-unsafe",
        (),
    ),
    ("The fourth round of DPO-Iter for the first", "DPO-Iter, round 4", "DPO-Iter, round 1", ("helpfulness",)),
    ("DPO-Iter for DPO on the same pairs", "DPO-Iter, round 4", "DPO, safe SFT, no dual pairs", ("helpfulness",)),
    ("PPO for DPO, both from the general SFT", "PPO", "DPO", ()),
    ("PPO for DPO-Iter", "PPO", "DPO-Iter, round 4", ("safe",)),
    ("SFT on the safe responses before PPO", "PPO, safe SFT", "PPO", ("harm", "safe")),
    ("Leaving dual-unsafe pairs out, PPO", "PPO, no dual-unsafe", "PPO", ()),
    ("Leaving dual-safe pairs out as well, PPO", "PPO, no dual pairs", "PPO, no dual-unsafe", ("safe",)),
)


def _safety() -> Table:
    """Tables 2 and 13."""
    figures = {row: dict(zip(("helpfulness", "harm", "safe"), v)) for row, v in _SAFETY_FIGURES.items()}
    claims = []
    for what, a, b, left_out in _SAFETY_CLAIMS:
        paper = {m: (figures[a][m], figures[b][m]) for m in figures[a] if m not in left_out}
        # A round is what there is at its end: the selected checkpoint of four rounds may lie in the first.
        claims.append(Claim(what, a, b, paper, pick="end" if "DPO-Iter" in a + b else "selected"))
    over = "Over-refusal: PPO on mixed pairs alone"
    claims.append(Claim(over, "PPO, no dual pairs", "PPO", words={"refusal_benign": 1}))
    notes = (
        "Rows with a filter stand below one another as in the paper: no dual-unsafe leaves pairs of two unsafe sides "
        "out, no dual pairs those of two safe sides as well. DPO-Iter starts from the safe SFT, its reward model is "
        "trained on the pairs without dual ones, and each number of rounds is its own run; PPO with filters starts "
        "from the general SFT, and its reward model sees what the filter leaves.",
        "The safe SFT goes on from SFT with every response of the unfiltered pairs that is flagged safe. Reward models "
        "all start from the general SFT. KL to the start is to the safe SFT in the rows that begin there.",
        "Differences with a row of DPO-Iter are judged at the end of training, the end of that round; the others at "
        "the selected checkpoint.",
        "Differences that the paper's figures hardly show (a tenth of a percent of safety, a few tenths of a point) "
        "are left out of the comparison.",
    )
    return Table(
        "safety",
        "Safety under shift",
        "Does DPO fail where the pairs come from elsewhere, what mends it, and does PPO need mending?",
        "tables 2 and 13",
        _safety_rows(),
        tuple(claims),
        figures,
        "the paper's columns: change in helpfulness, harm (a cost), safety rate in percent; its scales are not ours, "
        "signs of differences can be compared",
        notes,
    )


def _safety_rows() -> tuple[Row, ...]:
    def filtered(filter: str) -> dict[str, Any]:
        return {"world": {"filter": filter}}

    def safe(name: str, arm: str, changes: Mapping[str, Any]) -> Row:
        return Row(name, arm, changes, base="sft-chosen", base_changes=SAFE_SFT)

    rows = [
        Row("SFT", "sft"),
        Row("safe SFT", "sft-chosen", SAFE_SFT),
        Row("DPO", "dpo"),
        safe("DPO, safe SFT", "dpo", {}),
        safe("DPO, safe SFT, no dual-unsafe", "dpo", filtered("dual-unsafe")),
        safe("DPO, safe SFT, no dual pairs", "dpo", filtered("both")),
    ]
    for rounds in (1, 2, 3, 4):
        rows.append(safe(f"DPO-Iter, round {rounds}", "dpo-iter", filtered("both") | {"dpo_iter": {"rounds": rounds}}))
    rows += [
        Row("PPO", "ppo"),
        safe("PPO, safe SFT", "ppo", {}),
        Row("PPO, no dual-unsafe", "ppo", filtered("dual-unsafe")),
        Row("PPO, no dual pairs", "ppo", filtered("both")),
    ]
    return tuple(rows)


# --- coverage: table 12


def _partial(fields: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]] | None:
    """A part of what the pairs cover, in words and as dials of the world; None where there is no such dial."""
    if "requests" in fields:
        return "harmless requests", {"requests": ("benign",)}
    if "coverage" not in fields:
        return None
    if "shift" in fields:
        return "helpful answers alone", {"coverage": ("help",)}
    return "the helpful subset", {"coverage": ("helpful",)}  # files with subsets


def _coverage(part: str, less: Mapping[str, Any]) -> Table:
    """Table 12: pairs of one part of what is asked, against all of them."""
    names = {arm: f"{arm.upper()}, {part}" for arm in ("dpo", "ppo")}
    rows = (
        Row("SFT", "sft"),
        Row("DPO", "dpo"),
        Row("PPO", "ppo"),
        *(Row(name, arm, {"world": less}) for arm, name in names.items()),
    )
    figures = {"SFT": 0.532, "DPO": 0.615, "PPO": 0.718, names["dpo"]: 0.544, names["ppo"]: 0.602}

    def claim(what: str, a: str, b: str) -> Claim:
        return Claim(what, a, b, {"gold": (figures[a], figures[b])})

    claims = (
        claim("All pairs for a part of them, DPO", "DPO", names["dpo"]),
        claim("All pairs for a part of them, PPO", "PPO", names["ppo"]),
        claim("PPO for DPO, a part of the pairs", names["ppo"], names["dpo"]),
        claim("PPO for DPO, all pairs", "PPO", "DPO"),
    )
    return Table(
        "coverage",
        "Coverage of the pairs",
        f"What is lost where the pairs cover {part}?",
        "table 12",
        rows,
        claims,
        {row: {"gold": value} for row, value in figures.items()},
        "the paper's column is a learned reward on HH-RLHF, helpful-base against the whole",
    )


# --- the reference: table 9


def _reference(sections: Mapping[str, Any]) -> Table:
    """Table 9: DPO and PPO from a weak base against from SFT."""
    weak = {"sft": {"epochs": sections["sft"].epochs * WEAK_SHARE}}

    def from_weak(name: str, arm: str) -> Row:
        return Row(name, arm, base="sft", base_changes=weak)

    rows = (
        Row("SFT", "sft"),
        Row("weak base", "sft", weak),
        Row("DPO", "dpo"),
        from_weak("DPO, weak base", "dpo"),
        Row("PPO", "ppo"),
        from_weak("PPO, weak base", "ppo"),
    )
    figures = {"DPO, weak base": 0.24, "DPO": 12.8, "PPO, weak base": 13.8, "PPO": 15.1}

    def claim(what: str, a: str, b: str) -> Claim:
        return Claim(what, a, b, {"gold": (figures[a], figures[b])})

    claims = (
        claim("A weak base for SFT, DPO", "DPO, weak base", "DPO"),
        claim("A weak base for SFT, PPO", "PPO, weak base", "PPO"),
        claim("PPO for DPO, from the weak base", "PPO, weak base", "DPO, weak base"),
        Claim(
            "What a weak base costs PPO, less what it costs DPO",
            "PPO, weak base",
            "PPO",
            words={"gold": 1},
            less=("DPO, weak base", "DPO"),
        ),
    )
    notes = (
        f"In the place of the paper's pretrained model stands SFT itself with {WEAK_SHARE:.0%} of its passes: the same "
        "model, less taught. Pairs and reward model are those of the whole SFT in all rows, so that only the start and "
        "the reference differ.",
    )
    return Table(
        "reference",
        "The reference model",
        "Does DPO need a good reference more than PPO does?",
        "table 9",
        rows,
        claims,
        {row: {"gold": value} for row, value in figures.items()},
        "the paper's column is pass@5 in percent on APPS (13B), from the pretrained model and from SFT",
        notes,
    )
