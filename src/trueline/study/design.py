"""What a study consists of: one node per stage, arm and seed, each with what it needs. No model is touched here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from trueline.study.settings import Study

__all__ = ["PAGE_OF", "Node", "Variant", "nodes_of_stage", "nodes_of_study", "variants"]

# Arm -> the page that trains it; arms that train nothing have none.
PAGE_OF = {
    "sft": None,
    "best-of-n": None,
    "sft-chosen": "sft",
    "dpo": "dpo",
    "dpo-iter": "dpo-iter",
    "ppo": "ppo",
    "dpo+ppo": "ppo",
    "rloo": "rloo",
}
# Arm -> the stages it is charged with besides its own training. Labels come with the pairs, once.
_CHARGED = {
    "sft": (),
    "best-of-n": ("pairs", "reward"),
    "sft-chosen": ("pairs",),
    "dpo": ("pairs",),
    "dpo-iter": ("pairs", "reward"),
    "ppo": ("pairs", "reward"),
    "dpo-half": ("pairs",),
    "dpo+ppo": ("pairs", "reward", "start"),
    "rloo": ("pairs", "reward"),
}
NO_SHIFT_ARMS = ("sft", "dpo", "ppo", "dpo+ppo")


@dataclass(frozen=True)
class Variant:
    """One world of the study: the dials as the user set them, or the same without shift."""

    name: str
    label: str
    primary: bool
    world: Any
    arms: tuple[str, ...]


@dataclass(frozen=True)
class Node:
    """One cell to be. `inputs` maps a name to the key of the node it comes from; `config` is the page's section.

    `share` is the part of the FLOP cap that the node may spend; `charged` names the inputs whose cost comes off that
    cap first. A node whose `twin` (the same with a larger share) ended within this node's share is that same run.
    """

    key: str
    page: str
    method: str
    arm: str
    variant: str
    seed: int
    config: Any
    world: Any
    inputs: Mapping[str, str] = field(default_factory=dict)
    share: float = 0.0
    charged: tuple[str, ...] = ()
    twin: str = ""


def variants(study: Study, world: Any) -> list[Variant]:
    """The primary world, and beside it the one without shift where the world has that dial and it is on."""
    shift = getattr(world, "shift", None)
    if shift is None:
        return [Variant("main", "the file's pairs", True, world, study.arms)]
    own = Variant("shifted" if shift > 0 else "no-shift", f"world.shift={shift:g}", True, world, study.arms)
    if shift == 0 or not study.no_shift:
        return [own]
    calm = world.model_copy(update={"shift": 0.0})
    arms = tuple(arm for arm in study.arms if arm in NO_SHIFT_ARMS)
    return [own, Variant("no-shift", "world.shift=0: pairs sampled from the SFT model itself", False, calm, arms)]


def nodes_of_study(sections: Mapping[str, Any], *, learned_gold: bool, signatures: bool) -> list[Node]:
    """All nodes of a study, each after the nodes it needs."""
    study: Study = sections["study"]
    nodes: dict[str, Node] = {}
    for seed in study.seeds:
        for variant in variants(study, sections["world"]):
            builder = _Builder(sections, variant, seed, learned_gold, signatures)
            for node in builder.all():
                nodes.setdefault(node.key, node)
    return list(nodes.values())


def nodes_of_stage(sections: Mapping[str, Any], stage: str, seed: int, *, learned_gold: bool) -> list[Node]:
    """The stage or arm of that name at one seed, after the stages before it."""
    variant = variants(sections["study"], sections["world"])[0]
    builder = _Builder(sections, variant, seed, learned_gold, True)
    wanted = {node.key: node for node in builder.all_stages(ARMS_AND_STAGES)}
    target = next(node for node in wanted.values() if node.arm == stage)
    keep: list[str] = []

    def visit(key: str) -> None:
        for needed in wanted[key].inputs.values():
            visit(needed)
        if key not in keep:
            keep.append(key)

    visit(target.key)
    return [wanted[key] for key in keep]


ARMS_AND_STAGES = ("sft", "reward", "sft-chosen", "dpo", "dpo-iter", "ppo", "dpo+ppo", "rloo")


class _Builder:
    """The nodes of one seed in one variant."""

    def __init__(self, sections: Mapping[str, Any], variant: Variant, seed: int, learned_gold: bool, signatures: bool):
        self.sections, self.variant, self.seed = sections, variant, seed
        self.learned_gold, self.signatures = learned_gold, signatures
        # SFT does not see the pairs, so the variants share it: its node is described with the primary world.
        self.sft = f"sft/{seed}"
        self.pairs, self.reward = self._key("pairs"), self._key("reward")

    def _key(self, name: str) -> str:
        return f"{name}/{self.variant.name}/{self.seed}"

    def all(self) -> Iterable[Node]:
        """Stages, arms, and the evaluation of each arm."""
        yield from self.all_stages(self.variant.arms)
        baseline = self._evaluation("sft", {})
        yield baseline
        for arm in self.variant.arms:
            if arm != "sft":
                yield self._evaluation(arm, {"baseline": baseline.key})

    def all_stages(self, arms: Iterable[str]) -> Iterable[Node]:
        """Stages and arms without evaluations."""
        sections = self.sections
        yield self._node(self.sft, "sft", "sft", sections["sft"], {}, world=sections["world"])
        yield self._node(self.pairs, "pairs", "pairs", None, {"sft": self.sft})
        both = {"sft": self.sft, "pairs": self.pairs}
        yield self._node(self.reward, "reward", "reward", sections["reward"], both)
        if self.learned_gold:
            for part in ("selection", "gold"):
                held = {"part": part, "held_out": 0.3 if part == "gold" else 0.1}
                config = sections["reward"].model_copy(update=held)
                yield self._node(self._key(f"judge-{part}"), "reward", f"judge-{part}", config, both)
        if not self.signatures:
            config = sections["sft"].model_copy(
                update={
                    "on": "sides",
                    "epochs": 1.0,
                    "learning_rate": sections["sft"].learning_rate / 4,
                    "prompt_loss": False,
                }
            )
            yield self._node(self._key("density"), "sft", "density", config, both)
        for arm in arms:
            yield from self._arm(arm)

    def _arm(self, arm: str) -> Iterable[Node]:
        sections = self.sections
        both = {"sft": self.sft, "pairs": self.pairs}
        learned = {"sft": self.sft, "reward": self.reward}
        charged = ("reward",)
        if arm == "sft-chosen":
            yield self._node(self._key(arm), "sft", arm, sections["sft_chosen"], both, share=1.0)
        elif arm == "dpo":
            yield self._node(self._key(arm), "dpo", arm, sections["dpo"], both, share=1.0)
        elif arm == "dpo-iter":
            config = self._fed("dpo_iter")
            yield self._node(self._key(arm), "dpo-iter", arm, config, learned, share=1.0, charged=charged)
        elif arm == "ppo":
            config = self._fed("ppo")
            yield self._node(self._key(arm), "ppo", arm, config, learned, share=1.0, charged=charged)
        elif arm == "rloo":
            config = self._fed("rloo")
            yield self._node(self._key(arm), "rloo", arm, config, learned, share=1.0, charged=charged)
        elif arm == "dpo+ppo":
            twin = self._key("dpo") if "dpo" in self.variant.arms else ""
            half = self._node(self._key("dpo-half"), "dpo", "dpo-half", sections["dpo"], both, share=0.5, twin=twin)
            yield half
            # PPO starts from the checkpoint that the selection judge picks, as a DPO model would be chosen by itself.
            pick = self._evaluation("dpo-half", {}, twin=self._key("evaluate-dpo") if twin else "")
            yield pick
            config = self._fed("ppo")
            yield self._node(
                self._key(arm),
                "ppo",
                arm,
                config,
                {**learned, "start": half.key, "start_pick": pick.key},
                share=0.5,
                charged=charged,
            )

    def _fed(self, method: str) -> Any:
        """A method's section with the study's feedback, unless it was given one of its own."""
        config = self.sections[method]
        own = "feedback" in config.model_fields_set
        return config if own else config.model_copy(update={"feedback": self.sections["study"].feedback})

    def _evaluation(self, arm: str, more: Mapping[str, str], *, twin: str = "") -> Node:
        trained = self.sft if PAGE_OF.get(arm, arm) is None else self._key(arm)
        inputs = {"arm": trained, "sft": self.sft, "pairs": self.pairs, "reward": self.reward, **more}
        if self.learned_gold:
            inputs |= {"gold": self._key("judge-gold"), "selection": self._key("judge-selection")}
        if not self.signatures:
            inputs["density"] = self._key("density")
        if arm == "dpo+ppo":
            inputs |= {"start": self._key("dpo-half"), "start_pick": self._key("evaluate-dpo-half")}
        return self._node(
            self._key(f"evaluate-{arm}"),
            "evaluate",
            arm,
            self.sections["evaluate"],
            inputs,
            charged=_CHARGED[arm],
            twin=twin,
            evaluation=True,
        )

    def _node(
        self,
        key: str,
        page: str,
        arm: str,
        config: Any,
        inputs: Mapping[str, str],
        *,
        world: Any = None,
        share: float = 0.0,
        charged: tuple[str, ...] = (),
        twin: str = "",
        evaluation: bool = False,
    ) -> Node:
        name = f"evaluate:{arm}" if evaluation else arm
        return Node(
            key,
            page,
            page if not evaluation else arm,
            name,
            self.variant.name,
            self.seed,
            config,
            world or self.variant.world,
            inputs,
            share,
            charged,
            twin,
        )
