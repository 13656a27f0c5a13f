"""A whole PPO iteration beside its derivation in float64 numpy: from weights and samples to the next weights."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from trueline.models.checkpoints import save_model
from trueline.runs.cell import read_json
from trueline.training import ppo, step

from . import ppo_in_numpy as by_hand
from .small import rows, run_small

pytestmark = pytest.mark.integration

SETTINGS = {
    "batch_size": 12, "minibatches": 1, "steps": 2, "critic_warmup": 0, "ema_eta": 0.3, "kl_coef": 0.1, "gamma": 0.97,
    "gae_lambda": 0.9, "warmup_steps": 0, "learning_rate": 2e-3, "critic_learning_rate": 3e-3, "max_grad_norm": 0.4,
}  # fmt: skip


class Iteration:
    """What the second iteration of a run had in its hands, by Hugging Face's names, in float64."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.exp: Any = None
        self.moments: Any = None
        self.estimates: tuple[Any, ...] = ()
        self.gradients: list[dict[str, np.ndarray]] = []
        self.norms: list[float] = []
        self.finals: list[dict[str, np.ndarray]] = []

    def weights(self, model: Any, name: str) -> by_hand.Weights:
        save_model(model, self.folder / name)
        found = load_file(self.folder / name / "model.safetensors")
        return {key: value.astype(np.float64) for key, value in found.items()}


@pytest.fixture(scope="module")
def iteration(tiny_world, tmp_path_factory) -> Iteration:
    folder = tmp_path_factory.mktemp("by-hand")
    found, patch = Iteration(folder), pytest.MonkeyPatch()
    collect, estimate, clip = ppo.collect, ppo._estimate, torch.nn.utils.clip_grad_norm_
    models: list[Any] = []

    def collected(stage, policy, reference, *args, **more):
        found.exp = collect(stage, policy, reference, *args, **more)
        found.policy, found.reference = found.weights(policy, "policy"), found.weights(reference, "reference")
        found.forbidden = list(stage.tokenizer.forbidden_ids)
        models[:1] = [policy]
        return found.exp

    def estimated(config, stage, critic, moments, kl_coef, exp):
        found.moments = copy.deepcopy(moments)
        found.critic = found.weights(critic, "critic")
        models[1:] = [critic]
        found.estimates = estimate(config, stage, critic, moments, kl_coef, exp)
        return found.estimates

    def clipped(parameters, limit):
        parameters = list(parameters)
        model = models[len(found.gradients) % 2]  # the policy's step, then the critic's
        grads = copy.deepcopy(model)
        with torch.no_grad():
            for target, source in zip(grads.parameters(), parameters, strict=True):
                target.copy_(source.grad)
        found.gradients.append(found.weights(grads, "gradients"))
        norm = clip(parameters, limit)
        found.norms.append(float(norm))
        return norm

    patch.setattr(ppo, "collect", collected)
    patch.setattr(ppo, "_estimate", estimated)
    patch.setattr(step.nn.utils, "clip_grad_norm_", clipped)
    try:
        found.run = run_small(tiny_world, "ppo", folder / "run", settings=SETTINGS, max_steps=2, lengths=(24, 14))
    finally:
        patch.undo()
    config = read_json(folder / "policy" / "config.json")
    theta = config.get("rope_theta") or config["rope_parameters"]["rope_theta"]
    found.shape = by_hand.Shape(
        config["num_hidden_layers"], config["num_attention_heads"], config["num_key_value_heads"], theta,
        config["rms_norm_eps"],
    )  # fmt: skip
    rollout = found.exp.rollout
    found.rows = [
        (row[:start].tolist(), row[start:end].tolist())
        for row, start, end in zip(rollout.tokens, rollout.prompt_lengths.tolist(), rollout.lengths.tolist())
    ]
    found.after = load_after(found.run)
    return found


def load_after(run: Path) -> dict[str, by_hand.Weights]:
    return {
        name: {k: v.astype(np.float64) for k, v in load_file(run / folder / "model.safetensors").items()}
        for name, folder in (("policy", "model"), ("critic", "critic"))
    }


def per_row(iteration: Iteration, values: torch.Tensor) -> list[np.ndarray]:
    """The response's part of each row of [B, T]."""
    return [row[mask].double().numpy() for row, mask in zip(values, iteration.exp.rollout.response_mask)]


def logs(iteration: Iteration, weights: by_hand.Weights) -> list[np.ndarray]:
    return [by_hand.logprobs(weights, iteration.shape, p, r, iteration.forbidden) for p, r in iteration.rows]


