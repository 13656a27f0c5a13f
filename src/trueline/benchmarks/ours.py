"""Our side of a comparison: the page that users run, one round of it a step, on the work's rows.

Run as `python -m trueline.benchmarks.ours FOLDER`. Nothing of a page is replaced: it reads its inputs from folders as
it always does, and the rounds are cut where it reports a finished step.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from trueline.benchmarks.peers.wire import Wire
from trueline.types import Demonstration, Message, Pair, Prompt

__all__ = ["Rows", "Words", "config_of", "has_precision", "main", "rows_stage", "versions"]


class Words:
    """Ids as words (`17 4 9`): the tokenizer of rows that were drawn as ids. No id is forbidden: the peers forbid none,
    and both sides must sample and score one distribution."""

    pad_id = 0
    end_ids = (1,)
    bos_id = None
    forbidden_ids = ()

    def __init__(self, vocab_size: int, folder: Path) -> None:
        self.vocab_size, self._folder = vocab_size, folder

    @property
    def fingerprint(self) -> str:
        """Of the tokenizer that the peer reads the same rows with: the reward model's folder has it too."""
        from trueline.data.chat import ChatTokenizer

        return ChatTokenizer.load(self._folder).fingerprint

    def encode_prompt(self, prompt: Prompt) -> list[int]:
        return [int(word) for word in prompt.messages[-1].content.split()]

    def encode_response(self, text: str) -> list[int]:
        return [*map(int, text.split()), self.end_ids[0]]

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(str(i) for i in ids if i != self.end_ids[0])

    def save(self, folder: Path) -> None:
        """Nothing: the folder is not read again."""


