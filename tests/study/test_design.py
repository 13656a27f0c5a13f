"""The nodes of a study: what each needs is there before it, what it costs is charged once, what can be shared is."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from trueline.study.design import Node, nodes_of_checkpoints, nodes_of_stage, nodes_of_study, nodes_of_trials, variants

from .designs import ARMS, design

SETTINGS = {
    "dialogue": ("dialogue", {}),
    "every-arm": ("dialogue", {"study": {"arms": ARMS}}),
    "no-dpo-beside-both": ("dialogue", {"study": {"arms": ("sft", "dpo+ppo")}}),
    "without-shift": ("dialogue", {"world": {"shift": 0.0}}),
    "hh-rlhf": ("hh-rlhf", {}),
    "hh-rlhf-one-subset": ("hh-rlhf", {"world": {"coverage": ("helpful",)}}),
    "pairs": ("pairs", {"study": {"arms": ARMS, "seeds": (5,)}}),
    "code": ("code", {"study": {"arms": ARMS, "feedback": "verifier", "budget": 600, "budget_rule": "executions"}}),
    "code-flops": ("code", {"study": {"feedback": "verifier"}}),
    "code-learned": ("code", {"study": {"arms": ARMS}}),
    "code-people": ("code", {"study": {"feedback": "verifier"}, "world": {"pairs_from": "people"}}),
}
DRAWN = {"dpo": [{"beta": 0.2}, {"beta": 0.3}], "dpo+ppo": [{"kl_coef": 0.2}, {"kl_coef": 0.3}]}


def named(nodes: Iterable[Node]) -> dict[str, Node]:
    return {node.key: node for node in nodes}


def check_order(nodes: list[Node], given: Iterable[str] = ()) -> None:
    """Each key once, each input before its user, each charge one of the inputs."""
    seen = set(given)
    for node in nodes:
        assert node.key not in seen
        assert set(node.inputs.values()) <= seen, node.key
        assert set(node.charged) <= set(node.inputs), node.key
        seen.add(node.key)


@pytest.mark.parametrize("case", SETTINGS)
def test_whatever_a_node_needs_comes_before_it(case) -> None:
    task, changes = SETTINGS[case]
    made = design(task, **changes)
    check_order(nodes_of_study(made))
    check_order(nodes_of_trials(made, DRAWN))
    for stage in ("sft", "reward", *(name for name, arm in made.arms.items() if arm.page)):
        nodes = nodes_of_stage(made, stage, 3)
        check_order(nodes)
        assert nodes[-1].arm == stage and all(node.page != "evaluate" and node.seed == 3 for node in nodes)


def test_the_check_of_the_order_can_fail() -> None:
    nodes = nodes_of_study(design())
    with pytest.raises(AssertionError):
        check_order(nodes[::-1])
    with pytest.raises(AssertionError):
        check_order([*nodes, nodes[0]])


@pytest.mark.parametrize("case", SETTINGS)
def test_every_arm_is_trained_selected_and_evaluated_at_every_seed_of_every_world(case) -> None:
    task, changes = SETTINGS[case]
    made = design(task, **changes)
    study = made.sections["study"]
    nodes = nodes_of_study(made)
    by_key = named(nodes)
    for variant in variants(study, made.sections["world"]):
        for seed in study.seeds:
            found = {n.measures: n for n in nodes
                     if n.page == "evaluate" and (n.variant, n.seed) == (variant.name, seed)}  # fmt: skip
            assert set(found) == set(variant.arms)
            for arm, node in found.items():
                picked = by_key[node.inputs["picked"]]
                assert (picked.page, picked.measures, picked.seed) == ("select", arm, seed)
                assert picked.inputs["arm"] == node.inputs["arm"]  # what was picked from is what is tested
                trained = by_key[node.inputs["arm"]]
                assert trained.seed == seed
                assert trained.arm == (arm if made.arms[arm].page else "sft")
                assert ("baseline" in node.inputs) == (arm != "sft")
                assert node.method == arm == picked.method


def test_the_selection_and_the_gold_judge_are_never_the_same_where_they_are_learned() -> None:
    nodes = nodes_of_study(design("hh-rlhf"))
    by_key = named(nodes)
    for node in nodes:
        if node.page == "select":
            assert by_key[node.inputs["selection"]].config["part"] == "selection" and "gold" not in node.inputs
        if node.page == "evaluate":
            assert by_key[node.inputs["gold"]].config["part"] == "gold" and "selection" not in node.inputs
    for node in nodes_of_study(design()):  # and where a judge is embedded nothing stands in for it
        assert not {"selection", "gold", "density"} & set(node.inputs)


CHARGED = {
    "sft": (), "sft-chosen": ("pairs",), "best-of-n": ("pairs", "reward"), "dpo": ("pairs",),
    "ppo": ("pairs", "reward"), "dpo-iter": ("pairs", "reward"), "rloo": ("pairs", "reward"),
    "dpo+ppo": ("pairs", "reward", "start"), "kto": ("pairs",), "simpo": ("pairs",),
}  # fmt: skip


def test_labels_come_with_the_pairs_once_and_both_pays_for_what_it_starts_from() -> None:
    nodes = nodes_of_study(design(study={"arms": ARMS, "seeds": (0,), "no_shift": False}))
    charged = {node.measures: node.charged for node in nodes if node.page == "evaluate"}
    assert CHARGED.items() <= charged.items()
    for node in nodes:
        if node.share:  # off the cap comes the reward model alone: labels cost no FLOP
            assert node.charged == (("reward",) if "reward" in node.inputs else ())
        elif node.page != "evaluate":
            assert node.charged == ()


def test_both_spends_half_its_cap_on_each_part_and_every_other_arm_spends_it_whole() -> None:
    nodes = nodes_of_study(design(study={"arms": ARMS, "seeds": (0,), "no_shift": False}))
    shares = {node.arm: node.share for node in nodes if node.share}
    assert shares.pop("dpo+ppo") == shares.pop("dpo-half") == 0.5
    assert set(shares.values()) == {1.0} and set(shares) == set(ARMS) - {"sft", "best-of-n", "dpo+ppo"}


def test_half_of_dpo_may_be_the_dpo_arm_itself_where_that_arm_runs() -> None:
    with_dpo = named(nodes_of_study(design()))
    assert with_dpo["dpo-half/shifted/0"].twin == "dpo/shifted/0"
    assert with_dpo["select-dpo-half/shifted/0"].twin == "select-dpo/shifted/0"
    without = named(nodes_of_study(design(study={"arms": ("sft", "dpo+ppo")})))
    assert without["dpo-half/shifted/0"].twin == without["select-dpo-half/shifted/0"].twin == ""


def test_ppo_after_dpo_starts_from_the_checkpoint_that_the_selection_judge_picks() -> None:
    nodes = named(nodes_of_study(design()))
    both = nodes["dpo+ppo/no-shift/1"]
    assert both.inputs["start"] == "dpo-half/no-shift/1" and both.inputs["start_pick"] == "select-dpo-half/no-shift/1"
    measured = nodes["evaluate-dpo+ppo/no-shift/1"].inputs  # its own starting point is on its curve
    assert measured["start"] == both.inputs["start"] and measured["start_pick"] == both.inputs["start_pick"]


def test_a_variant_shares_sft_and_has_pairs_reward_model_and_arms_of_its_own() -> None:
    nodes = nodes_of_study(design(study={"seeds": (0,)}))
    assert [node.key for node in nodes if node.page == "sft" and node.arm == "sft"] == ["sft/0"]
    for page, keys in {
        "pairs": {"pairs/shifted/0", "pairs/no-shift/0"},
        "reward": {f"reward{member}/{v}/0" for member in ("", "-member-1") for v in ("shifted", "no-shift")},
        "probe": {"probe/shifted/0", "probe/no-shift/0"},
        "dpo": {"dpo/shifted/0", "dpo/no-shift/0", "dpo-half/shifted/0", "dpo-half/no-shift/0"},
    }.items():
        assert {node.key for node in nodes if node.page == page} == keys
    worlds = {node.key: node.world.shift for node in nodes}
    assert worlds["pairs/no-shift/0"] == worlds["evaluate-ppo/no-shift/0"] == 0.0
    assert worlds["pairs/shifted/0"] == worlds["sft/0"] == design().sections["world"].shift > 0


class TestCoverage:
    """Files of two subsets: beside the whole, the arms of table 12 on the first subset's pairs alone."""

    def made(self, **changes):
        return design("hh-rlhf", study={"seeds": (0,), **changes})

    def test_sft_and_the_judges_are_shared_and_what_learns_from_pairs_is_not(self) -> None:
        nodes = nodes_of_study(self.made())
        by_key = named(nodes)
        primary, less = variants(self.made().sections["study"], self.made().sections["world"])
        assert (primary.primary, primary.world.coverage) == (True, ("helpful", "harmless"))
        assert (less.name, less.primary, less.arms) == ("helpful-only", False, ("sft", "dpo", "ppo"))
        for arm in less.arms:
            here, there = (by_key[f"evaluate-{arm}/{v.name}/0"].inputs for v in (primary, less))
            assert here["sft"] == there["sft"] and here["gold"] == there["gold"]
            assert here["pairs"] != there["pairs"] and here["reward"] != there["reward"]
            picks = [by_key[inputs["picked"]].inputs["selection"] for inputs in (here, there)]
            assert picks[0] == picks[1] == "judge-selection/main/0"
        assert len([n for n in nodes if n.page == "judge"]) == 2
        assert {n.world.coverage for n in nodes if n.page == "judge" or n.arm == "sft"} == {("helpful", "harmless")}
        assert by_key["pairs/helpful-only/0"].world.coverage == ("helpful",)
        assert by_key["reward/helpful-only/0"].inputs["pairs"] == "pairs/helpful-only/0"

    def test_without_the_rows_or_with_one_subset_there_is_one_world(self) -> None:
        for made in (self.made(coverage_rows=False), design("hh-rlhf", world={"coverage": ("harmless",)})):
            found = variants(made.sections["study"], made.sections["world"])
            assert [v.name for v in found] == ["main"] and found[0].primary
        assert found[0].label == "pairs of harmless"

    def test_arms_that_were_not_asked_for_do_not_come_back(self) -> None:
        made = self.made(arms=("sft", "ppo"))
        assert variants(made.sections["study"], made.sections["world"])[1].arms == ("sft", "ppo")


