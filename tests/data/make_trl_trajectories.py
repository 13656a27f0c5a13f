"""Makes `trl_trajectories/`: the losses of TRL's SFT, reward and DPO trainers, step by step, on a small model.

Two steps. The first, in our environment, makes model and pairs and lays out every step's rows as our pages draw them;
the second, in an environment of its own (`pip install trl==1.16.0 transformers datasets`), trains on them with TRL:

    python tests/data/make_trl_trajectories.py prepare tests/data/trl_trajectories WORK
    python tests/data/make_trl_trajectories.py train WORK tests/data/trl_trajectories/losses.json

TRL gets messages and applies the folder's own chat template: what is compared is the whole path from text to loss.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

__all__ = ["BATCH", "BETA", "LEARNING_RATE", "STEPS", "drawn", "main"]

STEPS, BATCH, LEARNING_RATE, BETA = 50, 8, 5e-4, 0.1
KINDS = ("sft", "reward", "dpo")


def drawn(kind: str, count: int) -> list[list[int]]:
    """The rows of every step, as the page of that method draws them at seed 0."""
    from trueline.training.sft import epoch_rows

    return [epoch_rows(0, f"{kind}/order", step, BATCH, count) for step in range(STEPS)]


def prepare(folder: Path, work: Path) -> None:
    """Model, tokenizer and pairs into `folder`; the rows in order into `work`."""
    from trueline.data.chat import ChatTokenizer
    from trueline.models.checkpoints import save_model
    from trueline.models.heads import scalar_from
    from trueline.models.tiny import make_decoder, sized
    from trueline.tasks.dialogue import Config, Dialogue

    told = Dialogue(Config(demonstrations=200, pairs=20)).demonstrations(0)
    rows = []
    for number in range(96):
        one, other, before = told[number], told[number + 97], told[number + 31]
        turns = [{"role": "user", "content": one.prompt.messages[-1].content}]
        if number % 3 == 1:  # an earlier turn, letters of three scripts, white space of a response's own
            turns = [
                {"role": "user", "content": before.prompt.messages[-1].content},
                {"role": "assistant", "content": f"{before.response}\n\n  – größer, 你好"},
                *turns,
            ]
        if number % 5 == 2:
            turns.insert(0, {"role": "system", "content": "be brief ."})
        if one.response != other.response:
            rows.append({"prompt": turns, "chosen": one.response, "rejected": f"{other.response}\n"})
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    texts = [t["content"] for row in rows for t in row["prompt"]] + [
        row[s] for row in rows for s in ("chosen", "rejected")
    ]
    tokenizer = ChatTokenizer.train(texts, vocab_size=420)
    shape = sized(
        "tiny", vocab_size=tokenizer.vocab_size, max_positions=512, pad_id=tokenizer.pad_id, end_id=tokenizer.end_id,
        width=32,
    )  # fmt: skip
    model = make_decoder(shape, 3)
    for path in (folder / "model", work / "model"):
        save_model(model, path)
        tokenizer.save(path)
    save_model(scalar_from(model, bias=False), work / "reward")
    tokenizer.save(work / "reward")
    for kind in KINDS:
        ordered = [rows[i] for step in drawn(kind, len(rows)) for i in step]
        (work / f"{kind}.json").write_text(json.dumps(ordered))


def train(work: Path, out: Path) -> None:
    """The losses of every step, as TRL computes them."""
    import torch
    import transformers
    import trl
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    torch.set_num_threads(1)
    found: dict[str, Any] = {
        "versions": {"trl": trl.__version__, "transformers": transformers.__version__, "torch": torch.__version__},
        "settings": {"batch": BATCH, "learning_rate": LEARNING_RATE, "beta": BETA, "max_grad_norm": 1.0},
    }
    kinds = {
        "sft": (trl.SFTTrainer, trl.SFTConfig, {"completion_only_loss": True, "max_length": None}),
        "reward": (trl.RewardTrainer, trl.RewardConfig, {"max_length": None}),
        "dpo": (trl.DPOTrainer, trl.DPOConfig, {"max_length": None, "beta": BETA}),
    }
    for kind, (trainer_class, config_class, more) in kinds.items():
        tokenizer = AutoTokenizer.from_pretrained(work / "model")
        data = [_row(kind, row) for row in json.loads((work / f"{kind}.json").read_text())]
        settings = config_class(
            output_dir=str(work / "out"), per_device_train_batch_size=BATCH, max_steps=STEPS, save_strategy="no",
            learning_rate=LEARNING_RATE, lr_scheduler_type="constant", adam_beta2=0.95, max_grad_norm=1.0,
            train_sampling_strategy="sequential", gradient_checkpointing=False, bf16=False, use_cpu=True, seed=0,
            report_to="none", disable_tqdm=True, **more,
        )  # fmt: skip
        if kind == "reward":
            model = AutoModelForSequenceClassification.from_pretrained(
                work / "reward", dtype=torch.float32, num_labels=1
            )
        else:
            model = AutoModelForCausalLM.from_pretrained(work / "model", dtype=torch.float32)
        data_set = Dataset.from_list(data)
        trainer = trainer_class(model=model, args=settings, train_dataset=data_set, processing_class=tokenizer)
        losses = _watched(trainer)
        trainer.train()
        assert len(losses) == STEPS, (kind, len(losses))
        found[kind] = losses
    out.write_text(json.dumps(found, indent=1) + "\n")


def _watched(trainer: Any) -> list[float]:
    """The trainer's own losses, as they are computed: what it logs is rounded."""
    losses: list[float] = []
    compute = trainer.compute_loss

    def watch(*args: Any, **kwargs: Any) -> Any:
        result = compute(*args, **kwargs)
        losses.append(float(result[0] if isinstance(result, tuple) else result))
        return result

    trainer.compute_loss = watch
    return losses


def _row(kind: str, row: dict[str, Any]) -> dict[str, Any]:
    sides = {side: [{"role": "assistant", "content": row[side]}] for side in ("chosen", "rejected")}
    if kind == "sft":
        return {"prompt": row["prompt"], "completion": sides["chosen"]}
    return {"prompt": row["prompt"], **sides}


def main() -> None:
    """See the module's docstring."""
    step, one, two = sys.argv[1:]
    {"prepare": prepare, "train": train}[step](Path(one), Path(two))


if __name__ == "__main__":
    main()
