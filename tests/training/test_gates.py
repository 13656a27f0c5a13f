"""Gates: written down where they came closest, hard ones stop, and each finds the fault that it stands against."""

from __future__ import annotations

import json
import math
from pathlib import Path
from shutil import copytree

import pytest

from trueline.data.batches import Tokenized
from trueline.errors import NumericsError
from trueline.runs.cell import Cell, read_json
from trueline.study.gates import allowed, closest_gates, measured
from trueline.training import preflight
from trueline.training.gates import Gates

from .small import run_small


def gates_of(cell: Path) -> dict[str, dict]:
    return {gate["name"]: gate for gate in read_json(cell / "gates.json")["gates"]}


def test_a_gate_is_kept_where_it_came_closest_and_a_hard_one_stops(tmp_path) -> None:
    gates = Gates(Cell(tmp_path), resumed=False)
    for value in (1e-6, 5e-5, 1e-7):
        gates.ask("gap", "the gap", value, high=1e-4, remedy="mend it")
    gates.ask("share", "the share", 0.2, low=0.5, remedy="", hard=False)
    with pytest.raises(NumericsError, match=r"is 0\.01, at most 0\.0001 is allowed; mend it"):
        gates.ask("gap", "the gap", 1e-2, high=1e-4, remedy="mend it")
    with pytest.raises(NumericsError, match="not 1"):
        gates.ask("ratio", "the ratio", math.nan, low=0.9, high=1.1, remedy="")
    found = gates_of(tmp_path)
    assert found["gap"]["measured"] == 1e-2 and not found["gap"]["passed"]
    assert found["share"]["passed"] is False and found["share"]["high"] is None
    assert found["ratio"]["measured"] is None  # NaN is no JSON
    again = Gates(Cell(tmp_path), resumed=True)
    again.ask("share", "the share", 0.1, low=0.5, remedy="", hard=False)
    assert gates_of(tmp_path)["share"]["measured"] == 0.1 and "gap" in gates_of(tmp_path)
    Gates(Cell(tmp_path), resumed=False)
    assert not (tmp_path / "gates.json").exists()  # what an earlier attempt found is not this one's


def test_the_reports_rows_are_the_closest_of_all_runs(tmp_path) -> None:
    for name, value in (("a", 0.4), ("b", 0.9), ("c", 0.6)):
        cell = Cell(tmp_path / name)
        cell.directory.mkdir()
        Gates(cell, resumed=False).ask("share", "the share", value, low=0.5, remedy="", hard=False)
    (row,) = closest_gates([tmp_path / name for name in ("a", "b", "c", "c")] + [tmp_path / "none"])
    assert (row["measured"], row["runs"], row["failed"], row["passed"]) == (0.4, 3, 1, False)
    assert (measured(row), allowed(row)) == ("0.4", "≥ 0.5")
    assert allowed({"low": 0.9, "high": 1.1}) == "1 ± 0.1" and allowed({"low": None, "high": 1e-4}) == "≤ 0.0001"


@pytest.mark.integration
@pytest.mark.parametrize(
    ("method", "names"),
    [
        ("sft", {"tokens trained on", "ends to learn from", "rows by themselves", "ends in samples"}),
        ("reward", {"first loss/reward", "scores by themselves", "scale of scores", "ends to learn from"}),
        ("dpo", {"sides that differ", "reference is SFT", "rows by themselves", "first loss/dpo"}),
        ("kto", {"sides that differ", "reference is SFT", "first loss/kto"}),
        ("simpo", {"sides that differ", "rows by themselves"}),
        ("dpo-iter", {"reference is SFT", "first loss/dpo"}),
        (
            "ppo",
            {
                "scores as in training", "reference is SFT", "sampled = recomputed", "ends in samples", "first ratio",
                "KL at the start", "rows by themselves",
            },
        ),
        ("rloo", {"scores as in training", "sampled = recomputed", "first ratio", "ends in samples"}),
    ],
)  # fmt: skip
def test_every_method_passes_its_gates(method, names, tiny_world, tmp_path) -> None:
    settings = {"critic_warmup": 0} if method == "ppo" else {}
    found = gates_of(run_small(tiny_world, method, tmp_path / "run", settings=settings))
    assert names <= found.keys()
    assert all(gate["passed"] for gate in found.values() if gate["hard"])


