"""The methods that fit pairs, against each other: limits in which two are one, shared pairs, the parts of a loss."""

from __future__ import annotations

import pytest
import torch

from trueline.config import digest
from trueline.data.batches import Tokenized, collate
from trueline.models.checkpoints import load_decoder
from trueline.models.fingerprints import fingerprint_tensors
from trueline.models.scoring import response_logprobs
from trueline.rollout.native import NativeEngine
from trueline.runs import checkpoint
from trueline.training import dpo, preference
from trueline.training.kto import mismatched
from trueline.training.pages import page, pages
from trueline.training.pairs import read_pairs
from trueline.training.preference import PairItem, pair_items, score_pairs

from .small import STEPS, TRAINED, contents, rows, run_small

PAIR_METHODS = ["cdpo", "dpo", "dpo-positive", "ipo", "kto", "ln-dpo", "simpo"]
LEARNERS = sorted(name for name, module in pages().items() if hasattr(module, "LEARNS_FROM"))


def test_every_arm_says_what_it_learns_from_and_where_to_search() -> None:
    """Two keys each: an equal number of trials is an equal search only where the spaces have equal dimensions."""
    assert set(PAIR_METHODS) | {"dpo-iter", "ppo", "rloo"} <= set(LEARNERS) <= set(TRAINED)
    for name in LEARNERS:
        module = page(name)
        assert module.LEARNS_FROM == ("pairs" if name in PAIR_METHODS else "reward")
        assert len(module.SEARCH) == 2
    for name in [*LEARNERS, "sft"]:
        module = page(name)
        for key, (low, high) in module.SEARCH.items():
            default = getattr(module.Config(), key)
            assert 0 < low <= default <= high, (name, key)
            module.Config(**{key: low}), module.Config(**{key: high})
    assert list(page("sft").SEARCH) == ["learning_rate", "epochs"]


@pytest.fixture
def weights():
    def digest_of(cell) -> str:
        return fingerprint_tensors(checkpoint.read_policy(cell / "checkpoints", STEPS))

    return digest_of


@pytest.mark.integration
@pytest.mark.parametrize(
    ("method", "settings", "same"),
    [
        ("cdpo", {"label_smoothing": 0.0}, True),
        ("cdpo", {"label_smoothing": 0.2}, False),
        ("dpo-positive", {"penalty": 0.0, "beta": 0.1}, True),
        ("dpo-positive", {"penalty": 50.0, "beta": 0.1}, False),
        ("ln-dpo", {"beta": 0.1}, False),
        ("ipo", {}, False),
    ],
)
def test_a_loss_in_its_limit_trains_like_dpo(method, settings, same, tiny_world, finished, weights, tmp_path) -> None:
    """Adam hides a rescaled loss, so the weights of two unequal losses must differ by more than rounding."""
    mine = checkpoint.read_policy(run_small(tiny_world, method, tmp_path / "run", settings=settings) / "checkpoints", 4)
    dpos = checkpoint.read_policy(finished("dpo") / "checkpoints", STEPS)
    apart = max(float((mine[name] - dpos[name]).abs().max()) for name in mine)
    assert (apart < 1e-6) == same, apart


@pytest.mark.integration
def test_all_of_them_see_the_same_pairs_in_the_same_order(tiny_world, tmp_path, monkeypatch) -> None:
    seen: dict[str, list[str]] = {}
    take = preference.next_pairs

    def recorded(config, stage, items, step):
        batch = take(config, stage, items, step)
        seen.setdefault(stage.method, []).append(digest([[i.chosen.response, i.rejected.response] for i in batch]))
        return batch

    for method in PAIR_METHODS:
        module = page(method) if hasattr(page(method), "next_pairs") else preference
        monkeypatch.setattr(module, "next_pairs", recorded)
        run_small(tiny_world, method, tmp_path / method, max_steps=3)
    assert sorted(seen) == PAIR_METHODS
    assert len({tuple(batches) for batches in seen.values()}) == 1 and len(set(seen["dpo"])) == 3


