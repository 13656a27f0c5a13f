"""Each family of files: it is known by its columns, its rows become the pairs they mean, and bad rows are named."""

from __future__ import annotations

import gzip
import json
from typing import get_args

import hypothesis
import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from trueline.data.check import check
from trueline.data.formats import FORMATS, detect
from trueline.data.loading import load_pairs
from trueline.errors import InputError
from trueline.study.settings import Data
from trueline.types import Message, Prompt

U, A, S = (lambda t, r=r: {"role": r, "content": t} for r in ("user", "assistant", "system"))
HUMAN, GPT = (lambda t, r=r: {"from": r, "value": t} for r in ("human", "gpt"))
ASK, GOOD, BAD = "Why is it dark?", "It is night.", "Because."
SCORED = [{"response": BAD, "overall_score": 2.0}, {"response": GOOD, "overall_score": 9.0}]
STEERED = {"prompt": ASK, "correctness": 3, "coherence": 4, "complexity": 1, "verbosity": 1}
TURNS = f"Hello\n<extra_id_1>Assistant\nHi!\n<extra_id_1>User\n{ASK}\n<extra_id_1>Assistant\n"
ROW = dict(chosen=GOOD, rejected=BAD)

# what writes it, format, rows, the turns before the response where these are not the question alone
FAMILIES = [
    ("TRL", "pairs", [{"prompt": ASK, **ROW}], None),
    ("TRL, conversational", "pairs", [{"prompt": [U(ASK)], "chosen": [A(GOOD)], "rejected": [A(BAD)]}], None),
    ("TRL, implicit prompt", "messages", [{"chosen": [U(ASK), A(GOOD)], "rejected": [U(ASK), A(BAD)]}], None),
    (
        "UltraFeedback, binarised", "pairs",
        [{"prompt": ASK, "prompt_id": "1", "chosen": [U(ASK), A(GOOD)], "rejected": [U(ASK), A(BAD)], "score": 8}],
        None,
    ),
    ("Orca's pairs", "pairs", [{"system": "Be kind.", "question": ASK, **ROW}],
     [("system", "Be kind."), ("user", ASK)]),
    ("one turn, no list", "pairs", [{"prompt": ASK, "chosen": A(GOOD), "rejected": A(BAD)}], None),
    ("instruction alone", "pairs", [{"instruction": ASK, "chosen_response": GOOD, "rejected_response": BAD}], None),
    ("HH-RLHF", "hh-rlhf", [{s: f"\n\nHuman: {ASK}\n\nAssistant: {t}" for s, t in ROW.items()}], None),
    ("UltraFeedback", "ultrafeedback", [{"instruction": ASK, "completions": SCORED, "source": "x"}], None),
    (
        "NeMo", "nemo",
        [{"context": [U(ASK)], "completions": [
            {"rank": 1, "completion": [A(BAD)]}, {"rank": 0, "completion": [A(GOOD)]}]}],
        None,
    ),
    (
        "HelpSteer2, preference", "helpsteer2-preference",
        [{"prompt": ASK, "response_1": BAD, "response_2": GOOD, "preference_strength": 2}], None,
    ),
    (
        "HelpSteer2, several turns", "helpsteer2-preference",
        [{"prompt": TURNS, "response_1": GOOD, "response_2": BAD, "preference_strength": -1}],
        [("user", "Hello"), ("assistant", "Hi!"), ("user", ASK)],
    ),
    (
        "HelpSteer3", "helpsteer3",
        [{"context": [U(ASK)], "response1": GOOD, "response2": BAD, "overall_preference": -3}], None,
    ),
    (
        "arena", "arena",
        [{"conversation_a": [U(ASK), A(BAD)], "conversation_b": [U(ASK), A(GOOD)], "winner": "model_b"}], None,
    ),
    (
        "HelpSteer", "helpsteer",
        [{**STEERED, "response": BAD, "helpfulness": 1}, {**STEERED, "response": GOOD, "helpfulness": 4},
         {**STEERED, "response": "Perhaps.", "helpfulness": 2}],
        None,
    ),
    ("KTO", "kto", [{"prompt": ASK, "completion": t, "label": t == GOOD} for t in (BAD, GOOD)], None),
    (
        "KTO, conversational", "kto",
        [{"prompt": [U(ASK)], "completion": [A(t)], "label": t == GOOD} for t in (GOOD, BAD)], None,
    ),
    ("LLaMA-Factory, alpaca", "alpaca", [{"instruction": ASK, "input": "", **ROW}], None),
    (
        "LLaMA-Factory, alpaca with all columns", "alpaca",
        [{"instruction": "Answer.", "input": ASK, "system": "Be kind.", "history": [["Hello", "Hi!"]], **ROW}],
        [("system", "Be kind."), ("user", "Hello"), ("assistant", "Hi!"), ("user", f"Answer.\n{ASK}")],
    ),
    (
        "LLaMA-Factory, sharegpt", "sharegpt",
        [{"conversations": [HUMAN("Hello"), GPT("Hi!"), HUMAN(ASK)], "chosen": GPT(GOOD), "rejected": GPT(BAD)}],
        [("user", "Hello"), ("assistant", "Hi!"), ("user", ASK)],
    ),
    (
        "LLaMA-Factory, messages", "sharegpt",
        [{"messages": [S("Be kind."), U(ASK)], "chosen": A(GOOD), "rejected": A(BAD)}],
        [("system", "Be kind."), ("user", ASK)],
    ),
    (
        "LLaMA-Factory, KTO of sharegpt", "kto",
        [{"conversations": [HUMAN(ASK), GPT(t)], "kto_tag": t == GOOD} for t in (BAD, GOOD)], None,
    ),
    (
        "LLaMA-Factory, KTO of alpaca", "kto",
        [{"instruction": ASK, "input": "", "output": t, "kto_tag": t == GOOD} for t in (BAD, GOOD)], None,
    ),
    ("OpenRLHF, messages", "messages", [{"chosen": [U(ASK), A(GOOD)], "rejected": [U(ASK), A(BAD)], "score": 1}], None),
    (
        "RewardBench", "reward-bench",
        [{"prompt": ASK, **ROW, "chosen_model": "m", "rejected_model": "n", "subset": "hep-python", "id": 3}], None,
    ),
    (
        "RewardBench 2", "reward-bench",
        [{"prompt": ASK, "chosen": [GOOD], "rejected": [BAD, "So.", "No."], "models": [], "subset": "Focus"}],
        None,
    ),
    (
        "SafeRLHF", "safe-rlhf",
        [{"prompt": ASK, "response_0": GOOD, "response_1": BAD, "is_response_0_safe": True, "is_response_1_safe": True,
          "better_response_id": 0, "safer_response_id": 1}],
        None,
    ),
]  # fmt: skip


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(("name", "format", "rows", "turns"), FAMILIES, ids=[family[0] for family in FAMILIES])
def test_a_row_becomes_the_pair_it_means(tmp_path, name, format, rows, turns) -> None:
    file = write(tmp_path / "rows.jsonl", rows)
    loaded = load_pairs(file)
    assert loaded.check.format == format
    pair = loaded.pairs[0]
    expected = turns or [("user", ASK)]
    assert pair.prompt.messages == tuple(Message(role, text) for role, text in expected)
    assert (pair.chosen, pair.rejected) == (GOOD, BAD)
    assert {"prompt", "chosen", "rejected"} <= loaded.check.mapping.keys()
    assert pair.prompt.meta["where"].startswith(f"{file}:")
    assert loaded.check.as_dict()["mapping"] == loaded.check.mapping


