"""Fifty steps beside TRL 1.16.0: the same model, messages, order; the loss of every step within 1e-5 of its own.

`tests/data/make_trl_trajectories.py` made the other side. It gave TRL messages and the folder's chat template, so
tokens, masks, losses, gradients, clipping and AdamW are all in what is compared.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from shutil import copytree

import pytest
from tests.data import make_trl_trajectories as golden

from trueline.data.chat import ChatTokenizer
from trueline.runs.cell import Cell, read_json
from trueline.tasks.task import PairSources
from trueline.training.pages import page
from trueline.training.pairs import write_pairs
from trueline.training.stage import Limits, Stage
from trueline.types import Demonstration, Message, Pair, Prompt

from .small import rows

pytestmark = pytest.mark.integration

FOLDER = Path(__file__).resolve().parents[1] / "data" / "trl_trajectories"
LOSSES = read_json(FOLDER / "losses.json")
SETTINGS = {"epochs": 10.0, "warmup_steps": 0, "schedule": "constant", "batch_size": golden.BATCH}
SETTINGS["learning_rate"] = golden.LEARNING_RATE
NAMES = {"sft": "loss", "reward": "loss", "dpo": "loss/dpo"}


def pairs() -> list[Pair]:
    found = []
    for line in (FOLDER / "pairs.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        prompt = Prompt(tuple(Message(**turn) for turn in row["prompt"]))
        found.append(Pair(prompt, row["chosen"], row["rejected"]))
    return found


class Rows:
    """A task whose demonstrations are the chosen sides, in the order of the file."""

    learned_gold = True

    def demonstrations(self, seed: int) -> list[Demonstration]:
        return [Demonstration(pair.prompt, pair.chosen) for pair in pairs()]

    def prompts(self, split: str) -> list[Prompt]:
        return [pair.prompt for pair in pairs()[:8]]


def run(kind: str, directory: Path, *, micro_tokens: int = 8192, all_tokens: bool = True) -> list[float]:
    """The losses of fifty steps of our page.

    With `all_tokens` role marks and padding are part of the distribution as they are in TRL. In ours they cannot be
    sampled, so their share is not in the denominator either: the one difference between the two sides.
    """
    start = directory / "start"
    copytree(FOLDER / "model", start / "model")
    cell = Cell(directory / "pairs")
    cell.open({"method": "given"})
    write_pairs(cell.directory, PairSources(pairs()))
    run = Cell(directory / "run")
    run.open({"method": kind})
    tokenizer = ChatTokenizer.load(FOLDER / "model")
    if all_tokens:
        tokenizer.forbidden_ids = ()
    stage = Stage(
        kind,
        0,
        Rows(),
        run,
        tokenizer,
        Limits(400, 100, micro_tokens, max_steps=golden.STEPS, snapshots=1),
        inputs={"model": FOLDER / "model", "sft": start, "pairs": cell.directory},
    )
    more = {"reward": {"held_out": 0.0}, "dpo": {"beta": golden.BETA}}.get(kind, {})
    page(kind).train(page(kind).Config(**SETTINGS, **more), stage)
    return [row[NAMES[kind]] for row in rows(run.directory)]


@pytest.mark.parametrize("kind", ["sft", "reward", "dpo"])
def test_every_loss_of_fifty_steps_is_trls(kind, tmp_path) -> None:
    ours = run(kind, tmp_path)
    theirs = LOSSES[kind]
    assert len(ours) == len(theirs) == golden.STEPS
    gaps = [abs(a - b) / b for a, b in zip(ours, theirs)]
    assert max(gaps) < 1e-5, (kind, max(gaps), gaps.index(max(gaps)))
    assert min(theirs) < 0.9 * theirs[0]  # it learnt: equal losses of a model that stands still would say little


def test_what_cannot_be_sampled_is_the_difference_and_has_the_size_of_its_share(tmp_path) -> None:
    ours, theirs = run("sft", tmp_path, all_tokens=False)[0], LOSSES["sft"][0]
    vocab, forbidden = 420, 4  # a model from nothing gives every token the same share, within its first noise
    assert theirs - ours == pytest.approx(math.log(vocab / (vocab - forbidden)), rel=0.05)


def test_smaller_micro_batches_give_the_same_trajectory(tmp_path) -> None:
    gaps = [abs(a - b) / b for a, b in zip(run("dpo", tmp_path, micro_tokens=300), LOSSES["dpo"])]
    assert max(gaps) < 1e-5


def test_the_gap_would_be_seen_if_the_end_token_were_not_learnt(tmp_path, monkeypatch) -> None:
    """What the comparison can see: one token of the mask is far outside its tolerance."""
    tokenize = Stage.tokenize

    def without_end(self, prompt, response):
        found = tokenize(self, prompt, response)
        return replace(found, response=found.response[:-1])

    monkeypatch.setattr(Stage, "tokenize", without_end)
    monkeypatch.setattr("trueline.training.sft.data_gates", lambda stage, items: None)
    ours = run("sft", tmp_path)
    assert abs(ours[0] - LOSSES["sft"][0]) / LOSSES["sft"][0] > 1e-5
