"""Makes `trl_trajectories/ppo.json`: everything that TRL 1.12.0's PPO trainer computes in one iteration of two passes.

TRL 1.12.0 is the last release with a PPO trainer. Two steps, as in `make_trl_trajectories.py`; the second runs in an
environment of its own with that release:

    python tests/data/make_trl_ppo.py prepare tests/data/trl_trajectories WORK
    python tests/data/make_trl_ppo.py train WORK tests/data/trl_trajectories/ppo.json
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

__all__ = ["main", "models"]

BATCH, NEW_TOKENS, REFERENCE_SEED = 12, 20, 4
HEADS = {"reward": 5, "critic": 6}
SETTINGS = {
    "kl_coef": 0.05, "cliprange": 0.2, "cliprange_value": 0.2, "gamma": 1.0, "lam": 0.95, "vf_coef": 0.1,
    "learning_rate": 3e-3,
}  # fmt: skip
END_LOGIT = 3.5
"""What the end token's logit is on average: a model from nothing would end one response in four hundred."""


def models(folder: Path) -> dict[str, Any]:
    """Policy, reference, reward model and critic."""
    import torch

    from trueline.data.chat import ChatTokenizer
    from trueline.models.checkpoints import load_decoder
    from trueline.models.tiny import make_decoder

    policy, end = load_decoder(folder / "model"), ChatTokenizer.load(folder / "model").end_id
    reference = make_decoder(policy.config, REFERENCE_SEED)
    with torch.no_grad():
        for model in (policy, reference):
            hidden = model.trunk(torch.tensor(prompts_of(folder)[:1])).mean((0, 1))
            model.head.weight[end] = END_LOGIT * hidden / hidden.square().sum()
    return {"policy": policy, "reference": reference} | {name: scalar_of(policy, name) for name in HEADS}


def prompts_of(folder: Path) -> list[list[int]]:
    """The prompts of the first pairs, as ids."""
    from trueline.data.chat import ChatTokenizer
    from trueline.types import Message, Prompt

    tokenizer = ChatTokenizer.load(folder / "model")
    rows = [json.loads(line) for line in (folder / "pairs.jsonl").read_text(encoding="utf-8").splitlines()[:BATCH]]
    return [tokenizer.encode_prompt(Prompt(tuple(Message(**turn) for turn in row["prompt"]))) for row in rows]


def scalar_of(policy: Any, name: str) -> Any:
    """The reward model or the critic: the policy's trunk with a head of its own."""
    import torch

    from trueline.models.heads import scalar_from

    model = scalar_from(policy, bias=False)
    with torch.no_grad():
        model.score.weight.normal_(0.0, 0.5, generator=torch.Generator().manual_seed(HEADS[name]))
    return model


def prepare(folder: Path, work: Path) -> None:
    """Four models and prompts, in the form that TRL loads."""
    from trueline.data.chat import ChatTokenizer
    from trueline.models.checkpoints import save_model

    for name, model in models(folder).items():
        save_model(model, work / name)
        ChatTokenizer.load(folder / "model").save(work / name)
    (work / "prompts.json").write_text(json.dumps(prompts_of(folder)))


def train(work: Path, out: Path) -> None:
    """One iteration; its tensors are taken from the trainer's own frame where it calls backward."""
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    import numpy as np
    import torch
    import transformers
    import trl
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    torch.set_num_threads(1)
    torch.manual_seed(1)
    np.random.seed(1)
    tokenizer = AutoTokenizer.from_pretrained(work / "policy", padding_side="left")
    prompts = json.loads((work / "prompts.json").read_text())

    def load(name: str, scalar: bool = False) -> Any:
        kind = AutoModelForSequenceClassification if scalar else AutoModelForCausalLM
        more = {"num_labels": 1} if scalar else {}
        return kind.from_pretrained(work / name, dtype=torch.float32, **more)

    args = PPOConfig(
        output_dir=str(work / "out"), total_episodes=BATCH, per_device_train_batch_size=BATCH, num_mini_batches=1,
        gradient_accumulation_steps=1, num_ppo_epochs=2, local_rollout_forward_batch_size=BATCH, stop_token="eos",
        response_length=NEW_TOKENS, temperature=1.0, kl_coef=SETTINGS["kl_coef"], cliprange=SETTINGS["cliprange"],
        cliprange_value=SETTINGS["cliprange_value"], gamma=SETTINGS["gamma"], lam=SETTINGS["lam"],
        vf_coef=SETTINGS["vf_coef"], learning_rate=SETTINGS["learning_rate"], lr_scheduler_type="constant",
        num_sample_generations=0, save_strategy="no", report_to="none", disable_tqdm=True, bf16=False, use_cpu=True,
        gradient_checkpointing=False, seed=1,
    )  # fmt: skip
    trainer = PPOTrainer(
        args=args, processing_class=tokenizer, model=load("policy"), ref_model=load("reference"),
        reward_model=load("reward", True), value_model=load("critic", True),
        train_dataset=Dataset.from_dict({"input_ids": prompts}),
        eval_dataset=Dataset.from_dict({"input_ids": prompts}),
    )  # fmt: skip
    passes: list[dict[str, Any]] = []
    batch: dict[str, Any] = {}
    backward = trainer.accelerator.backward

    def watch(loss: Any, **more: Any) -> None:
        found = sys._getframe(1).f_locals
        batch.update({name: _plain(found[name]) for name in WHOLE})
        passes.append({name: _plain(found[name]) for name in EACH})
        backward(loss, **more)

    trainer.accelerator.backward = watch
    trainer.train()
    versions = {"trl": trl.__version__, "transformers": transformers.__version__, "torch": torch.__version__}
    record = {"versions": versions, "settings": SETTINGS, "batch": batch, "passes": passes}
    out.write_text(json.dumps(record) + "\n")


WHOLE = (
    "context_length", "query_responses", "sequence_lengths", "padding_mask", "padding_mask_p1", "logprobs",
    "ref_logprobs", "scores", "values", "kl", "rewards", "advantages", "returns",
)  # fmt: skip
EACH = ("mini_batch_inds", "new_logprobs", "vpred", "pg_loss", "vf_loss", "loss")


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else value


def main() -> None:
    """See the module's docstring."""
    step, one, two = sys.argv[1:]
    {"prepare": prepare, "train": train}[step](Path(one), Path(two))


if __name__ == "__main__":
    main()
