"""SFT, reward model, DPO and PPO, two steps each, on a small random model of every architecture; and the table of it.

    PYTHONPATH=tests python -m training.every_architecture docs/models.md

writes the table between the marks of that page.
"""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from foreign import other_tokenizer
from models.test_architectures import MAKERS
from trueline.data.batches import collate
from trueline.data.chat import ChatTokenizer
from trueline.models.foreign import quiet
from trueline.runs.cell import Cell, read_json, read_jsonl
from trueline.tasks.task import PairSources
from trueline.training.pages import page
from trueline.training.pairs import write_pairs
from trueline.training.stage import Limits, Stage
from trueline.types import Demonstration, Pair, Prompt

__all__ = ["COLUMNS", "MAKERS", "measure", "write_table"]

STEPS = 2
SETTINGS: dict[str, dict[str, Any]] = {
    "sft": {"epochs": 1.0},
    "reward": {"epochs": 1.0, "held_out": 0.0},
    "dpo": {"epochs": 1.0},
    "ppo": {"steps": STEPS, "minibatches": 2, "critic_warmup": 0, "min_ended": 0.0},
}
COLUMNS = {
    "sft": "SFT: loss",
    "reward": "reward: loss",
    "dpo": "DPO: loss",
    "ppo": "PPO: largest gap of sampled and recomputed log-probs",
    "logprobs": "log-probs against transformers",
    "scores": "scores against transformers",
}


class Rows:
    """A few questions and answers."""

    learned_gold = True

    def pairs(self) -> list[Pair]:
        things = ["tea", "bread", "soup", "rice", "coffee", "cake", "jam", "stew"]
        good, bad = "first boil the water , then add the {} .", "i can not help with {} ."
        return [Pair(Prompt.ask(f"how do i make {t} ?"), good.format(t), bad.format(t)) for t in things]

    def demonstrations(self, seed: int) -> list[Demonstration]:
        return [Demonstration(pair.prompt, pair.chosen) for pair in self.pairs()]

    def prompts(self, split: str) -> list[Prompt]:
        return [pair.prompt for pair in self.pairs()]


def measure(name: str, folder: Path) -> dict[str, float]:
    """Train the four in turn; the first losses, PPO's gap, and how far transformers is from what was saved."""
    start = _start(name, folder / "start")
    given = Cell(folder / "pairs")
    given.open({"method": "given"})
    write_pairs(given.directory, PairSources(Rows().pairs()))
    inputs = {"model": start, "pairs": given.directory}
    found: dict[str, float] = {}
    for method, settings in SETTINGS.items():
        cell = Cell(folder / method)
        cell.open({"method": method})
        limits = Limits(40, 30, 600, max_steps=STEPS, snapshots=1)
        stage = Stage(method, 0, Rows(), cell, ChatTokenizer.load(start), limits, inputs)
        config = page(method).Config(batch_size=4, learning_rate=1e-3, warmup_steps=0, **settings)
        page(method).train(config, stage)
        inputs[method] = cell.directory
        rows = list(read_jsonl(cell / "metrics.jsonl"))
        assert len(rows) == STEPS
        gates = {gate["name"]: gate for gate in read_json(cell / "gates.json")["gates"]}
        assert all(gate["passed"] for gate in gates.values() if gate["hard"])
        name_of = {"dpo": "loss/dpo"}.get(method, "loss")
        found[method] = gates["sampled = recomputed"]["measured"] if method == "ppo" else rows[0][name_of]
    found["logprobs"] = max(_logprob_gap(stage, inputs[method] / "model") for method in ("sft", "dpo", "ppo"))
    found["scores"] = _score_gap(inputs["reward"] / "reward_model")
    return found


def _start(name: str, folder: Path) -> Path:
    tokenizer, config = other_tokenizer(), MAKERS[name]()
    config.vocab_size, config.max_position_embeddings = len(tokenizer), 128
    config.bos_token_id, config.eos_token_id, config.pad_token_id = 0, 3, 1
    torch.manual_seed(0)
    with quiet():
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@torch.no_grad()
def _logprob_gap(stage: Stage, folder: Path) -> float:
    """Ours against the model that transformers reloads, on padded rows, of what is trained on."""
    from trueline.models.checkpoints import load_decoder

    items = [stage.tokenize(pair.prompt, text) for pair in Rows().pairs() for text in (pair.chosen, pair.rejected)]
    batch = collate(items, stage.tokenizer.pad_id)
    real = torch.arange(batch.tokens.shape[1]) < batch.lengths[:, None]
    with quiet():
        model = AutoModelForCausalLM.from_pretrained(folder).eval()
    theirs = model(input_ids=batch.tokens, attention_mask=real.long()).logits.log_softmax(-1)
    ours = load_decoder(folder)(batch.tokens).log_softmax(-1)
    # the stages' padding id ends texts too, so transformers' masks are given, and only real places are compared
    return float((ours - theirs)[real].abs().max())


@torch.no_grad()
def _score_gap(folder: Path) -> float:
    """The scores that were kept in training against transformers' classifier, its own tokenizer and padding."""
    from transformers import AutoTokenizer

    kept = read_json(folder / "examples.json")["examples"]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with quiet():
        model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    ids = []
    for row in kept:
        turns = [*row["prompt"], {"role": "assistant", "content": row["response"]}]
        text = tokenizer.apply_chat_template(turns, tokenize=False)
        ids.append(tokenizer(text, add_special_tokens=False)["input_ids"])
    width = max(map(len, ids))
    pad = model.config.pad_token_id
    tokens = torch.tensor([row + [pad] * (width - len(row)) for row in ids])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in ids])
    scores = model(input_ids=tokens, attention_mask=mask).logits[:, 0].tolist()
    return max(abs(score - row["score"]) for score, row in zip(scores, kept))


def write_table(page_file: Path) -> None:
    """Measure all and put the table between the page's marks."""
    lines = [f"| architecture | {' | '.join(COLUMNS.values())} |", f"|---|{'---|' * len(COLUMNS)}"]
    for name in MAKERS:
        with tempfile.TemporaryDirectory() as folder:
            found = measure(name, Path(folder))
        figures = [f"{found[key]:.4f}" if key in ("sft", "reward", "dpo") else f"{found[key]:.0e}" for key in COLUMNS]
        lines.append(f"| {name} | {' | '.join(figures)} |")
        print(lines[-1], flush=True)
    text = page_file.read_text(encoding="utf-8")
    table = "\n".join(lines)
    text = re.sub(r"(?s)(<!-- trained -->\n).*?\n?(<!-- /trained -->)", lambda m: f"{m[1]}{table}\n{m[2]}", text)
    page_file.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write_table(Path(sys.argv[1]))
