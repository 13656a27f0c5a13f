"""The cell: whole files, rows that survive a crash, and the rewind of a resumed run."""

from __future__ import annotations

import json
import os

import pytest

from trueline.errors import RunError
from trueline.runs.cell import Cell, read_json, read_jsonl, write_json, write_jsonl


@pytest.fixture
def cell(tmp_path) -> Cell:
    made = Cell(tmp_path / "cells" / "abc")
    made.open({"method": "dpo", "seed": 0})
    return made


def test_a_cell_is_one_configuration(cell) -> None:
    cell.open({"method": "dpo", "seed": 0})
    with pytest.raises(RunError, match="another configuration"):
        cell.open({"method": "dpo", "seed": 1})
    assert read_json(cell / "config.json") == {"method": "dpo", "seed": 0}


def test_a_tuple_in_a_configuration_is_its_list(cell) -> None:
    other = Cell(cell.directory.parent / "def")
    for _ in range(2):
        other.open({"arms": ("sft", "dpo")})


def test_done_is_what_finish_wrote(cell) -> None:
    assert cell.done is None
    cell.finish(steps=3, flops=1.5)
    assert cell.done == {"steps": 3, "flops": 1.5}


@pytest.mark.parametrize("name", ["metrics", "timings", "samples"])
def test_rewind_drops_later_rows_and_a_half_line(cell, name) -> None:
    for step in range(1, 6):
        cell.log(name, {"step": step, "text": "né"})
    with open(cell / f"{name}.jsonl", "ab") as file:
        file.write(b'{"step": 3, "te')
    cell.rewind(3)
    assert (cell / f"{name}.jsonl").read_bytes().endswith(b"}\n")
    assert [row["step"] for row in read_jsonl(cell / f"{name}.jsonl")] == [1, 2, 3]
    cell.log(name, {"step": 4})
    assert [row["step"] for row in read_jsonl(cell / f"{name}.jsonl")] == [1, 2, 3, 4]


def test_rewind_to_the_start_drops_everything(cell) -> None:
    cell.log("metrics", {"step": 1})
    cell.log("samples", {"text": "no step: written before the first"})
    cell.rewind(0)
    assert list(read_jsonl(cell / "metrics.jsonl")) == []
    assert len(list(read_jsonl(cell / "samples.jsonl"))) == 1
    cell.rewind(-1)
    assert list(read_jsonl(cell / "samples.jsonl")) == []


def test_rewinding_equals_never_having_gone_further(cell) -> None:
    rows = [{"step": n, "loss": 0.1 * n, "text": "naïve \U0001f600"} for n in range(1, 6)]
    for row in rows[:3]:
        cell.log("metrics", row)
    expected = (cell / "metrics.jsonl").read_bytes()
    for row in rows[3:]:
        cell.log("metrics", row)
    cell.rewind(3)
    assert (cell / "metrics.jsonl").read_bytes() == expected


def test_every_place_of_a_cut_leaves_the_whole_rows(cell) -> None:
    """A crash may cut inside a character of several bytes."""
    rows = [{"step": 1, "text": "é"}, {"step": 2, "text": "\U0001f600"}]
    for row in rows:
        cell.log("samples", row)
    path = cell / "samples.jsonl"
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for end in range(len(whole) + 1):
        path.write_bytes(whole[:end])
        expected = rows if end == len(whole) else rows[:1] if end >= first else []
        assert list(read_jsonl(path)) == expected


def test_a_damaged_line_in_the_middle_is_named(cell) -> None:
    (cell / "metrics.jsonl").write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(RunError, match=r"metrics.jsonl:2: not JSON"):
        cell.rewind(5)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_json_is_not_written(cell, value) -> None:
    cell.log("metrics", {"step": 1})
    with pytest.raises(ValueError, match="JSON"):
        cell.log("metrics", {"step": 2, "loss": value})
    assert list(read_jsonl(cell / "metrics.jsonl")) == [{"step": 1}]
    with pytest.raises(ValueError, match="JSON"):
        write_json(cell / "config.json", {"x": value})
    assert read_json(cell / "config.json") == {"method": "dpo", "seed": 0}


