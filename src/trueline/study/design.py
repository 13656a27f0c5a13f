"""What a study consists of: one node per stage, arm and seed, each with what it needs. No model is touched here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from trueline.study.settings import Study
from trueline.types import Arm

__all__ = [
    "Builder",
    "Design",
    "Node",
    "Variant",
    "before_pairs",
    "nodes_of_checkpoints",
    "nodes_of_stage",
    "nodes_of_study",
    "nodes_of_trials",
    "trial_key",
    "variants",
]

NO_SHIFT_ARMS = ("sft", "dpo", "ppo", "dpo+ppo")
COVERAGE_ARMS = ("sft", "dpo", "ppo")
PEOPLE_ARMS = ("sft", "dpo")
_HALF, _HALF_PAIRS = "dpo-half", "pairs-half"


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

    `share` is the part of the cap (`cap`, FLOPs or executions; 0: none) that the node may spend; `charged` names the
    inputs whose cost comes off that first. A node whose `twin` (the same with a larger share) ended within this node's
    share is that same run. `arm` is what the cell is called: the arm or stage, `select:ARM` or `evaluate:ARM` where it
    is measured. `sections` are settings of the run that hold otherwise for this node (`verifier`, `train`).
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
    sections: Mapping[str, Any] = field(default_factory=dict)
    cap: float = 0.0

    @property
    def measures(self) -> str:
        """The arm that this node measures; empty for a node that trains."""
        return self.arm.partition(":")[2]


@dataclass(frozen=True)
class Design:
    """What the nodes are made from: the settings, the arms that exist, and what the task has."""

    sections: Mapping[str, Any]
    arms: Mapping[str, Arm]
    learned_gold: bool
    signatures: bool

    def replaced(self, changes: Mapping[str, Mapping[str, Any]]) -> Design:
        """The same with other values in some sections."""
        sections = {
            name: section.model_copy(update=dict(changes[name])) if name in changes else section
            for name, section in self.sections.items()
        }
        return replace(self, sections=sections)


def variants(study: Study, world: Any) -> list[Variant]:
    """The primary world, and beside it the one without shift, or with less coverage, where the world has that dial."""
    shift, coverage = getattr(world, "shift", None), getattr(world, "coverage", ())
    if hasattr(world, "pairs_from"):
        return _program_variants(study, world)
    if shift is None:
        label = f"pairs of {' and '.join(coverage)}" if coverage else "the file's pairs"
        own = Variant("main", label, True, world, study.arms)
        if len(coverage) < 2 or not study.coverage_rows:
            return [own]
        first = coverage[:1]
        less = world.model_copy(update={"coverage": first})
        return [own, Variant(f"{first[0]}-only", f"pairs of {first[0]} alone", False, less, _of(study, COVERAGE_ARMS))]
    own = Variant("shifted" if shift > 0 else "no-shift", f"world.shift={shift:g}", True, world, study.arms)
    if shift == 0 or not study.no_shift:
        return [own]
    calm = world.model_copy(update={"shift": 0.0})
    label = "world.shift=0: pairs sampled from the SFT model itself"
    return [own, Variant("no-shift", label, False, calm, _of(study, NO_SHIFT_ARMS))]


def _program_variants(study: Study, world: Any) -> list[Variant]:
    """Pairs of the model's own samples and, beside them, of people's programs."""
    if world.pairs_from == "people":
        return [Variant("people", "pairs of people's programs", True, world, study.arms)]
    own = Variant("main", "pairs of the model's own samples, judged by running them", True, world, study.arms)
    if not study.people_rows:
        return [own]
    foreign = world.model_copy(update={"pairs_from": "people"} | ({"shift": 1.0} if hasattr(world, "shift") else {}))
    label = "pairs of people's programs, right against wrong"
    return [own, Variant("people", label, False, foreign, _of(study, PEOPLE_ARMS))]


def _of(study: Study, arms: Sequence[str]) -> tuple[str, ...]:
    return tuple(arm for arm in study.arms if arm in arms)


def nodes_of_study(design: Design) -> list[Node]:
    """All nodes of a study, each after the nodes it needs."""
    study: Study = design.sections["study"]
    worlds = variants(study, design.sections["world"])
    builders = (Builder(design, variant, worlds[0], seed) for seed in study.seeds for variant in worlds)
    return _distinct(node for builder in builders for node in builder.all())


def nodes_of_trials(design: Design, trials: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Node]:
    """The nodes of tuning: each arm's trials (values of its section) on each tuning seed, measured on the selection
    split alone. The key of a trial's selection is `trial_key`."""
    study: Study = design.sections["study"]
    primary = variants(study, design.sections["world"])[0]
    nodes = []
    for seed in study.tuning_seeds:
        for arm, drawn in trials.items():
            for number, values in enumerate(drawn):
                changed = design.replaced({design.arms[arm].section: values})
                nodes += Builder(changed, primary, primary, seed, tag=f"#{number}").trial(arm)
    return _distinct(nodes)