def test_feedback_of_the_study_reaches_the_arms_that_sample_unless_they_have_their_own() -> None:
    made = design(study={"feedback": "gold", "seeds": (0,)}, rloo={"feedback": "learned"})
    nodes = named(nodes_of_study(made))
    assert nodes["ppo/shifted/0"].config.feedback == nodes["dpo+ppo/shifted/0"].config.feedback == "gold"
    assert nodes["rloo/shifted/0"].config.feedback == "learned"


class TestPrograms:
    """The code task: tests pay, an arm may spend so many executions, pairs are made with them."""

    def made(self, **study):
        given = {"arms": ARMS, "seeds": (0,), "feedback": "verifier", "budget": 600, "budget_rule": "executions"}
        return design("code", study=given | study)

    def test_no_reward_model_is_trained_and_the_critic_starts_from_the_policy(self) -> None:
        nodes = nodes_of_study(self.made())
        assert not any(node.page == "reward" or "reward" in node.inputs for node in nodes)
        for node in nodes:
            if node.page in ("ppo", "rloo", "dpo-iter"):
                assert node.config.feedback == "verifier"
            if node.page == "ppo":
                assert node.config.critic_from == "policy"

    def test_one_is_trained_where_an_arm_asks_for_it_and_that_arm_pays(self) -> None:
        made = design("code", study={"seeds": (0,), "feedback": "verifier"}, rloo={"feedback": "learned"})
        nodes = named(nodes_of_study(made))
        assert nodes["rloo/main/0"].inputs["reward"] == "reward/main/0" and "reward" not in nodes["ppo/main/0"].inputs
        assert nodes["evaluate-rloo/main/0"].charged == ("pairs", "reward")
        assert nodes["evaluate-ppo/main/0"].charged == nodes["evaluate-best-of-n/main/0"].charged == ()

    def test_the_cap_is_what_pairs_are_made_with_and_both_has_half_of_them(self) -> None:
        """600 executions at 5 samples a prompt: 120 prompts, and 60 for the first half of `dpo+ppo`."""
        nodes = named(nodes_of_study(self.made()))
        assert nodes["pairs/main/0"].world.pairs == 120 and nodes["pairs-half/main/0"].world.pairs == 60
        assert nodes["dpo/main/0"].inputs["pairs"] == "pairs/main/0"
        half = nodes["dpo-half/main/0"]
        assert half.inputs["pairs"] == "pairs-half/main/0" and half.twin == ""
        charged = nodes["evaluate-dpo+ppo/main/0"]
        assert charged.charged == ("start_pairs", "start") and charged.inputs["start_pairs"] == "pairs-half/main/0"

    def test_under_a_cap_of_flops_both_shares_dpo_s_pairs(self) -> None:
        nodes = named(nodes_of_study(self.made(budget_rule="flops")))
        assert not any(node.arm == "pairs-half" for node in nodes.values())
        assert nodes["dpo-half/main/0"].twin == "dpo/main/0"
        assert nodes["evaluate-dpo+ppo/main/0"].inputs["start_pairs"] == "pairs/main/0"

    def test_people_s_pairs_are_a_world_of_their_own_with_the_offline_arms(self) -> None:
        made = self.made()
        own, people = variants(made.sections["study"], made.sections["world"])
        assert own.primary and own.world.pairs_from == "samples" and own.arms == ARMS
        assert people.arms == ("sft", "dpo") and people.world.pairs_from == "people"
        assert people.world.pairs == own.world.pairs and people.world.shift == 1.0
        assert len(variants(self.made(people_rows=False).sections["study"], own.world)) == 1


