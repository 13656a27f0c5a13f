"""What may vary in a good file, and what each format's rows become."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest

from trueline.data.check import check
from trueline.data.loading import load_pairs
from trueline.data.sources import expand, read_rows
from trueline.types import Message, Pair, Prompt

FILES = Path(__file__).resolve().parents[1] / "data"
ROWS = [{"prompt": f"p{i}", "chosen": "ja, größer 🦊", "rejected": "no\r\n\u2028\x85"} for i in range(3)]
TEXT = "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS)


@pytest.mark.parametrize(
    ("name", "content", "lines"),
    [
        ("plain.jsonl", f"{TEXT}\n", [1, 2, 3]),
        ("no_last_newline.jsonl", TEXT, [1, 2, 3]),
        ("crlf.jsonl", TEXT.replace("\n", "\r\n"), [1, 2, 3]),
        ("bom.jsonl", f"\ufeff{TEXT}", [1, 2, 3]),
        ("blank_lines.jsonl", f"\n\n{TEXT}".replace("\n{", "\n \n{"), [4, 6, 8]),
        ("indented.jsonl", f"  {TEXT}  ", [1, 2, 3]),
        ("list.json", json.dumps(ROWS, indent=1), [2, 7, 12]),
        ("list.json", f"\ufeff [{TEXT.replace(chr(10), ',')}]\n\n", [1, 1, 1]),
        ("UPPER.JSONL", TEXT, [1, 2, 3]),
    ],
)
def test_what_may_vary_between_files_changes_no_row(tmp_path, name, content, lines):
    plain, zipped = tmp_path / name, tmp_path / f"{name}.gz"
    plain.write_bytes(content.encode())
    zipped.write_bytes(gzip.compress(content.encode()))
    for file in (plain, zipped):
        rows = list(read_rows(file))
        assert [row.value for row in rows] == ROWS
        assert [(row.where, row.line) for row in rows] == [(f"{file}:{n}", n) for n in lines]


def test_expand_takes_a_path_a_glob_or_a_list_and_each_file_once(tmp_path):
    for name in ("b.jsonl", "a.jsonl", "sub/c.jsonl", "[odd].jsonl", "a.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    names = lambda found: [str(file.relative_to(tmp_path)) for file in found]  # noqa: E731
    assert names(expand(tmp_path / "a.jsonl")) == ["a.jsonl"]
    assert names(expand(str(tmp_path / "*.jsonl"))) == ["[odd].jsonl", "a.jsonl", "b.jsonl"]
    assert names(expand([str(tmp_path / "*.jsonl"), tmp_path / "a.jsonl"])) == ["[odd].jsonl", "a.jsonl", "b.jsonl"]
    assert names(expand(str(tmp_path / "**/c.jsonl"))) == ["sub/c.jsonl"]
    assert names(expand(str(tmp_path / "[odd].jsonl"))) == ["[odd].jsonl"]  # a name first, a pattern second


def test_pairs_with_texts_and_with_messages():
    loaded = load_pairs(FILES / "pairs.jsonl")
    assert loaded.check.format == "pairs"
    assert loaded.pairs[0] == Pair(Prompt.ask("What is 1 plus 1?"), "It is 2.", "It is 3.")
    moon = Prompt((Message("system", "Answer briefly."), Message("user", "Größe des Mondes?")))
    assert loaded.pairs[5] == Pair(moon, "3474 km.", "Klein.")
    # chosen and rejected as whole conversations that repeat the prompt
    assert loaded.pairs[6] == Pair(Prompt.ask("And of Mars?"), "6779 km.", "Red.")
    assert load_pairs(FILES / "pairs.jsonl.gz").pairs == loaded.pairs


def test_messages_share_their_prompt():
    loaded = load_pairs(FILES / "messages.jsonl")
    assert loaded.check.format == "messages"
    assert loaded.check.counts["multi_turn"] == 1
    prompt = Prompt((Message("user", "Hi."), Message("assistant", "Hello!"), Message("user", "A joke?")))
    assert loaded.pairs[1] == Pair(prompt, "No.", "Why?")
    assert loaded.pairs[2].prompt.messages[0] == Message("system", "Be kind.")


def test_limit_takes_the_first_pairs_after_all_rows_were_checked():
    loaded = load_pairs(FILES / "pairs.jsonl", limit=2)
    assert (len(loaded.pairs), loaded.check.rows) == (2, 7)


def test_lengths_are_nearest_rank_percentiles(tmp_path):
    file = tmp_path / "rows.jsonl"
    rows = [{"prompt": "p", "chosen": "c" * n, "rejected": "r"} for n in range(1, 11)]
    file.write_text("\n".join(map(json.dumps, rows)))
    # of 1..10 the nearest-rank p50 is the 5th, p90 the 9th, p99 the ceil(9.9) = 10th
    assert check(file).lengths["chosen"] == {"min": 1, "p50": 5, "p90": 9, "p99": 10, "max": 10}


def test_the_path_to_an_error_imports_no_torch():
    code = "import sys, trueline.data.check, trueline.data.loading, trueline.config; print('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"