def nodes_of_checkpoints(design: Design, given: Mapping[str, Sequence[str]], shared: Mapping[str, str]) -> list[Node]:
    """The nodes that measure checkpoints trained elsewhere. `given` names for each arm the keys of its checkpoints, one
    per training seed (`sft` first); `shared` the inputs that all of them have."""
    primary = variants(design.sections["study"], design.sections["world"])[0]
    count = max(map(len, given.values()))
    nodes = []
    for seed in range(count):
        builder = Builder(design, primary, primary, seed)
        sft = given["sft"][min(seed, len(given["sft"]) - 1)]
        for arm, keys in given.items():
            nodes += builder.checkpoint(arm, {**shared, "sft": sft, "arm": keys[min(seed, len(keys) - 1)]})
    return _distinct(nodes)


def trial_key(design: Design, arm: str, number: int, seed: int) -> str:
    """The key of the node that measures one trial at one tuning seed."""
    primary = variants(design.sections["study"], design.sections["world"])[0]
    return f"select-{arm}#{number}/{primary.name}/{seed}"


def nodes_of_stage(design: Design, stage: str, seed: int) -> list[Node]:
    """The stage or arm of that name at one seed, after the stages before it."""
    variant = variants(design.sections["study"], design.sections["world"])[0]
    builder = Builder(design, variant, variant, seed)
    wanted = {node.key: node for node in builder.stages(arm for arm, made in design.arms.items() if made.page)}
    target = next(node for node in wanted.values() if node.arm == stage)
    keep: list[str] = []

    def visit(key: str) -> None:
        for needed in wanted[key].inputs.values():
            visit(needed)
        if key not in keep:
            keep.append(key)

    visit(target.key)
    return [wanted[key] for key in keep]


def before_pairs(world: Any) -> Any:
    """The world with the dials that move pairs alone at rest: what SFT learns from does not depend on them."""
    fields = type(world).model_fields if hasattr(world, "model_copy") else {}
    moves = {n: f for n, f in fields.items() if (f.json_schema_extra or {}).get("moves") == "pairs"}
    rest = {name: f.get_default(call_default_factory=True) for name, f in moves.items()}
    return world.model_copy(update=rest) if rest else world


def _distinct(nodes: Iterable[Node]) -> list[Node]:
    """The first of each key, in order."""
    found: dict[str, Node] = {}
    for node in nodes:
        found.setdefault(node.key, node)
    return list(found.values())


