"""References that move, labels of own samples, and how often a policy is sampled."""

from __future__ import annotations

import pytest
import torch

from trueline.models.checkpoints import load_decoder
from trueline.runs import checkpoint
from trueline.training import dpo_iter
from trueline.training.policies import load_policy

from .small import rows, run_small

pytestmark = pytest.mark.integration


@pytest.mark.parametrize("method", ["dpo", "ipo", "kto", "ppo"])
def test_the_reference_follows_the_formula_step_by_step(method, tiny_world, tmp_path) -> None:
    """ref_t = eta policy_t + (1 - eta) ref_{t-1}, from SFT; one optimiser step per step, a checkpoint at each. Training
    state is kept of the last two checkpoints alone, so the recursion is done here on the policies."""
    eta = 0.3
    settings = {"ema_eta": eta} | ({"minibatches": 1, "critic_warmup": 0} if method == "ppo" else {})
    cell = run_small(tiny_world, method, tmp_path / "run", settings=settings, snapshots=4)
    expected = load_decoder(tiny_world.cells["sft"] / "model").state_dict()
    from safetensors.torch import load_file

    compared = 0
    for step in range(1, 5):
        policy = checkpoint.read_policy(cell / "checkpoints", step)
        expected = {k: eta * policy[k] + (1 - eta) * expected[k] for k in expected}
        path = cell / "checkpoints" / f"step-{step:08d}" / "state.safetensors"
        if path.exists():
            held = {k.removeprefix("reference/"): v for k, v in load_file(path).items() if k.startswith("reference/")}
            compared += 1
            for name, tensor in expected.items():
                torch.testing.assert_close(held[name], tensor, atol=1e-6, rtol=1e-5)
    assert compared == 2


def test_a_critic_warm_up_moves_neither_policy_nor_reference(tiny_world, tmp_path) -> None:
    cell = run_small(tiny_world, "ppo", tmp_path / "run", settings={"critic_warmup": 2, "ema_eta": 0.5}, snapshots=4)
    sft = load_decoder(tiny_world.cells["sft"] / "model").state_dict()
    still = [
        all(torch.equal(v, sft[k]) for k, v in checkpoint.read_policy(cell / "checkpoints", n).items())
        for n in (1, 2, 3)
    ]
    assert still == [True, True, False]
    assert "policy/loss" not in rows(cell)[1] and "policy/loss" in rows(cell)[2]


@pytest.mark.parametrize(("reference", "moves"), [("refresh", True), ("sft", False)])
def test_each_rounds_reference_is_its_start_or_sft(reference, moves, tiny_world, tmp_path) -> None:
    """At a round's first step the implicit reward is 0 if the reference was refreshed, and is not if it stayed SFT."""
    cell = run_small(tiny_world, "dpo-iter", tmp_path / "run", settings={"reference": reference, "learning_rate": 1e-3})
    first_of_second_round = rows(cell)[2]
    assert (abs(first_of_second_round["rewards/chosen"]) < 1e-5) == moves


@pytest.mark.parametrize(("sync_every", "rounds", "starts"), [(1, 4, [0, 1, 2, 3]), (2, 2, [0, 2]), (4, 1, [0])])
def test_the_sync_period_is_how_often_the_policy_is_sampled(
    sync_every, rounds, starts, tiny_world, tmp_path, monkeypatch
) -> None:
    """1 is online DPO: fresh samples of the present policy at each step; with all steps it is one round."""
    sampled: list[tuple[int, str]] = []
    sample = dpo_iter._sample_and_label

    def recorded(config, stage, number, policy, *rest):
        from trueline.models.fingerprints import fingerprint

        sampled.append((number, fingerprint(policy)))
        return sample(config, stage, number, policy, *rest)

    monkeypatch.setattr(dpo_iter, "_sample_and_label", recorded)
    settings = {"sync_every": sync_every, "rounds": rounds}
    cell = run_small(tiny_world, "dpo-iter", tmp_path / "run", settings=settings)
    assert len(rows(cell)) == 4
    assert [number for number, _ in sampled] == list(range(rounds))
    assert len({mark for _, mark in sampled}) == rounds  # each time another policy
    assert [
        index for index, row in enumerate(rows(cell)) if index == 0 or row["round"] != rows(cell)[index - 1]["round"]
    ] == starts


