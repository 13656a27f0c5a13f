"""The SafeRLHF format: two labels and two flags become one preference; what is wrong with a row is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trueline.data.check import check
from trueline.data.formats import detect
from trueline.data.loading import load_pairs
from trueline.errors import InputError
from trueline.study.settings import Data
from trueline.tasks.registry import make_task
from trueline.tasks.safe_rlhf import Config
from trueline.types import Pair, Prompt

FILE = Path(__file__).resolve().parents[1] / "data" / "safe_rlhf.jsonl"
ROW = {
    "prompt": "p", "response_0": "a", "response_1": "b", "is_response_0_safe": True, "is_response_1_safe": False,
    "better_response_id": 1, "safer_response_id": 0,
}  # fmt: skip


def test_each_row_becomes_one_preference() -> None:
    loaded = load_pairs(FILE)
    knife, diary = Prompt.ask("How do I sharpen a kitchen knife?"), Prompt.ask("How can I read my sister's diary?")
    assert loaded.check.format == "safe-rlhf" and len(loaded.pairs) == 7
    assert loaded.pairs[0] == Pair(knife, "Use a whetstone at a steady angle.", "Rub it on a plate.")
    # both safe: the more helpful one, whatever the other annotator says
    assert loaded.pairs[1] == loaded.pairs[0] and loaded.pairs[1].meta["chosen_safer"] is False
    # one unsafe, both unsafe: the safer one
    assert loaded.pairs[2].chosen == "Please leave it alone and talk to her."
    assert loaded.pairs[2].meta == {
        "chosen_safe": True, "rejected_safe": False, "chosen_better": False, "chosen_safer": True,
    }  # fmt: skip
    assert loaded.pairs[3] == Pair(
        diary, "Look under her mattress first.", "Pick the lock with a pin, then put it back."
    )
    assert loaded.pairs[6].chosen == "Push in and shout."  # the label goes before the flags, and that is counted


def test_sorts_conflicts_and_contradictions_are_counted() -> None:
    counts = check(FILE).counts
    assert {name: counts[name] for name in ("kept", "dual_safe", "mixed_safety", "dual_unsafe")} == {
        "kept": 7, "dual_safe": 3, "mixed_safety": 3, "dual_unsafe": 1,
    }  # fmt: skip
    assert counts["labels_in_conflict"] == 5 and counts["safer_against_flags"] == 1
    assert counts["duplicates"] == 1  # the second row is the first one turned round
    assert "dual_safe" not in check(FILE.with_name("pairs.jsonl")).counts


@pytest.mark.parametrize(
    ("change", "field", "reason"),
    [
        ({"prompt": None}, "prompt", "expected a text, got null"),
        ({"prompt": [{"role": "user", "content": "p"}]}, "prompt", "expected a text, got list"),
        ({"prompt": " "}, "prompt", "is empty"),
        ({"response_1": ""}, "response_1", "the response is empty"),
        ({"response_1": "a"}, "response_1", "equals response_0"),
        ({"is_response_0_safe": 1}, "is_response_0_safe", "expected true or false, got int"),
        ({"is_response_1_safe": "true"}, "is_response_1_safe", "expected true or false, got str"),
        ({"better_response_id": True}, "better_response_id", "expected 0 or 1, got bool"),
        ({"better_response_id": 0.0}, "better_response_id", "expected 0 or 1, got float"),
        ({"better_response_id": -1}, "better_response_id", "expected 0 or 1, got -1"),
        ({"safer_response_id": 2}, "safer_response_id", "expected 0 or 1, got 2"),
    ],
)
def test_a_bad_row_is_named_with_its_line_and_column(tmp_path, change, field, reason) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in (ROW, ROW | change, ROW)))
    with pytest.raises(InputError) as caught:
        load_pairs(file)
    assert (caught.value.where, caught.value.field) == (f"{file}:2", field)
    assert reason in str(caught.value)
    assert len(load_pairs(file, on_bad_row="drop").pairs) == 2


@pytest.mark.parametrize("column", ROW)
def test_a_missing_column_is_named(tmp_path, column) -> None:
    file = tmp_path / "rows.jsonl"
    less = {name: value for name, value in ROW.items() if name != column}
    file.write_text(json.dumps(ROW) + "\n" + json.dumps(less | {f"{column}_": 0}) + "\n")
    with pytest.raises(InputError) as caught:
        load_pairs(file)
    assert (caught.value.where, caught.value.field) == (f"{file}:2", column)
    assert f"rename '{column}_'" in str(caught.value)


def test_the_format_is_told_by_its_responses() -> None:
    assert detect(ROW) == "safe-rlhf" and detect(ROW | {"chosen": "a", "rejected": "b"}) == "safe-rlhf"
    assert detect({"prompt": "p", "chosen": "a", "rejected": "b"}) == "pairs"


# --- the task


@pytest.fixture
def rows(tmp_path) -> Path:
    """120 prompts, forty of each sort of pair."""
    file, flags = tmp_path / "rows.jsonl", ((True, True), (True, False), (False, False))
    made = []
    for i in range(120):
        safe = dict(zip(("is_response_0_safe", "is_response_1_safe"), flags[i % 3]))
        made.append(ROW | {"prompt": f"Question {i}?", "response_0": f"good {i}", "response_1": f"bad {i}"} | safe)
    file.write_text("".join(json.dumps(row) + "\n" for row in made))
    return file


def _task(rows: Path, filter: str = "none"):
    return make_task("safe-rlhf", {"data": Data(path=str(rows)), "world": Config(filter=filter)})


@pytest.mark.parametrize("filter", ["dual-unsafe", "dual-safe", "both"])
def test_a_filter_takes_pairs_from_the_learners_and_nothing_else(rows, filter) -> None:
    full, part = _task(rows), _task(rows, filter)
    every, some = full.pairs(3, None), part.pairs(3, None)
    flags = {"dual-unsafe": {(False, False)}, "dual-safe": {(True, True)}, "both": {(True, True), (False, False)}}

    def safety(pair):
        return pair.meta["chosen_safe"], pair.meta["rejected_safe"]

    assert some.training == [p for p in every.training if safety(p) not in flags[filter]]
    assert 0 < len(some.training) < len(every.training) and every.training[0].meta
    assert (some.selection, some.gold) == (every.selection, every.gold)
    for split in ("train", "selection", "test"):
        assert part.prompts(split) == full.prompts(split)
    assert part.demonstrations(3) == full.demonstrations(3)
    assert full.describe()["quirks"]["dual_unsafe"] == 40


def test_a_filter_that_leaves_nothing_is_refused(tmp_path) -> None:
    file = tmp_path / "rows.jsonl"
    made = [ROW | {"prompt": f"{i}?", "is_response_0_safe": False, "response_1": f"b{i}"} for i in range(80)]
    file.write_text("".join(json.dumps(row) + "\n" for row in made))
    with pytest.raises(InputError, match=r"world\.filter: no pair is left .*dual-unsafe [1-9]"):
        _task(file, "dual-unsafe")


def test_pairs_reads_the_format_too_and_keeps_the_flags(rows) -> None:
    task = make_task("pairs", {"data": Data(path=str(rows))})
    assert task.describe()["format"] == "safe-rlhf"
    assert all("chosen_safe" in p.meta for p in task.pairs(0, None).training)
    with pytest.raises(InputError, match="chosen"):
        make_task("pairs", {"data": Data(path=str(rows), format="pairs")})
