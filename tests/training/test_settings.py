"""Every setting of every page is read, and every switch switches what it says."""

from __future__ import annotations

import ast
import inspect
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file

from trueline.config import ablatable, off_value
from trueline.models.checkpoints import load_decoder
from trueline.models.fingerprints import fingerprint_tensors
from trueline.runs import checkpoint
from trueline.training import preference
from trueline.training.pages import page, pages

from .small import STEPS, cost, rows, run_small

PAGES = sorted(pages())


def _read_fields(module: ModuleType) -> set[str]:
    """Attributes that are read of `config` or `self.config`, in the page and in the training modules it imports."""
    names = [module.__name__]
    for node in ast.walk(ast.parse(inspect.getsource(module))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("trueline.training."):
            names.append(node.module)
    import sys

    read = set()
    for name in names:
        for node in ast.walk(ast.parse(inspect.getsource(sys.modules[name]))):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("config", "self.config"):
                read.add(node.attr)
    return read


@pytest.mark.parametrize("method", PAGES)
def test_every_setting_is_read_by_its_page(method) -> None:
    fields = set(page(method).Config.model_fields)
    assert not fields - _read_fields(page(method))
    assert "nothing_reads_this" not in _read_fields(page(method))


@pytest.mark.parametrize("method", PAGES)
def test_every_setting_says_what_it_is(method) -> None:
    for key, field in page(method).Config.model_fields.items():
        assert field.description, key


@pytest.mark.parametrize("method", PAGES)
def test_the_objective_is_one_line(method) -> None:
    line = page(method).objective(page(method).Config())
    assert line and "\n" not in line


# What each ablatable key is set to when it is on, and the settings under which its effect shows in a few steps.
ON = {
    ("dpo", "nll_coef"): 0.5, ("dpo", "ema_eta"): 0.5, ("dpo", "online_kl_coef"): 0.5, ("dpo-iter", "nll_coef"): 0.5,
    ("cdpo", "nll_coef"): 0.5, ("cdpo", "ema_eta"): 0.5, ("cdpo", "label_smoothing"): 0.2,
    ("dpo-positive", "nll_coef"): 0.5, ("dpo-positive", "ema_eta"): 0.5, ("dpo-positive", "penalty"): 50.0,
    ("ipo", "nll_coef"): 0.5, ("ipo", "ema_eta"): 0.5, ("ln-dpo", "nll_coef"): 0.5, ("ln-dpo", "ema_eta"): 0.5,
    ("kto", "nll_coef"): 0.5, ("kto", "ema_eta"): 0.5, ("simpo", "nll_coef"): 0.5, ("simpo", "gamma"): 1.0,
    ("ppo", "kl_coef"): 0.5, ("ppo", "ema_eta"): 0.5, ("ppo", "advantage_norm"): True, ("ppo", "value_norm"): True,
    ("ppo", "value_clip"): 0.001, ("ppo", "critic_trunk"): "separate", ("ppo", "gae_lambda"): 1.0,
    ("rloo", "kl_coef"): 0.5,
}  # fmt: skip
SWITCHES = [(m, k) for m in PAGES for k in ablatable(page(m).Config) if k != "batch_size"]


def test_the_switches_of_the_paper_are_there() -> None:
    assert {("ppo", "advantage_norm"), ("ppo", "ema_eta"), ("ppo", "kl_coef"), ("dpo", "ema_eta")} <= set(SWITCHES)
    assert set(ON) == set(SWITCHES)  # a new switch needs a row here
    assert off_value(page("ppo").Config, "batch_size") == 64


def _trained_state(cell) -> str:
    last = cell / "checkpoints" / "step-00000002"
    held = load_file(last / "state.safetensors") | load_file(last / "policy.safetensors")
    return fingerprint_tensors({k: v for k, v in held.items() if k.startswith(("policy/", "critic/"))})


@pytest.mark.integration
@pytest.mark.parametrize(("method", "key"), SWITCHES)
def test_a_switch_changes_what_is_trained(method, key, tiny_world, tmp_path) -> None:
    settings = {"critic_warmup": 0} if method == "ppo" else {}
    values = {"on": ON[method, key], "off": off_value(page(method).Config, key)}
    on, off = (run_small(tiny_world, method, tmp_path / name, settings=settings | {key: value}, max_steps=2)
               for name, value in values.items())  # fmt: skip
    assert _trained_state(on) != _trained_state(off)
    assert (on / "metrics.jsonl").read_bytes() != (off / "metrics.jsonl").read_bytes()


@pytest.mark.integration
@pytest.mark.parametrize("method", ["dpo", "cdpo", "kto", "ppo"])
def test_without_the_moving_average_the_reference_stays_sft(method, tiny_world, tmp_path, monkeypatch) -> None:
    """With it, it is neither SFT nor the policy."""
    kept = _keep_references(method, monkeypatch)
    sft = load_decoder(tiny_world.cells["sft"] / "model").state_dict()
    for eta in (0.0, 0.3):
        cell = run_small(tiny_world, method, tmp_path / f"eta{eta}", settings={"ema_eta": eta})
        policy = checkpoint.read_policy(cell / "checkpoints", STEPS)
        reference = kept[-1].state_dict()
        same = all(torch.equal(reference[name], sft[name]) for name in sft)
        assert same == (eta == 0.0)
        assert not all(torch.equal(reference[name], policy[name]) for name in sft)


def _keep_references(method, monkeypatch) -> list:
    module, kept = page(method) if hasattr(page(method), "load_policy") else preference, []
    load = module.load_policy

    def loaded(stage, name):
        kept.append(load(stage, name))
        return kept[-1]

    monkeypatch.setattr(module, "load_policy", loaded)
    return kept  # the reference is the last one that all of them load


@pytest.mark.integration
def test_without_kl_the_reward_is_the_score_alone(tiny_world, tmp_path) -> None:
    """gamma 1: the return of a response's first token is its score less kl_coef times its KL. `objective/returns` is a
    mean over tokens, so with a reference that is the policy both are alike at the first step and differ later."""
    with_kl = rows(run_small(tiny_world, "ppo", tmp_path / "on", settings={"kl_coef": 5.0, "critic_warmup": 0}))
    without = rows(run_small(tiny_world, "ppo", tmp_path / "off", settings={"kl_coef": 0.0, "critic_warmup": 0}))
    assert with_kl[0]["objective/returns"] == pytest.approx(without[0]["objective/returns"], abs=1e-5)
    assert abs(with_kl[2]["objective/returns"] - without[2]["objective/returns"]) > 1e-2
    assert all(row["objective/kl_coef"] == 0.0 for row in without)


@pytest.mark.integration
def test_advantage_normalisation_changes_the_update_and_not_the_samples(tiny_world, tmp_path) -> None:
    on, off = (rows(run_small(tiny_world, "ppo", tmp_path / str(v), settings={"advantage_norm": v, "critic_warmup": 0},
                              max_steps=1))[0] for v in (True, False))  # fmt: skip
    before = ("objective/scores", "advantages/mean", "advantages/std", "value/loss")
    assert {k: on[k] for k in before} == {k: off[k] for k in before}
    assert on["policy/loss"] != off["policy/loss"]


@pytest.mark.integration
def test_the_batch_size_is_the_number_of_responses(tiny_world, tmp_path) -> None:
    for size, per_prompt in ((8, 1), (12, 3)):
        settings = {"batch_size": size, "samples_per_prompt": per_prompt}
        cell = run_small(tiny_world, "ppo", tmp_path / f"{size}", settings=settings, max_steps=2)
        assert cost(cell)["prompts"] == 2 * size // per_prompt and cost(cell)["reward_calls"] == 2 * size


@pytest.mark.integration
@pytest.mark.parametrize("method", ["ppo", "rloo"])
def test_more_minibatches_than_responses_are_as_many_as_there_are(method, tiny_world, tmp_path) -> None:
    settings = [{"batch_size": 4, "minibatches": n} for n in (50, 4)]
    many, few = (
        run_small(tiny_world, method, tmp_path / str(i), settings=s, max_steps=2) for i, s in enumerate(settings)
    )
    assert (many / "metrics.jsonl").read_bytes() == (few / "metrics.jsonl").read_bytes()


@pytest.mark.integration
@pytest.mark.parametrize(("method", "settings"), [("ppo", {"critic_warmup": 0}), ("dpo-iter", {}), ("rloo", {})])
def test_gold_feedback_is_counted_as_labels(method, settings, tiny_world, tmp_path) -> None:
    cell = run_small(tiny_world, method, tmp_path / "gold", settings=settings | {"feedback": "gold"}, max_steps=2)
    assert cost(cell)["labels"] == cost(cell)["reward_calls"] > 0


@pytest.mark.integration
def test_learned_feedback_costs_no_labels(finished) -> None:
    for method in ("ppo", "dpo-iter", "rloo"):
        assert cost(finished(method))["labels"] == 0 < cost(finished(method))["reward_calls"]