# --- checkpoints that were trained elsewhere

GIVEN = {"sft": ["given-sft/0", "given-sft/0"], "dpo": ["given-dpo/0", "given-dpo/1"]}
ADOPTED = {"given-sft/0", "given-dpo/0", "given-dpo/1", "given-pairs", "given-reward", "given-judge"}


@pytest.mark.parametrize(
    ("task", "shared"),
    [
        ("dialogue", {}),
        ("dialogue", {"pairs": "given-pairs", "reward": "given-reward", "gold": "given-judge"}),
        ("pairs", {}),
        ("hh-rlhf", {"reward": "given-reward"}),
        ("pairs", {"gold": "given-judge"}),
    ],
)
def test_checkpoints_from_elsewhere_are_measured_and_nothing_of_them_is_trained(task, shared) -> None:
    made = design(task)
    nodes = nodes_of_checkpoints(made, GIVEN, shared)
    check_order(nodes, ADOPTED)
    pages = {node.page for node in nodes}
    assert pages - {"pairs", "judge"} - {"sft"} == {"select", "evaluate"}
    assert {node.arm for node in nodes if node.page == "sft"} == (set() if task == "dialogue" else {"density"})
    judges = {node.config["part"] for node in nodes if node.page == "judge"}
    assert judges == (set() if task == "dialogue" or "gold" in shared else {"gold"})
    measured = [node for node in nodes if node.page == "evaluate"]
    assert [(n.measures, n.seed, n.inputs["arm"]) for n in measured] == [
        ("sft", 0, "given-sft/0"), ("dpo", 0, "given-dpo/0"), ("sft", 1, "given-sft/0"), ("dpo", 1, "given-dpo/1")
    ]  # fmt: skip
    for node in measured:
        assert shared.items() <= node.inputs.items() and node.inputs["sft"] == "given-sft/0"
        assert not node.charged and ("baseline" in node.inputs) == (node.measures != "sft")


