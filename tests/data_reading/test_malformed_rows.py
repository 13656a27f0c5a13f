"""Every way a file can be wrong ends in one InputError that names the place and the column."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trueline.data.check import check
from trueline.data.loading import load_pairs
from trueline.data.sources import expand, read_rows
from trueline.errors import InputError

# mtime=0 where gzip data stand in a list of cases: the ids must not carry the clock, or two workers disagree on them.
GOOD = '{"prompt": "Why?", "chosen": "Because.", "rejected": "No."}\n'
USER, ASSISTANT = '{"role": "user", "content": "u"}', '{"role": "assistant", "content": "a"}'


def pair(prompt: str = '"p"', chosen: str = '"c"', rejected: str = '"r"') -> str:
    return f'{{"prompt": {prompt}, "chosen": {chosen}, "rejected": {rejected}}}'


def sides(chosen: str, rejected: str = f"[{USER}, {ASSISTANT}]") -> str:
    return f'{{"chosen": [{chosen}], "rejected": {rejected}}}'


# second line of the file -> the place after the file's name, the column, words of the reason
BAD_PAIRS = [
    ('{"prompt": "a", "chosen":', ":2:26", "", "broken JSON"),
    ('{"prompt": "a",}', ":2:16", "", "broken JSON"),
    ("{'prompt': 1}", ":2:2", "", "broken JSON"),
    ("nonsense", ":2:1", "", "broken JSON"),
    ('{"prompt": "a\tb"}', ":2:14", "", "control character"),
    (pair() + " " + pair(), ":2:49", "", "two objects"),
    (pair() + ",", ":2:48", "", "text after the object"),
    ("[1, 2]", ":2", "", "a list, not an object"),
    ('"text"', ":2", "", "a text, not an object"),
    ("3", ":2", "", "not an object"),
    ("null", ":2", "", "null, not an object"),
    ('{"prompt": "a", "chosen": NaN, "rejected": "c"}', ":2:1", "", "NaN"),
    ('  {"prompt": "a", "score": -Infinity}', ":2:3", "", "-Infinity"),
    ('{"prompt": "a", "prompt": "b"}', ":2:1", "", "repeated key 'prompt'"),
    ('{"prompt": ' + "9" * 5000 + "}", ":2:1", "", "too long"),
    ('{"prompt": ' + "[" * 100_000, ":2:1", "", "nested too deeply"),
    (pair(prompt=r'"\ud800"'), ":2", "prompt", "surrogate"),
    (pair(rejected=r'[{"role": "assistant", "content": "\udfff"}]'), ":2", "rejected", "surrogate"),
    (pair(chosen=r'"\u0000"'), ":2", "chosen", "NUL"),
    ('{"prompt": "a", "chosen": "b"}', ":2", "rejected", "missing"),
    ('{"prompt": "a", "chosen": "b", "rejcted": "c"}', ":2", "rejected", "rename 'rejcted'"),
    ('{"chosen": "b", "rejected": "c"}', ":2", "prompt", "missing"),
    ("{}", ":2", "prompt", "missing"),
    (pair(prompt="null"), ":2", "prompt", "got null"),
    (pair(chosen="3"), ":2", "chosen", "got int"),
    (pair(chosen='{"text": "b"}'), ":2", "chosen", "got dict"),
    (pair(prompt='""'), ":2", "prompt", "empty"),
    (pair(prompt='" \\n"'), ":2", "prompt", "empty"),
    (pair(chosen='""'), ":2", "chosen", "empty"),
    (pair(rejected='" \\t\\u3000"'), ":2", "rejected", "empty"),
    (pair(chosen='"r"'), ":2", "rejected", "equals chosen"),
    (pair(prompt="[]"), ":2", "prompt", "at least one turn"),
    (pair(prompt='["p"]'), ":2", "prompt", "turn 1: expected"),
    (pair(prompt=f"[{USER}, {ASSISTANT}]"), ":2", "prompt", "turn 2: the prompt ends with the assistant"),
    (pair(chosen=f"[{USER}]"), ":2", "chosen", "turn 1: the response is not the assistant's"),
    (pair(chosen=f"[{USER}, {ASSISTANT}]"), ":2", "chosen", "not the prompt"),
    (pair(chosen="[]"), ":2", "chosen", "at least one turn"),
]
BAD_MESSAGES = [
    (sides(""), "chosen", "at least one turn"),
    (sides(USER), "chosen", "turn 1: the last turn is not the assistant's"),
    (sides(f"{USER}, {ASSISTANT}, {USER}"), "chosen", "turn 3: the last turn is not the assistant's"),
    (sides(ASSISTANT), "chosen", "turn 1: the assistant speaks before the user"),
    (sides(f'{{"role": "system", "content": "s"}}, {ASSISTANT}'), "chosen", "turn 2: the assistant speaks before"),
    (sides(f'{{"role": "human", "content": "u"}}, {ASSISTANT}'), "chosen", "turn 1: unknown role 'human'"),
    (sides(f'{USER}, {{"role": "tool", "content": "t"}}, {ASSISTANT}'), "chosen", "turn 2: unknown role 'tool'"),
    (sides(f'{{"from": "user", "value": "u"}}, {ASSISTANT}'), "chosen", "turn 1: expected"),
    (sides(f'{{"role": "user", "content": null}}, {ASSISTANT}'), "chosen", "turn 1: expected"),
    (sides(f'{USER}, {{"role": "system", "content": "s"}}, {ASSISTANT}'), "chosen", "turn 2: the system turn"),
    (
        sides(f'{{"role": "system", "content": "s"}}, {{"role": "system", "content": "s"}}, {USER}, {ASSISTANT}'),
        "chosen",
        "turn 2: a second system turn",
    ),
    (sides(f'{{"role": "user", "content": " "}}, {ASSISTANT}'), "chosen", "turn 1: the content is empty"),
    (sides(f'{USER}, {{"role": "assistant", "content": ""}}'), "chosen", "turn 2: the response is empty"),
    (sides(f'{{"role": "user", "content": "x"}}, {ASSISTANT}'), "rejected", "turn 1: differs"),
    (sides(f"{USER}, {ASSISTANT}"), "rejected", "equals chosen"),
    ('{"chosen": [], "rejected": "text"}', "rejected", "expected a list of messages, got str"),
    ('{"chosen": []}', "rejected", "missing"),
]


@pytest.mark.parametrize(("line", "place", "field", "reason"), BAD_PAIRS)
def test_a_bad_row_of_pairs_is_named(tmp_path, line, place, field, reason):
    file = tmp_path / "rows.jsonl"
    file.write_text(GOOD + line + "\n" + GOOD)
    with pytest.raises(InputError) as caught:
        load_pairs(file)
    assert (caught.value.where, caught.value.field) == (f"{file}{place}", field)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(load_pairs(file, on_bad_row="drop").pairs) == 2


@pytest.mark.parametrize(("line", "field", "reason"), BAD_MESSAGES)
def test_a_bad_row_of_messages_is_named_with_its_turn(tmp_path, line, field, reason):
    file = tmp_path / "rows.jsonl"
    good = sides(f'{USER}, {{"role": "assistant", "content": "better"}}') + "\n"
    file.write_text(good + line + "\n")
    with pytest.raises(InputError) as caught:
        load_pairs(file)
    assert (caught.value.where, caught.value.field) == (f"{file}:2", field)
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "place", "reason"),
    [
        ("rows.jsonl", b"", "", "empty"),
        ("rows.jsonl", b"\n \r\n\n", "", "no rows"),
        ("rows.jsonl", b"\xef\xbb\xbf", "", "no rows"),
        ("rows.jsonl", GOOD.encode("utf-16"), ":1", "UTF-16"),
        ("rows.jsonl", gzip.compress(GOOD.encode(), mtime=0), "", "gzip data without the .gz suffix"),
        ("rows.jsonl", b"version https://git-lfs.github.com/spec/v1\n", "", "git-lfs pointer"),
        ("rows.jsonl.gz", b"version https://git-lfs.github.com/spec/v1\n", "", "git-lfs pointer"),
        ("rows.jsonl.gz", GOOD.encode(), "", "corrupt gzip"),
        ("rows.jsonl.gz", gzip.compress(GOOD.encode() * 99, mtime=0)[:-20], "", "corrupt gzip"),
        ("rows.jsonl.gz", gzip.compress(GOOD.encode(), mtime=0)[:30] + b"\0" * 40, "", "corrupt gzip"),
        ("rows.json", b'{"prompt": "a"}', ":1", "expected ["),
        ("rows.json", b"[]", "", "no rows"),
        ("rows.json", b"[" + GOOD.encode(), ":2", "expected , or ], found 'the end'"),
        ("rows.json", b"[\n" + GOOD.encode() + b", {\n 1", ":4:2", "broken JSON"),
        ("rows.txt", b"prompt,chosen", "", "unknown kind of file"),
        ("rows.jsonl.zip", b"PK", "", "unknown kind of file"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path, name, content, place, reason):
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(InputError) as caught:
        load_pairs(file)
    assert caught.value.where == f"{file}{place}"
    assert reason in str(caught.value)


def test_bytes_that_are_not_utf8_are_found_by_their_offset(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_bytes(GOOD.encode() + b'{"prompt": "\xff\xfe", "chosen": "b", "rejected": "c"}\n')
    with pytest.raises(InputError, match=r"rows\.jsonl:2: not UTF-8 at byte 12 of the line \(0xff\)"):
        load_pairs(file)


def test_the_path_stands_in_the_error_as_typed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("bad.jsonl").write_text(GOOD + "{\n")
    with pytest.raises(InputError) as caught:
        load_pairs("bad.jsonl")
    assert str(caught.value).startswith("bad.jsonl:2:2: broken JSON")
    with pytest.raises(InputError) as caught:
        load_pairs("missing.jsonl")
    assert str(caught.value).startswith("missing.jsonl: file not found; ")


def test_one_error_lists_the_lines_of_all_bad_rows(tmp_path):
    first, second = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    first.write_text(GOOD + '{"prompt": "a"}\n' + GOOD + "{\n")
    second.write_text('{"prompt": "a"}\n' * 30)
    with pytest.raises(InputError) as caught:
        load_pairs([first, second])
    text = str(caught.value)
    assert text.startswith(f"{first}:2: chosen: missing (31 more bad rows: {first} lines 4; {second} lines 1, 2, 3, ")
    assert ", 19, ...); " in text  # line 4 of a.jsonl and 19 of b.jsonl make twenty
    assert "data.on_bad_row=drop" in text


def test_bad_rows_are_counted_beyond_those_shown(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text(GOOD + '{"prompt": "a"}\n' * 30 + "{\n")
    found = check(file, limit=5)
    assert (found.rows, found.counts["kept"], found.counts["bad_rows"], len(found.bad)) == (32, 1, 31, 5)
    assert (found.counts["missing_field"], found.counts["unreadable"]) == (30, 1)
    assert found.bad[0] == (f"{file}:2", "chosen", "missing")
    json.dumps(found.as_dict(), allow_nan=False)


def test_paths_that_lead_to_no_file(tmp_path):
    (tmp_path / "d.jsonl").mkdir()
    for path, reason in [
        (tmp_path / "missing.jsonl", "file not found"),
        (tmp_path / "d.jsonl", "is a directory"),
        (str(tmp_path / "*.gz"), "no file matches"),
        ([], "no path given"),
        ("", "no path given"),
        ("a\0.jsonl", "NUL"),
        ("x" * 5000 + ".jsonl", "cannot be read"),
    ]:
        with pytest.raises(InputError, match=reason):
            expand(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_without_permission(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text(GOOD)
    file.chmod(0)
    with pytest.raises(InputError, match="cannot be read"):
        expand(file)


def test_choices_that_do_not_exist(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text(GOOD)
    with pytest.raises(InputError, match=r"data\.format: unknown format 'csv'"):
        load_pairs(file, format="csv")
    with pytest.raises(InputError, match=r"data\.on_bad_row: unknown choice 'skip'"):
        load_pairs(file, on_bad_row="skip")


def test_files_of_two_formats_are_not_mixed(tmp_path):
    (tmp_path / "a.jsonl").write_text(GOOD)
    (tmp_path / "b.jsonl").write_text(sides(f"{USER}, {ASSISTANT}") + "\n")
    with pytest.raises(InputError, match="is written as messages"):
        check(str(tmp_path / "*.jsonl"))


def test_no_row_left_after_dropping(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": "a"}\n')
    with pytest.raises(InputError, match="no usable row of 1"):
        load_pairs(file, on_bad_row="drop")


SCRAPS = [
    GOOD,
    "{",
    "}",
    '"',
    "\\u",
    "\ud7ff",
    "[",
    ",",
    "\n",
    "\r",
    "NaN",
    "1e999",
    '"prompt":',
    "\x00",
    "\x85",
    "\u2028",
]
scraps = st.lists(st.sampled_from(SCRAPS), max_size=20).map(lambda parts: "".join(parts).encode())


@given(st.binary(max_size=200) | scraps, st.sampled_from(["f.jsonl", "f.json", "f.jsonl.gz"]))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_bytes_escape_as_another_exception(tmp_path, content, name):
    file = tmp_path / name
    file.write_bytes(gzip.compress(content) if name.endswith(".gz") and len(content) % 2 else content)
    refused: list[InputError] = []
    try:
        rows = list(read_rows(file, on_bad=refused.append))
        assert all(isinstance(row.value, dict) for row in rows)
    except InputError:
        return
    if refused:
        with pytest.raises(InputError) as caught:
            list(read_rows(file))
        assert caught.value.where == refused[0].where
    else:
        assert list(read_rows(file)) == rows
    assert len(rows) + len(refused) <= content.count(b"\n") + 1 or name == "f.json"


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner, max_size=3)
       | st.dictionaries(st.sampled_from(["role", "content", "x"]), inner, max_size=3), max_leaves=8))  # fmt: skip
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_value_of_a_column_escapes_as_another_exception(tmp_path, value):
    file = tmp_path / "rows.jsonl"
    rows = [{"prompt": value, "chosen": "c", "rejected": "r"}, {"prompt": "p", "chosen": value, "rejected": "r"}]
    rows += [{"chosen": value, "rejected": value}, {"prompt": "p", "chosen": "c", "rejected": [value]}]
    file.write_text("\n".join(map(json.dumps, rows)))
    for format in ("pairs", "messages", "hh-rlhf", "safe-rlhf"):
        found = check(file, format=format)
        dropped = sum(found.counts[name] for name in ("identical_pairs",)) if format == "hh-rlhf" else 0
        assert found.rows == 4 == found.counts["kept"] + found.counts["bad_rows"] + dropped
