"""Rows of one response with a label or scores: KTO and HelpSteer. Answers to the same prompt are made into pairs.

Labels: the first good answer to a prompt stands against its first bad one, and so on; what has no counterpart is
counted as `unpaired_labels`. Scores: the best answer against the worst, as for ranked rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trueline.data.formats.comparisons import helpsteer_prompt
from trueline.data.formats.conversations import answer_of, asked, system_of
from trueline.data.formats.llama_factory import instruction_of, is_alpaca, sharegpt_turns
from trueline.data.formats.rows import Answer, Format, RowProblem, need_columns, need_number

__all__ = ["HELPSTEER", "KTO", "pairs_of_answers"]

_DROPPED = ("unpaired_labels", "contradictory_labels")


def pairs_of_answers(answers: Sequence[Answer]) -> tuple[list[tuple[int, int]], dict[str, int]]:
    """Pairs of one prompt's answers, as indices (chosen, rejected), and counts of the answers that are in none.

    Two scores alone are labels; more are scores. A text that is both good and bad is in no pair.
    """
    scores = sorted({answer.score for answer in answers})
    if len(scores) < 2:
        return [], {"unpaired_labels": len(answers)}
    good = [i for i, a in enumerate(answers) if a.score == scores[-1]]
    bad = [i for i, a in enumerate(answers) if a.score == scores[0]]
    both = {answers[i].response for i in good} & {answers[i].response for i in bad}
    good, bad = ([i for i in side if answers[i].response not in both] for side in (good, bad))
    pairs = list(zip(good, bad))
    contradictory = sum(answer.response in both for answer in answers)
    return pairs, {
        "unpaired_labels": len(answers) - 2 * len(pairs) - contradictory,
        "contradictory_labels": contradictory,
    }


# --- KTO: TRL's prompt, completion, label; LLaMA-Factory's kto_tag -------------------------------------------------


def _label(row: Mapping[str, Any], column: str) -> float:
    need_columns(row, (column,), (bool, int))
    if row[column] not in (0, 1):
        raise RowProblem("wrong_label", column, f"expected true or false, got {row[column]}")
    return float(row[column])


def _answer(row: Mapping[str, Any]) -> Answer:
    if "kto_tag" in row:
        return _tagged(row)
    score = _label(row, "label")
    need_columns(row, ("prompt",), (str, list))
    need_columns(row, ("completion",), (str, list))
    prompt = asked(row["prompt"], "prompt", system_of(row))
    completion = row["completion"]
    if isinstance(completion, list):
        if len(completion) != 1:
            raise RowProblem(
                "wrong_type", "completion", f"expected a list of one assistant turn, got {len(completion)}"
            )
        completion = answer_of(completion[0], "completion")
    return _held(Answer(prompt, completion, score), "completion")


def _tagged(row: Mapping[str, Any]) -> Answer:
    score = _label(row, "kto_tag")
    if is_alpaca(row):
        need_columns(row, ("output",), (str,))
        return _held(Answer(instruction_of(row), row["output"], score), "output")
    column, turns, sharegpt = sharegpt_turns(row)
    if not turns:
        raise RowProblem("wrong_type", column, "expected a list of messages with at least one turn")
    prompt = asked(turns[:-1], column, system_of(row), sharegpt=sharegpt)
    return _held(Answer(prompt, answer_of(turns[-1], column, sharegpt=sharegpt), score), column)


def _held(answer: Answer, column: str) -> Answer:
    if not answer.response.strip():
        raise RowProblem("empty_responses", column, "the response is empty")
    return answer


KTO = Format(
    "kto",
    lambda row: {"prompt", "completion", "label"} <= row.keys() or "kto_tag" in row,
    lambda row: {
        "prompt": "prompt" if "label" in row else "what comes before the last answer",
        "chosen": f"an answer labelled true by {'label' if 'label' in row else 'kto_tag'}",
        "rejected": "an answer to the same prompt labelled false",
    },
    answer=_answer,
    dropped=_DROPPED,
    flags=("label", "kto_tag"),
)


# --- HelpSteer: prompt, response, helpfulness, correctness, ... 0 to 4 (Wang et al. 2023) -------------------------


def _rated(row: Mapping[str, Any]) -> Answer:
    need_columns(row, ("prompt", "response"), (str,))
    return _held(
        Answer(helpsteer_prompt(row["prompt"]), row["response"], need_number(row, "helpfulness", 0, 4)), "response"
    )


HELPSTEER = Format(
    "helpsteer",
    lambda row: {"prompt", "response", "helpfulness"} <= row.keys(),
    lambda row: {
        "prompt": "prompt",
        "chosen": "the response to the same prompt with the highest helpfulness",
        "rejected": "the one with the lowest",
    },
    answer=_rated,
    dropped=_DROPPED,
    numbers=("helpfulness",),
)