class TestProbe:
    """What is measured before training hangs on nothing and nothing hangs on it."""

    def test_it_comes_before_the_arms_with_reward_models_of_the_same_pairs(self) -> None:
        nodes = nodes_of_study(design(study={"seeds": (0,)}, probe={"members": 2}))
        by_key, keys = named(nodes), [node.key for node in nodes]
        probe = by_key["probe/no-shift/0"]
        assert set(probe.inputs) == {"sft", "pairs", "reward", "member-1", "member-2"}
        assert keys.index("probe/shifted/0") < keys.index("dpo/shifted/0") < keys.index("probe/no-shift/0")
        models = [by_key[probe.inputs[name]] for name in ("reward", "member-1", "member-2")]
        assert [model.config.member for model in models] == [0, 1, 2]
        assert all(model.inputs == models[0].inputs and model.page == "reward" for model in models)
        used = [key for node in nodes if node.page != "probe" for key in node.inputs.values()]
        assert not [key for key in used if key.startswith(("probe", "reward-member"))]

    def test_members_differ_from_the_study_s_own_whatever_number_that_has(self) -> None:
        nodes = named(nodes_of_study(design(study={"seeds": (0,)}, reward={"member": 1})))
        assert nodes["reward/shifted/0"].config.member == 1
        assert nodes["reward-member-1/shifted/0"].config.member == 2

    def test_without_a_reward_model_the_pairs_alone_are_looked_at(self) -> None:
        nodes = nodes_of_study(design("code", study={"feedback": "verifier", "seeds": (0,)}))
        assert {tuple(sorted(n.inputs)) for n in nodes if n.page == "probe"} == {("pairs", "sft")}
        assert not [node for node in nodes if node.page == "reward"]

    def test_switched_off_it_leaves_every_other_node_as_it_was(self) -> None:
        with_it, without = nodes_of_study(design()), nodes_of_study(design(study={"probe": False}))
        kept = [n for n in with_it if n.page != "probe" and not n.key.startswith("reward-member")]
        assert kept == without and len(with_it) == len(without) + 2 * 3 * 2  # two worlds, three seeds, probe and member

    def test_tuning_and_single_stages_do_without(self) -> None:
        made = design()
        for nodes in (nodes_of_trials(made, DRAWN), nodes_of_stage(made, "ppo", 0)):
            assert not [node for node in nodes if node.page == "probe" or "member" in node.key]
