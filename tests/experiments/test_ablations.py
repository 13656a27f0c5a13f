"""The designs of an ablation hold equal what they say they hold equal."""

from __future__ import annotations

from itertools import pairwise

import pytest

from trueline.commands.resolve import resolve
from trueline.errors import InputError
from trueline.experiments.ablations import DESIGNS, SMALL, Setting, ablation_of_keys, design_named
from trueline.experiments.rows import plan_rows
from trueline.study.design import Design
from trueline.training.pages import arms


@pytest.fixture(scope="module", params=["dialogue", "code"])
def setting(request):
    _, sections, task = resolve(request.param, [], False)
    return Setting(sections, task.verified)


def ppo_of(design):
    return {row.name: row.changes["ppo"] for row in design.rows if row.arm == "ppo"}


@pytest.mark.parametrize("name", DESIGNS)
def test_every_design_can_be_planned_and_its_contrasts_name_its_rows(setting, name) -> None:
    design = design_named(name, setting)
    made = Design(setting.sections, arms(), learned_gold=False, signatures=True)
    plan = plan_rows(made, design.rows, (0, 1))
    names = {row.name for row in design.rows}
    assert all({c.a, c.b} <= names and c.a != c.b for c in design.contrasts) and design.contrasts
    assert {name for name, _ in plan.keys} == names
    positions = {node.key: i for i, node in enumerate(plan.nodes)}
    assert all(positions[k] < positions[node.key] for node in plan.nodes for k in node.inputs.values())
    assert len(positions) == len(plan.nodes)


def test_the_ladder_adds_one_key_at_a_time_at_equal_samples(setting) -> None:
    ppo = setting.sections["ppo"]
    rows = ppo_of(design_named("ladder", setting))
    drawn = {name: r["batch_size"] * r["steps"] for name, r in rows.items()}
    assert max(drawn.values()) - min(drawn.values()) < ppo.batch_size
    names = ["baseline", "+ advantage norm", "+ large batch", "+ EMA reference"]
    added = [
        {key for key in set(rows[a]) | set(rows[b]) if rows[a].get(key) != rows[b].get(key)} for a, b in pairwise(names)
    ]
    assert added[0] == {"advantage_norm"} and added[2] == {"ema_eta"}
    assert {"batch_size", "steps"} <= added[1] and not {"advantage_norm", "ema_eta", "kl_coef"} & added[1]


def test_large_and_small_batches_are_compared_at_equal_samples_updates_and_rounds(setting) -> None:
    parts = setting.sections["ppo"].minibatches
    rows = ppo_of(design_named("batch", setting))

    def updates(r):
        return r["steps"] * r.get("minibatches", parts) * r.get("epochs", 1)

    large = rows["large"]
    assert rows["small, equal samples"]["steps"] * SMALL == large["steps"] * large["batch_size"]
    if setting.verified:  # four minibatches of 64: equal samples are equal updates
        assert updates(rows["small, equal samples"]) == updates(large) and "small, equal updates" not in rows
    else:
        assert updates(rows["small, equal updates"]) == updates(large) != updates(rows["small, equal samples"])
        fine = rows["large, small minibatches"]
        assert updates(fine) == updates(rows["small, equal samples"]) and fine["steps"] == large["steps"]
    rounds = rows["small, equal rounds"]
    assert rounds["steps"] == large["steps"] and updates(rounds) == updates(large)


def test_the_offset_is_crossed_with_the_norm_and_the_critic(setting) -> None:
    rows = ppo_of(design_named("norm", setting))
    found = {(r["reward_shift"], r["advantage_norm"], r["value_norm"]) for r in rows.values()}
    low = -10.0 if setting.verified else -3.0
    assert found == {(shift, on, warm) for shift in (0.0, low) for on in (True, False) for warm in (True, False)}


def test_each_moving_reference_stands_beside_a_fixed_one_of_its_coefficient(setting) -> None:
    design = design_named("reference", setting)
    rows = ppo_of(design)
    for contrast in design.contrasts[:-1]:
        moving, fixed = rows[contrast.a], rows[contrast.b]
        assert moving["ema_eta"] > 0 == fixed["ema_eta"] and moving["kl_coef"] == fixed["kl_coef"]
    assert len({r["kl_coef"] for r in rows.values()}) == 3


def test_sampling_more_often_draws_no_more(setting) -> None:
    rows = {row.name: row for row in design_named("sync", setting).rows}
    iterated = [row.changes["dpo_iter"] for row in rows.values() if row.arm == "dpo-iter"]
    assert len({r["rounds"] * r["sync_every"] for r in iterated}) == 1
    assert {r["rounds"] for r in iterated} >= {1, max(r["rounds"] * r["sync_every"] for r in iterated)}


def test_code_is_paid_ten_or_nothing_and_every_kind_of_feedback_costs_the_same_executions() -> None:
    _, sections, task = resolve("code", [], False)
    setting = Setting(sections, task.verified)
    assert all("reward_scale" not in r for r in ppo_of(design_named("ladder", setting)).values())
    design = design_named("feedback", setting)
    world = sections["world"]
    for row in design.rows:
        if "world" in row.changes:
            cost = row.changes["world"]["pairs"] * world.samples_per_prompt
            assert abs(cost - setting.samples) < world.samples_per_prompt


class TestKeys:
    def test_a_key_is_switched_off_by_itself(self, setting) -> None:
        design = ablation_of_keys(["ppo.value_norm", "ppo.gae_lambda"], setting, arms())
        assert {row.name: row.changes for row in design.rows if row.changes} == {
            "ppo, value_norm=False": {"ppo": {"value_norm": False}},
            "ppo, gae_lambda=0.95": {"ppo": {"gae_lambda": 0.95}},
        }

    @pytest.mark.parametrize("key", ["ppo.nothing", "world.shift", "ppo.learning_rate"])
    def test_what_cannot_be_switched_off_is_refused(self, setting, key) -> None:
        with pytest.raises(InputError) as caught:
            ablation_of_keys([key], setting, arms())
        assert key in str(caught.value) or key.split(".")[1] in str(caught.value)

    def test_an_unknown_design_is_told_with_those_that_exist(self, setting) -> None:
        with pytest.raises(InputError, match="ladder"):
            design_named("stairs", setting)
