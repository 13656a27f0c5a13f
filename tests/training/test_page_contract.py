"""What every training page promises, run on all pages that are discovered."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from trueline.runs import checkpoint
from trueline.runs.cell import read_json
from trueline.training.adamw import AdamW
from trueline.training.pages import page, pages
from trueline.training.stage import Stage

from .small import STEPS, TRAINED, contents, cost, rows, run_small, small

pytestmark = pytest.mark.integration
PAGES = sorted(pages())
REPEATS = {"ipo", "dpo-positive", "ln-dpo"}
"""One loss each in the loop of `preference.fit`: what that loop promises is shown on `cdpo`."""
SNAPSHOT = STEPS // 2  # with two snapshots, the first lies here and the second at the end


def once(methods: list[str]) -> list:
    """The methods as parameters; those that repeat another one's loop are left to the nightly run."""
    return [pytest.param(m, marks=pytest.mark.nightly) if m in REPEATS else m for m in methods]


def test_the_pages_of_the_methods_are_found() -> None:
    pair_methods = {"dpo", "cdpo", "ipo", "dpo-positive", "ln-dpo", "simpo", "kto"}
    assert {"sft", "reward", "dpo-iter", "ppo", "rloo"} | pair_methods <= set(TRAINED) <= set(PAGES)
    assert set(PAGES) - set(TRAINED) == {"pairs", "judge", "select", "evaluate", "probe"}


@pytest.mark.parametrize("method", once(PAGES))
def test_the_same_seed_gives_the_same_bytes(method, tiny_world, finished, tmp_path) -> None:
    again = run_small(tiny_world, method, tmp_path / "again")
    assert contents(again) == contents(finished(method))


@pytest.mark.parametrize("method", once([m for m in PAGES if m not in ("select", "evaluate", "probe")]))
def test_another_seed_gives_another_run(method, tiny_world, finished, tmp_path) -> None:
    """What measures is left out: its draws are the same for every training seed by design."""
    other = contents(run_small(tiny_world, method, tmp_path / "other", seed=1))
    decisive = "pairs.jsonl" if method == "pairs" else "metrics.jsonl"
    assert other[decisive] != contents(finished(method))[decisive]


@pytest.mark.parametrize("method", TRAINED)
def test_a_run_books_each_step_and_ends_complete(method, finished) -> None:
    cell = finished(method)
    assert [row["step"] for row in rows(cell)] == [1, 2, 3, 4] == [row["step"] for row in rows(cell, "timings")]
    assert checkpoint.steps(cell / "checkpoints") == [SNAPSHOT, STEPS]
    assert read_json(cell / "done.json")["steps"] == STEPS and not read_json(cell / "done.json")["stopped_by_budget"]
    assert (cell / "objective.txt").read_text().count("\n") == 1
    assert all("loss" in row for row in rows(cell))
    spent = [row["spent/flops"] for row in rows(cell)]
    assert spent == sorted(set(spent)) and spent[-1] <= cost(cell)["flops"]


@pytest.mark.parametrize("method", TRAINED)
def test_what_is_saved_is_the_last_checkpoints_and_not_the_starts(method, tiny_world, finished) -> None:
    cell = finished(method)
    if method == "reward":
        before, after = _weights(tiny_world.cells["sft"] / "model"), _weights(cell / "reward_model")
        del before["lm_head.weight"], after["score.weight"]
    else:
        from trueline.models.checkpoints import load_decoder

        held = checkpoint.read_policy(cell / "checkpoints", STEPS)
        saved = load_decoder(cell / "model").state_dict()
        assert all(torch.equal(held[name], saved[name]) for name in held) and held.keys() == saved.keys()
        before, after = _weights(tiny_world.cells["sft"] / "model"), _weights(cell / "model")
    assert before.keys() == after.keys()
    assert not any(torch.equal(before[name], after[name]) for name in before)  # every matrix and norm is trained


class _Stop:
    """Interrupts at the report of a step, once."""

    def __init__(self, step: int) -> None:
        self.step: int | None = step

    def __call__(self, progress) -> None:
        if progress.step == self.step:
            self.step = None
            raise KeyboardInterrupt


