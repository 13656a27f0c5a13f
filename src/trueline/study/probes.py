"""What the probe found before training, for readers: a row per variant and seed, and which risks it points at.

These are flags, not predictions: `study/foresight.py` says what each figure foresaw where enough runs collapsed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from trueline.study.foresight import figures_of

__all__ = ["COLUMNS", "probe_row", "risks"]

COLUMNS: Mapping[str, tuple[str, str]] = {
    "likelihood gap per token": ("likelihood gap, nats per token", "gap"),
    "pairs that SFT does not produce": ("pairs with structure SFT does not produce", "share"),
    "reward models disagree, own samples": ("reward models disagree on", "share"),
    "constant answer, all prompts": ("one fixed answer to all prompts", "ratio"),
    "constant answer, worst kind of prompt": ("the same, worst kind of prompt", "ratio"),
    "best-of-n gain by the proxy": ("best-of-n gain, standard deviations of the proxy", "gap"),
}
"""Figure -> what a reader calls it, and its kind. Gold is not among them: before training nobody has it."""
GAP, FOREIGN, DISAGREE, CONSTANT, TRANSFER = 0.5, 0.5, 0.3, 1.0, 0.5


def probe_row(probe: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of one `probe.json` that the report shows, with the answer that leads where the ratio is highest."""
    figures = {name: value for name, value in figures_of(probe).items() if name in COLUMNS}
    share = (probe.get("best_of") or {}).get("share")
    return figures | {"transferred share": share, "answer": _answer(probe)}


def _answer(probe: Mapping[str, Any]) -> str:
    sets = (probe.get("constant") or {}).get("sets", {})
    parts = [part for one in sets.values() for part in (one["all"], *one["kinds"].values())]
    known = [part for part in parts if part["ratio"] is not None]
    return max(known, key=lambda part: part["ratio"])["text"] if known else ""


def risks(rows: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, float, str]]:
    """(name, value, sentence) for every figure whose mean over seeds is past its threshold (docs/probes.md)."""

    def mean(name: str) -> float | None:
        values = [row[name] for row in rows if row.get(name) is not None]
        return float(np.mean(values)) if values else None

    gap, foreign = mean("likelihood gap per token"), mean("pairs that SFT does not produce")
    if gap is not None and gap > GAP:
        yield (
            "pairs are foreign to SFT", gap,
            f"SFT gives its own samples {gap:.1f} nats a token more than the pairs: DPO learns about text that SFT "
            "hardly says. SFT on the chosen sides first, pairs sampled from SFT, or DPO-Iter.",
        )  # fmt: skip
    elif foreign is not None and foreign > FOREIGN:
        yield (
            "pairs are foreign to SFT", foreign,
            f"{foreign:.0%} of the pairs have a structure that SFT's samples do not have. SFT on the chosen sides "
            "first, pairs sampled from SFT, or DPO-Iter.",
        )  # fmt: skip
    disagree = mean("reward models disagree, own samples")
    if disagree is not None and disagree > DISAGREE:
        yield (
            "reward models disagree", disagree,
            f"two reward models of the same pairs order {disagree:.0%} of SFT's own samples differently (50% is "
            "chance): more or cleaner pairs before PPO is paid for.",
        )  # fmt: skip
    worst = mean("constant answer, worst kind of prompt")
    if worst is not None and worst > CONSTANT:
        answers = [row["answer"] for row in rows if row.get("answer")]
        named = f' ("{Counter(answers).most_common(1)[0][0][:80]}")' if answers else ""
        yield (
            "a fixed answer is paid more", worst,
            f"on some kind of prompt one fixed answer{named} is paid above the favourite of n own samples "
            f"({worst:.1f} times its lead): PPO can be paid for saying it whatever is asked. Look at those prompts.",
        )  # fmt: skip
    share = mean("transferred share")
    if share is not None and share < TRANSFER:
        yield (
            "best-of-n gain is one model's own", share,
            f"another reward model sees {share:.0%} of the gain that the first one sees in its favourites: the rest is "
            "its own error.",
        )  # fmt: skip
