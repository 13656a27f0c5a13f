"""The program as a user runs it: bad input, a very small study from end to end, Ctrl-C, and what others can load."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tests.reliability.figures import record
from tests.training.small import contents

from program import ENVIRONMENT, trueline

pytestmark = pytest.mark.integration  # every test here starts the program

ROW = {"prompt": "Question?", "chosen": "Answer, gladly.", "rejected": "No."}


# --- bad input


def _file(name: str, content: str | bytes):
    def write(directory: Path) -> None:
        (directory / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    return write


def _rows(second: str | bytes, name: str = "rows.jsonl"):
    first = json.dumps(ROW).encode() + b"\n"
    return _file(name, first + (second if isinstance(second, bytes) else second.encode()) + b"\n")


def _other_study(directory: Path) -> None:
    (directory / "out").mkdir()
    (directory / "out" / "manifest.json").write_text(
        '{"identity": "0", "command": "trueline study dialogue --seeds 7"}'
    )


NOTHING = _file("unused", "")
PAIRS = ("study", "pairs", "data.path=rows.jsonl")
# (what is there, arguments, the place, what is wrong, what to do): all three must be in the one line.
BAD = {
    "missing-file": (NOTHING, PAIRS, "rows.jsonl:", "file not found", "check data.path"),
    "broken-json": (_rows('{"prompt": "a", "chosen":'), PAIRS, "rows.jsonl:2", "broken JSON", "mend the rows"),
    "wrong-columns": (
        _rows('{"prompt": "a", "chosen": "b"}'),
        PAIRS,
        "rows.jsonl:2: rejected",
        "missing",
        "mend the rows",
    ),
    "empty-response": (
        _rows(json.dumps(ROW | {"rejected": ""})),
        PAIRS,
        "rows.jsonl:2: rejected",
        "empty",
        "mend the rows",
    ),
    "not-utf-8": (
        _rows(b'{"prompt": "\xff", "chosen": "b", "rejected": "c"}'),
        PAIRS,
        "rows.jsonl:2",
        "not UTF-8",
        "save the file",
    ),
    "too-few": (_rows(json.dumps(ROW | {"prompt": "Other?"})), PAIRS, "rows", "2 usable pairs", "at least 60"),
    "no-file": (NOTHING, ("study", "pairs"), "data.path", "no preference file", "data.path=FILE.jsonl"),
    "unknown-task": (
        NOTHING,
        ("study", "dialoge"),
        "TASK",
        "unknown task 'dialoge'",
        "did you mean dialogue? tasks: apps, code, codecontests, codejam, dialogue, hh-rlhf",
    ),
    "unknown-task-in-file": (
        _file("run.yaml", "task: nosuch\n"),
        ("study", "run.yaml"),
        "run.yaml: task",
        "unknown task",
        "tasks: apps, code",
    ),
    "no-task-in-file": (
        _file("run.yaml", "ppo:\n  steps: 3\n"),
        ("study", "run.yaml"),
        "run.yaml: task",
        "missing",
        "add a line task",
    ),
    "no-config": (NOTHING, ("ppo", "run.toml"), "run.toml", "file not found", "a task's name or a .yaml or .toml file"),
    "unknown-key": (
        NOTHING,
        ("ppo", "dialogue", "ppo.kl_coff=0.1"),
        "ppo.kl_coff",
        "unknown key",
        "did you mean ppo.kl_coef?",
    ),
    "unknown-key-in-file": (
        _file("run.yaml", "task: dialogue\nppo:\n  kl_coff: 0.1\n"),
        ("study", "run.yaml"),
        "run.yaml:3: ppo.kl_coff",
        "unknown key",
        "did you mean",
    ),
    "seed-twice": (
        NOTHING,
        ("study", "dialogue", "--seeds", "0,1,0"),
        "study.seeds",
        "the same seed twice",
        "give different seeds",
    ),
    "unknown-behaviour": (
        NOTHING,
        ("study", "dialogue", "world.coverage=help,refuse"),
        "world.coverage",
        "unknown behaviour 'refuse'",
        "use any of help, evasion, refusal",
    ),
    "another-study": (
        _other_study,
        ("study", "dialogue"),
        "out: -o",
        "holds another run (trueline study dialogue --seeds 7)",
        "use another -o DIR",
    ),
    "out-is-a-file": (_file("out", "text"), ("study", "dialogue"), "out: -o", "is a file", "use another -o DIR"),
    "out-below-a-file": (
        _file("up", "text"),
        ("study", "dialogue", "-o", "up/out"),
        "up/out: -o",
        "cannot be written",
        "use another -o DIR",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_ends_in_one_line_that_names_place_reason_and_remedy(case, tmp_path) -> None:
    prepare, arguments, place, reason, remedy = BAD[case]
    prepare(tmp_path)
    before = {path for path in tmp_path.rglob("*")}
    given = arguments if "-o" in arguments else (*arguments, "-o", "out")
    ended = trueline(*given, cwd=tmp_path)
    assert ended.returncode == 2, ended.stderr
    assert ended.stdout == "" and ended.stderr.count("\n") == 1 and ended.stderr.startswith("trueline: ")
    for part in (place, reason, remedy):
        assert part in ended.stderr
    assert "Traceback" not in ended.stderr
    assert {path for path in tmp_path.rglob("*")} == before  # nothing was written, no model above all


def _modules(*arguments: str, cwd: Path) -> set[str]:
    """The modules that are imported while a command runs."""
    command = [sys.executable, "-X", "importtime", "-m", "trueline", *arguments]
    ended = subprocess.run(command, cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, timeout=60)
    return {line.rpartition("|")[2].strip() for line in ended.stderr.splitlines() if line.startswith("import time:")}


HEAVY = {"torch", "transformers", "scipy", "matplotlib", "numpy"}


@pytest.mark.parametrize(
    "arguments", [("--help",), ("study", "--help"), ("ppo", "--help"), ("data", "check", "--help")]
)
def test_help_imports_nothing_heavy(arguments, tmp_path) -> None:
    modules = _modules(*arguments, cwd=tmp_path)
    assert "trueline.cli" in modules and not modules & HEAVY


@pytest.mark.parametrize("case", ["wrong-columns", "unknown-task"])
def test_bad_files_and_names_are_told_before_torch_is_imported(case, tmp_path) -> None:
    prepare, arguments, *_ = BAD[case]
    prepare(tmp_path)
    modules = _modules(*arguments, cwd=tmp_path)
    assert "trueline.errors" in modules and "torch" not in modules


def test_data_check_passes_good_rows_and_counts_bad_ones(tmp_path) -> None:
    rows = [ROW | {"prompt": f"Question {i}?"} for i in range(5)]
    (tmp_path / "good.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    good = trueline("data", "check", "good.jsonl", "--json", cwd=tmp_path)
    assert good.returncode == 0 and json.loads(good.stdout)["counts"]["kept"] == 5
    _rows('{"prompt": "a", "chosen": "b"}', "bad.jsonl")(tmp_path)
    bad = trueline("data", "check", "bad.jsonl", cwd=tmp_path)
    assert bad.returncode == 2 and "bad.jsonl:2" in bad.stdout and "Traceback" not in bad.stderr


# --- a study from end to end

STUDY = (
    "study", "dialogue", "--seeds", "0", "world.demonstrations=400", "world.pairs=120", "study.budget=0",
    "train.snapshots=2", "train.workers=2", "sft.epochs=2", "sft.batch_size=32", "sft_chosen.epochs=1",
    "reward.epochs=1", "dpo.epochs=1", "dpo_iter.rounds=2", "dpo_iter.sync_every=1", "dpo_iter.batch_size=16",
    "dpo_iter.samples_per_prompt=2", "ppo.steps=2", "ppo.batch_size=32", "ppo.minibatches=2", "rloo.steps=2",
    "rloo.batch_size=32", "rloo.minibatches=2", "evaluate.test_prompts=12", "select.prompts=8",
    "select.pairs=8", "evaluate.samples=1", "evaluate.best_of=2", "evaluate.shown=2",
)  # fmt: skip
ARMS = ["sft", "sft-chosen", "best-of-n", "dpo", "dpo-iter", "ppo", "dpo+ppo", "rloo"]


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The run directory of a very small study, and what the command said."""
    directory = tmp_path_factory.mktemp("study")
    ended = trueline(*STUDY, "-o", "run", cwd=directory, timeout=280)
    assert ended.returncode == 0, ended.stderr[-3000:]
    return directory / "run", ended