@pytest.mark.parametrize("method", once(TRAINED))
@pytest.mark.parametrize("at", [SNAPSHOT + 1, STEPS], ids=lambda n: f"step{n}")
def test_an_interrupted_run_ends_like_an_uninterrupted_one(method, at, tiny_world, finished, tmp_path) -> None:
    """Bit for bit: metrics, samples, weights, optimiser and critic states, tokens and FLOPs. Between two
    checkpoints (3, whose rows are taken back) and right after the last (4)."""
    with pytest.raises(KeyboardInterrupt):
        run_small(tiny_world, method, tmp_path / "run", report=_Stop(at))
    assert not (tmp_path / "run" / "done.json").exists()
    resumed = run_small(tiny_world, method, tmp_path / "run")
    assert contents(resumed) == contents(finished(method))


@pytest.mark.parametrize("method", once(TRAINED))
def test_a_kill_between_samples_and_checkpoint_leaves_no_gap(
    method, tiny_world, finished, tmp_path, monkeypatch
) -> None:
    """There is no checkpoint to resume from then: all is done again, over the rows that are there."""
    save = checkpoint.save

    def killed(folder, step, registry):
        if step == SNAPSHOT:
            raise KeyboardInterrupt
        return save(folder, step, registry)

    monkeypatch.setattr(checkpoint, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        run_small(tiny_world, method, tmp_path / "run")
    monkeypatch.undo()
    assert contents(run_small(tiny_world, method, tmp_path / "run")) == contents(finished(method))


@pytest.mark.parametrize("method", once(TRAINED))
def test_a_state_that_is_not_put_back_shows(method, tiny_world, finished, tmp_path, monkeypatch) -> None:
    """Negative control of the two tests above."""
    cell = tmp_path / "run"
    shutil.copytree(finished(method), cell)
    (cell / "done.json").unlink()
    shutil.rmtree(cell / "checkpoints" / f"step-{STEPS:08d}")
    monkeypatch.setattr(checkpoint.OptimizerState, "load", lambda self, state: None)
    assert contents(run_small(tiny_world, method, cell))["metrics.jsonl"] != contents(finished(method))["metrics.jsonl"]


@pytest.mark.parametrize("method", once(TRAINED))
def test_the_size_of_micro_batches_changes_rounding_only(method, tiny_world, finished, tmp_path) -> None:
    """64 tokens: one or two rows at a time. Steps after the first are compared more loosely: Adam divides by the
    gradient's size, so that rounding of a gradient near zero becomes a move of the size of the learning rate."""
    cut = run_small(tiny_world, method, tmp_path / "cut", micro_tokens=64, max_steps=2)
    for number, (row, same) in enumerate(zip(rows(cut), rows(finished(method)))):
        tolerance = 1e-5 if number == 0 else 1e-3
        skipped = ("rewards/accuracies", "objective/engine_gap")  # at the start every margin is 0 but for rounding
        assert {k: row[k] for k in row if k not in skipped} == pytest.approx(
            {k: same[k] for k in row if k not in skipped}, rel=tolerance, abs=tolerance
        )


@pytest.mark.parametrize("method", once(TRAINED))
def test_in_bf16_a_page_passes_its_gates_and_learns_the_same(method, tiny_world, finished, tmp_path) -> None:
    """Matrix products in bf16: the first loss is that of fp32 within its rounding, and nothing is refused."""
    cell = run_small(tiny_world, method, tmp_path / "low", precision="bf16", max_steps=2)
    low, exact = rows(cell), rows(finished(method))
    assert len(low) == 2 and low[0]["loss"] == pytest.approx(exact[0]["loss"], rel=0.05, abs=0.05)
    assert low[1] != exact[1]


@pytest.mark.parametrize("method", once(TRAINED))
def test_stop_share_stops_on_the_way_of_the_whole_plan(method, tiny_world, finished, tmp_path) -> None:
    """Half of four steps: the rows of the whole run's first half, schedules included."""
    cell = run_small(tiny_world, method, tmp_path / "half", stop_share=0.5)
    assert rows(cell) == rows(finished(method))[:2]


@pytest.mark.parametrize("method", once(TRAINED))
def test_the_flop_cap_is_never_exceeded(method, tiny_world, finished, tmp_path) -> None:
    """The cap lies between what the plain run had spent after 2 and after 3 steps. What comes after the loop (the
    reward model's calibration) has no cap of its own: no arm with a cap has such a stage."""
    spent = [row["spent/flops"] for row in rows(finished(method))]
    cap = (spent[1] + spent[2]) / 2
    cell = run_small(tiny_world, method, tmp_path / "cap", budget=cap)
    booked = [row["spent/flops"] for row in rows(cell)]
    assert booked == spent[: len(booked)] and 1 <= len(booked) < 3 and booked[-1] <= cap
    assert read_json(cell / "done.json")["stopped_by_budget"]
    assert checkpoint.steps(cell / "checkpoints")[-1] == len(booked)  # the end is an evaluated checkpoint


@pytest.mark.parametrize("method", once(TRAINED))
def test_a_run_that_ends_by_plan_is_not_called_stopped_by_the_budget(method, tiny_world, finished, tmp_path) -> None:
    """The cap has room for the plan and for less than one step more."""
    spent = [row["spent/flops"] for row in rows(finished(method))]
    cell = run_small(tiny_world, method, tmp_path / "cap", budget=spent[-1] + 0.9 * (spent[-1] - spent[-2]))
    assert len(rows(cell)) == STEPS
    assert not read_json(cell / "done.json")["stopped_by_budget"]


@pytest.mark.parametrize("method", ["dpo", "dpo-iter"])
def test_a_capped_run_resumes_to_the_same_end(method, tiny_world, finished, tmp_path) -> None:
    """Room for three steps: what the first ones cost is remembered. DPO pays for the reference before its loop, and a
    step of DPO-Iter that samples costs a multiple of one that does not."""
    more = {"budget": rows(finished(method))[2]["spent/flops"] * 1.05, "snapshots": STEPS}
    whole = run_small(tiny_world, method, tmp_path / "whole", **more)
    with pytest.raises(KeyboardInterrupt):
        run_small(tiny_world, method, tmp_path / "run", report=_Stop(1), **more)
    assert contents(run_small(tiny_world, method, tmp_path / "run", **more)) == contents(whole)
    assert 1 < len(rows(whole)) <= 3


EXPECTED = {
    "sft": {"policy", "optimizer"},
    "reward": {"model", "optimizer"},
    "dpo": {"policy", "optimizer"},
    "cdpo": {"policy", "optimizer"},
    "ipo": {"policy", "optimizer"},
    "dpo-positive": {"policy", "optimizer"},
    "ln-dpo": {"policy", "optimizer"},
    "simpo": {"policy", "optimizer"},
    "kto": {"policy", "optimizer"},
    "dpo-iter": {"policy", "reference", "optimizer", "round"},
    "ppo": {"policy", "critic", "reference", "optimizer", "critic_optimizer", "moments", "controller"},
    "rloo": {"policy", "optimizer"},
    "pairs": set(),
    "judge": set(),
    "select": set(),
    "evaluate": set(),
    "probe": set(),
}


@pytest.mark.parametrize("method", once(PAGES))
def test_the_registry_holds_what_the_page_says_at_a_single_step(method, tiny_world, tmp_path, monkeypatch) -> None:
    held: list[set[str]] = []
    begin = Stage.begin

    def recorded(self, registry, objective):
        held.append(set(registry))
        return begin(self, registry, objective)

    monkeypatch.setattr(Stage, "begin", recorded)
    cell = run_small(tiny_world, method, tmp_path / "run", max_steps=1)
    assert held[-1] == EXPECTED[method] if method in EXPECTED else "optimizer" in held[-1]
    if method in TRAINED:  # max_steps cut the plan, and the one step that is left has a checkpoint
        assert len(rows(cell)) == 1 == read_json(cell / "done.json")["steps"]
        assert checkpoint.steps(cell / "checkpoints") == [1]


@pytest.mark.parametrize(
    ("method", "changes"),
    [pytest.param(m, {}, marks=[pytest.mark.nightly] if m in REPEATS else []) for m in TRAINED]
    + [("dpo", {"ema_eta": 0.5}), ("ppo", {"kl_target": 0.01}), ("dpo-iter", {"reference": "sft"})]
    + [("dpo", {"online_kl_coef": 0.1}), ("kto", {"ema_eta": 0.5})],
)
def test_whatever_changes_while_training_is_registered(method, changes, tiny_world, tmp_path, monkeypatch) -> None:
    """Looks at the page's own variables at its first and last step: modules, optimisers and objects with a state."""
    seen: dict[str, list] = {}
    registered: set[int] = set()
    end_step = Stage.end_step

    def watched(self, step, total, metrics, policy):
        for name, value in sys._getframe(1).f_locals.items():
            state = _state_of(value)
            if state is not None:
                seen.setdefault(name, []).append((value, state))
        for item in self._registry.values():
            registered.update(id(x) for x in (item, getattr(item, "module", None), getattr(item, "optimizer", None)))
        return end_step(self, step, total, metrics, policy)

    monkeypatch.setattr(Stage, "end_step", watched)
    run_small(tiny_world, method, tmp_path / "run", settings=changes, max_steps=3)
    changed = {name for name, states in seen.items() if states[0][1] != states[-1][1]}
    assert {"policy", "model"} & changed and "optimizer" in changed  # the watch itself sees something
    loose = {name for name in changed if id(seen[name][0][0]) not in registered}
    assert not loose


def _state_of(value) -> str | None:
    if isinstance(value, torch.nn.Module):
        return str([(k, float(v.double().sum())) for k, v in value.state_dict().items()])
    if isinstance(value, AdamW | torch.optim.Optimizer):
        return str([[float(t.double().sum()) for t in slot.values()] for slot in value.state.values()])
    if hasattr(value, "state") and hasattr(value, "load") and not isinstance(value, type):
        return str(value.state())
    return None


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


FALLS = {"sft": "loss", "reward": "loss", "dpo": "loss/dpo", "cdpo": "loss/cdpo", "ipo": "loss/ipo", "kto": "loss/kto",
         "dpo-positive": "loss/dpo_positive", "ln-dpo": "loss/ln_dpo", "simpo": "loss/simpo"}  # fmt: skip


@pytest.mark.parametrize("method", sorted(FALLS))
def test_the_loss_falls_on_one_batch_that_is_seen_again_and_again(method, tiny_world, tmp_path) -> None:
    """All pairs (or 100 demonstrations) as one batch: full-batch descent has no excuse for a rising loss. DPO-positive
    has: it starts on the kink of its penalty, takes DPO's step, and is then charged for the chosen sides that fell."""
    from trueline.tasks.dialogue import Config, Dialogue

    few = Dialogue(Config(demonstrations=100, pairs=120))
    settings = {"batch_size": 100, "epochs": 12.0, "schedule": "constant", "warmup_steps": 0, "learning_rate": 1e-3}
    cell = tiny_world.run(method, tmp_path / "run", settings, task=few, max_steps=8)
    losses = [row[FALLS[method]] for row in rows(cell)]
    assert losses[-1] < losses[0] - 0.05
    if method == "dpo-positive":
        assert losses[1] > losses[0]  # if this stops, the exception above has lost its reason
    else:
        assert losses[:4] == sorted(losses[:4], reverse=True)


@pytest.mark.parametrize("method", ["ppo", "rloo", "dpo-iter"])
def test_methods_that_sample_raise_the_score_they_are_given(method, tiny_world, tmp_path) -> None:
    """The same prompts and draws, before and after: the samples of the trained policy score higher."""
    large = {"batch_size": 64, "learning_rate": 3e-3, "critic_learning_rate": 4e-3, "steps": 6, "critic_warmup": 1,
             "kl_coef": 0.02, "samples_per_prompt": 4, "rounds": 2, "sync_every": 3}  # fmt: skip
    large = {k: v for k, v in large.items() if k in page(method).Config.model_fields}
    policy = tiny_world.run(method, tmp_path / "run", small(method, **large))
    before, after = _proxy(tiny_world, tiny_world.cells["sft"]), _proxy(tiny_world, policy)
    assert after > before + 0.3, (before, after)


def _proxy(world, cell: Path) -> float:
    from tempfile import mkdtemp

    from trueline.models.checkpoints import load_decoder
    from trueline.seeds import uniforms
    from trueline.training.feedback import reward_source

    stage = world.stage("probe", Path(mkdtemp()))
    prompts = world.task.prompts("test")[:100]
    ids = [stage.prompt_ids(p) for p in prompts]
    draws = uniforms(7, "probe", 0, range(len(ids)), 40)
    rollout = stage.engine(load_decoder(cell / "model")).generate(
        ids, draws, max_new_tokens=40, sampling=stage.sampling
    )
    return float(reward_source(stage, "learned")(prompts, rollout).mean())