@pytest.mark.integration
def test_a_reference_that_sft_did_not_save_is_refused(tiny_world, tmp_path) -> None:
    from safetensors.torch import load_file, save_file

    other = tmp_path / "sft"
    copytree(tiny_world.cells["sft"], other)
    weights = load_file(other / "model" / "model.safetensors")
    weights["lm_head.weight"] = weights["lm_head.weight"] * 1.001
    save_file(weights, other / "model" / "model.safetensors", metadata={"format": "pt"})
    for method in ("dpo", "ppo", "rloo"):
        with pytest.raises(NumericsError, match="reference is SFT"):
            run_small(tiny_world, method, tmp_path / method, inputs={"sft": other})


@pytest.mark.integration
def test_a_reward_model_that_scores_otherwise_than_in_training_is_refused(tiny_world, tmp_path) -> None:
    other = tmp_path / "reward"
    copytree(tiny_world.cells["reward"], other)
    kept = json.loads((other / "reward_model" / "examples.json").read_text())
    assert len(kept["examples"]) == 8
    kept["examples"][3]["score"] += 0.01
    (other / "reward_model" / "examples.json").write_text(json.dumps(kept))
    with pytest.raises(NumericsError, match="scores as in training"):
        run_small(tiny_world, "ppo", tmp_path / "ppo", inputs={"reward": other})


@pytest.mark.integration
def test_a_policy_none_of_whose_samples_end_is_refused_by_ppo(tiny_world, tmp_path) -> None:
    with pytest.raises(NumericsError, match="share of samples that end by themselves"):
        run_small(
            tiny_world,
            "ppo",
            tmp_path / "run",
            settings={"min_ended": 1.0, "feedback": "gold", "critic_from": "policy"},
            lengths=(24, 4),
        )


@pytest.mark.integration
def test_a_model_that_reads_padding_is_found(tiny_world, tmp_path) -> None:
    stage = tiny_world.stage("reward", tmp_path / "run")
    items = [Tokenized((5, 6, 7), tuple(range(5, 6 + n))) for n in (1, 3, 5, 9)]

    def last_column(tokens, mask, lengths):  # the fault of many: the score of the last column, padding or not
        return tokens[:, -1].float()

    with pytest.raises(NumericsError, match="gap of a score"):
        preflight.row_values_gate(stage, "scores", "a score", items, last_column)

    def beside(tokens, mask, lengths):  # statistics over the batch
        return lengths.float() - lengths.float().mean()

    with pytest.raises(NumericsError, match="gap of a score"):
        preflight.row_values_gate(stage, "scores", "a score", items, beside)
    preflight.row_values_gate(stage, "right", "a score", items, lambda tokens, mask, lengths: lengths.float())


@pytest.mark.integration
def test_examples_without_an_end_and_prompts_with_two_bos_are_found(tiny_world, tmp_path) -> None:
    stage = tiny_world.stage("sft", tmp_path / "run")
    end = stage.tokenizer.end_id
    preflight.data_gates(stage, [Tokenized((5,), (6, end)), Tokenized((5,), (6, 7))])
    with pytest.raises(NumericsError, match="whose end is not cut off"):
        preflight.data_gates(stage, [Tokenized((5,), (6, 7))] * 3)
    stage.tokenizer.bos_id = 5
    with pytest.raises(NumericsError, match="most BOS tokens in a prompt is 2"):
        preflight.data_gates(stage, [Tokenized((5, 5, 6), (6, end))])
    with pytest.raises(NumericsError, match="fewest trained tokens of an example is 0"):
        preflight.data_gates(stage, [Tokenized((5,), ()), Tokenized((5,), (end,))])
