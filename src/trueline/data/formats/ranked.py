"""Rows of a prompt with several responses: ranked or scored, the best against the worst; RewardBench's many rejected.

Ties at the top or at the bottom are broken by the order in the row, and counted; where all are equal the row is dropped
as `tied_scores`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trueline.data.formats.conversations import answer_of, asked, read_messages
from trueline.data.formats.rows import Format, Record, RowProblem, need_columns, need_number, pair_of
from trueline.types import Prompt

__all__ = ["NEMO", "REWARD_BENCH", "ULTRAFEEDBACK"]

_SCORES = ("overall_score", "fine-grained_score", "score")
_TIES = ("tied_scores",)
_NOTES = ("tied_best", "tied_worst")


def best_and_worst(prompt: Prompt, texts: Sequence[str], scores: Sequence[float], field: str) -> Record:
    """The pair of the highest and the lowest score. Raises RowProblem `tied_scores` where these are equal."""
    best, worst = max(scores), min(scores)
    if best == worst:
        raise RowProblem("tied_scores", field, "all responses have the same score")
    top, bottom = scores.index(best), scores.index(worst)
    fields = (f"{field} {top + 1}", f"{field} {bottom + 1}")
    notes = [name for name, value in zip(_NOTES, (best, worst)) if scores.count(value) > 1]
    return Record(pair_of(prompt, texts[top], texts[bottom], fields), tuple(notes))


def _items(row: Mapping[str, Any], column: str) -> list[dict[str, Any]]:
    need_columns(row, (column,), (list,))
    items = row[column]
    if len(items) < 2 or not all(isinstance(item, dict) for item in items):
        raise RowProblem("too_few_responses", column, f"expected a list of two or more responses, got {len(items)}")
    return items


# --- UltraFeedback: instruction, completions [{response, overall_score, ...}] (Cui et al. 2023) -------------------


def _score_name(items: Sequence[Mapping[str, Any]]) -> str:
    return next((name for name in _SCORES if all(name in item for item in items)), _SCORES[0])


def _read_ultrafeedback(row: Mapping[str, Any]) -> list[Record]:
    need_columns(row, ("instruction",), (str, list))
    items = _items(row, "completions")
    score = _score_name(items)
    scores, texts = [], []
    for number, item in enumerate(items, 1):
        scores.append(need_number(item, score, 0, 10, f"completions {number} {score}"))
        if not isinstance(item.get("response"), str):
            raise RowProblem("wrong_type", f"completions {number} response", "expected a text")
        texts.append(item["response"])
    return [best_and_worst(asked(row["instruction"], "instruction"), texts, scores, "completions")]


ULTRAFEEDBACK = Format(
    "ultrafeedback",
    lambda row: "instruction" in row and _is_list_of(row.get("completions"), "response"),
    lambda row: {
        "prompt": "instruction",
        "chosen": f"the response of completions with the highest {_score_name(row['completions'])}",
        "rejected": "the one with the lowest",
    },
    read=_read_ultrafeedback,
    dropped=_TIES,
    notes=_NOTES,
)


# --- NeMo: context, completions [{rank, completion}], the lowest rank is the best ---------------------------------


def _read_nemo(row: Mapping[str, Any]) -> list[Record]:
    items = _items(row, "completions")
    ranks, texts = [], []
    for number, item in enumerate(items, 1):
        ranks.append(need_number(item, "rank", -1e9, 1e9, f"completions {number} rank"))
        completion = item.get("completion")
        if isinstance(completion, list) and len(completion) == 1:
            texts.append(answer_of(completion[0], f"completions {number} completion"))
        elif isinstance(completion, str):
            texts.append(completion)
        else:
            reason = "expected a text or a list of one assistant turn"
            raise RowProblem("wrong_type", f"completions {number} completion", reason)
    need_columns(row, ("context",), (str, list))
    prompt = asked(row["context"], "context")
    return [best_and_worst(prompt, texts, [-rank for rank in ranks], "completions")]


NEMO = Format(
    "nemo",
    lambda row: "context" in row and _is_list_of(row.get("completions"), "rank"),
    lambda row: {"prompt": "context", "chosen": "the completion of lowest rank", "rejected": "the one of highest rank"},
    read=_read_nemo,
    dropped=_TIES,
    notes=_NOTES,
)


def _is_list_of(value: Any, key: str) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict) and key in value[0]


# --- RewardBench 1: prompt, chosen, rejected, subset; 2: lists of chosen and rejected (Lambert et al. 2024) --------


def _read_reward_bench(row: Mapping[str, Any]) -> list[Record]:
    need_columns(row, ("subset",), (str,))
    need_columns(row, ("prompt",), (str, list))
    prompt = asked(row["prompt"], "prompt", kind=row["subset"])
    good, bad = (_texts(row, side) for side in ("chosen", "rejected"))
    return [
        Record(pair_of(prompt, good[i % len(good)], text, ("chosen", "rejected"))) for i, text in enumerate(bad)
    ]  # RewardBench 2 has four or more rejected; each stands against one of the chosen, in turn


def _texts(row: Mapping[str, Any], side: str) -> list[str]:
    need_columns(row, (side,), (str, list))
    value = row[side]
    if isinstance(value, str):
        return [value]
    if not value:
        raise RowProblem("empty_responses", side, "an empty list")
    if all(isinstance(text, str) for text in value):
        return value
    return [read_messages(value, side)[-1].content]


REWARD_BENCH = Format(
    "reward-bench",
    lambda row: (
        {"prompt", "chosen", "rejected", "subset"} <= row.keys() and bool({"chosen_model", "models"} & row.keys())
    ),
    lambda row: {
        "prompt": "prompt",
        "chosen": "chosen" if isinstance(row["chosen"], str) else "one of chosen, in turn",
        "rejected": "rejected" if isinstance(row["rejected"], str) else "each of rejected",
        "kind": "subset",
    },
    read=_read_reward_bench,
)