@pytest.mark.integration
@pytest.mark.parametrize("method", ["dpo", "simpo"])
def test_the_nll_term_is_a_mean_over_responses_of_means_over_tokens(method, tiny_world, tmp_path) -> None:
    """First step, all pairs in one batch: what the term adds to the loss is the SFT model's own figure."""
    stage = tiny_world.stage(method, tmp_path / "stage")
    items = pair_items(stage, read_pairs(tiny_world.cells["pairs"]).training)
    batch = collate([item.chosen for item in items], stage.tokenizer.pad_id)
    sft = load_decoder(tiny_world.cells["sft"] / "model")
    with torch.no_grad():
        logprobs, _ = response_logprobs(sft, batch.tokens, batch.response_mask, stage.sampling)
    per_response = -(logprobs.sum(1) / batch.response_mask.sum(1))
    per_token = -logprobs.sum() / batch.response_mask.sum()
    settings = {"batch_size": len(items), "nll_coef": 0.5}
    first = rows(run_small(tiny_world, method, tmp_path / "run", settings=settings, max_steps=1))[0]
    added = first["loss"] - first[f"loss/{method}"]
    assert added == pytest.approx(0.5 * float(per_response.mean()), rel=1e-5)
    assert abs(added - 0.5 * float(per_token)) > 1e-3


def test_a_prompt_is_mismatched_with_the_responses_of_the_next_pair() -> None:
    def item(n: int) -> PairItem:
        return PairItem(Tokenized((n,), (n, 1)), Tokenized((n,), (n, 2)))

    found = [(i.chosen.prompt, i.chosen.response, i.rejected.prompt, i.rejected.response)
             for i in mismatched([item(1), item(2), item(3)])]  # fmt: skip
    assert found == [((1,), (2, 1), (1,), (2, 2)), ((2,), (3, 1), (2,), (3, 2)), ((3,), (1, 1), (3,), (1, 2))]


@pytest.mark.integration
def test_ktos_reference_point_is_the_mean_over_the_mismatched_pairs(tiny_world, tmp_path) -> None:
    """All pairs in one batch: 0 at the start, and at the second step that of the policy after the first."""
    settings = {"batch_size": 120, "learning_rate": 1e-2}
    cell = run_small(tiny_world, "kto", tmp_path / "run", settings=settings, max_steps=2)
    first, second = (row["kto/reference_point"] for row in rows(cell))
    stage = tiny_world.stage("kto", tmp_path / "stage")
    items = pair_items(stage, read_pairs(tiny_world.cells["pairs"]).training)
    policy, sft = load_decoder(cell / "model"), load_decoder(tiny_world.cells["sft"] / "model")
    policy.load_state_dict(checkpoint.read_policy(cell / "checkpoints", 1))
    batch = preference.next_pairs(page("kto").Config(**settings), stage, items, 1)
    ratios = torch.cat([a - b for a, b in zip(*(score_pairs(stage, m, mismatched(batch)) for m in (policy, sft)))])
    assert first == 0.0
    assert second == pytest.approx(max(0.0, float(ratios.mean())), abs=1e-4)
    assert abs(float(ratios.mean())) > 1e-3


@pytest.mark.integration
def test_the_weights_of_kto_weigh_the_sides(tiny_world, tmp_path) -> None:
    """With the undesirable side all but off, chosen rises; with the desirable one off, rejected falls."""
    logps = {}
    for name, weights in (("good", (1.0, 1e-6)), ("bad", (1e-6, 1.0))):
        settings = {"desirable_weight": weights[0], "undesirable_weight": weights[1], "batch_size": 60}
        booked = rows(run_small(tiny_world, "kto", tmp_path / name, settings=settings))
        logps[name] = {key: booked[-1][f"rewards/{key}"] for key in ("chosen", "rejected")}
    assert logps["good"]["chosen"] > 0.01 and logps["bad"]["rejected"] < -0.01
    assert logps["good"]["chosen"] > logps["bad"]["chosen"]


