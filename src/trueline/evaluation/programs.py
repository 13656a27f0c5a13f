"""What several samples of a programming problem say together: pass@k, and n@k by the prompt's own tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite

from trueline.evaluation.passk import Trial, n_at_k, pass_at_k
from trueline.types import Judgement

__all__ = ["KS", "pass_statistics"]

KS = (1, 5, 10, 100, 1000)


def pass_statistics(judged: Sequence[Judgement], *, submitted: int = 1) -> Mapping[str, float]:
    """Of one problem's samples: `pass@k` for each k of `KS` that they reach, and `n@k` with all of them.

    n@k (`1@10`): the samples that pass the public tests are kept and `submitted` of them handed in. What could not be
    judged is left out; a k that the others do not reach is missing.
    """
    known = [j for j in judged if isfinite(j.score)]
    right = sum(j.score == 1.0 for j in known)
    found = {f"pass@{k}": pass_at_k(len(known), right, k) for k in KS if k <= len(known)}
    if len(known) > submitted:
        trials = [Trial(j.parts["public"] == 1.0, j.score == 1.0) for j in known]
        found[f"{submitted}@{len(known)}"] = n_at_k(trials, submitted)
    return found
