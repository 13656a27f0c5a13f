"""`trueline data label`: preferences of a judge behind an endpoint, for two responses to each prompt."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from trueline.data.loading import load_pairs
from trueline.errors import InputError
from trueline.rewards.endpoint import EndpointJudge, position_inconsistency
from trueline.types import Pair

__all__ = ["label_file"]


def label_file(
    files: Sequence[str],
    out: Path,
    judge: EndpointJudge,
    *,
    format: str = "auto",
    columns: Sequence[str] = (),
    limit: int | None = None,
) -> dict[str, Any]:
    """Ask the judge about the two sides of every pair, both ways round, and write those it decides to `out`.

    The file's own labels play no part but are compared with the judge's. A pair is left out where the two orders name
    different sides, or a tie. Returns counts, the judge's agreement with the file, and what it cost.
    """
    if out.exists():
        raise InputError("exists already", where=str(out), field="--out", remedy="give another name")
    pairs = load_pairs(files, format=format, columns=columns, limit=limit).pairs
    verdicts = judge.compare([p.prompt for p in pairs], [p.chosen for p in pairs], [p.rejected for p in pairs])
    kept, counts = [], Counter(kept=0, ties=0, inconsistent=0)
    agreed = 0
    for pair, verdict in zip(pairs, verdicts):
        if not verdict.consistent:
            counts["inconsistent"] += 1
        elif verdict.first == "tie":
            counts["ties"] += 1
        else:
            counts["kept"] += 1
            agreed += verdict.first == "response"
            kept.append(_row(pair, verdict.first == "response"))
    part = out.with_name(out.name + ".part")
    part.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept), encoding="utf-8")
    part.replace(out)
    return {
        "pairs": len(pairs),
        **counts,
        "agrees_with_the_file": agreed / len(kept) if kept else None,
        "position_inconsistency": position_inconsistency(verdicts),
        "judge": {"model": judge.model, "prompt": judge.form} | judge.usage,
    }


def _row(pair: Pair, as_given: bool) -> dict[str, Any]:
    chosen, rejected = (pair.chosen, pair.rejected) if as_given else (pair.rejected, pair.chosen)
    turns = [asdict(turn) for turn in pair.prompt.messages]
    prompt = turns[0]["content"] if len(turns) == 1 and turns[0]["role"] == "user" else turns
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}