def test_a_crash_while_writing_leaves_the_old_file(cell, monkeypatch) -> None:
    write_jsonl(cell / "pairs.jsonl", [{"a": 1}])
    monkeypatch.setattr(os, "replace", lambda a, b: (_ for _ in ()).throw(OSError("killed")))
    for write, value in ((write_json, {"method": "ppo"}), (write_jsonl, [{"a": 2}])):
        for name in ("config.json", "pairs.jsonl"):
            with pytest.raises(RunError, match="killed"):
                write(cell / name, value)
    monkeypatch.undo()
    assert read_json(cell / "config.json")["method"] == "dpo"
    assert list(read_jsonl(cell / "pairs.jsonl")) == [{"a": 1}]


@pytest.mark.parametrize("data", [b"", b"{", b"\xff"])
def test_a_json_file_that_cannot_be_read_is_named(cell, data) -> None:
    (cell / "done.json").write_bytes(data)
    with pytest.raises(RunError, match=r"done.json: cannot be read"):
        _ = cell.done


def test_metrics_of_equal_runs_are_equal_files(cell) -> None:
    other = Cell(cell.directory.parent / "def")
    other.open({})
    for made in (cell, other):
        made.log("metrics", {"step": 1, "loss": 0.1 + 0.2})
    assert (cell / "metrics.jsonl").read_bytes() == (other / "metrics.jsonl").read_bytes()
    assert json.loads((cell / "metrics.jsonl").read_text())["loss"] == 0.1 + 0.2


def test_a_row_without_a_step_belongs_to_the_start(cell) -> None:
    cell.log("samples", {"text": "a"})
    cell.log("samples", {"step": 1, "text": "b"})
    cell.rewind(0)
    assert [row["text"] for row in read_jsonl(cell / "samples.jsonl")] == ["a"]


def test_opening_again_removes_what_was_half_written_and_nothing_else(cell) -> None:
    (cell / ".gates.json.99.tmp").write_text("{")
    (cell / "notes.tmp").write_text("mine")
    (cell / "model").mkdir()
    (cell / "model" / ".tmpM49grB").write_bytes(b"half of the weights")  # as the tensors' library names it
    (cell / "model" / "model.safetensors").write_bytes(b"all of them")
    cell.open(read_json(cell / "config.json"))
    assert not (cell / ".gates.json.99.tmp").exists() and (cell / "notes.tmp").exists()
    assert [path.name for path in (cell / "model").iterdir()] == ["model.safetensors"]


def test_text_is_written_as_it_is(cell) -> None:
    write_json(cell / "a.json", {"text": "naïve 日本"})
    write_jsonl(cell / "b.jsonl", [{"text": "naïve 日本"}])
    cell.log("samples", {"text": "naïve 日本"})
    for name in ("a.json", "b.jsonl", "samples.jsonl"):
        assert "naïve 日本" in (cell / name).read_text(encoding="utf-8")


def test_the_end_and_the_rows_before_a_checkpoint_are_on_the_disk(cell, monkeypatch) -> None:
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(os.readlink(f"/proc/self/fd/{handle}")))
    cell.log("metrics", {"step": 1})
    cell.sync_logs()
    assert {str(cell / "metrics.jsonl"), str(cell / "config.json"), str(cell.directory)} <= set(synced)
    synced.clear()
    (cell / "model").mkdir()
    (cell / "model" / "weights").write_text("w")
    cell.finish(steps=1)
    assert str(cell / "model" / "weights") in synced and str(cell / "model") in synced
    assert any(path.startswith(str(cell / ".done.json")) for path in synced) and synced[-1] == str(cell.directory)


def test_a_new_cell_s_own_entry_is_on_the_disk(tmp_path, monkeypatch) -> None:
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(os.readlink(f"/proc/self/fd/{handle}")))
    (tmp_path / "cells").mkdir()
    Cell(tmp_path / "cells" / "x").open({"seed": 0})
    assert str(tmp_path / "cells") in synced and str(tmp_path / "cells" / "x") in synced


def test_what_a_stop_saved_goes(cell) -> None:
    cell.drop_stopped()  # nothing is there
    (cell.stopped / "step-00000001").mkdir(parents=True)
    cell.drop_stopped()
    assert not cell.stopped.exists()