def test_the_settings_know_every_format() -> None:
    assert set(FORMATS) < set(get_args(Data.model_fields["format"].annotation))


@pytest.mark.parametrize(
    ("row", "changes", "field", "reason"),
    [
        (FAMILIES[8][2][0], {"completions": SCORED[:1]}, "completions", "two or more"),
        (FAMILIES[8][2][0], {"completions": [SCORED[0], {"response": GOOD}]}, "overall_score", "missing"),
        (
            FAMILIES[8][2][0],
            {"completions": [SCORED[0], {"response": GOOD, "overall_score": 11}]},
            "completions 2 overall_score",
            "from 0 to 10",
        ),
        (FAMILIES[9][2][0], {"context": [A("x")]}, "context", "the assistant speaks before the user"),
        (FAMILIES[10][2][0], {"preference_strength": 4}, "preference_strength", "from -3 to 3, got 4"),
        (FAMILIES[10][2][0], {"preference_strength": None}, "preference_strength", "got null"),
        (FAMILIES[10][2][0], {"response_2": BAD}, "response_1", "equals response_2"),
        (FAMILIES[13][2][0], {"winner": "model_c"}, "winner", "'model_c'"),
        (FAMILIES[14][2][0], {"helpfulness": 7}, "helpfulness", "from 0 to 4"),
        (FAMILIES[15][2][0], {"label": 2}, "label", "expected true or false, got 2"),
        (FAMILIES[15][2][0], {"label": "yes"}, "label", "got str"),
        (FAMILIES[15][2][0], {"completion": " "}, "completion", "empty"),
        (FAMILIES[18][2][0], {"history": 5}, "history", "expected a list, got int"),
        (FAMILIES[18][2][0], {"history": [["a"]]}, "history", "turn 1: expected [question, answer]"),
        (FAMILIES[18][2][0], {"instruction": "", "input": ""}, "instruction", "is empty"),
        (FAMILIES[19][2][0], {"chosen": HUMAN("x")}, "chosen", "not the assistant's"),
        (FAMILIES[19][2][0], {"conversations": [HUMAN("a"), GPT("b")]}, "conversations", "ends with the assistant"),
        (
            FAMILIES[19][2][0],
            {"conversations": [{"from": "observation", "value": "a"}]},
            "conversations",
            "unknown role",
        ),
        (FAMILIES[25][2][0], {"rejected": []}, "rejected", "an empty list"),
    ],
)
def test_a_bad_row_of_a_family_is_named(tmp_path, row, changes, field, reason) -> None:
    file = write(tmp_path / "rows.jsonl", [row, row | changes])
    with pytest.raises(InputError) as caught:
        load_pairs(file)
    assert (caught.value.where, caught.value.field) == (f"{file}:2", field)
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    ("family", "changes", "name"),
    [
        (8, {"completions": [{"response": t, "overall_score": 5} for t in "ab"]}, "tied_scores"),
        (10, {"preference_strength": 0}, "ties"),
        (13, {"winner": "tie (bothbad)"}, "ties"),
        (13, {"conversation_a": [U("Another?"), A(BAD)]}, "differing_prompts"),
    ],
)
def test_ties_are_dropped_and_counted_and_are_no_bad_rows(tmp_path, family, changes, name) -> None:
    row = FAMILIES[family][2][0]
    found = check(write(tmp_path / "rows.jsonl", [row, row | changes]))
    assert found.counts[name] == 1 and found.counts["kept"] == 1 and found.counts["bad_rows"] == 0


