"""The settings that belong to no method: data, model, limits, the study itself; and the shipped settings of tasks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import resources
from typing import Any, Literal

import yaml
from pydantic import Field

from trueline.config import Section

__all__ = ["ARMS", "Data", "Model", "Study", "Train", "shipped", "with_shipped"]

ARMS = ("sft", "sft-chosen", "best-of-n", "dpo", "dpo-iter", "ppo", "dpo+ppo", "rloo")


class Data(Section):
    """`data.*`: files of preferences or of problems, for the tasks that read them."""

    path: str | tuple[str, ...] = Field("", description="a path, a quoted glob, hub:OWNER/NAME:SPLIT, or a list")
    test_path: str | tuple[str, ...] = Field("", description="test problems from files of their own (code tasks)")
    format: Literal[
        "auto", "pairs", "messages", "hh-rlhf", "safe-rlhf", "reward-bench", "ultrafeedback", "nemo",
        "helpsteer2-preference", "helpsteer3", "arena", "helpsteer", "kto", "sharegpt", "alpaca",
        "problems", "humaneval", "mbpp", "apps", "codecontests", "codecontests-files", "codejam", "verl",
    ] = Field("auto", description="of the rows")  # fmt: skip
    columns: tuple[str, ...] = Field(
        (), description="role=column for columns of other names: prompt=question,chosen=good,rejected=bad"
    )
    on_bad_row: Literal["error", "drop"] = Field("error", description="what a row that cannot be used does")
    limit: int = Field(0, ge=0, description="at most so many pairs or problems; 0: all")
    long_prompts: Literal["auto", "error", "cut"] = Field(
        "auto",
        description="prompts over model.max_prompt_tokens; auto: cut (the oldest part) for hh-rlhf and contests' "
        "statements, else an error",
    )
    everything: bool = Field(
        False, description="train on the judges' splits too (for the model that a study recommends)"
    )


class Model(Section):
    """`model.*`: a Hugging Face folder, or the size of a model made from nothing."""

    path: str = Field("", description="what SFT starts from: a Hugging Face folder, or a name on the hub (ORG/NAME)")
    revision: str = Field("main", description="of a name on the hub: a branch, a tag or a commit")
    chat_template: str = Field(
        "", description="a Jinja template, or a file of one, that goes before the folder's own (base models have none)"
    )
    lora_rank: int = Field(0, ge=0, description="of adapters that are trained in place of the weights; 0: all weights")
    lora_alpha: float = Field(32.0, gt=0, description="alpha / rank multiplies what an adapter adds")
    lora_targets: tuple[str, ...] = Field(("all-linear",), description="names of the layers that get an adapter")
    quantize: Literal["none", "8bit", "4bit"] = Field(
        "none", description="how the frozen base is held while adapters are trained (bitsandbytes, on a GPU)"
    )
    size: Literal["tiny", "mini", "small", "medium"] = Field("tiny", description="of the embedded model")
    width: int = Field(0, ge=0, multiple_of=8, description="of the hidden states; 0: as the size has it")
    vocab_size: int = Field(768, ge=261, description="of the tokenizer that is trained for the embedded model")
    max_prompt_tokens: int = Field(24, ge=1, description="longer prompts lose their oldest part")
    max_new_tokens: int = Field(40, ge=1, description="longest response")


class Train(Section):
    """`train.*`: limits of a run."""

    max_steps: int = Field(0, ge=0, description="of the named stage; 0: its own")
    micro_tokens: int = Field(1536, ge=16, description="padded tokens per micro-batch; never changes a result")
    snapshots: int = Field(8, ge=1, description="checkpoints per run, evenly spaced")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where to compute")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="of matrix products; auto: bf16 on a GPU, or on a CPU with AMX from 2 million parameters on"
    )
    gradient_checkpointing: bool = Field(
        False, description="compute layers again in the backward pass: less memory, about a third more time"
    )
    report_to: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = Field(
        (), description="trackers that get the metrics too (docs/trackers.md)"
    )
    workers: int = Field(0, ge=0, description="cells at a time; 0: one per core, or one on a GPU")


class Study(Section):
    """`study.*`"""

    arms: tuple[str, ...] = Field(ARMS, min_length=1, description="what is compared")
    seeds: tuple[int, ...] = Field((0, 1, 2), min_length=1, description="training seeds")
    trials: int = Field(0, ge=0, le=200, description="tuning trials per arm; 0: the settings as they are")
    tuning_seeds: tuple[int, ...] = Field((100, 101), min_length=1, description="seeds of tuning, none of study.seeds")
    budget: float = Field(0.0, ge=0, description="cap of each trained arm; 0: no cap")
    budget_rule: Literal["flops", "executions"] = Field(
        "flops", description="what the cap counts; executions: of programs, those that made an arm's pairs included"
    )
    feedback: Literal["learned", "gold", "verifier"] = Field(
        "learned", description="who scores and labels the arms' own samples; on code tasks tests do (verifier)"
    )
    no_shift: bool = Field(True, description="add the rows without distribution shift (worlds that have the dial)")
    coverage_rows: bool = Field(True, description="add the rows with pairs of one subset alone (files that have two)")
    people_rows: bool = Field(True, description="add the rows with pairs of people's programs (code tasks)")
    probe: bool = Field(True, description="before training, measure what could go wrong (probe.*)")
    margin: float = Field(0.1, gt=0, description="differences below this are none: standard deviations of SFT's gold")
    margin_pass: float = Field(0.02, gt=0, description="the same on code tasks: a share of problems solved")


def shipped(task: str, size: str, *, quick: bool, given_model: bool) -> dict[str, dict[str, Any]]:
    """The settings that come with the package for a task: its own, those of a size laid over them, the quick ones last.

    For a model of the user's own only the limits of `given.yaml` apply, and of `given-<what the task's file extends>`:
    learning rates stay the paper's.
    """
    names = ["given", f"given-{_content(task).get('extends')}"] if given_model else [task, f"{task}-{size}"]
    merged: dict[str, dict[str, Any]] = {}
    for name in [*names, *([f"{task}-quick"] if quick else [])]:
        for section, values in _layers(name):
            merged.setdefault(section, {}).update(values)
    return merged


def _layers(name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The sections of a shipped file, those of the file that it extends first; none where there is no such file."""
    content = _content(name)
    if "extends" in content:
        yield from _layers(content.pop("extends"))
    yield from content.items()


def _content(name: str) -> dict[str, Any]:
    """A shipped file as it stands."""
    file = resources.files("trueline") / "shipped" / f"{name}.yaml"
    return yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else {}


def with_shipped(sections: Mapping[str, Any], given: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The sections with shipped values where the user set nothing."""
    out = dict(sections)
    for name, values in given.items():
        section = sections[name]
        own = {key: getattr(section, key) for key in section.model_fields_set}
        out[name] = type(section)(**{**values, **own})
    return out
