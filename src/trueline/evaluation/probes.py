"""What scores say before training: do reward models agree, what does best-of-n gain, would one answer beat them all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["best_of_gain", "by_kind", "constant_lead", "disagreement", "frequent", "mean_interval"]

Array = NDArray[np.float64]
_Z = 1.959964


def mean_interval(values: Sequence[float] | Array) -> dict[str, Any]:
    """`mean`, standard deviation `sd` and the normal 95% interval `ci95` of the mean of independent values [N].

    What is not finite is left out. With fewer than two values there is neither a spread nor an interval.
    """
    values = np.asarray(values, dtype=np.float64)
    values = values[np.isfinite(values)]
    if not len(values):
        return {"mean": None, "sd": None, "ci95": None}
    mean = float(values.mean())
    if len(values) < 2:
        return {"mean": mean, "sd": None, "ci95": None}
    sd = float(values.std(ddof=1))
    half = _Z * sd / len(values) ** 0.5
    return {"mean": mean, "sd": sd, "ci95": [mean - half, mean + half]}


def frequent(texts: Iterable[str], count: int) -> list[tuple[str, int]]:
    """The `count` most frequent texts with how often each occurs; of equally frequent ones the earlier comes first."""
    return Counter(texts).most_common(count)


def disagreement(scores: Array) -> dict[str, float | None]:
    """Of members on the same responses: scores [members, prompts, responses], each member's in its own standard unit.

    `sd`: root mean square over responses of the standard deviation over members. `correlation`: Pearson over all
    responses, mean over pairs of members. `rank`: share of two responses to one prompt that two members order
    differently, 0.5 for members that know nothing of each other; two equal scores are no order and are left out.
    """
    if scores.ndim != 3 or len(scores) < 2:
        raise ValueError(f"scores: [members, prompts, responses] of two members at least, not {scores.shape}")
    pairs = [(a, b) for a in range(len(scores)) for b in range(a + 1, len(scores))]
    known = [c for a, b in pairs if (c := _correlation(scores[a].ravel(), scores[b].ravel())) is not None]
    first, second = np.triu_indices(scores.shape[2], 1)
    signs = np.sign(scores[:, :, first] - scores[:, :, second])
    products = np.concatenate([(signs[a] * signs[b]).ravel() for a, b in pairs])
    ordered = products[products != 0]
    return {
        "sd": float(np.sqrt(scores.var(axis=0, ddof=1).mean())),
        "correlation": float(np.mean(known)) if known else None,
        "rank": float((ordered < 0).mean()) if len(ordered) else None,
    }


def best_of_gain(scores: Array, gold: Array | None = None) -> dict[str, Any]:
    """What choosing the first member's favourite of n buys: scores [members, prompts, n], gold [prompts, n].

    `proxy`: the favourite's score above the mean of the n, by the first member that chose it; `transferred`: the same
    by the other members, who did not; `gold`: the same by the judge, a favourite that was not judged left out. All
    with an interval over prompts. `share` is transferred over proxy: 1 where the gain is no error of one member.
    """
    rows = np.arange(scores.shape[1])
    favourite = scores[0].argmax(axis=1)
    gains = scores[:, rows, favourite] - scores.mean(axis=2)
    found: dict[str, Any] = {"n": scores.shape[2], "proxy": mean_interval(gains[0])}
    if len(scores) > 1:
        found["transferred"] = mean_interval(gains[1:].mean(axis=0))
        own = found["proxy"]["mean"]
        found["share"] = found["transferred"]["mean"] / own if own > 0 else None
    if gold is not None:
        found["gold"] = mean_interval(gold[rows, favourite] - _row_means(gold))
    return found


def constant_lead(constants: Array, own: Array, rows: Sequence[int] | None = None) -> dict[str, Any]:
    """Whether one answer to everything would be paid more than the policy's own samples.

    constants [texts, prompts] are the scores of fixed texts on every prompt, own [prompts, n] of the policy's samples;
    `rows` restricts both to some prompts. With c the text of the highest mean,

        ratio = (mean constants[c] - mean own) / (mean over prompts of max own - mean own):

    above 0 it beats the average sample, above 1 the favourite of n. `best` is its index, `beats` the share of prompts
    on which it scores above the prompt's mean sample, `lead` the numerator with an interval over prompts.
    """
    chosen = np.arange(own.shape[0]) if rows is None else np.asarray(rows, dtype=np.int64)
    if not len(chosen) or not len(constants):
        raise ValueError("constants: at least one text and one prompt")
    table, samples = constants[:, chosen], own[chosen]
    best = int(table.mean(axis=1).argmax())
    above = table[best] - samples.mean(axis=1)
    gain = float((samples.max(axis=1) - samples.mean(axis=1)).mean())
    return {
        "ratio": float(above.mean()) / gain if gain > 1e-9 else None,
        "best": best,
        "beats": float((above > 0).mean()),
        "lead": mean_interval(above),
        "prompts": len(chosen),
    }


def by_kind(kinds: Sequence[str]) -> Mapping[str, list[int]]:
    """The rows of each kind of prompt that has a name; nothing where there is only one kind."""
    names = sorted(set(kinds))
    groups = {kind: [i for i, k in enumerate(kinds) if k == kind] for kind in names if kind}
    return groups if len(names) > 1 else {}


def _correlation(a: Array, b: Array) -> float | None:
    return float(np.corrcoef(a, b)[0, 1]) if a.std() > 0 and b.std() > 0 else None


def _row_means(values: Array) -> Array:
    """Means over what is finite in each row; NaN where nothing is."""
    known = np.isfinite(values)
    counts = known.sum(axis=1)
    sums = np.where(known, values, 0.0).sum(axis=1)
    return np.divide(sums, counts, out=np.full(len(values), np.nan), where=counts > 0)