def test_every_rejected_of_reward_bench_stands_against_a_chosen_and_the_subset_is_the_kind(tmp_path) -> None:
    row = FAMILIES[25][2][0] | {"chosen": [GOOD, "Night fell."]}
    pairs = load_pairs(write(tmp_path / "rows.jsonl", [row])).pairs
    assert [(p.chosen, p.rejected) for p in pairs] == [(GOOD, BAD), ("Night fell.", "So."), (GOOD, "No.")]
    assert {p.prompt.kind for p in pairs} == {"Focus"}


def test_labels_are_paired_by_prompt_and_what_is_left_is_counted(tmp_path) -> None:
    labels = [("p", "a", 1), ("q", "x", 0), ("p", "b", 0), ("p", "c", 1), ("p", "d", 0), ("p", "e", 0), ("r", "z", 1)]
    rows = [{"prompt": p, "completion": c, "label": bool(label)} for p, c, label in labels]
    loaded = load_pairs(write(tmp_path / "rows.jsonl", rows))
    assert [(p.prompt, p.chosen, p.rejected) for p in loaded.pairs] == [
        (Prompt.ask("p"), "a", "b"), (Prompt.ask("p"), "c", "d"),
    ]  # fmt: skip
    counts = loaded.check.counts
    assert counts["kept"] == 2 and counts["unpaired_labels"] == 3 and counts["contradictory_labels"] == 0


def test_an_answer_with_both_labels_is_in_no_pair(tmp_path) -> None:
    rows = [{"prompt": "p", "completion": c, "label": bool(v)} for c, v in (("a", 1), ("a", 0), ("b", 1), ("c", 0))]
    loaded = load_pairs(write(tmp_path / "rows.jsonl", rows))
    assert [(p.chosen, p.rejected) for p in loaded.pairs] == [("b", "c")]
    assert loaded.check.counts["contradictory_labels"] == 2 and loaded.check.counts["unpaired_labels"] == 0