ONLINE = {"online_kl_coef": 0.5, "online_batch": 6}


@pytest.mark.integration
def test_an_interrupted_run_with_the_online_kl_ends_like_an_uninterrupted_one(tiny_world, tmp_path) -> None:
    whole = run_small(tiny_world, "dpo", tmp_path / "whole", settings=ONLINE)

    def stop(progress) -> None:
        if progress.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_small(tiny_world, "dpo", tmp_path / "run", settings=ONLINE, report=stop)
    assert contents(run_small(tiny_world, "dpo", tmp_path / "run", settings=ONLINE)) == contents(whole)


@pytest.mark.integration
def test_the_online_kls_samples_depend_on_seed_and_step_alone(tiny_world, tmp_path, monkeypatch) -> None:
    """Not on the coefficient, nor on the micro-batches: at the first step the same samples; later steps take others."""
    kept: list = []
    sample = dpo._sample

    def recorded(*args):
        kept.append(sample(*args).rollout)
        return sample(*args)

    monkeypatch.setattr(dpo, "_sample", recorded)
    run_small(tiny_world, "dpo", tmp_path / "a", settings=ONLINE, max_steps=2)
    run_small(
        tiny_world, "dpo", tmp_path / "b", settings=ONLINE | {"online_kl_coef": 0.1}, micro_tokens=64, max_steps=1
    )
    run_small(tiny_world, "dpo", tmp_path / "c", settings=ONLINE, seed=1, max_steps=1)
    one, later, same, other = (rollout.responses() for rollout in kept)
    assert one == same and one != later and one != other


@pytest.mark.integration
def test_padding_does_not_matter_to_the_online_kl(tiny_world, tmp_path) -> None:
    settings = ONLINE | {"learning_rate": 1e-3}
    one, two = (rows(run_small(tiny_world, "dpo", tmp_path / str(n), settings=settings, micro_tokens=n, max_steps=1))[0]
                for n in (1536, 64))  # fmt: skip
    skipped = "rewards/accuracies"
    assert {k: v for k, v in one.items() if k != skipped} == pytest.approx(
        {k: v for k, v in two.items() if k != skipped}, rel=1e-5, abs=1e-5
    )


@pytest.mark.integration
def test_the_online_kl_holds_the_policy_at_its_reference(tiny_world, tmp_path) -> None:
    """A strong coefficient against none worth the name: the KL of the samples stays lower while DPO pulls."""
    settings = {"learning_rate": 3e-3, "online_batch": 64, "epochs": 3.0, "batch_size": 32, "warmup_steps": 0}
    kl = {}
    for coef in (1e-6, 1.0):
        cell = run_small(
            tiny_world, "dpo", tmp_path / str(coef), settings=settings | {"online_kl_coef": coef}, max_steps=8
        )
        booked = [row["online/kl"] for row in rows(cell)]
        assert abs(booked[0]) < 1e-4
        kl[coef] = booked[-1]
    assert kl[1e-6] > 0.2 and kl[1.0] < 0.6 * kl[1e-6], kl


@pytest.mark.integration
def test_samples_of_another_policy_are_refused_by_the_online_kl(tiny_world, tmp_path, monkeypatch) -> None:
    from trueline.errors import NumericsError
    from trueline.training.stage import Stage

    def stale(self, policy):
        engine = NativeEngine(pad_id=self.tokenizer.pad_id, end_id=self.tokenizer.end_id)
        moved = load_decoder(tiny_world.cells["sft"] / "model")
        with torch.no_grad():
            moved.head.weight.mul_(1.05)
        engine.load_weights(moved, 0)
        return engine

    monkeypatch.setattr(Stage, "engine", stale)
    with pytest.raises(NumericsError, match="gap of sampled and recomputed"):
        run_small(tiny_world, "dpo", tmp_path / "run", settings=ONLINE)
