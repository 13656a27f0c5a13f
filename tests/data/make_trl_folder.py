"""Makes a folder as TRL leaves it: two DPO steps from a Hugging Face folder on preference pairs.

Run it in an environment of its own (`pip install trl`), then hand the folder to `trueline evaluate`:

    python tests/data/make_trl_folder.py --model SFT_FOLDER --pairs pairs.jsonl --out FOLDER

A row of the pairs has `prompt` (a text, or a list of messages), `chosen` and `rejected` (texts). `--lora` leaves a PEFT
adapter without the model's own weights instead (needs `pip install peft`), which trueline refuses with the remedy.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

__all__ = ["main", "read_pairs"]


def read_pairs(path: Path, limit: int) -> list[dict[str, Any]]:
    """The first rows in TRL's conversational form, where TRL applies the folder's own chat template."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines()[:limit]:
        row = json.loads(line)
        turns = row["prompt"] if isinstance(row["prompt"], list) else [{"role": "user", "content": row["prompt"]}]
        sides = {side: [{"role": "assistant", "content": row[side]}] for side in ("chosen", "rejected")}
        rows.append({"prompt": turns} | sides)
    return rows


def main() -> None:
    """Train `--steps` steps and save model and tokenizer to `--out`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--pairs", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--lora", action="store_true")
    options = parser.parse_args()

    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    adapter = None
    if options.lora:
        from peft import LoraConfig

        adapter = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    trainer = DPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(options.model),
        args=DPOConfig(
            output_dir=str(options.out / "trainer"), max_steps=options.steps, beta=0.1, seed=0, report_to="none",
            per_device_train_batch_size=options.batch_size, learning_rate=options.learning_rate,
            lr_scheduler_type="constant", logging_steps=1, save_strategy="no", use_cpu=True, bf16=False,
        ),
        train_dataset=Dataset.from_list(read_pairs(options.pairs, options.steps * options.batch_size)),
        processing_class=tokenizer,
        peft_config=adapter,
    )  # fmt: skip
    trainer.train()
    trainer.save_model(str(options.out))
    print(f"{options.steps} DPO steps, saved to {options.out}")


if __name__ == "__main__":
    main()
