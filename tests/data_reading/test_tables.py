"""CSV, TSV, Parquet and datasets in a folder: the same rows as JSONL gives, and what is wrong is named by its place."""

from __future__ import annotations

import csv
import gzip
import json
import subprocess
import sys

import pyarrow
import pyarrow.parquet as parquet
import pytest

from trueline.data.check import check
from trueline.data.hub_files import HubName, parse
from trueline.data.loading import load_pairs
from trueline.data.sources import read_rows
from trueline.errors import InputError

ROWS = [
    {"prompt": 'a "quoted", text', "chosen": "two\nlines", "rejected": "größer 🦊"},
    {"prompt": "[1] is a footnote", "chosen": "[{not JSON", "rejected": "; , \t"},
    {"prompt": "3", "chosen": "true", "rejected": "null"},
]


def write_csv(path, rows, delimiter=","):
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_a_table_gives_the_rows_of_jsonl(tmp_path) -> None:
    comma, tab = write_csv(tmp_path / "a.csv", ROWS), write_csv(tmp_path / "a.tsv", ROWS, "\t")
    zipped, marked = tmp_path / "b.csv.gz", tmp_path / "c.CSV"
    zipped.write_bytes(gzip.compress(comma.read_bytes()))
    marked.write_bytes(b"\xef\xbb\xbf" + comma.read_bytes())
    for file in (comma, tab, zipped, marked):
        rows = list(read_rows(file))
        assert [row.value for row in rows] == ROWS
        assert [row.line for row in rows] == [2, 4, 5]  # the first record has a line break in a cell
    table = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), table)
    assert [(row.value, row.where) for row in read_rows(table)] == [(r, f"{table}:{i + 1}") for i, r in enumerate(ROWS)]


def test_turns_flags_and_numbers_of_a_table_are_read_as_such(tmp_path) -> None:
    turns = [{"role": "user", "content": "p"}, {"role": "assistant", "content": "a"}]
    other = [turns[0], {"role": "assistant", "content": "b"}]
    file = write_csv(tmp_path / "m.csv", [{"chosen": json.dumps(turns), "rejected": json.dumps(other)}])
    assert load_pairs(file).pairs[0].rejected == "b"
    labels = [{"prompt": "1", "completion": c, "label": v} for c, v in (("1", "True"), ("0", "false"))]
    pair = load_pairs(write_csv(tmp_path / "k.csv", labels)).pairs[0]
    assert (pair.prompt.text, pair.chosen, pair.rejected) == ("user: 1", "1", "0")
    strengths = [{"prompt": "p", "response_1": "a", "response_2": "b", "preference_strength": v} for v in ("-2", "x")]
    found = check(write_csv(tmp_path / "h.csv", strengths))
    assert found.counts["kept"] == 1 and found.bad[0].where.endswith(":3") and "got str" in found.bad[0].reason
    nested = tmp_path / "n.parquet"
    parquet.write_table(pyarrow.Table.from_pylist([{"chosen": turns, "rejected": other, "score": None}]), nested)
    assert load_pairs(nested).pairs[0].chosen == "a"


HEAD = b"prompt,chosen,rejected\n"


@pytest.mark.parametrize(
    ("name", "content", "place", "reason"),
    [
        ("a.csv", HEAD + b"p,a,b\np,a\n", ":3", "2 cells, but the header has 3"),
        ("a.csv", HEAD + b"p,a,b,c\n", ":2", "4 cells"),
        ("a.csv", HEAD + b'p,"a,b\n', ":2", "broken table"),
        ("a.csv", HEAD + b'p,"a"x,b\n', ":2", "broken table"),
        ("a.csv", b"prompt,chosen,chosen\n", ":1", "'chosen' is there twice"),
        ("a.csv", b"prompt;chosen;rejected\np;a;b\n", ":1", "divided by semicolons"),
        ("a.csv", b"prompt\tchosen\trejected\n", ":1", "divided by tabs"),
        ("a.csv", HEAD + b"p,a\xff,b\n", ":2", "not UTF-8 at byte 3"),
        ("a.csv", HEAD + b"p,a\0,b\n", ":2", "NUL"),
        ("a.csv", HEAD.decode().encode("utf-16"), ":1", "UTF-16"),
        ("a.csv", HEAD, "", "no rows"),
        ("a.csv", b"prompt,chosen\np,a\n", ":2", "missing"),
        ("a.csv.gz", HEAD, "", "corrupt gzip"),
        (
            "a.csv",
            HEAD + b"\"[{'role': 'user', 'content': 'p'}]\",a,b\n",
            ":2",
            "as Python prints it",
        ),
        ("a.csv", HEAD + b'"[{""role"": ""user"", ""content"": }]",a,b\n', ":2", "broken JSON in the cell"),
        ("a.parquet", b"PAR1 and nothing else", "", "corrupt Parquet"),
        ("a.parquet", b"", "", "empty"),
    ],
)
def test_a_broken_table_is_named(tmp_path, name, content, place, reason) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(InputError) as caught:
        load_pairs(file)
    assert caught.value.where == f"{file}{place}" and reason in str(caught.value)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("hub:Anthropic/hh-rlhf", HubName("Anthropic/hh-rlhf", "", "", "main")),
        ("hub:Anthropic/hh-rlhf:test@abc123", HubName("Anthropic/hh-rlhf", "", "test", "abc123")),
        ("hub:a/b/config:train", HubName("a/b", "config", "train", "main")),
        ("hub:./some/folder:train", HubName("./some/folder", "", "train", "main")),
    ],
)
def test_the_parts_of_a_datasets_name(text, parts) -> None:
    assert parse(text) == parts


@pytest.mark.parametrize("text", ["hub:", "hub:name", "hub:a/b/c/d", "hub:a b/c", "hub:a/b:"])
def test_what_is_no_datasets_name_is_refused(text) -> None:
    with pytest.raises(InputError, match="is not a name of a dataset"):
        parse(text)


def test_a_dataset_in_a_folder_is_read_once_and_its_splits_are_named(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "set"
    (folder / "data").mkdir(parents=True)
    for split, rows in (("train", ROWS), ("test", ROWS[:1])):
        parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "data" / f"{split}-00000-of-00001.parquet")
    # In a process of its own: the library keeps threads, files and its settings for the life of a process.
    code = """
import json, sys
from trueline.data.loading import load_pairs
from trueline.errors import InputError

out = []
for name in sys.argv[1:]:
    try:
        pairs = load_pairs(name).pairs
        out.append([len(pairs), pairs[0].prompt.meta["where"]])
    except InputError as error:
        out.append(str(error))
print(json.dumps(out))
"""
    names = [f"hub:{folder}:{split}" for split in ("train", "test", "train")] + [f"hub:{folder}", f"hub:{folder}:dev"]
    env_cache = {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}
    for key, value in env_cache.items():
        monkeypatch.setenv(key, value)
    done = subprocess.run([sys.executable, "-c", code, *names], capture_output=True, text=True, check=True)
    train, test, again, several, unknown = json.loads(done.stdout)
    assert train[0] == 3 and test[0] == 1 and again == train
    assert train[1].startswith(str(tmp_path / "cache" / "trueline" / "datasets")) and train[1].endswith(".parquet:1")
    assert "has several splits: " in several and "has no split 'dev'" in unknown
    assert len(list((tmp_path / "cache" / "trueline" / "datasets").glob("*"))) == 2


def test_a_hub_name_without_its_mark_is_told_how_to_write_it() -> None:
    with pytest.raises(InputError, match="hub:Anthropic/hh-rlhf"):
        load_pairs("Anthropic/hh-rlhf")