class Rows:
    """The rows of the work as a task."""

    name = place = description = "benchmark"
    learned_gold = verified = strict_prompts = False

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = rows

    def prompts(self, split: str) -> list[Prompt]:
        return [_prompt(row) for row in self.rows]

    def demonstrations(self, seed: int) -> list[Demonstration]:
        return [Demonstration(_prompt(row), _text(row["chosen"])) for row in self.rows]

    def judge_many(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[SimpleNamespace]:
        """A gold of no meaning: measurements that pages add at their end ask for one."""
        return [SimpleNamespace(score=0.0) for _ in responses]


def rows_stage(
    work: dict[str, Any], rows: list[dict[str, Any]], directory: Path, model: Path, reward: Path | None = None,
    report: Callable[[Any], None] = lambda progress: None,
) -> Any:  # fmt: skip
    """A stage of the work's kind in `directory` whose task is `rows` and whose start is the folder `model`."""
    import torch

    from trueline.runs.cell import Cell
    from trueline.tasks.task import PairSources
    from trueline.training.pairs import write_pairs
    from trueline.training.stage import Limits, Stage

    inputs = directory / "inputs"
    inputs.mkdir(parents=True, exist_ok=True)
    write_pairs(inputs, PairSources([Pair(_prompt(row), _text(row["chosen"]), _text(row["rejected"])) for row in rows]))
    for name, target in (("model", model), ("reward_model", reward)):
        (inputs / name).unlink(missing_ok=True)
        if target is not None:
            (inputs / name).symlink_to(target.resolve())
    for old in ("metrics.jsonl", "timings.jsonl"):
        (directory / old).unlink(missing_ok=True)
    settings = {
        "snapshots": 0,
        **_known(Limits, precision=work["precision"], micro_tokens=work["ours"].get("micro_tokens")),
    }
    return Stage(
        work["kind"], work["seed"], Rows(rows), Cell(directory),
        Words(json.loads((model / "config.json").read_text())["vocab_size"], model),
        Limits(work["prompt_tokens"], work["max_new_tokens"], **settings),
        inputs={"sft": inputs, "pairs": inputs, "reward": inputs, "model": model}, report=report,
        device=torch.device("cuda" if work["device"] == "cuda" else "cpu"),
    )  # fmt: skip


def has_precision(name: str) -> bool:
    """Whether our pages can work in that precision: fp32 always, others where the limits of a stage name one."""
    from trueline.training.stage import Limits

    return name == "fp32" or "precision" in {f.name for f in fields(Limits)}


def config_of(work: dict[str, Any]) -> Any:
    """The page's settings that make its step the work's step."""
    from trueline.training.pages import page

    config = page(work["kind"] if work["kind"] != "grpo" else "rloo").Config
    common = {name: work[name] for name in ("learning_rate", "max_grad_norm", "batch_size")}
    fixed = {"schedule": "constant", "warmup_steps": 0, "epochs": 1000}
    if work["kind"] == "sft":
        return config(**common, **fixed)
    if work["kind"] == "reward":
        return config(**common, **fixed, held_out=0.0)
    if work["kind"] == "dpo":
        return config(**common, **fixed, beta=work["beta"])
    common["min_ended"] = 0.0  # random weights end nothing, and are as good to measure
    online = common | {"kl_coef": work["kl_coef"], "minibatches": work["minibatches"], "steps": 100000}
    if work["kind"] in ("rloo", "grpo"):
        baseline = {"rloo": "loo", "grpo": "group"}[work["kind"]]
        return config(**online, samples_per_prompt=work["samples_per_prompt"], baseline=baseline, warmup_steps=0)
    return config(
        **online, epochs=work["epochs"], critic_learning_rate=work["learning_rate"], critic_warmup=0, ema_eta=0.0,
        value_norm=False, gae_lambda=0.95,
    )  # fmt: skip


def versions() -> dict[str, str]:
    """Of what our side runs on."""
    import torch

    from trueline import __version__

    return {"trueline": __version__, "torch": torch.__version__, "python": platform.python_version()}


def main() -> None:
    """Answer rounds until the other end hangs up."""
    wire = Wire()
    import torch

    torch.set_num_threads(wire.work["threads"])
    if wire.work["kind"] == "rollout":
        _rollout(wire)
    else:
        _train(wire)


def _train(wire: Wire) -> None:
    from trueline.training.pages import page

    work = wire.work
    rows = [row for batch in json.loads((wire.folder / "rows.json").read_text()) for row in batch]
    charge = _Reference(work)

    def report(progress: Any) -> None:
        if progress.total == 0:  # the objective: the page is about to begin
            wire.say(ready=True, versions=versions())
            wire.order()
            return
        charge.score_batch(stage, progress.step - 1)
        wire.stop()
        row = json.loads((stage.cell / "metrics.jsonl").read_text().splitlines()[-1])
        wire.answer(result={key: value for key, value in row.items() if isinstance(value, float | int)})
        wire.order()

    reward = wire.folder / "reward"
    stage = rows_stage(
        work, rows, wire.folder / "ours", wire.folder / "model", reward if reward.exists() else None, report
    )
    page("rloo" if work["kind"] == "grpo" else work["kind"]).train(config_of(work), stage)


class _Reference:
    """DPO scores each pair once under the reference before its first step, the peer in every step: each round is
    charged with the scoring of the pairs that it trained on."""

    def __init__(self, work: dict[str, Any]) -> None:
        self.work, self.model, self.items = work, None, []

    def score_batch(self, stage: Any, step: int) -> None:
        if self.work["kind"] != "dpo":
            return
        from trueline.training.pairs import read_pairs
        from trueline.training.policies import load_policy
        from trueline.training.preference import next_pairs, pair_items, reference_logprobs

        if self.model is None:  # in the round that warms up
            self.model = load_policy(stage, "sft")
            self.items = pair_items(stage, read_pairs(stage.inputs["pairs"]).training)
        config = SimpleNamespace(batch_size=self.work["batch_size"])
        reference_logprobs(stage, self.model, next_pairs(config, stage, self.items, step))


def _rollout(wire: Wire) -> None:
    import torch

    from trueline.models.checkpoints import load_decoder
    from trueline.models.scoring import Sampling
    from trueline.rollout.native import NativeEngine
    from trueline.seeds import uniforms

    work = wire.work
    batches = json.loads((wire.folder / "rows.json").read_text())
    policy = load_decoder(wire.folder / "model").to(torch.device("cuda" if work["device"] == "cuda" else "cpu"))
    engine = NativeEngine(pad_id=0, end_id=1, **_known(NativeEngine, precision=work["precision"]))
    engine.load_weights(policy, 0)
    wire.say(ready=True, versions=versions())
    limit, number = work["max_new_tokens"], 0
    while True:
        wire.order()
        prompts = [row["prompt"] for row in batches[number % len(batches)]]
        draws = uniforms(work["seed"], "benchmark", number, range(len(prompts)), limit)
        rollout = engine.generate(prompts, draws, max_new_tokens=limit, sampling=Sampling())
        wire.stop()
        nll = -float(rollout.logprobs.sum() / rollout.sampled_tokens)
        wire.answer(result={"val/length": rollout.sampled_tokens / len(prompts), "objective/entropy": nll})
        number += 1


def _known(kind: type, **wanted: Any) -> dict[str, Any]:
    """Those of the settings that `kind` has and that were given."""
    from inspect import signature

    names = {f.name for f in fields(kind)} if hasattr(kind, "__dataclass_fields__") else set(signature(kind).parameters)
    return {name: value for name, value in wanted.items() if name in names and value is not None}


def _prompt(row: dict[str, Any]) -> Prompt:
    return Prompt((Message("user", " ".join(map(str, row["prompt"]))),))


def _text(ids: Sequence[int]) -> str:
    return " ".join(map(str, ids[:-1]))


if __name__ == "__main__":
    main()
