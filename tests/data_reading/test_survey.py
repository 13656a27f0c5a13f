"""What is found in a set of pairs: repeats, contradictions, leaks, lengths, scripts; pairs as tokens with a mask."""

from __future__ import annotations

import json

import pytest
from tests.program import trueline

from trueline.data.chat import ChatTokenizer
from trueline.data.masks import render_pair
from trueline.data.survey import scripts_of, survey
from trueline.types import Message, Pair, Prompt


def pair(line: int, prompt: str, chosen: str, rejected: str, earlier: str = "") -> Pair:
    turns = (Message("user", earlier), Message("assistant", "Yes?")) if earlier else ()
    return Pair(Prompt((*turns, Message("user", prompt)), meta={"where": f"f:{line}"}), chosen, rejected)


PAIRS = [
    pair(1, "p", "a", "b"), pair(2, "p", "a", "b"), pair(3, "p", "b", "a"), pair(4, "p", "c", "d"),
    pair(5, "p", "d", "e"), pair(6, "q", "c", "d"), pair(7, "r", "привет", "hi"),
]  # fmt: skip


def test_repeats_and_contradictions_are_found_with_their_places() -> None:
    found = survey(PAIRS)
    assert [(f.places, f.text) for f in found.of("duplicate")] == [(("f:1", "f:2"), "a")]
    assert [(f.places, f.text) for f in found.of("reversed")] == [(("f:1", "f:2", "f:3"), "a")]
    # d is rejected in row 4 and chosen in row 5; the pair that stands both ways round is not told twice
    assert [(f.places, f.text) for f in found.of("contradiction")] == [(("f:5", "f:4"), "d")]
    assert (found.pairs, found.prompts) == (7, 3)


def test_a_dialogue_cut_at_another_turn_leaks_and_an_equal_prompt_is_counted_apart() -> None:
    train = [pair(1, "And then?", "a", "b", earlier="Tell me  a story"), pair(2, "x", "a", "b"), pair(3, "y", "a", "b")]
    held = [pair(11, "tell me a story", "c", "d"), pair(12, "x", "c", "d")]
    found = survey(train, held)
    assert [f.places for f in found.of("leak")] == [("f:11", "f:1"), ("f:12", "f:2")]
    assert found.leaked_prompts == 1 and survey(train).of("leak") == []


def test_lengths_and_scripts() -> None:
    found = survey([pair(1, "p", "abc", "d"), pair(2, "p", "ab", "cd"), pair(3, "p", "a", "привет")])
    assert found.lengths.longer == pytest.approx(0.5) and found.lengths.rejected == (1, 2, 6)
    assert found.scripts == {"Latin": pytest.approx(9 / 15), "Cyrillic": pytest.approx(6 / 15)}
    assert found.mixed == ("f:3",)
    assert scripts_of(["aé1 ", "漢字", "कि"]) == {"Latin": 2, "Cjk": 2, "Devanagari": 1}  # vowel signs are marks


TOKENIZER = ChatTokenizer.train([""], vocab_size=261)  # a token for every byte


def test_what_is_trained_is_what_training_tokenizes() -> None:
    item = pair(1, "hello hello", "world", "größer 🦊 world")
    full = TOKENIZER.encode_prompt(item.prompt)
    shown = render_pair(item, TOKENIZER, max_prompt_tokens=len(full) - 2, max_new_tokens=6)
    kinds = [(p.kind, "".join(p.tokens)) for p in shown.chosen.pieces]
    assert [kind for kind, _ in kinds] == ["cut", "read", "trained"]
    assert kinds[2][1] == "world<|end|>" and shown.chosen.ends and shown.differ
    assert sum(len(p.tokens) for p in shown.chosen.pieces if p.kind == "read") == len(full) - 2 == shown.chosen.read
    assert shown.rejected.trained == 6 and not shown.rejected.ends
    assert [p.kind for p in shown.rejected.pieces] == ["cut", "read", "trained", "cut"]
    assert "".join(shown.rejected.pieces[2].tokens) == "größ" and shown.rejected.pieces[3].tokens[-1] == "<|end|>"


def test_a_pair_that_cutting_makes_equal_is_told() -> None:
    item = pair(1, "hello", "world one", "world two")
    assert not render_pair(item, TOKENIZER, max_prompt_tokens=9, max_new_tokens=1).differ


@pytest.mark.parametrize("text", ["größer 🦊🦊", "a  b\n", "🦊", "<|end|> is text", "你好", ""])
def test_the_texts_of_tokens_make_the_text_again(text) -> None:
    ids = TOKENIZER.encode_response(text)
    texts = TOKENIZER.texts(ids)
    assert len(texts) == len(ids) and "".join(texts) == f"{text}<|end|>"


def test_a_character_that_is_cut_in_half_is_still_shown() -> None:
    ids = TOKENIZER.encode_response("🦊")[:2]
    assert TOKENIZER.texts(ids)[-1] == "\ufffd"


def test_the_command_writes_what_it_found(tmp_path) -> None:
    rows = [
        {"prompt": "Tell me", "chosen": "a <b>bold</b> story", "rejected": "no"},
        {"prompt": "x", "chosen": "", "rejected": "n"},
    ]
    file, held, page = tmp_path / "a.jsonl", tmp_path / "b.jsonl", tmp_path / "out" / "page.html"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    held.write_text(json.dumps(rows[0]) + "\n")
    done = trueline("data", "show", file, "--eval", held, "-o", page, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "1 rows dropped: empty responses" in done.stdout
    assert "1 conversations that stand in the evaluation" in done.stdout
    html = page.read_text()
    assert "&lt;" in html and "<b>bold" not in html and 'class="trained"' in html
    assert "a.jsonl: 2" in html and "is empty" in html
    refused = trueline("data", "show", file, "-o", "page.txt", cwd=tmp_path)
    assert refused.returncode == 2 and "write PAGE.html" in refused.stderr