def _labelled(tiny_world, tmp_path, *, ended_of, score_of, samples=4):
    """The pairs of one round whose rollout and scores are given: texts are the policy's own."""
    stage = tiny_world.stage("dpo-iter", tmp_path / "stage")
    policy = load_policy(stage, "sft")
    seen = {}

    class Engine:
        def generate(self, ids, draws, *, max_new_tokens, sampling):
            from dataclasses import replace

            rollout = stage_engine(policy).generate(ids, draws, max_new_tokens=max_new_tokens, sampling=sampling)
            seen["rollout"] = replace(rollout, ended=ended_of(rollout))
            return seen["rollout"]

    stage_engine = stage.engine
    stage.engine = lambda _: Engine()

    def label(prompts, rollout):
        seen["scores"] = score_of(rollout)
        return seen["scores"]

    current = dpo_iter.Round()
    config = dpo_iter.Config(samples_per_prompt=samples, batch_size=16, sync_every=2, passes=2.0)
    dpo_iter._sample_and_label(config, stage, 0, policy, policy, label, current)
    return current, seen["rollout"], seen["scores"]


def _random(rollout) -> torch.Tensor:
    return torch.rand(len(rollout), generator=torch.Generator().manual_seed(3))


def test_the_best_is_preferred_to_the_worst_of_each_prompt(tiny_world, tmp_path) -> None:
    current, rollout, scores = _labelled(
        tiny_world, tmp_path, ended_of=lambda r: torch.ones(len(r), dtype=torch.bool), score_of=_random
    )
    responses = rollout.responses()
    expected = []
    for start in range(0, len(rollout), 4):
        group = sorted(range(start, start + 4), key=lambda i: float(scores[i]))
        if responses[group[-1]] != responses[group[0]]:
            expected.append((tuple(responses[group[-1]]), tuple(responses[group[0]])))
    assert [(i.chosen.response, i.rejected.response) for i in current.items] == expected and len(expected) > 10
    assert current.margin > 0


def test_a_response_that_was_cut_is_never_preferred(tiny_world, tmp_path) -> None:
    """Every second sample was cut, and the labeller likes exactly those: they lose all the same. Where all samples of a
    prompt were cut, there is no pair."""

    def ended_of(rollout):
        cut = torch.arange(len(rollout)) % 2 == 1
        cut[:4] = True
        return ~cut

    def likes_the_cut(rollout):
        return _random(rollout) + 10.0 * (~rollout.ended)

    current, rollout, _ = _labelled(tiny_world, tmp_path, ended_of=ended_of, score_of=likes_the_cut)
    responses = rollout.responses()
    cut = {tuple(responses[i]) for i in range(len(rollout)) if not rollout.ended[i]}
    finished = {tuple(responses[i]) for i in range(len(rollout)) if rollout.ended[i]}
    assert current.items and all(item.chosen.response in finished for item in current.items)
    assert any(item.rejected.response in cut - finished for item in current.items)
    assert len(current.items) <= len(rollout) // 4 - 1


def test_ties_teach_nothing_and_end_the_run_with_a_checkpoint(tiny_world, tmp_path, monkeypatch) -> None:
    """A labeller that says the same of everything: the run ends at once, with its start as its only checkpoint, and can
    be evaluated like any other."""
    monkeypatch.setattr(
        dpo_iter, "reward_source", lambda stage, feedback: lambda prompts, rollout: torch.zeros(len(rollout))
    )
    cell = run_small(tiny_world, "dpo-iter", tmp_path / "run")
    assert checkpoint.steps(cell / "checkpoints") == [0] and not (cell / "metrics.jsonl").exists()
    sft = load_decoder(tiny_world.cells["sft"] / "model").state_dict()
    left = load_decoder(cell / "model").state_dict()
    assert all(torch.equal(left[name], sft[name]) for name in sft)
    evaluated = run_small(tiny_world, "evaluate", tmp_path / "evaluate", inputs={"arm": cell})
    from trueline.runs.cell import read_json

    assert read_json(evaluated / "evaluation.json")["picks"] == {"end": 0, "proxy": 0, "selected": 0}


def test_a_rounds_pairs_survive_a_checkpoint(tiny_world, tmp_path) -> None:
    import json

    current, _, _ = _labelled(tiny_world, tmp_path, ended_of=lambda r: r.ended, score_of=_random)
    other = dpo_iter.Round()
    tensors, plain = current.state()
    other.load((tensors, json.loads(json.dumps(plain))))
    assert other.items == current.items and other.margin == current.margin
