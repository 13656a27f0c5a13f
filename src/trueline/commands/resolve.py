"""From a task's name or a config file, and overrides, to resolved settings and the task itself."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from trueline.config import Section, load
from trueline.distributed.settings import ClusterSettings
from trueline.errors import InputError
from trueline.rollout.settings import RolloutSettings
from trueline.runs.trackers import check_trackers
from trueline.study.settings import Data, Model, Study, Train, shipped, with_shipped
from trueline.tasks.execution import Execution
from trueline.tasks.registry import is_embedded, make_task, task_names, world_type
from trueline.tasks.task import Task

__all__ = ["resolve", "section_types", "settings_of"]

DERIVED = {"both": "ppo", "dpo_nll": "dpo"}
"""Sections that vary another one: PPO after DPO, DPO with NLL."""
NLL_COEF = 1.0  # Pang et al. 2024 (arXiv 2404.19733)


def section_types(task: str) -> dict[str, type[Section]]:
    """The sections that a run of this task reads."""
    from trueline.study.tuning import tune_section
    from trueline.training.pages import arms, page, section_pages

    fixed = {"data": Data, "model": Model, "train": Train, "rollout": RolloutSettings, "cluster": ClusterSettings}
    fixed |= {"study": Study, "tune": tune_section(arms())}
    methods = {name: page(method).Config for name, method in section_pages().items()}
    return fixed | {"world": world_type(task), "verifier": Execution} | methods


def resolve(target: str, overrides: Sequence[str], quick: bool) -> tuple[str, dict[str, Any], Task]:
    """Raises InputError for anything that cannot be used; the task's files are read, no model is built."""
    name, file = _named(target)
    if not is_embedded(name):
        _check_files(name, file, overrides)  # before torch is imported: a bad file is told at once
    sections = _settings(name, file, overrides, quick)
    check_trackers(sections["train"].report_to)
    sections["sft_chosen"] = sections["sft_chosen"].model_copy(update={"on": "chosen"})
    if "sft" not in sections["study"].arms:
        sections["study"] = sections["study"].model_copy(update={"arms": ("sft", *sections["study"].arms)})
    sections["model"] = _found(sections["model"])
    _check_transfer(sections)
    sections["reward"] = _found_reward(sections)
    task = make_task(name, sections)
    sections["study"] = _study_of(task, sections["study"])
    if len(set(task.describe().get("subsets", {})) - {"unknown"}) < 2:  # there is nothing to leave out
        sections["study"] = sections["study"].model_copy(update={"coverage_rows": False})
    if not task.describe().get("people_pairs", 1):  # no file of problems has people's incorrect programs
        sections["study"] = sections["study"].model_copy(update={"people_rows": False})
    return name, sections, task


