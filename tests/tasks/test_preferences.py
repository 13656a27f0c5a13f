"""Tasks on files: what is held out is of every file, and no conversation is in two parts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trueline.data.splits import conversation_id
from trueline.errors import InputError
from trueline.study.settings import Data
from trueline.tasks.hh_rlhf import Config, subset_of
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


# --- hh-rlhf: subsets and coverage -------------------------------------------------------------------------------


def _write_hh(path, topic: str, count: int) -> None:
    path.parent.mkdir(exist_ok=True)
    rows = [
        {side: f"\n\nHuman: {topic} {i}?\n\nAssistant: {side} {topic} {i}." for side in ("chosen", "rejected")}
        for i in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def hh(tmp_path):
    """`hh(coverage)`: 300 helpful and 200 harmless rows, in a file and in a folder of that name."""
    _write_hh(tmp_path / "helpful-base.jsonl", "help", 300)
    _write_hh(tmp_path / "harmless-base" / "train.jsonl", "harm", 200)
    data = Data(path=(str(tmp_path / "helpful-base.jsonl"), str(tmp_path / "harmless-base" / "train.jsonl")))

    def make(*coverage: str):
        world = Config(coverage=coverage) if coverage else Config()
        return make_task("hh-rlhf", {"data": data, "world": world})

    return make


@pytest.mark.parametrize(
    ("where", "subset"),
    [
        ("harmless-base.test.jsonl.gz:12", "harmless"),
        ("data/helpful-online.test.jsonl.gz:1", "helpful"),
        ("hh/helpful-rejection-sampled/train.jsonl.gz:1:7", "helpful"),
        ("hh/Harmless-Base/test.jsonl:3", "harmless"),
        ("helpful-things/harmless-base.jsonl:3", "harmless"),  # the file's own name goes before its folder's
        ("helpful/other/train.jsonl:3", ""),  # farther up is not looked at
        ("helpful-and-harmless.jsonl:3", ""),  # says nothing, and the folder is not asked then
        ("harmless-base/helpful-and-harmless.jsonl:3", ""),
        ("red-team-attempts.jsonl:3", ""),
    ],
)
def test_a_row_is_of_the_subset_that_its_file_or_folder_names(where, subset) -> None:
    assert subset_of(where) == subset


def test_every_prompt_has_the_kind_of_its_file(hh) -> None:
    task = hh()
    assert task.describe()["subsets"] == {"harmless": 200, "helpful": 300}
    for split in ("train", "selection", "test"):
        prompts = task.prompts(split)
        assert {p.kind for p in prompts} == {"helpful", "harmless"}
        assert all(p.kind == ("helpful" if "help" in p.text else "harmless") for p in prompts)
    assert {d.prompt.kind for d in task.demonstrations(0)} == {"helpful", "harmless"}


def test_coverage_takes_pairs_and_rl_prompts_away_and_nothing_else(hh) -> None:
    """The comparison is paired: SFT, judges and tests are the same objects of comparison in both variants."""
    full, part = hh(), hh("helpful")
    every, some = full.pairs(3, None), part.pairs(3, None)
    helpful = [p for p in every.training if p.prompt.kind == "helpful"]
    assert some.training == helpful and 0 < len(helpful) < len(every.training)
    assert some.elsewhere == [p for p in every.training if p.prompt.kind == "harmless"] and every.elsewhere == []
    assert (some.selection, some.gold) == (every.selection, every.gold)
    assert {p.kind for p in part.prompts("train")} == {"helpful"}
    assert part.prompts("selection") == full.prompts("selection") and part.prompts("test") == full.prompts("test")
    assert part.demonstrations(3) == full.demonstrations(3)
    assert part.texts() == full.texts() and part.describe() == full.describe()


def test_both_subsets_in_either_order_are_the_default(hh) -> None:
    assert hh("harmless", "helpful").pairs(0, None) == hh().pairs(0, None)


def test_a_task_can_be_made_anew_from_a_copied_world(hh, tmp_path) -> None:
    """What a study's second variant does."""
    less = Config().model_copy(update={"coverage": ("helpful",)})
    data = Data(path=(str(tmp_path / "helpful-base.jsonl"), str(tmp_path / "harmless-base" / "train.jsonl")))
    again = make_task("hh-rlhf", {"data": data, "world": less})
    assert again.pairs(0, None) == hh("helpful").pairs(0, None)


def test_pairs_elsewhere_are_capped(tmp_path) -> None:
    _write_hh(tmp_path / "helpful.jsonl", "help", 100)
    _write_hh(tmp_path / "harmless.jsonl", "harm", 1000)
    task = make_task("hh-rlhf", {"data": Data(path=str(tmp_path / "*.jsonl")), "world": Config(coverage=("helpful",))})
    assert len(task.pairs(0, None).elsewhere) == 400


def test_a_subset_that_the_files_do_not_have_is_refused(tmp_path) -> None:
    _write_hh(tmp_path / "helpful-base.jsonl", "help", 100)
    data = Data(path=str(tmp_path / "helpful-base.jsonl"))
    with pytest.raises(InputError, match="no harmless subset") as error:
        make_task("hh-rlhf", {"data": data, "world": Config(coverage=("harmless",))})
    assert error.value.field == "world.coverage"
    with pytest.raises(InputError, match="no harmless subset"):
        make_task("hh-rlhf", {"data": data, "world": Config(coverage=("helpful", "harmless"))})
    assert len(make_task("hh-rlhf", {"data": data, "world": Config()}).pairs(0, None).training) > 0


def test_files_whose_names_tell_nothing_are_used_whole(tmp_path) -> None:
    _write_hh(tmp_path / "rows.jsonl", "help", 100)
    data = Data(path=str(tmp_path / "rows.jsonl"))
    task = make_task("hh-rlhf", {"data": data, "world": Config()})
    assert {p.kind for p in task.prompts("test")} == {""} and "subsets" not in task.describe()
    assert sum(len(part) for part in (task.pairs(0, None).training, task.pairs(0, None).gold)) > 50
    with pytest.raises(InputError, match="one that no name tells"):
        make_task("hh-rlhf", {"data": data, "world": Config(coverage=("helpful",))})


REAL = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "hh_rlhf"


@pytest.mark.skipif(not REAL.is_dir(), reason=f"the published files are not at {REAL.name}")
def test_a_judge_of_the_real_gold_split_is_better_than_chance_on_what_it_has_not_seen() -> None:
    """The lower end of the 95% Wilson interval is above 0.55, the least that a verdict asks for."""
    from trueline.rewards.linear import fit_linear
    from trueline.study.statistics import wilson

    task = make_task("hh-rlhf", {"data": Data(path=str(REAL / "*.jsonl.gz")), "world": Config()})
    assert task.describe()["subsets"] == {"harmless": 2299, "helpful": 1129 + 2714}
    gold = task.pairs(0, None).gold
    held = gold[: round(0.3 * len(gold))]
    assert {p.prompt.id for p in held} == {p.id for p in task.prompts("test")}
    margins = fit_linear(gold[len(held) :], penalties=(300.0,)).margins(held)
    low, _ = wilson(round(sum((m > 0) + 0.5 * (m == 0) for m in margins)), len(held))
    assert low > 0.55
