"""The model that a comparison starts from. One that is sampled from must end its responses about as the rows do, which
random weights never do: it is trained to, once, and kept in the user's cache."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from trueline.benchmarks.environments import cache_folder
from trueline.benchmarks.work import ONLINE, Work, make_model, rows_forever, write_tokenizer
from trueline.errors import RunError

__all__ = ["Start", "starting_models"]

_RECIPE = 5  # raise when what is trained here changes
_ROWS, _STEPS, _ATTEMPTS = 64, 20, 12  # rows a step, steps between looks, looks
_SAMPLES = 128
_CLOSE = 0.3
"""Of the rows' mean length. What is learnt first is an even chance to end at each token, which comes to a sixth less;
128 samples err by a twentieth."""


@dataclass(frozen=True)
class Start:
    """Folders of the model and, where scores are needed, of the reward model; and what samples of it look like: mean
    and standard deviation over samples of their length, nats per token and score."""

    model: Path
    reward: Path | None
    samples: dict[str, dict[str, float]]


def starting_models(work: Work, folder: Path, *, look: bool = True) -> Start:
    """Make (in `folder`) or find (in the cache) the models of a work; `look` at samples of one that is sampled from."""
    import torch

    torch.set_num_threads(work.threads)
    model = folder / "model"
    if work.kind in ONLINE and work.ragged:
        model = _trained(work, folder)
    else:
        make_model(work, model)
    reward = _reward(work, model, folder) if work.kind in ("ppo", "reward", "grpo", "rloo") else None
    return Start(model, reward, _samples(work, model, reward) if look and work.kind in ONLINE else {})


def _trained(work: Work, folder: Path) -> Path:
    about = [_RECIPE, work.size, work.prompt_tokens, work.max_new_tokens, work.seed, _ROWS, _STEPS, _CLOSE]
    kept = cache_folder() / "models" / hashlib.sha256(json.dumps(about).encode()).hexdigest()[:16]
    if (kept / "config.json").is_file():
        return kept
    model = folder / "start"
    make_model(work, model)
    aim = sum(len(row["chosen"]) for row in islice(rows_forever(work), 2000)) / 2000
    for attempt in range(_ATTEMPTS):
        model = _train(replace(work, seed=work.seed + attempt), model, folder / f"sft-{attempt}")
        found = _samples(work, model, None)
        if abs(found["length"]["mean"] / aim - 1) < _CLOSE and found["ended"]["mean"] > 0.75:
            return _keep(model, kept)
    raise RunError(
        f"bench: responses of the starting model are {found['length']['mean']:.1f} tokens long, the rows {aim:.1f}, "
        f"after {_ATTEMPTS * _STEPS} steps; use --even"
    )


def _keep(model: Path, kept: Path) -> Path:
    kept.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(dir=kept.parent))
    shutil.copytree(model, aside, dirs_exist_ok=True)
    try:
        os.replace(aside, kept)
    except OSError:  # another run was first
        shutil.rmtree(aside)
    return kept


def _train(work: Work, model: Path, cell: Path) -> Path:
    """Some steps of our own SFT page, from `model`; returns the new model's folder."""
    from trueline.benchmarks.ours import rows_stage
    from trueline.models.checkpoints import read_config
    from trueline.training.sft import Config, train

    rows = list(islice(rows_forever(work), _ROWS * _STEPS))
    hidden = read_config(model).hidden_size
    config = Config(
        learning_rate=1e-3 * (128 / hidden) ** 0.5, batch_size=_ROWS, epochs=1.0, schedule="constant", warmup_steps=5
    )
    train(config, rows_stage(replace(work, kind="sft").described(), rows, cell, model))
    write_tokenizer(read_config(model).vocab_size, cell / "model")
    return cell / "model"


def _reward(work: Work, model: Path, folder: Path) -> Path:
    """A scalar model on the same trunk. One that is trained starts at zero, one that scores tells responses apart."""
    import torch

    from trueline.models.checkpoints import load_decoder, save_model
    from trueline.models.heads import scalar_from

    scalar = scalar_from(load_decoder(model), bias=False)
    if work.kind != "reward":
        torch.nn.init.normal_(scalar.score.weight, std=0.02, generator=torch.Generator().manual_seed(work.seed))
    save_model(scalar, folder / "reward")
    (folder / "reward" / "calibration.json").write_text(json.dumps({"mean": 0.0, "std": 1.0}))
    write_tokenizer(scalar.config.vocab_size, folder / "reward")
    return folder / "reward"


def _samples(work: Work, model: Path, reward: Path | None) -> dict[str, dict[str, float]]:
    import torch

    from trueline.models.checkpoints import load_decoder, load_scalar
    from trueline.models.scoring import Sampling
    from trueline.rewards.learned import LearnedReward
    from trueline.rollout.native import NativeEngine
    from trueline.seeds import uniforms

    device = torch.device("cuda" if work.device == "cuda" else "cpu")
    engine = NativeEngine(pad_id=0, end_id=1)
    engine.load_weights(load_decoder(model).to(device), 0)
    prompts = [row["prompt"] for row in islice(rows_forever(work), _SAMPLES)]
    draws = uniforms(work.seed, "benchmark/look", 0, range(_SAMPLES), work.max_new_tokens)
    rollout = engine.generate(prompts, draws, max_new_tokens=work.max_new_tokens, sampling=Sampling())
    lengths = rollout.response_lengths.float()
    values: dict[str, Any] = {"length": lengths, "ended": rollout.ended.float()}
    values["nll"] = -rollout.logprobs.sum(1).float() / lengths
    if reward is not None:
        scorer = LearnedReward(load_scalar(reward, bias=False).to(device))
        values["score"] = scorer.scores(rollout.tokens, rollout.lengths)
    return {name: {"mean": float(value.mean()), "std": float(value.std())} for name, value in values.items()}