def test_columns_are_renamed_as_told_and_the_mapping_and_errors_name_the_users_own(tmp_path) -> None:
    rows = [{"q": ASK, "good": GOOD, "bad": BAD, "prompt": 3}, {"q": ASK, "good": " ", "bad": BAD}]
    file = write(tmp_path / "rows.jsonl", rows)
    columns = ("prompt=q", "chosen=good", "rejected=bad")
    loaded = load_pairs(file, columns=columns, on_bad_row="drop")
    assert loaded.pairs[0].prompt == Prompt.ask(ASK) and loaded.pairs[0].chosen == GOOD
    assert loaded.check.mapping == {"prompt": "q", "chosen": "good", "rejected": "bad"}
    with pytest.raises(InputError) as caught:
        load_pairs(file, columns=columns)
    assert (caught.value.where, caught.value.field) == (f"{file}:2", "good")
    for wrong in (("prompt",), ("=q",), ("prompt=",), ("prompt=q", "prompt=good")):
        with pytest.raises(InputError, match=r"data\.columns"):
            load_pairs(file, columns=wrong)


@pytest.mark.parametrize(
    ("row", "reason", "remedy"),
    [
        ({"chosen": "abc", "rejected": "abd"}, "missing", "add a prompt column"),
        (
            {"question": "a", "query": "b", **ROW},
            "'question' and 'query' could each be the prompt",
            "data.columns=prompt=",
        ),
        ({"data_source": "gsm8k", "prompt": [U("2+2")], "reward_model": {"ground_truth": "4"}}, "verl", "problems"),
        ({"messages": [U("a"), A("b")]}, "without a second response", "two responses"),
        ({"prompt": "a", "completion": "b"}, "no label", "two responses"),
        ({"instruction": "a", "input": "", "output": "b"}, "one answer", "two responses"),
    ],
)
def test_what_is_no_preference_file_is_said_to_be_what_it_is(tmp_path, row, reason, remedy) -> None:
    file = write(tmp_path / "rows.jsonl", [row])
    with pytest.raises(InputError) as caught:
        load_pairs(file)
    assert caught.value.where == f"{file}:1" and reason in caught.value.reason and remedy in caught.value.remedy


def test_a_named_format_is_read_though_the_rows_look_like_another(tmp_path) -> None:
    row = {"prompt": ASK, **ROW, "subset": "x", "chosen_model": "m"}
    assert detect(row) == "reward-bench"
    assert load_pairs(write(tmp_path / "rows.jsonl", [row]), format="pairs").pairs[0].prompt.kind == ""


KEYS = ["role", "content", "from", "value", "response", "overall_score", "rank", "completion", "x"]
WORDS = st.text(max_size=6) | st.sampled_from(["user", "assistant", "human", "gpt", "model_a", "tie"])
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-4, 4) | st.floats(allow_nan=False, allow_infinity=False) | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=10,
)


@given(st.data())
@hypothesis.settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_value_of_any_column_of_any_family_escapes_as_another_exception(tmp_path, data) -> None:
    _, format, rows, _ = data.draw(st.sampled_from(FAMILIES))
    row = data.draw(st.sampled_from(rows))
    column = data.draw(st.sampled_from(sorted(row)))
    strange = row | {column: data.draw(ANYTHING)}
    if data.draw(st.booleans()):
        del strange[column]
    file = write(tmp_path / "rows.jsonl", [row, strange])
    for chosen in (format, "auto"):
        found = check(file, format=chosen)
        assert found.rows == 2 and found.counts["bad_rows"] <= 2
        json.dumps(found.as_dict())
    try:
        detected = check(write(tmp_path / "one.jsonl", [strange]))
        assert detected.rows == 1
    except InputError as error:  # a row that is of another kind, told as such
        assert error.where.endswith(":1")


@given(st.binary(max_size=200) | st.text(max_size=120).map(str.encode), st.sampled_from(["a.csv", "a.tsv", "a.csv.gz"]))
@hypothesis.settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_bytes_of_a_table_escape_as_another_exception(tmp_path, content, name) -> None:
    file = tmp_path / name
    file.write_bytes(gzip.compress(content, mtime=0) if name.endswith(".gz") else content)
    try:
        check(file)
    except InputError as error:
        assert error.where.startswith(str(file))
