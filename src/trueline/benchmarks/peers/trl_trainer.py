"""TRL's trainers (SFT, reward, DPO, GRPO, RLOO): a round is one optimiser step of a running `train()`.

Everything is at TRL's defaults but what the work says (batch, learning rate, AdamW's betas, precision), gradient
checkpointing is off, and nothing is saved or reported. GRPO and RLOO get their scores from a function that calls the
reward model on the ids: handed the model itself, TRL would score texts whose end tokens it has taken off.
Runs in the peer's own environment.
"""

from __future__ import annotations

import json
from typing import Any

import torch
from wire import Wire

__all__: list[str] = []

wire = Wire()
work = wire.work
torch.set_num_threads(work["threads"])

import transformers  # noqa: E402
import trl  # noqa: E402
from datasets import Dataset  # noqa: E402
from transformers import AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback  # noqa: E402

KINDS = {
    "sft": (trl.SFTTrainer, trl.SFTConfig),
    "reward": (trl.RewardTrainer, trl.RewardConfig),
    "dpo": (trl.DPOTrainer, trl.DPOConfig),
    "grpo": (trl.GRPOTrainer, trl.GRPOConfig),
    "rloo": (trl.RLOOTrainer, trl.RLOOConfig),
}


# what our side calls the same figure
NAMES = {
    "completions/mean_length": "val/length",
    "entropy": "objective/entropy",
    "rewards/score/mean": "objective/scores",
}


class Rounds(TrainerCallback):
    """Waits for an order before the first step and after each; a step's answer has the losses it logged."""

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        versions = {"trl": trl.__version__, "transformers": transformers.__version__, "torch": torch.__version__}
        wire.say(ready=True, versions=versions, setting=f"{type(args[0]).__name__}, everything else at its default")
        wire.order()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        wire.answer(result={NAMES.get(key, key): float(value) for key, value in logs.items()})
        wire.order()


def text(ids: list[int]) -> str:
    return " ".join(f"t{i}" for i in ids)


def rows(kind: str) -> list[dict[str, Any]]:
    """The dataset of that trainer; responses carry their end token already, and TRL adds none to those that do."""
    found = []
    end = tokenizer.eos_token
    for row in json.loads((wire.folder / "ordered.json").read_text()):
        prompt, chosen, rejected = row["prompt"], row["chosen"], row["rejected"]
        if kind == "sft":
            mask = [0] * len(prompt) + [1] * len(chosen)
            found.append({"input_ids": prompt + chosen, "completion_mask": mask})
        elif kind == "reward":
            found.append({"chosen_ids": prompt + chosen, "rejected_ids": prompt + rejected})
        elif kind == "dpo":
            sides = {"chosen": chosen, "rejected": rejected}
            texts = {name: " " + text(ids[:-1]) + " " + end for name, ids in sides.items()}
            found.append({"prompt": text(prompt), **texts})
        else:
            found.append({"prompt": text(prompt)})
    return found


def settings(kind: str) -> dict[str, Any]:
    """Of that trainer's own arguments."""
    offline = {
        "sft": {"completion_only_loss": True, "max_length": None},
        "reward": {"max_length": None, "center_rewards_coefficient": None},
        "dpo": {"max_length": None, "beta": work["beta"]},
    }
    return offline.get(kind) or {
        "num_generations": work["samples_per_prompt"],
        "max_completion_length": work["max_new_tokens"],
        "beta": work["kl_coef"],
        "temperature": 1.0,
        "num_iterations": work["epochs"],
        "shuffle_dataset": False,
    }


def scalar() -> Any:
    """The scalar model of the work."""
    return AutoModelForSequenceClassification.from_pretrained(wire.folder / "reward", dtype=torch.float32, num_labels=1)


def score_with(model: Any) -> Any:
    """A reward function: the model's score at the last token of prompt and completion."""
    model.eval()

    @torch.inference_mode()
    def score(
        prompts: list[str], completions: list[str], completion_ids: list[list[int]], **kwargs: Any
    ) -> list[float]:
        asked = tokenizer(prompts, add_special_tokens=False)["input_ids"]
        ids = [torch.tensor([*prompt, *response]) for prompt, response in zip(asked, completion_ids)]
        padded = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=tokenizer.pad_token_id)
        lengths = torch.tensor([len(row) for row in ids])
        mask = (torch.arange(padded.shape[1]) < lengths[:, None]).long()
        model.to(trainer.accelerator.device)
        with trainer.accelerator.autocast():
            logits = model(padded.to(model.device), attention_mask=mask.to(model.device)).logits
        return logits[:, 0].float().tolist()

    return score


if __name__ == "__main__":
    kind = work["kind"]
    online = kind in ("grpo", "rloo")
    torch.manual_seed(work["seed"])
    tokenizer = AutoTokenizer.from_pretrained(wire.folder / "model", padding_side="left" if online else "right")
    trainer_class, config_class = KINDS[kind]
    args = config_class(
        output_dir=str(wire.folder / "peer"),
        per_device_train_batch_size=work["batch_size"],
        gradient_checkpointing=False,
        learning_rate=work["learning_rate"],
        lr_scheduler_type="constant",
        adam_beta2=0.95,
        max_grad_norm=work["max_grad_norm"],
        max_steps=100000,
        train_sampling_strategy="sequential",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        bf16=work["precision"] == "bf16",
        use_cpu=work["device"] == "cpu",
        seed=work["seed"],
        **settings(kind),
    )
    model = scalar() if kind == "reward" else None
    if model is None:
        model = transformers.AutoModelForCausalLM.from_pretrained(wire.folder / "model", dtype=torch.float32)
    trainer = trainer_class(
        model=model,
        args=args,
        train_dataset=Dataset.from_list(rows(kind)),
        processing_class=tokenizer,
        callbacks=[Rounds()],
        **({"reward_funcs": score_with(scalar())} if online else {}),
    )
    trainer.train()