class Builder:
    """The nodes of one seed in one variant. What is tried out while tuning carries a `tag` in its key.

    `origin` is the original SFT; `sft` is what arms start from and are held to: the same, unless `based_on` says
    otherwise.
    """

    def __init__(self, design: Design, variant: Variant, primary: Variant, seed: int, tag: str = ""):
        self.design, self.sections = design, design.sections
        self.variant, self.primary, self.seed, self.tag = variant, primary, seed, tag
        # SFT does not see the pairs, and no judge sees the learners' part of them: the variants share these nodes.
        self.origin = self.sft = f"sft/{seed}"
        self.pairs, self.reward = self._key("pairs"), self._key("reward")

    def based_on(self, arm: str) -> None:
        """From here on arms start from that arm's last policy, and take it for their SFT; pairs and reward model stay
        the original's, and so does the KL that is reported."""
        self.sft = self._arm_key(arm)

    def _key(self, name: str) -> str:
        return f"{name}/{self.variant.name}/{self.seed}"

    def _arm_key(self, name: str) -> str:
        return self._key(name + self.tag)

    def _primary_key(self, name: str) -> str:
        return f"{name}/{self.primary.name}/{self.seed}"

    def all(self) -> Iterable[Node]:
        """Stages, arms, and the measuring of each arm."""
        reward = self.needs_reward(self.variant.arms)
        yield from self.stages(self.variant.arms, reward=reward, probe=self.sections["study"].probe)
        for arm in ("sft", *(arm for arm in self.variant.arms if arm != "sft")):
            yield from self.measured(arm)

    def trial(self, arm: str) -> Iterable[Node]:
        """One arm with the selection of its checkpoints, after the stages it needs."""
        yield from self.stages((arm,), reward=self.needs_reward((arm,)))
        yield self.selection("sft")
        yield self.selection(arm)

    def stages(self, arms: Iterable[str], *, reward: bool = True, probe: bool = False) -> Iterable[Node]:
        """Stages and arms, nothing measured but, with `probe`, what there is before the arms."""
        sections = self.sections
        yield self._node(self.origin, "sft", "sft", sections["sft"], {}, world=before_pairs(self.primary.world))
        yield self._pairs(self.primary)
        yield self._pairs(self.variant)
        both = {"sft": self.origin, "pairs": self.pairs}
        if reward:
            yield self._node(self.reward, "reward", "reward", sections["reward"], both)
        if probe:
            yield from self._probe(both, reward=reward)
        if self.design.learned_gold:
            yield from self._judges({"sft": self.origin, "pairs": self._primary_key("pairs")})
        if not self.design.signatures:
            yield self._density(both)
        for arm in arms:
            yield from self.arm(arm)

    def _pairs(self, variant: Variant, *, share: float = 1.0) -> Node:
        """The comparisons of a variant. Where executions are what an arm may spend, they are made with that share of
        them."""
        world, name = variant.world, "pairs" if share == 1.0 else _HALF_PAIRS
        if self._apart and getattr(world, "pairs_from", "") == "samples":
            affordable = share * self.sections["study"].budget / world.samples_per_prompt
            world = world.model_copy(update={"pairs": max(1, int(affordable))})
        elif share != 1.0 and world.pairs:
            world = world.model_copy(update={"pairs": max(1, int(share * world.pairs))})
        return self._node(f"{name}/{variant.name}/{self.seed}", "pairs", name, None, {"sft": self.origin}, world=world)

    def _probe(self, inputs: Mapping[str, str], *, reward: bool) -> Iterable[Node]:
        """What is measured before an arm is trained, and the further reward models that it takes."""
        config, own = self.sections["probe"], self.sections["reward"]
        measured = dict(inputs) | ({"reward": self.reward} if reward else {})
        for number in range(1, config.members + 1 if reward and not own.path else 1):
            name = f"member-{number}"
            other = own.model_copy(update={"member": own.member + number})
            member = self._node(self._key(f"reward-{name}"), "reward", f"reward-{name}", other, inputs)
            yield member
            measured[name] = member.key
        yield self._node(self._key("probe"), "probe", "probe", config, measured)

    def _density(self, inputs: Mapping[str, str]) -> Node:
        """A model fitted to both sides of the pairs, on which "outside the pairs" is measured."""
        rate = self.sections["sft"].learning_rate / 4
        update = {"on": "sides", "epochs": 1.0, "learning_rate": rate, "prompt_loss": False}
        config = self.sections["sft"].model_copy(update=update)
        return self._node(self._key("density"), "sft", "density", config, inputs)

    def _judges(self, inputs: Mapping[str, str]) -> Iterable[Node]:
        for part in ("selection", "gold"):
            config = {"part": part, "held_out": 0.3 if part == "gold" else 0.1}
            key = self._primary_key(f"judge-{part}")
            yield self._node(key, "judge", f"judge-{part}", config, inputs, world=self.primary.world)

    def arm(self, name: str) -> Iterable[Node]:
        """The nodes that train an arm, without the stages before it."""
        arm = self.design.arms[name]
        if not arm.page:
            return
        if name == "dpo+ppo":
            yield from self._both(arm)
            return
        needed = {"sft": self.sft} | self._learns_from(arm)
        charged = ("reward",) if "reward" in needed else ()
        yield self._node(self._arm_key(name), arm.page, name, self._fed(arm), needed, share=1.0, charged=charged)

    def _both(self, arm: Arm) -> Iterable[Node]:
        twin = self._key("dpo") if "dpo" in self.variant.arms and not self.tag and not self._apart else ""
        sides = {"sft": self.sft, "pairs": self.pairs}
        if self._apart:
            fewer = self._pairs(self.variant, share=0.5)
            yield fewer
            sides["pairs"] = fewer.key
        half = self._node(self._key(_HALF), "dpo", _HALF, self.sections["dpo"], sides, share=0.5, twin=twin)
        yield half
        # PPO starts from the checkpoint that the selection judge picks, as a DPO model would be chosen by itself.
        pick = self.selection(_HALF, twin=self._key("select-dpo") if twin else "")
        yield from (self.selection("sft"), pick)
        inputs = {"sft": self.sft, "start": half.key, "start_pick": pick.key} | self._learns_from(arm)
        key, charged = self._arm_key(arm.name), ("reward",) if "reward" in inputs else ()
        yield self._node(key, arm.page, arm.name, self._fed(arm), inputs, share=0.5, charged=charged)

    def _fed(self, arm: Arm) -> Any:
        """The arm's section with the study's feedback, unless it was given one of its own.

        Where tests give the reward there is no reward model that a critic could start from.
        """
        config, feedback = self.sections[arm.section], self.sections["study"].feedback
        fields, given = type(config).model_fields, config.model_fields_set
        if "feedback" not in fields:
            return config
        changes = {} if "feedback" in given else {"feedback": feedback}
        if changes.get("feedback", config.feedback) == "verifier" and "critic_from" in fields:
            changes |= {} if "critic_from" in given else {"critic_from": "policy"}
        elif self.sections["reward"].path and "critic_from" in fields and "critic_from" not in given:
            changes |= {"critic_from": "policy"}  # another model's trunk may be of any size, and read other tokens
        return config.model_copy(update=changes)

    def _charged(self, arm: Arm, inputs: Mapping[str, str]) -> tuple[str, ...]:
        """The inputs whose cost is the arm's too."""
        if arm.learns_from == "pairs":
            return ("pairs",)
        uses = self._uses_reward_model(arm) if arm.page else arm.learns_from == "reward" and "reward" in inputs
        trained = () if self.sections["reward"].path else ("pairs",)
        return (*trained, "reward") if uses else ()

    @property
    def _apart(self) -> bool:
        """Whether the halves of `dpo+ppo` have pairs of their own: where executions are what is shared out."""
        return self.sections["study"].budget_rule == "executions" and self.sections["study"].budget > 0

    def _learns_from(self, arm: Arm) -> dict[str, str]:
        """The input that the arm learns from: pairs, a reward model, or neither where tests give the reward."""
        if arm.learns_from == "pairs":
            return {"pairs": self.pairs}
        return {"reward": self.reward} if self._uses_reward_model(arm) else {}

    def _uses_reward_model(self, arm: Arm) -> bool:
        if arm.learns_from != "reward" or not arm.page:
            return False
        config = self._fed(arm)
        return config.feedback != "verifier" or getattr(config, "critic_from", "") == "reward"

    def needs_reward(self, arms: Iterable[str]) -> bool:
        """Whether a reward model is trained: as the proxy of every arm, or because one of these arms uses it."""
        if self.sections["study"].feedback != "verifier":
            return True
        return any(self._uses_reward_model(self.design.arms[arm]) for arm in arms)

    def _measured(self, arm: str) -> dict[str, str]:
        """What is needed to measure an arm."""
        trained = arm == _HALF or self.design.arms[arm].page
        tagged = self._key(_HALF) if arm == _HALF else self._arm_key(arm)
        inputs = {"arm": tagged if trained else self.origin, "sft": self.origin, "pairs": self.pairs}
        if self.sft not in (self.origin, tagged) and arm != "sft":
            inputs["start"] = self.sft
        if self.needs_reward((arm,) if arm in self.design.arms else ()):
            inputs["reward"] = self.reward
        if not self.design.signatures:
            inputs["density"] = self._key("density")
        if arm == "dpo+ppo":
            inputs |= {"start": self._key(_HALF), "start_pick": self._key(f"select-{_HALF}")}
        return inputs

    def checkpoint(self, arm: str, given: Mapping[str, str]) -> Iterable[Node]:
        """What measures a checkpoint that was trained elsewhere. `given` are the inputs that exist: `arm`, `sft`, and
        what was handed in of `gold`, `reward` and `pairs`."""
        inputs = dict(given)
        if self.design.learned_gold:
            first = {"sft": given["sft"], "pairs": self.pairs}
            yield self._node(self.pairs, "pairs", "pairs", None, {"sft": given["sft"]})
            inputs["pairs"] = self.pairs
            if "gold" not in given:
                yield from (node for node in self._judges(first) if node.arm == "judge-gold")
                inputs["gold"] = self._primary_key("judge-gold")
            yield self._density(first)
            inputs["density"] = self._key("density")
        pick, found = self._key(f"select-{arm}"), self._key(f"evaluate-{arm}")
        judged = inputs | ({"selection": inputs["gold"]} if "gold" in inputs else {})
        yield self._node(pick, "select", f"select:{arm}", self.sections["select"], judged, method=arm)
        more = {"picked": pick} | ({} if arm == "sft" else {"baseline": self._key("evaluate-sft")})
        yield self._node(found, "evaluate", f"evaluate:{arm}", self.sections["evaluate"], inputs | more, method=arm)

    def measured(self, arm: str) -> Iterable[Node]:
        """What measures an arm: its checkpoints on the selection prompts, then the picked ones on the test prompts."""
        yield self.selection(arm)
        yield self._evaluation(arm)

    def selection(self, arm: str, *, twin: str = "") -> Node:
        """What measures the checkpoints of an arm on the selection prompts."""
        inputs, config = self._measured(arm), self.sections["select"]
        if self.design.learned_gold:
            inputs["selection"] = self._primary_key("judge-selection")
        if arm == "best-of-n":
            config = config.model_copy(update={"best_of": self.sections["evaluate"].best_of})
        if arm != "sft":
            inputs["baseline"] = self._key("select-sft")
        key = self._key(f"select-{arm}") if arm in ("sft", _HALF) else self._arm_key(f"select-{arm}")
        return self._node(key, "select", f"select:{arm}", config, inputs, method=arm, twin=twin)

    def _evaluation(self, arm: str) -> Node:
        inputs = self._measured(arm) | {"picked": self._key(f"select-{arm}")}
        if self.design.learned_gold:
            inputs["gold"] = self._primary_key("judge-gold")
        if arm != "sft":
            inputs["baseline"] = self._key("evaluate-sft")
        # Labels come with the pairs, once; what `both` starts from is part of its cost.
        names = self._charged(self.design.arms[arm], inputs)
        if arm == "dpo+ppo":
            if not names:  # no reward model: the pairs are those of its first half
                inputs["start_pairs"] = self._key(_HALF_PAIRS) if self._apart else self.pairs
                names = ("start_pairs",)
            names += ("start",)
        key, config = self._key(f"evaluate-{arm}"), self.sections["evaluate"]
        return self._node(key, "evaluate", f"evaluate:{arm}", config, inputs, method=arm, charged=names)

    def _own_sections(self, config: Any) -> dict[str, Any]:
        """The run's settings as they hold for this node. How a verdict is paid matters to learners alone."""
        own = {name: self.sections[name] for name in ("verifier", "train") if name in self.sections}
        if "verifier" in own and not hasattr(config, "feedback"):
            own["verifier"] = own["verifier"].model_copy(update={"reward": "pass"})
        return own

    def _node(
        self,
        key: str,
        page: str,
        arm: str,
        config: Any,
        inputs: Mapping[str, str],
        *,
        world: Any = None,
        method: str = "",
        share: float = 0.0,
        charged: tuple[str, ...] = (),
        twin: str = "",
    ) -> Node:
        world = world or self.variant.world
        return Node(
            key,
            page,
            method or page,
            arm,
            self.variant.name,
            self.seed,
            config,
            world,
            inputs,
            share,
            charged,
            twin,
            self._own_sections(config),
            self.sections["study"].budget if share else 0.0,
        )