def derived(iteration: Iteration) -> dict[str, list[np.ndarray]]:
    """Everything up to the losses, in reward units and in those of the critic."""
    moments, exp = iteration.moments, iteration.exp
    scale, mean = moments.std + moments.eps, moments.mean
    old, reference = logs(iteration, iteration.policy), logs(iteration, iteration.reference)
    raw = [by_hand.values(iteration.critic, iteration.shape, p, r) * scale + mean for p, r in iteration.rows]
    found: dict[str, list[np.ndarray]] = {"old": old, "advantages": [], "returns": [], "values": []}
    for row, (log, ref, value) in enumerate(zip(old, reference, raw)):
        reward = -SETTINGS["kl_coef"] * (log - ref)
        ended = bool(exp.rollout.ended[row])
        if ended:
            reward[-1] += np.clip(float(exp.raw_scores[row]), -5.0, 5.0) if exp.clipped else float(exp.raw_scores[row])
        after = 0.0 if ended else value[-1]
        advantage = by_hand.advantages(reward, value[:-1], after, SETTINGS["gamma"], SETTINGS["gae_lambda"])
        found["advantages"].append(advantage)
        found["returns"].append(advantage + value[:-1])
        found["values"].append(value[:-1])
    everything = np.concatenate(found["returns"])
    # the running moments, with this batch in them: m, s and w are averaged alike
    keep = moments.beta
    state, _ = moments.state()
    w = keep * float(state["weight"]) + (1 - keep)
    m = keep * float(state["mean"]) + (1 - keep) * everything.mean()
    s = keep * float(state["square"]) + (1 - keep) * (everything**2).mean()
    centre, spread = m / w, max(s / w - (m / w) ** 2, moments.var_floor) ** 0.5 + moments.eps
    for name in ("returns", "values"):
        found[name] = [(row - centre) / spread for row in found[name]]
    flat = np.concatenate(found["advantages"])
    found["advantages"] = [(row - flat.mean()) / (flat.std() + 1e-5) for row in found["advantages"]]
    return found


def close(ours: list[np.ndarray], theirs: list[np.ndarray], tolerance: float) -> None:
    assert max(float(np.abs(a - b).max()) for a, b in zip(ours, theirs, strict=True)) < tolerance


def test_the_batch_has_rows_of_both_kinds_and_a_reference_that_moved(iteration) -> None:
    ended = iteration.exp.rollout.ended
    assert 0 < int(ended.sum()) < len(ended)
    assert float((iteration.exp.old_logprobs - iteration.exp.ref_logprobs).abs().max()) > 1e-3


def test_log_probs_and_estimates_are_the_derived_ones(iteration) -> None:
    found, exp = derived(iteration), iteration.exp
    close(per_row(iteration, exp.old_logprobs), found["old"], 2e-5)
    close(per_row(iteration, exp.ref_logprobs), logs(iteration, iteration.reference), 2e-5)
    advantages, returns, values, _ = iteration.estimates
    close(per_row(iteration, advantages), found["advantages"], 2e-4)
    close(per_row(iteration, returns), found["returns"], 2e-4)
    close(per_row(iteration, values), found["values"], 2e-4)


def policy_loss(iteration: Iteration, weights: by_hand.Weights, found: dict[str, list[np.ndarray]]) -> float:
    total = 0.0
    for new, old, advantage in zip(logs(iteration, weights), found["old"], found["advantages"]):
        ratio = np.exp(new - old)
        total += np.maximum(-advantage * ratio, -advantage * np.clip(ratio, 0.8, 1.2)).sum()
    return total / sum(map(len, found["old"]))


def value_loss(iteration: Iteration, weights: by_hand.Weights, found: dict[str, list[np.ndarray]]) -> float:
    total = 0.0
    for (prompt, response), old, target in zip(iteration.rows, found["values"], found["returns"]):
        value = by_hand.values(weights, iteration.shape, prompt, response)[:-1]
        clip = ppo.Config().value_clip
        clipped = old + np.clip(value - old, -clip, clip) if clip else value
        total += (np.maximum((value - target) ** 2, (clipped - target) ** 2) / 2).sum()
    return total / sum(map(len, found["values"]))


@pytest.mark.parametrize(("name", "place", "loss"), [("policy", 2, policy_loss), ("critic", 3, value_loss)])
def test_gradients_are_the_slopes_of_the_derived_losses(iteration, name, place, loss) -> None:
    found, gradients = derived(iteration), iteration.gradients[place]
    weights = iteration.policy if name == "policy" else iteration.critic
    logged = rows(iteration.run)[1]["policy/loss" if name == "policy" else "value/loss"]
    assert loss(iteration, weights, found) == pytest.approx(logged, abs=2e-5)
    rng = np.random.default_rng(0)
    norm = np.sqrt(sum((g**2).sum() for g in gradients.values()))
    assert norm == pytest.approx(iteration.norms[place], rel=1e-5)
    for key in sorted(gradients):  # one direction through every tensor at once would hide a tensor that is wrong
        direction = rng.standard_normal(gradients[key].shape)
        direction /= np.sqrt((direction**2).sum())
        slope, size = float((gradients[key] * direction).sum()), 1e-4
        sides = []
        for sign in (1, -1):
            sides.append(loss(iteration, weights | {key: weights[key] + sign * size * direction}, found))
        assert (sides[0] - sides[1]) / (2 * size) == pytest.approx(slope, rel=2e-3, abs=2e-5), key


@pytest.mark.parametrize(("name", "places"), [("policy", (0, 2)), ("critic", (1, 3))])
def test_the_weights_after_two_steps_are_adamws(iteration, name, places, tiny_world) -> None:
    rate = SETTINGS["learning_rate" if name == "policy" else "critic_learning_rate"]
    clipped = [
        {key: g * min(1.0, SETTINGS["max_grad_norm"] / (iteration.norms[place] + 1e-6)) for key, g in grads.items()}
        for place, grads in ((p, iteration.gradients[p]) for p in places)
    ]
    assert iteration.norms[places[0]] > SETTINGS["max_grad_norm"] or iteration.norms[places[1]] > 0
    before = iteration.policy if name == "policy" else iteration.critic  # before the second step
    for key, final in iteration.after[name].items():
        one = by_hand.adamw(np.zeros_like(final), [clipped[0][key]], [rate])
        both = by_hand.adamw(np.zeros_like(final), [c[key] for c in clipped], [rate, rate])
        assert np.abs(final - (before[key] + both - one)).max() < 2e-6, key
