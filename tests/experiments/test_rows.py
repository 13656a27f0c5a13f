"""Rows become nodes that share what they have in common, from bases of their own where they ask for one."""

from __future__ import annotations

import json

import pytest
from tests.study.designs import design

from trueline.errors import InputError
from trueline.experiments.rows import Row, plan_rows, read_probes, with_changes

SEEDS = (0, 1)


def plan_of(*rows: Row, seeds=SEEDS, **settings):
    return plan_rows(design(**settings), rows, seeds)


def trained(plan, arm: str) -> list:
    return [node for node in plan.nodes if node.arm == arm]


def test_what_two_rows_have_in_common_is_one_node() -> None:
    plan = plan_of(Row("dpo", "dpo"), Row("dpo again", "dpo"), Row("strong", "dpo", {"dpo": {"beta": 0.9}}))
    assert len(trained(plan, "sft")) == len(trained(plan, "pairs")) == len(trained(plan, "reward")) == 2
    assert len(trained(plan, "dpo")) == 4  # two betas, two seeds
    assert plan.keys["dpo", 0] == plan.keys["dpo again", 0] != plan.keys["strong", 0]
    assert plan.keys["dpo", 0]["pairs"] == plan.keys["strong", 0]["pairs"]


def test_every_node_comes_after_what_it_needs() -> None:
    plan = plan_of(Row("both", "dpo+ppo"), Row("iter", "dpo-iter", {"world": {"shift": 0.0}}, probe=True))
    place = {node.key: i for i, node in enumerate(plan.nodes)}
    assert all(place[key] < place[node.key] for node in plan.nodes for key in node.inputs.values())
    assert {"probe", "reward", "pairs"} <= set(plan.keys["iter", 1])


def test_a_dial_of_the_pairs_leaves_sft_alone_and_another_dial_does_not() -> None:
    shared = plan_of(Row("a", "dpo"), Row("b", "dpo", {"world": {"shift": 0.0}}), seeds=(0,))
    assert len(trained(shared, "sft")) == 1 and len(trained(shared, "pairs")) == 2
    apart = plan_of(Row("a", "dpo"), Row("b", "dpo", {"world": {"demonstrations": 777}}), seeds=(0,))
    assert len(trained(apart, "sft")) == 2


def test_a_cap_of_its_own_is_another_run() -> None:
    plan = plan_of(Row("a", "ppo"), Row("b", "ppo", {"study": {"budget": 5e11}}), seeds=(0,))
    assert sorted(node.cap for node in trained(plan, "ppo")) == sorted([design().sections["study"].budget, 5e11])
    assert len(trained(plan, "sft")) == 1


class TestBase:
    def test_an_arm_from_another_arm_s_policy_keeps_pairs_reward_and_the_kl_of_the_original(self) -> None:
        plan = plan_of(Row("on chosen", "dpo", base="sft-chosen"), Row("plain", "dpo"), seeds=(0,))
        by_key = {node.key: node for node in plan.nodes}
        based, plain = (by_key[plan.keys[name, 0]["arm"]] for name in ("on chosen", "plain"))
        assert by_key[based.inputs["sft"]].arm == "sft-chosen" and by_key[plain.inputs["sft"]].arm == "sft"
        assert based.inputs["pairs"] == plain.inputs["pairs"]
        measured = by_key[plan.keys["on chosen", 0]["evaluate"]]
        assert by_key[measured.inputs["sft"]].arm == "sft" and measured.inputs["start"] == based.inputs["sft"]

    def test_a_base_under_settings_of_its_own_does_not_take_the_row_s(self) -> None:
        safe = {"sft_chosen": {"epochs": 9.0}}
        row = Row("x", "dpo", {"dpo": {"beta": 0.7}}, base="sft-chosen", base_changes=safe)
        plan = plan_of(row, seeds=(0,))
        (base,) = trained(plan, "sft-chosen")
        by_key = {node.key: node for node in plan.nodes}
        arm = by_key[plan.keys["x", 0]["arm"]]
        assert base.config.epochs == 9.0 and arm.config.beta == 0.7 and arm.inputs["sft"] == base.key

    def test_a_weaker_sft_is_a_base_and_the_row_s_own_sft_stays_what_kl_is_taken_to(self) -> None:
        row = Row("weak", "ppo", base_changes={"sft": {"epochs": 0.5}})
        plan = plan_of(row, seeds=(0,))
        by_key = {node.key: node for node in plan.nodes}
        arm, measured = (by_key[plan.keys["weak", 0][what]] for what in ("arm", "evaluate"))
        assert by_key[arm.inputs["sft"]].config.epochs == 0.5
        assert by_key[measured.inputs["sft"]].config.epochs != 0.5 and len(trained(plan, "sft")) == 2
        reward = by_key[arm.inputs["reward"]]
        assert by_key[reward.inputs["sft"]].config.epochs != 0.5


@pytest.mark.parametrize(
    "rows, said",
    [
        ((Row("a", "ppoo"),), "unknown arm 'ppoo'"),
        ((Row("a", "dpo", base="nothing"),), "unknown arm 'nothing'"),
        ((Row("a", "dpo"), Row("a", "ppo")), "two rows of this name"),
        ((Row("a", "dpo", {"dpo": {"bета": 1}}),), "no such setting"),
    ],
)
def test_what_cannot_be_planned_is_told(rows, said) -> None:
    with pytest.raises(InputError, match=said):
        plan_of(*rows)


def test_changes_are_checked_like_a_user_s_and_keep_what_the_user_set() -> None:
    section = design().sections["ppo"].model_copy(update={"steps": 7})
    given = type(section)(steps=7)
    assert with_changes(given, {"kl_coef": 0.5}, "ppo").steps == 7
    with pytest.raises(Exception, match="kl_coef"):
        with_changes(given, {"kl_coef": -1}, "ppo")


def test_probes_are_found_by_row_and_seed(tmp_path) -> None:
    (tmp_path / "cells" / "abc").mkdir(parents=True)
    (tmp_path / "cells" / "abc" / "probe.json").write_text('{"prompts": 3}')
    rows = [{"row": "a", "seed": 0, "cells": {"probe": "abc"}}, {"row": "b", "seed": 0, "cells": {}}]
    (tmp_path / "rows.json").write_text(json.dumps({"rows": rows}))
    assert read_probes(tmp_path) == {("a", 0): {"prompts": 3}}