@pytest.mark.integration
def test_the_report_holds_what_it_promises(study) -> None:
    directory, ended = study
    report = json.loads((directory / "report.json").read_text())
    assert {"schema", "task", "seeds", "arms", "comparisons", "verdict", "threats", "command"} <= report.keys()
    assert report["task"] == "dialogue" and report["seeds"] == [0]
    assert sorted(arm["name"] for arm in report["arms"]) == sorted(ARMS)
    costs = {"seconds", "flops", "sampled_tokens", "trained_tokens", "reward_calls", "labels", "peak_memory_bytes"}
    for arm in report["arms"]:
        assert costs <= arm["cost"].keys()
        gold = arm["metrics"]["test/sampled/gold"]
        assert {"mean", "ci95", "per_seed"} <= gold.keys() and len(gold["per_seed"]) == 1
        for key in arm["metrics"]:
            assert key.count("/") >= 2
    by_name = {arm["name"]: arm["cost"] for arm in report["arms"]}
    assert (
        by_name["sft"]["labels"]
        == 0
        < by_name["dpo"]["labels"]
        == by_name["ppo"]["labels"]
        == by_name["dpo+ppo"]["labels"]
    )
    assert by_name["dpo+ppo"]["flops"] > by_name["ppo"]["flops"]
    assert {"a", "b", "metric", "difference", "ci95", "p_adjusted", "family"} <= report["comparisons"][0].keys()
    assert report["verdict"]["answer"] == "cannot-tell"  # one seed always is
    assert {"best", "cheapest", "metric", "margin", "text"} <= report["verdict"].keys()
    assert report["command"] == "trueline " + " ".join([*STUDY, "-o", "run"])
    assert {v["name"] for v in report["variants"]} == {"shifted", "no-shift"}
    assert report["verdict"]["text"][:40] in " ".join(ended.stdout.split())
    assert (directory / "report.html").stat().st_size > 10_000


