"""Whole comparisons with our side on both ends: the control, whose ratio is about 1, at the smallest sizes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from trueline.benchmarks import comparison
from trueline.benchmarks.comparison import compare, default_rounds
from trueline.benchmarks.equality import LOSS_TOLERANCE
from trueline.benchmarks.sides import Round
from trueline.benchmarks.work import standard_work
from trueline.cli import app
from trueline.commands.bench_compare import keep, work_of
from trueline.errors import InputError, RunError

SIDE = {
    "what", "seconds", "cpu_seconds", "waited_cpu_seconds", "peak_mb", "tokens_per_second", "samples_per_second",
    "model_flops", "gflops", "gemm_share",
}  # fmt: skip


def check_record(record: dict, name: str, rounds: int) -> None:
    assert record == json.loads(json.dumps(record, allow_nan=False))
    assert record["name"] == name and record["against"] == "self" and record["equal"]["agrees"]
    assert {"work", "machine", "versions", "date"} < set(record) and record["machine"]["gemm"]["gflops"] > 0.5
    ours, peer = record["ours"], record["peer"]
    for side in (ours, peer):
        assert set(side) >= SIDE and len(side["seconds"]["all"]) == rounds == record["rounds"]
        assert 0 < side["seconds"]["min"] <= side["seconds"]["median"] <= side["seconds"]["max"]
        assert 0 < side["gemm_share"] < 2 and 50 < side["peak_mb"] < 4000
        slowest, fastest = (side["model_flops"] / side["seconds"][name] / 1e9 for name in ("max", "min"))
        assert 0.5 * slowest < side["gflops"] < 1.5 * fastest  # rows of a round differ, and so do rounds
    ratios = [b / a for a, b in zip(ours["seconds"]["all"], peer["seconds"]["all"])]
    assert record["ratio"]["all"] == pytest.approx(ratios)
    assert 0.2 < record["ratio"]["median"] < 5  # a machine that others use at the same time


@pytest.mark.integration
def test_the_command_prints_the_record_and_nothing_else(tmp_path) -> None:
    out = tmp_path / "deep" / "record.json"
    command = [sys.executable, "-m", "trueline", "bench", "dpo", "--against", "self", "--size", "tiny", "--rounds", "2"]
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run(
        [*command, "--json", "-o", str(out)], capture_output=True, text=True, env=environment, timeout=240
    )
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert record == json.loads(out.read_text()) and done.stderr == ""
    check_record(record, "dpo", 2)
    # one process did what the other did: three losses, bit for bit
    assert record["equal"]["ours"] == record["equal"]["peer"] and len(record["equal"]["ours"]) == 3
    assert record["work"]["ragged"] and 8 < record["work"]["mean_prompt"] < 64


@pytest.mark.integration
def test_a_comparison_that_samples_says_how_long_its_samples_were(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    work = replace(standard_work("rollout", size="tiny", ragged=False, threads=1), prompt_tokens=8, max_new_tokens=8)
    said, steps = [], []
    record = compare(work, "self", rounds=1, say=said.append, step=lambda: steps.append(1))
    check_record(record, "rollout", 1)
    # an end token comes once in 1024 draws: 64 rows of at most 8
    assert 7.5 < record["work"]["mean_sampled"]["ours"] <= 8 and len(steps) == 4 and said
    assert set(record["equal"]["metrics"]) == {"length", "nll"}
    assert record["ours"]["sampled_tokens_per_second"] < record["ours"]["tokens_per_second"]


@pytest.mark.nightly
@pytest.mark.parametrize("name", ["ppo", "rloo"])
def test_methods_that_sample_are_measured_on_weights_that_end_nothing_too(tmp_path, monkeypatch, name) -> None:
    """Random weights, a reward model with the peer's tokenizer beside it: neither is the gates' business here."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    small = {"prompt_tokens": 8, "max_new_tokens": 8, "batch_size": 8}
    work = replace(standard_work(name, size="tiny", ragged=False, threads=1), **small)
    record = compare(work, "self", rounds=1, say=lambda text: None, step=lambda: None)
    assert record["ours"]["seconds"]["median"] > 0 and record["equal"]["metrics"]


def test_a_waiting_side_that_works_is_an_error() -> None:
    quiet = {"what": "a", "waited_cpu_seconds": 0.0, "seconds": {"max": 2.0}}
    comparison._check_idle(quiet, quiet | {"waited_cpu_seconds": 0.09})
    with pytest.raises(RunError, match=r"burnt 0\.11 processor seconds"):
        comparison._check_idle(quiet, quiet | {"waited_cpu_seconds": 0.11})


def test_the_first_round_warms_up_and_does_not_count() -> None:
    work = standard_work("sft", size="tiny")
    batches = [[{"prompt": [3] * 9 + [2], "chosen": [3] * 9 + [1], "rejected": [1]}] * 16] * 3
    rounds = [Round(s, s / 2, 0.0, mb, None, {"loss": 1.0}) for s, mb in ((100.0, 900.0), (2.0, 800.0), (4.0, 850.0))]
    figures = comparison._figures(work, rounds, batches, {"gflops": 10.0})
    assert figures["seconds"] == {"median": 3.0, "min": 2.0, "max": 4.0, "all": [2.0, 4.0]}
    assert figures["cpu_seconds"]["all"] == [1.0, 2.0] and figures["peak_mb"] == 900.0
    # 16 rows of 20 tokens in 2 and in 4 seconds
    assert figures["tokens_per_second"] == pytest.approx((160 + 80) / 2)
    assert figures["gemm_share"] == pytest.approx(figures["gflops"] / 10.0)


def test_rounds_and_tolerances_are_those_of_the_page() -> None:
    assert [default_rounds(kind) for kind in ("sft", "rollout", "ppo", "rloo")] == [7, 7, 3, 3]
    assert LOSS_TOLERANCE == {"fp32": 2e-3, "bf16": 2e-2}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["sft", "--size", "huge"], r"--size: there is no 'huge'; use one of tiny"),
        (["sft", "--against", "verl"], r"--against: there is no 'verl'; use one of trl, self"),
        (["sft", "--rounds", "0"], r"--rounds: 0 rounds"),
        (["sft", "--device", "tpu"], r"--device: there is no 'tpu'"),
        (["memory", "--size", "huge"], r"--size: there is no 'huge'"),
        (["sft", "-o", "."], r"-o: cannot be written"),
    ],
)
def test_wrong_words_are_told_before_anything_runs(arguments, said) -> None:
    with pytest.raises(InputError, match=said):
        CliRunner().invoke(app, ["bench", *arguments], catch_exceptions=False, standalone_mode=False)


def test_a_name_that_there_is_not_ends_with_exit_code_2() -> None:
    result = CliRunner().invoke(app, ["bench", "pppo"])
    assert result.exit_code == 2 and "pppo" in result.output


def test_the_work_follows_the_machine(tmp_path) -> None:
    work = work_of("ppo", size="tiny", even=True, device="cpu")
    assert not work.ragged and work.peer == {"gradient_accumulation_steps": 4} and work.device == "cpu"
    assert work_of("sft", size="tiny", even=False, device="cpu").peer == {}
    keep(tmp_path / "a" / "b.json", {"name": "x"})
    assert json.loads((tmp_path / "a" / "b.json").read_text()) == {"name": "x"}
