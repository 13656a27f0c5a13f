"""From a task's name, files that ship with the package, a user's file and overrides to the settings of a run."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path

import pytest
import yaml

from trueline.commands.resolve import resolve, section_types
from trueline.errors import InputError
from trueline.study.settings import ARMS, shipped
from trueline.study.tuning import check_ranges
from trueline.tasks.registry import task_names
from trueline.training.pages import arms

SHIPPED = {path.name.removesuffix(".yaml"): path for path in (resources.files("trueline") / "shipped").iterdir()}


def settings(target: str | Path, *overrides: str, quick: bool = False) -> dict:
    return resolve(str(target), list(overrides), quick)[1]


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """`rows.jsonl` for the task pairs, and a helpful and a harmless file of dialogues."""
    folder = tmp_path_factory.mktemp("files")
    rows = [{"prompt": f"Question {i}?", "chosen": "Yes, gladly.", "rejected": "No."} for i in range(80)]
    write(folder / "rows.jsonl", rows)
    for subset in ("helpful", "harmless"):
        turns = [f"\n\nHuman: {subset} question {i}?\n\nAssistant:" for i in range(60)]
        write(folder / f"{subset}-base.jsonl", [{"chosen": f"{t} Yes.", "rejected": f"{t} No."} for t in turns])
    return folder


def write(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def target(files) -> dict[str, tuple[str, ...]]:
    """Each task with the files that it needs."""
    return {"dialogue": ("dialogue",), "pairs": ("pairs", f"data.path={files / 'rows.jsonl'}"),
            "hh-rlhf": ("hh-rlhf", f"data.path={files / '*-base.jsonl'}")}  # fmt: skip


# --- settings that make no sense together

BAD = {
    "unknown-arm": (["study.arms=sft,dop"], "study.arms", "unknown arm 'dop'", "did you mean dpo?"),
    "unlike-any-arm": (["study.arms=sft,xyzzy"], "study.arms", "unknown arm 'xyzzy'", "arms: sft, best-of-n"),
    "a-section-is-no-arm": (["study.arms=sft,dpo_iter"], "study.arms", "unknown arm 'dpo_iter'", "dpo-iter"),
    "arm-twice": (["study.arms=sft,dpo,ppo,dpo"], "study.arms", "dpo twice", "name each arm once"),
    "seed-twice": (["study.seeds=1,1"], "study.seeds", "the same seed twice", "different seeds"),
    "reported-seed": (["study.trials=2", "study.seeds=0,101"], "study.tuning_seeds", "101 is a reported seed", "not"),
    "turned-round": (["tune.dpo={learning_rate: [1, 0.1]}"], "tune.dpo", "[1, 0.1] is no log range", "the smaller one"),
    "negative": (["tune.ppo={kl_coef: [-1, 1]}"], "tune.ppo", "[-1, 1] is no log range", "above 0"),
    "not-finite": (["tune.dpo={beta: [0.1, .inf]}"], "tune.dpo", "got inf", ""),
    "unknown-key": (["tune.dpo={learning_rat: [0.1, 1]}"], "tune.dpo", "no setting 'learning_rat'", "learning_rate?"),
    "one-number": (["tune.dpo={learning_rate: [1]}"], "tune.dpo", "[a number, a number]", ""),
    "three-numbers": (["tune.dpo={learning_rate: [1, 2, 3]}"], "tune.dpo", "at most 2 items", ""),
    "words": (["tune.dpo={learning_rate: [low, high]}"], "tune.dpo", "[a number, a number], got 'low'", ""),
    "no-range": (["tune.dpo=0.1"], "tune.dpo", "got 0.1", ""),
    "empty": (["tune.dpo={}"], "tune.dpo", "no range at all", "study.trials=0"),
    "refused-value": (["tune.ppo={gae_lambda: [0.5, 3]}"], "tune.ppo", "gae_lambda: 3 cannot be used", "narrow"),
    "no-such-section": (["tune.sft={learning_rate: [1.0e-5, 1.0e-3]}"], "tune.sft", "unknown key", "tune."),
    "what-sft-imitates": (["sft.on=chosen"], "sft.on", "the study decides", "sft-chosen"),
    "whose-pairs": (["reward.part=gold"], "reward.part", "the study decides", "leave it out"),
    "adaptive-from-nothing": (["ppo.kl_target=1", "ppo.kl_coef=0"], "ppo", "a start above 0", ""),
}


@pytest.mark.parametrize("case", BAD)
def test_settings_that_cannot_be_run_are_refused(case) -> None:
    overrides, field, reason, remedy = BAD[case]
    with pytest.raises(InputError) as caught:
        settings("dialogue", *overrides)
    error = caught.value
    assert error.field.startswith(field) and reason in error.reason and remedy in (error.remedy or "")
    assert "\n" not in str(error)


def test_tests_give_the_reward_where_there_are_tests_and_nowhere_else() -> None:
    assert settings("code")["study"].feedback == "verifier"
    assert settings("code", "study.feedback=learned")["study"].feedback == "learned"
    for task, feedback in (("code", "gold"), ("dialogue", "verifier")):
        with pytest.raises(InputError, match=r"study\.feedback"):
            settings(task, f"study.feedback={feedback}")


def test_dpo_with_nll_takes_over_what_dpo_is_told() -> None:
    found = settings("code", "dpo.beta=0.25", "dpo_nll.learning_rate=1e-3")
    assert (found["dpo_nll"].beta, found["dpo_nll"].nll_coef, found["dpo_nll"].learning_rate) == (0.25, 1.0, 1e-3)
    assert found["dpo"].nll_coef == 0.0 and found["dpo"].learning_rate != 1e-3
    assert settings("code", "dpo_nll.nll_coef=0.5")["dpo_nll"].nll_coef == 0.5


def test_gold_feedback_needs_an_embedded_judge(target) -> None:
    assert settings("dialogue", "study.feedback=gold")["study"].feedback == "gold"
    with pytest.raises(InputError, match="no embedded judge"):
        settings(*target["pairs"], "study.feedback=gold")


def test_ranges_that_are_not_searched_may_stay_unset(target) -> None:
    """The paper's ranges of an arm that does not run are nobody's business; one that was given is checked always."""
    assert settings("dialogue", "study.arms=sft,dpo", "study.trials=0")["study"].arms == ("sft", "dpo")
    with pytest.raises(InputError, match="no log range"):
        settings("dialogue", "study.arms=sft,dpo", "study.trials=0", "tune.rloo={kl_coef: [2, 1]}")
    found = settings("dialogue", "study.trials=2", "tune.dpo={beta: [0.2, 0.4]}")["tune"]
    assert found.dpo == {"beta": (0.2, 0.4)} and set(found.ppo) == {"learning_rate", "kl_coef"}


def test_sft_is_always_there_and_first() -> None:
    assert settings("dialogue", "study.arms=dpo,ppo")["study"].arms == ("sft", "dpo", "ppo")
    assert settings("dialogue")["study"].arms == ARMS


# --- the files that ship


@pytest.mark.parametrize("name", sorted(SHIPPED))
def test_every_key_of_a_shipped_file_is_one_that_its_task_reads(name) -> None:
    named = sorted((t for t in task_names() if name.startswith(t)), key=len)
    task = named[-1] if named else "problems" if "programs" in name else "pairs"
    known = section_types(task)
    content = yaml.safe_load(SHIPPED[name].read_text(encoding="utf-8"))
    base = content.pop("extends", None)
    assert base is None or base in SHIPPED
    for section, values in content.items():
        assert known[section](**values).model_fields_set == set(values), section


@pytest.mark.parametrize("task", ["dialogue", "pairs", "hh-rlhf"])
@pytest.mark.parametrize("quick", [False, True])
def test_every_task_resolves_and_its_ranges_can_be_searched(task, quick, target) -> None:
    found = settings(*target[task], "study.trials=2", f"study.arms={','.join(arms())}", quick=quick)
    for arm in arms().values():
        if arm.section:
            check_ranges(arm.section, found[arm.section], getattr(found["tune"], arm.section))
    assert found["sft_chosen"].on == "chosen" and found["sft"].on == "demonstrations"


@pytest.mark.parametrize("size", ["mini", "small", "medium"])
def test_every_size_of_the_world_resolves(size) -> None:
    found = settings("dialogue", f"model.size={size}", "world.demonstrations=150", "world.pairs=120")
    assert found["model"].size == size and found["world"].pairs == 120


def test_a_file_lays_its_own_over_the_one_that_it_extends(target) -> None:
    whole = yaml.safe_load(SHIPPED["files"].read_text(encoding="utf-8"))
    for task, own in (("hh-rlhf", {}), ("pairs", {"study": {"trials": 4}})):
        found = shipped(task, "tiny", quick=False, given_model=False)
        assert found == {name: values | own.get(name, {}) for name, values in whole.items()}
    assert settings(*target["pairs"])["study"].trials == 4 and settings(*target["hh-rlhf"])["study"].trials == 0
    assert settings(*target["pairs"])["model"].vocab_size == 2048


def test_quick_is_one_seed_and_less_of_everything(target) -> None:
    for task in target:
        plain, quick = settings(*target[task]), settings(*target[task], quick=True)
        assert quick["study"].seeds == (0,) and len(plain["study"].seeds) == 3
        assert quick["ppo"].steps < plain["ppo"].steps and quick["select"].prompts <= plain["select"].prompts
        assert quick["study"].trials == 0
    assert not settings("dialogue", quick=True)["study"].no_shift
    assert settings("dialogue", "study.seeds=3,4", quick=True)["study"].seeds == (3, 4)  # the user's word is the last


def test_a_model_of_the_users_own_keeps_the_papers_settings(tmp_path, target) -> None:
    from foreign import other_tokenizer, random_folder

    folder = random_folder(tmp_path / "model", other_tokenizer())
    found = settings(*target["pairs"], f"model.path={folder}")
    assert found["study"].trials == 4 and found["model"].max_prompt_tokens == 256
    plain = {name: kind() for name, kind in section_types("pairs").items()}
    for section in ("sft", "reward", "dpo", "ppo", "kto", "tune"):
        assert found[section].model_dump() == plain[section].model_dump()


def test_subsets_that_the_files_lack_leave_nothing_to_compare(files, target) -> None:
    assert settings(*target["hh-rlhf"])["study"].coverage_rows
    assert not settings("hh-rlhf", f"data.path={files / 'helpful-base.jsonl'}")["study"].coverage_rows


# --- PPO after DPO


def test_both_is_as_ppo_is_unless_it_is_told_otherwise(target) -> None:
    found = settings(*target["pairs"])
    assert found["both"].model_dump() == found["ppo"].model_dump()
    found = settings(*target["pairs"], "ppo.kl_coef=0.07", "ppo.steps=4")
    assert (found["both"].kl_coef, found["both"].steps) == (0.07, 4)
    found = settings(*target["pairs"], "ppo.kl_coef=0.07", "both.kl_coef=0.01", "both.steps=3")
    assert (found["ppo"].kl_coef, found["both"].kl_coef) == (0.07, 0.01)
    assert found["ppo"].steps == settings(*target["pairs"])["ppo"].steps != found["both"].steps


def test_what_the_user_says_of_ppo_goes_before_what_ships_for_both(tmp_path, monkeypatch) -> None:
    """Four layers, the last one wins: ppo, what ships for both, the user's ppo, the user's both."""
    from trueline.commands import resolve as module

    ships = {"ppo": {"kl_coef": 0.2, "steps": 9, "epochs": 2}, "both": {"kl_coef": 0.3, "steps": 5}}
    monkeypatch.setattr(module, "shipped", lambda *names, **more: ships)
    found = settings("dialogue")["both"]
    assert (found.kl_coef, found.steps, found.epochs) == (0.3, 5, 2)
    found = settings("dialogue", "ppo.kl_coef=0.07")["both"]
    assert (found.kl_coef, found.steps, found.epochs) == (0.07, 5, 2)
    found = settings("dialogue", "ppo.kl_coef=0.07", "both.kl_coef=0.01", "both.epochs=3")["both"]
    assert (found.kl_coef, found.steps, found.epochs) == (0.01, 5, 3)
    path = tmp_path / "run.yaml"
    path.write_text("task: dialogue\nppo: {kl_coef: 0.05}\nboth: {steps: 7}\n")
    found = settings(path)["both"]
    assert (found.kl_coef, found.steps, found.epochs) == (0.05, 7, 2)