@pytest.mark.integration
def test_every_cell_is_complete_and_nothing_is_left_over(study) -> None:
    directory, _ = study
    cells = [cell for cell in (directory / "cells").iterdir() if not cell.name.startswith("base-")]
    assert len(cells) > 20 and all((cell / "done.json").is_file() for cell in cells)
    assert not [path for path in directory.rglob("*") if ".tmp" in path.name]
    indexed = {row["cell"] for row in json.loads((directory / "index.json").read_text())["cells"]}
    assert indexed == {cell.name for cell in cells}
    for cell in cells:
        config = json.loads((cell / "config.json").read_text())
        assert {"method", "arm", "seed"} <= config.keys()


@pytest.mark.integration
def test_the_report_can_be_rebuilt_to_the_byte(study) -> None:
    directory, _ = study
    before = {name: (directory / name).read_bytes() for name in ("report.json", "report.html")}
    for name in before:
        (directory / name).unlink()
    ended = trueline("report", directory, cwd=directory.parent)
    assert ended.returncode == 0, ended.stderr
    assert {name: (directory / name).read_bytes() for name in before} == before


@pytest.mark.integration
def test_the_same_command_again_reuses_every_cell(study) -> None:
    directory, _ = study
    before = {path: path.stat().st_mtime_ns for path in (directory / "cells").rglob("*")}
    report = (directory / "report.json").read_bytes()
    ended = trueline(*STUDY, "-o", "run", cwd=directory.parent)
    assert ended.returncode == 0, ended.stderr
    assert {path: path.stat().st_mtime_ns for path in (directory / "cells").rglob("*")} == before
    assert (directory / "report.json").read_bytes() == report


# --- what is left can be loaded by others


