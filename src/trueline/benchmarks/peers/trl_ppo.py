"""TRL's experimental PPO trainer (the last wheel that has one): a round is one iteration of a running `train()`.

Separate trunks for policy, critic, reference and reward model; everything at TRL's defaults but what the work says.
Runs in the peer's own environment.
"""

from __future__ import annotations

import json
import os
from typing import Any

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"

import torch
from wire import Wire

__all__: list[str] = []

wire = Wire()
work = wire.work
torch.set_num_threads(work["threads"])

import transformers  # noqa: E402
import trl  # noqa: E402
import trl.experimental.ppo.ppo_trainer as ppo_trainer  # noqa: E402
from datasets import Dataset  # noqa: E402
from transformers import (  # noqa: E402
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    TrainerCallback,
)
from trl.experimental.ppo import PPOConfig, PPOTrainer  # noqa: E402

KEPT = ("objective/kl", "objective/scores", "loss/value_avg", "val/ratio")


class Rounds(TrainerCallback):
    """Waits for an order before the first iteration and after each."""

    def __init__(self) -> None:
        self.logged: dict[str, float] = {}

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        versions = {"trl": trl.__version__, "transformers": transformers.__version__, "torch": torch.__version__}
        wire.say(ready=True, versions=versions, setting=SETTING.format(accumulated))
        wire.order()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        self.logged = {key: float(logs[key]) for key in KEPT if key in logs}
        self.logged["entropy of a response"] = float(logs["objective/entropy"])

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        wire.stop()
        length = float(torch.cat(lengths).float().mean())
        lengths.clear()
        per_token = self.logged.pop("entropy of a response") / length
        wire.answer(result=self.logged | {"val/length": length, "objective/entropy": per_token})
        wire.order()


SETTING = "PPOConfig, {} gradient accumulation steps, everything else at its default"
lengths: list[torch.Tensor] = []
cut = ppo_trainer.truncate_response


def counted(stop_token_id: int, pad_token_id: int, responses: torch.Tensor) -> torch.Tensor:
    """TRL's own cut at the end token, with the lengths that it leaves: the trainer logs none. Padding that was sampled
    ends a response for TRL too."""
    found = cut(stop_token_id, pad_token_id, responses)
    padded = found == pad_token_id
    lengths.append(torch.where(padded.any(1), padded.int().argmax(1), found.shape[1]))
    return found


if __name__ == "__main__":
    ppo_trainer.truncate_response = counted
    torch.manual_seed(work["seed"])
    tokenizer = AutoTokenizer.from_pretrained(wire.folder / "model", padding_side="left")
    accumulated = work["peer"].get("gradient_accumulation_steps", 1)
    args = PPOConfig(
        output_dir=str(wire.folder / "peer"),
        total_episodes=100000 * work["batch_size"],
        per_device_train_batch_size=work["batch_size"] // accumulated,
        gradient_accumulation_steps=accumulated,
        num_mini_batches=work["minibatches"],
        num_ppo_epochs=work["epochs"],
        local_rollout_forward_batch_size=work["batch_size"],
        response_length=work["max_new_tokens"],
        stop_token="eos",
        temperature=1.0,
        kl_coef=work["kl_coef"],
        learning_rate=work["learning_rate"],
        lr_scheduler_type="constant",
        adam_beta2=0.95,
        gradient_checkpointing=False,
        num_sample_generations=0,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        bf16=work["precision"] == "bf16",
        use_cpu=work["device"] == "cpu",
        seed=work["seed"],
    )

    def scalar():
        return AutoModelForSequenceClassification.from_pretrained(
            wire.folder / "reward", dtype=torch.float32, num_labels=1
        )

    def policy():
        return AutoModelForCausalLM.from_pretrained(wire.folder / "model", dtype=torch.float32)

    prompts = [row["prompt"] for row in json.loads((wire.folder / "ordered.json").read_text())]
    trainer = PPOTrainer(
        args=args,
        processing_class=tokenizer,
        model=policy(),
        ref_model=policy(),
        reward_model=scalar(),
        value_model=scalar(),
        train_dataset=Dataset.from_dict({"input_ids": prompts}),
        eval_dataset=Dataset.from_dict({"input_ids": prompts[: work["batch_size"]]}),
        callbacks=[Rounds()],
    )
    trainer.train()
