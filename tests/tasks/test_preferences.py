"""Tasks on files: what is held out is of every file, and no conversation is in two parts."""

from __future__ import annotations

import json

import pytest

from trueline.data.splits import conversation_id
from trueline.errors import InputError
from trueline.study.settings import Data
from trueline.tasks.registry import make_task


def _write(folder, name: str, topic: str, count: int) -> None:
    rows = [
        {"prompt": f"{topic} question {i} ?", "chosen": f"good {topic} {i}", "rejected": f"bad {topic} {i}"}
        for i in range(count)
    ]
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def task(tmp_path):
    _write(tmp_path, "a.jsonl", "apple", 200)
    _write(tmp_path, "b.jsonl", "banana", 200)
    return make_task("pairs", {"data": Data(path=str(tmp_path / "*.jsonl"))})


def _share(prompts) -> float:
    return sum("apple" in p.text for p in prompts) / len(prompts)


def test_what_is_held_out_is_of_every_file_not_of_the_first(task) -> None:
    """The gold judge is measured on the first part of its pairs: in file order that was one file alone."""
    assert 0.25 < _share(task.prompts("test")) < 0.75
    gold = task.pairs(0, None).gold
    held = gold[: round(0.3 * len(gold))]
    assert 0.25 < _share([pair.prompt for pair in held]) < 0.75
    assert {p.id for p in task.prompts("test")} == {pair.prompt.id for pair in held}


def test_no_conversation_is_in_two_parts(task) -> None:
    sources = task.pairs(0, None)
    parts = [{conversation_id(p.prompt) for p in part} for part in (sources.training, sources.selection, sources.gold)]
    assert all(parts) and not parts[0] & parts[1] and not parts[0] & parts[2] and not parts[1] & parts[2]
    assert sum(map(len, parts)) == 400


def test_a_seed_changes_the_order_of_training_pairs_and_nothing_else(task) -> None:
    one, two = task.pairs(0, None), task.pairs(1, None)
    assert one.training != two.training and sorted(p.chosen for p in one.training) == sorted(
        p.chosen for p in two.training
    )
    assert one.gold == two.gold and one.selection == two.selection
    assert task.prompts("test") == task.prompts("test")


def test_too_few_pairs_are_refused(tmp_path) -> None:
    _write(tmp_path, "few.jsonl", "apple", 20)
    with pytest.raises(InputError, match="at least 60"):
        make_task("pairs", {"data": Data(path=str(tmp_path / "few.jsonl"))})