def _batch(tokenizer, texts: list[str]) -> list[tuple[torch.Tensor, int]]:
    """Prompt and response as the template has them: ids [1, T], and where the response begins."""
    rows = []
    for text in texts:
        asked = [{"role": "user", "content": "how do i brew tea ?"}]
        prompt = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=False)
        whole = tokenizer.apply_chat_template([*asked, {"role": "assistant", "content": text}], return_dict=False)
        assert whole[: len(prompt)] == prompt
        rows.append((torch.tensor([whole]), len(prompt)))
    return rows


TEXTS = ["sure . first boil water . good luck .", "i can not help with that .", "it depends ."]


@pytest.mark.integration
def test_transformers_loads_every_model_of_the_study_with_equal_numbers(study) -> None:
    """Policies: log-probs within 1e-5. Reward models: the score of the last token. Critics: a value for each token."""
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
        AutoModelForTokenClassification,
        AutoTokenizer,
    )

    from trueline.models.checkpoints import load_decoder, load_scalar

    directory, _ = study
    kinds = {"model": 0, "reward_model": 0, "critic": 0}
    for kind in kinds:
        for folder in sorted((directory / "cells").glob(f"*/{kind}")):
            kinds[kind] += 1
            batch = _batch(AutoTokenizer.from_pretrained(folder), TEXTS)
            if kind == "model":
                theirs = AutoModelForCausalLM.from_pretrained(folder)
                ours = load_decoder(folder)
            elif kind == "reward_model":
                theirs = AutoModelForSequenceClassification.from_pretrained(folder)
                ours = load_scalar(folder, bias=False)
            else:
                theirs = AutoModelForTokenClassification.from_pretrained(folder)
                ours = load_scalar(folder, bias=True)
            for ids, start in batch:
                with torch.no_grad():
                    given = theirs.eval()(input_ids=ids).logits
                    if kind == "model":
                        own = ours.head(ours.trunk(ids))
                        pair = [
                            x.float().log_softmax(-1)[0, start - 1 : -1].gather(1, ids[0, start:, None])
                            for x in (own, given)
                        ]
                    elif kind == "reward_model":
                        pair = [ours(ids)[0, -1:], given[0]]
                    else:
                        pair = [ours(ids)[0], given[0, :, 0]]
                torch.testing.assert_close(*pair, atol=1e-5, rtol=1e-5)
                assert pair[0].abs().max() > 1e-3
    # sft, sft-chosen, dpo-iter, rloo once; dpo, ppo, dpo+ppo with and without shift. Without a cap DPO is its own half.
    assert kinds["model"] == 10 and kinds["reward_model"] == 4 and kinds["critic"] == 4


@pytest.mark.integration
def test_a_cell_of_the_study_can_be_sampled_from(study) -> None:
    directory, _ = study
    cell = next(path.parent for path in sorted((directory / "cells").glob("*/critic")))
    ended = trueline("sample", cell, "how do i brew tea ?", "-n", "2", "--max-new-tokens", "20", cwd=directory.parent)
    assert ended.returncode == 0, ended.stderr
    assert len(ended.stdout.splitlines()) == 2


# --- one stage, and Ctrl-C