def settings_of(target: str, overrides: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """The task's name and every section, of files that need not be there: what a plan is made of."""
    name, file = _named(target)
    return name, _settings(name, file, overrides, quick=False)


def _named(target: str) -> tuple[str, Path | None]:
    file = Path(target) if target.endswith((".yaml", ".yml", ".toml")) else None
    name = _task_of(file) if file else target
    if name not in task_names():
        make_task(name, {}, where=str(file) if file else "command line")  # raises with the names that exist
    return name, file


def _settings(name: str, file: Path | None, overrides: Sequence[str], quick: bool) -> dict[str, Any]:
    sections = load(section_types(name), file=file, overrides=list(overrides), top={"task": str})
    sections.pop("task", None)
    model = sections["model"]
    if quick and model.size != "tiny" and not model.path:
        raise InputError(
            f"--quick has no settings for model.size={model.size}",
            where="command line",
            field="--quick",
            remedy="leave one of them out; train.max_steps, world.pairs and --seeds make a run shorter",
        )
    given = sections
    sections = with_shipped(sections, shipped(name, model.size, quick=quick, given_model=bool(model.path)))
    for section, parent in DERIVED.items():
        sections[section] = _inherited(section, parent, sections, given)
    _check_settings(name, sections)
    return sections


def _found(model: Model) -> Model:
    """The model's settings with its folder on this machine; InputError where it cannot be used as asked."""
    if model.quantize != "none" and not model.lora_rank:
        raise InputError(
            "weights in few bits cannot be trained",
            where="settings",
            field="model.quantize",
            remedy="train adapters: model.lora_rank=16",
        )
    if not model.path:
        for key in ("lora_rank", "chat_template"):
            if getattr(model, key):
                raise InputError(
                    "needs model.path",
                    where="settings",
                    field=f"model.{key}",
                    remedy="give the model that is to be trained; embedded ones are made from nothing",
                )
        return model
    from trueline.models.adapters import check_quantize
    from trueline.models.checkpoints import read_config
    from trueline.models.folders import is_adapter
    from trueline.models.hub import local_folder

    check_quantize(model.quantize)
    folder = local_folder(model.path, model.revision)
    read_config(folder)
    if model.lora_rank and is_adapter(folder):
        raise InputError(
            "the model is an adapter itself",
            where=str(folder),
            field="model.lora_rank",
            remedy="merge it first, or leave model.lora_rank out to train this adapter on",
        )
    return model.model_copy(update={"path": str(folder)})


def _found_reward(sections: Mapping[str, Any]) -> Section:
    """The reward model's settings with its folder on this machine; InputError where it holds no reward model."""
    reward = sections["reward"]
    if not reward.path:
        return reward
    from trueline.commands.checkpoints import check_checkpoint
    from trueline.models.hub import local_folder

    folder = local_folder(reward.path, field="reward.path")
    check_checkpoint("reward", folder, sections)
    return reward.model_copy(update={"path": str(folder)})


def _study_of(task: Task, study: Study) -> Study:
    """What the study does where the user says nothing of feedback; InputError for what the task does not have."""
    wrong = {"gold": task.learned_gold or task.verified, "verifier": not task.verified}
    if wrong.get(study.feedback):
        reason = "this task has no embedded judge" if study.feedback == "gold" else "no test can judge its responses"
        remedy = "use study.feedback=" + ("verifier or learned" if task.verified else "learned")
        raise InputError(reason, where="settings", field="study.feedback", remedy=remedy)
    if task.verified and "feedback" not in study.model_fields_set:
        return study.model_copy(update={"feedback": "verifier"})
    return study


def _task_of(file: Path) -> str:
    if not file.is_file():
        raise InputError(
            "file not found", where=str(file), remedy="give a task's name or a .yaml or .toml file that exists"
        )
    try:
        raw = (
            tomllib.loads(file.read_text("utf-8"))
            if file.suffix == ".toml"
            else yaml.safe_load(file.read_text("utf-8"))
        )
    except (yaml.YAMLError, tomllib.TOMLDecodeError, UnicodeDecodeError):
        return "dialogue"  # the full load names the line and the reason
    name = raw.get("task") if isinstance(raw, dict) else None
    if not isinstance(name, str):
        raise InputError(
            "missing", where=str(file), field="task", remedy=f"add a line task: NAME, one of {', '.join(task_names())}"
        )
    return name


def _inherited(section: str, parent: str, sections: dict[str, Any], given: dict[str, Any]) -> Section:
    """A section that varies another: what is not set there is as in its parent; what the user said of the parent goes
    before what ships for the section."""
    values: dict[str, Any] = {"nll_coef": NLL_COEF} if section == "dpo_nll" else {}
    for layer in (sections[parent], sections[section], given[parent], given[section]):
        values |= {key: getattr(layer, key) for key in layer.model_fields_set}
    return type(sections[parent])(**values)


def _check_files(name: str, file: Path | None, overrides: Sequence[str]) -> None:
    given = [item for item in overrides if item.startswith("data.")]
    if file is None:
        make_task(name, {"data": load({"data": Data}, overrides=given)["data"]})


def _check_settings(name: str, sections: dict[str, Any]) -> None:
    """What no single section can see."""
    study = sections["study"]
    _check_arms(sections)
    _check_rollout(sections)
    _check_cluster(sections["cluster"], sections["rollout"])
    wrong = ""
    if len(set(study.seeds)) != len(study.seeds):
        wrong = "study.seeds", "the same seed twice", "give different seeds"
    elif study.trials and set(study.seeds) & set(study.tuning_seeds):
        seed = min(set(study.seeds) & set(study.tuning_seeds))
        wrong = "study.tuning_seeds", f"{seed} is a reported seed too", "tune on seeds that are not reported"
    elif sections["sft"].on != "demonstrations" or sections["sft_chosen"].on != "demonstrations":
        wrong = (
            "sft.on",
            "the study decides what each stage imitates",
            "leave it out; the arm sft-chosen imitates the chosen sides",
        )
    elif sections["evaluate"].judge_url and not sections["evaluate"].judge_model:
        wrong = "evaluate.judge_model", "required with evaluate.judge_url", "name the model that the endpoint serves"
    elif sections["reward"].part != "training":
        wrong = "reward.part", "the study decides whose pairs a judge is trained on", "leave it out"
    if wrong:
        field, reason, remedy = wrong
        raise InputError(reason, where="settings", field=field, remedy=remedy)


def _check_rollout(sections: dict[str, Any]) -> None:
    """A server is named or can be started, and takes what is trained; its settings are there for one alone."""
    rollout, wrong = sections["rollout"], ""
    if rollout.reward_url and not sections["reward"].path:
        wrong = "reward_url", "a server cannot serve the reward models that the study trains", (
            "add reward.path=FOLDER, the folder that is served"
        )  # fmt: skip
    elif rollout.engine == "native":
        given = _changed(rollout) - {"engine", "importance", "importance_cap", "reward_url", "timeout"}
        if given:
            wrong = min(given), "is of a server, and this process samples", "add rollout.engine=vllm, or leave it out"
    elif bool(rollout.url) == bool(rollout.command):
        wrong = "url", "needed is the address of a server, or the command to start one, not both", (
            "rollout.url=http://127.0.0.1:8000, or rollout.command=/path/to/environment/bin/vllm"
        )  # fmt: skip
    elif sections["model"].lora_rank:
        wrong = "engine", "adapters are not handed to a server", "leave model.lora_rank or rollout.engine out"
    elif rollout.gap_stop < rollout.gap_warn:
        wrong = "gap_stop", f"is below rollout.gap_warn={rollout.gap_warn:g}", "raise it"
    elif len(set(rollout.url)) < len(rollout.url):
        wrong = "url", "the same server twice", "each serves one cell at a time: name it once"
    if wrong:
        field, reason, remedy = wrong
        raise InputError(reason, where="settings", field=f"rollout.{field}", remedy=remedy)


def _check_transfer(sections: Mapping[str, Any]) -> None:
    """Weights go over a group by the names that our own decoder has for them."""
    path = sections["model"].path
    if sections["rollout"].transfer == "files" or not path:
        return
    from trueline.models.checkpoints import Stored

    if not Stored.has(Path(path)):
        raise InputError(
            "weights of this architecture do not go over a group", where=path, field="rollout.transfer",
            remedy="rollout.transfer=files",
        )  # fmt: skip


def _changed(section: Section) -> set[str]:
    """What is not as it is where nobody says anything; a report's settings name everything."""
    return {name for name, field in type(section).model_fields.items() if getattr(section, name) != field.default}


def _check_cluster(cluster: Section, rollout: Section) -> None:
    """Its settings are there for a cluster, and nothing is asked of two."""
    wrong = ""
    if not cluster.address and _changed(cluster):
        wrong = min(_changed(cluster)), "is of a cluster, and none is named", "add cluster.address=HOST:6379"
    elif cluster.samplers and rollout.engine != "native":
        wrong = "samplers", "the samples come from a server", "leave it or rollout.engine out"
    elif cluster.scorers and rollout.reward_url:
        wrong = "scorers", "the scores come from a server", "leave it or rollout.reward_url out"
    if wrong:
        field, reason, remedy = wrong
        raise InputError(reason, where="settings", field=f"cluster.{field}", remedy=remedy)


def _check_arms(sections: dict[str, Any]) -> None:
    """Every arm exists, once, and its ranges can be searched."""
    from trueline.study.tuning import check_ranges
    from trueline.training.pages import arms

    known, asked = arms(), sections["study"].arms
    for name in asked:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            remedy = f"did you mean {near[0]}? " if near else ""
            raise InputError(
                f"unknown arm {name!r}",
                where="settings",
                field="study.arms",
                remedy=f"{remedy}arms: {', '.join(known)}",
            )
        if asked.count(name) > 1:
            raise InputError(f"{name} twice", where="settings", field="study.arms", remedy="name each arm once")
    for section in dict.fromkeys(arm.section for arm in known.values() if arm.section):
        given = section in sections["tune"].model_fields_set
        if given or (sections["study"].trials and any(known[name].section == section for name in asked)):
            check_ranges(section, sections[section], getattr(sections["tune"], section))
