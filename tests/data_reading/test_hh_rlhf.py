"""The HH-RLHF parser on self-written rows with the published files' quirks, and on the files where they are present."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trueline.data.check import check
from trueline.data.formats.hh_rlhf import HH_DROPPED, HH_RLHF, parse_hh, render_hh
from trueline.data.formats.rows import RowProblem
from trueline.data.loading import load_pairs
from trueline.data.sources import read_rows
from trueline.errors import InputError
from trueline.types import Message

QUIRKS = Path(__file__).resolve().parents[1] / "data" / "hh_quirks.jsonl"
REAL = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "hh_rlhf"

# file -> rows, kept, and every count that is not 0 (multi_turn aside), each found by a scan independent of the parser
EXPECTED = {
    "harmless-base": (2312, 2299, {"differing_prompts": 5, "consecutive_turns": 4, "empty_responses": 4}),
    "helpful-online": (1137, 1129, {"identical_pairs": 2, "ends_with_human": 2, "empty_responses": 3, "empty_turn": 1}),
    "helpful-rejection-sampled": (2749, 2714, {"identical_pairs": 32, "differing_prompts": 3}),
}


def test_each_quirk_is_counted_under_its_name():
    found = check(QUIRKS)
    assert found.format == "hh-rlhf"
    assert found.counts == {
        "kept": 13, "bad_rows": 0, "multi_turn": 1, "duplicates": 1, "reversed_pairs": 1,
        "identical_pairs": 2, "assistant_first": 1, "ends_with_human": 1, "differing_prompts": 2,
        "consecutive_turns": 1, "empty_turn": 1, "empty_responses": 2,
        "role_word_in_text": 3, "misspelt_role": 2, "missing_space": 1, "extra_space": 1,
        "invisible_characters": 1, "replacement_characters": 1,
    }  # fmt: skip
    assert found.rows == 23 == found.counts["kept"] + sum(found.counts[name] for name in HH_DROPPED)


def test_a_regular_dialogue_parses_and_renders_back():
    text = "\n\nHuman: Why?\n\nAssistant: Who asks?\n\nHuman: I,\n\nfor one.\n\nAssistant: Because."
    turns = parse_hh(text)
    assert turns == (
        Message("user", "Why?"),
        Message("assistant", "Who asks?"),
        Message("user", "I,\n\nfor one."),
        Message("assistant", "Because."),
    )
    assert render_hh(turns) == text


words = st.text(st.characters(codec="utf-8"), max_size=30).map(str.strip)


@given(st.lists(st.tuples(st.sampled_from(["user", "assistant"]), words), min_size=1, max_size=6))
def test_parse_inverts_render(turns):
    messages = tuple(Message(role, text) for role, text in turns)
    assert parse_hh(render_hh(messages)) == messages


@pytest.mark.parametrize(
    "text", ["Human: no empty line before\nAssistant: yes", "", "hello\n\nHuman: a\n\nAssistant: b"]
)
def test_text_that_is_no_dialogue_is_refused(text):
    with pytest.raises(RowProblem, match="does not begin with"):
        parse_hh(text)


@pytest.mark.parametrize(
    ("row", "name", "field"),
    [
        ({"chosen": "\n\nHuman: a\n\nAssistant: b"}, "missing_field", "rejected"),
        ({"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": None}, "wrong_type", "rejected"),
        ({"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "a: b"}, "not_a_dialogue", "rejected"),
    ],
)
def test_rows_that_no_published_file_holds_are_bad_rows(row, name, field):
    with pytest.raises(RowProblem) as caught:
        HH_RLHF.read(row)
    assert (caught.value.name, caught.value.field) == (name, field)
    assert name not in HH_DROPPED


def test_known_quirks_are_no_error_and_foreign_rows_are(tmp_path):
    file = tmp_path / "hh.jsonl"
    file.write_text(QUIRKS.read_text(encoding="utf-8") + '{"chosen": "x"}\n', encoding="utf-8")
    assert len(load_pairs(QUIRKS).pairs) == 13
    with pytest.raises(InputError, match=r"hh\.jsonl:24: rejected: missing"):
        load_pairs(file)


@pytest.mark.parametrize("name", EXPECTED)
def test_the_published_files(name):
    file = REAL / f"{name}.test.jsonl.gz"
    if not file.exists():
        pytest.skip("the HH-RLHF files are not beside this checkout")
    found = check(file)
    rows, kept, counts = EXPECTED[name]
    assert (found.rows, found.counts["kept"], found.counts["bad_rows"]) == (rows, kept, 0)
    assert {quirk: found.counts[quirk] for quirk in HH_DROPPED if found.counts[quirk]} == counts
    exact = sum(render_hh(parse_hh(row.value["chosen"])) == row.value["chosen"] for row in read_rows(file))
    assert exact >= 0.99 * rows