@pytest.mark.integration
def test_a_stage_trains_what_it_needs_and_max_steps_limits_it_alone(study, tmp_path) -> None:
    settings = [s for s in STUDY if "=" in s and s.split(".")[0] in ("world", "sft", "dpo", "train")]
    ended = trueline("dpo", "dialogue", *settings, "train.max_steps=1", "-o", "run", cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    done = {}
    for cell in (tmp_path / "run" / "cells").iterdir():
        if (cell / "config.json").exists():
            done[json.loads((cell / "config.json").read_text())["arm"]] = json.loads((cell / "done.json").read_text())
    assert set(done) == {"sft", "pairs", "dpo"}
    assert done["dpo"]["steps"] == 1 and done["sft"]["steps"] == 25  # 400 demonstrations, two epochs, batch 32


PHASES = {  # what is there when the signal comes, in the order in which a run of two arms comes to it
    "SFT trains": lambda run: _logged(run, "sft") >= 3,
    "checkpoints are measured": lambda run: _begun(run, "evaluate") >= 1,
    "the record is written": lambda run: (run / "index.json").exists(),
}


def _cells(run: Path, page: str) -> list[Path]:
    found = [path.parent for path in run.glob("cells/*/config.json")]
    return [cell for cell in found if json.loads((cell / "config.json").read_text() or "{}").get("method") == page]


def _logged(run: Path, page: str) -> int:
    logs = [cell / "metrics.jsonl" for cell in _cells(run, page)]
    return max((log.read_bytes().count(b"\n") for log in logs if log.exists()), default=0)


def _begun(run: Path, page: str) -> int:
    return len(_cells(run, page))


def _done(run: Path) -> int:
    return len(list(run.glob("cells/*/done.json")))


@pytest.mark.nightly  # tests/reliability/test_stops.py stops each trainer with every change
@pytest.mark.integration
def test_stopped_in_every_phase_the_same_command_goes_on_to_the_same_end(study, tmp_path) -> None:
    """SIGINT to the whole process group, as a terminal sends it, and SIGTERM to the program, in turn. The cells are
    then the uninterrupted study's own, to the byte, clocks aside."""
    two_arms = [*STUDY, "study.arms=sft,dpo", "study.no_shift=false", "-o", "run"]
    command = [sys.executable, "-m", "trueline", *two_arms]
    run, slowest, stopped = tmp_path / "run", 0.0, 0
    for number, (phase, there) in enumerate(PHASES.items()):
        interrupt = number % 2 == 0
        with subprocess.Popen(
            command,
            cwd=tmp_path,
            env=ENVIRONMENT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            # A shell starts background jobs with SIGINT ignored, and children inherit that: here it must be heard.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        ) as process:
            limit = time.monotonic() + 120
            while not there(run):
                assert process.poll() is None and time.monotonic() < limit, f"it ended before {phase}"
                time.sleep(0.01)
            kept, began = {path: path.stat().st_mtime_ns for path in run.glob("cells/*/done.json")}, time.monotonic()
            (os.killpg if interrupt else os.kill)(process.pid, signal.SIGINT if interrupt else signal.SIGTERM)
            _, stderr = process.communicate(timeout=60)
            slowest = max(slowest, time.monotonic() - began)
        assert process.returncode == (130 if interrupt else 143), (phase, stderr)
        assert "Traceback" not in stderr and "what ran is kept" in stderr, (phase, stderr)
        assert "trueline " + " ".join(two_arms) in stderr
        assert not _alive(process.pid)
        assert {path: path.stat().st_mtime_ns for path in kept} == kept  # what was finished is not made again
        stopped += 1
    assert slowest < 10 and not (run / "report.json").exists()

    ended = trueline(*two_arms, cwd=tmp_path, timeout=280)
    assert ended.returncode == 0, ended.stderr[-3000:]
    whole, cells = study[0] / "cells", run / "cells"
    # the base; SFT, pairs, two reward models, probe, DPO; two selections, two evaluations
    assert len(list(cells.iterdir())) == 11
    for cell in cells.iterdir():
        assert contents(cell) == contents(whole / cell.name)
    record("H16", "study", stops=stopped, saved=stopped, slowest_seconds=round(slowest, 2))


@pytest.mark.integration
def test_a_second_signal_leaves_at_once(tmp_path) -> None:
    command = [sys.executable, "-m", "trueline", *STUDY, "-o", "run"]
    with subprocess.Popen(
        command, cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    ) as process:  # fmt: skip
        while _logged(tmp_path / "run", "sft") < 2:
            assert process.poll() is None
            time.sleep(0.01)
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert "stopping" in process.stderr.readline() + process.stderr.readline()
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=30)
        assert process.returncode == 143 and time.monotonic() - began < 5
    assert not _alive(process.pid)


def _alive(group: int) -> bool:
    """Whether a process of the group is still there a moment later (those that were killed are reaped by then)."""
    for _ in range(50):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return False
        time.sleep(0.1)
    return True
