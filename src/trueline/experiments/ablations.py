"""The designs of `trueline ablate`: which rows answer which question, and which differences are declared beforehand.

Each design holds fixed what the paper's Table 3 mixes (arXiv 2404.10719): samples, updates, rounds, the KL coefficient,
the reward's offset, the critic. Where a task has no such thing as a design needs, the design says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

from trueline.config import ablatable, off_value
from trueline.errors import InputError
from trueline.experiments.contrasts import Contrast
from trueline.experiments.rows import Row

__all__ = ["DESIGNS", "FLOOR", "Ablation", "Setting", "ablation_of_keys", "design_named"]

SMALL = 64
"""The paper's small batch."""


@dataclass(frozen=True)
class Setting:
    """What a design is built for: the resolved sections, and whether tests give the reward."""

    sections: Mapping[str, Any]
    verified: bool

    def get(self, section: str, key: str) -> Any:
        """A value as the user, or the shipped file, has it."""
        return getattr(self.sections[section], key)

    @property
    def samples(self) -> int:
        """Responses that one PPO run draws."""
        ppo = self.sections["ppo"]
        cap = self.sections["study"].budget if self.sections["study"].budget_rule == "executions" else 0
        steps = min(ppo.steps, int(cap // ppo.batch_size)) if cap else ppo.steps
        return steps * ppo.batch_size


@dataclass(frozen=True)
class Ablation:
    """One design. `x` is what its curves are drawn over; `notes` say what is held equal."""

    name: str
    question: str
    rows: tuple[Row, ...]
    contrasts: tuple[Contrast, ...]
    notes: tuple[str, ...] = field(default_factory=tuple)
    x: str = "sampled_tokens"


def _ppo(name: str, base: Mapping[str, Any], **changes: Any) -> Row:
    return Row(name, "ppo", {"ppo": dict(base) | changes})


def _batches(setting: Setting, size: int, samples: int, **more: Any) -> dict[str, Any]:
    """Settings of a batch size at a number of samples; the critic's warm-up covers as many samples as it did."""
    ppo = setting.sections["ppo"]
    warm = ppo.critic_warmup * ppo.batch_size
    return {"batch_size": size, "steps": max(1, samples // size), "critic_warmup": -(-warm // size)} | more


def ladder(setting: Setting) -> Ablation:
    """Table 3: keys added one after the other, and each switched off from the whole recipe."""
    ppo, samples = setting.sections["ppo"], setting.samples
    small = _batches(setting, SMALL, samples, minibatches=1, ema_eta=0.0)
    large = _batches(setting, ppo.batch_size, samples)
    off = {"advantage_norm": False}
    rows = (
        Row("sft", "sft"),
        _ppo("baseline", small, advantage_norm=False),
        _ppo("+ advantage norm", small, advantage_norm=True),
        _ppo("+ large batch", large, advantage_norm=True, ema_eta=0.0),
        _ppo("+ EMA reference", large, advantage_norm=True, ema_eta=ppo.ema_eta),
        _ppo("without advantage norm", large, ema_eta=ppo.ema_eta, **off),
        _ppo("without large batch", small, advantage_norm=True, ema_eta=ppo.ema_eta),
    )
    rungs = [row.name for row in rows[1:5]]
    names = ("Advantage normalisation", f"A batch of {ppo.batch_size} for {SMALL}", "The EMA reference")
    contrasts = [Contrast(n, a, b, "added to the ones before") for n, a, b in zip(names, rungs[1:], rungs)]
    contrasts += [
        Contrast(names[0], rungs[3], "without advantage norm", "the rest of the recipe on"),
        Contrast(names[1], rungs[3], "without large batch", "the rest of the recipe on"),
        Contrast("All three keys", rungs[3], "baseline"),
        Contrast("PPO without any key", "baseline", "sft", "against SFT"),
    ]
    notes = (
        f"All rows draw {samples:,} responses; the small batch takes one step for each {SMALL}, the large one "
        f"{ppo.minibatches} for each {ppo.batch_size}: equal samples, not equal updates (see the design batch).",
    )
    question = "Does switching on the paper's three keys, one after the other, help as in its Table 3?"
    return Ablation("ladder", question, rows, tuple(contrasts), notes)


def batch(setting: Setting) -> Ablation:
    """A large batch at equal samples, equal updates and equal rounds, and with several passes over each batch."""
    ppo, samples = setting.sections["ppo"], setting.samples
    size, parts = ppo.batch_size, ppo.minibatches
    rounds = max(1, samples // size)
    updates = rounds * parts
    fixed = {"ema_eta": 0.0}
    few = {"batch_size": SMALL, **fixed}
    rows = [
        _ppo("large", _batches(setting, size, samples), **fixed),
        _ppo("large, small minibatches", _batches(setting, size, samples, minibatches=max(1, size // SMALL)), **fixed),
        _ppo("small, equal samples", _batches(setting, SMALL, samples, minibatches=1), **fixed),
        _ppo(
            "small, equal updates",
            few | {"steps": updates, "critic_warmup": ppo.critic_warmup * parts, "minibatches": 1},
        ),
        _ppo("small, equal rounds", few | {"steps": rounds, "critic_warmup": ppo.critic_warmup, "minibatches": parts}),
        _ppo("large, 4 passes", _batches(setting, size, samples), epochs=4, **fixed),
        _ppo("small, 4 passes", _batches(setting, SMALL, samples, minibatches=1), epochs=4, **fixed),
    ]
    contrasts = [
        Contrast("A large batch", "large", "small, equal samples", "equal samples"),
        Contrast("A large batch", "large, small minibatches", "small, equal samples", "equal samples and updates"),
        Contrast("A large batch", "large", "small, equal updates", "equal updates"),
        Contrast("A large batch", "large", "small, equal rounds", "equal rounds and updates"),
        Contrast("A large batch", "large, 4 passes", "small, 4 passes", "equal samples, four passes over each batch"),
        Contrast("Four passes", "large, 4 passes", "large", f"batch {size}"),
        Contrast("Four passes", "small, 4 passes", "small, equal samples", f"batch {SMALL}"),
    ]
    if size // SMALL == parts:  # minibatches are as small as the small batch: three questions are one
        same = {"large, small minibatches", "small, equal updates"}
        rows = [row for row in rows if row.name not in same]
        contrasts = [replace(c, regime="equal samples and updates") if c.regime == "equal samples" else c
                     for c in contrasts if not {c.a, c.b} & same]  # fmt: skip
    notes = (
        f"Large: {size} responses in {parts} minibatches, {rounds} rounds, {updates} updates, {samples:,} samples. "
        f"Small: {SMALL} responses a round; at equal samples {samples // SMALL} rounds of one update; at equal updates "
        f"{updates} rounds of one; at equal rounds {rounds} rounds of {parts}. The reference is fixed throughout.",
    )
    question = "What is it in a large batch that helps, if anything?"
    return Ablation("batch", question, tuple(rows), tuple(contrasts), notes)


def norm(setting: Setting) -> Ablation:
    """Advantage normalisation crossed with the reward's offset and with the critic's quality."""
    samples = setting.samples
    small = _batches(setting, SMALL, samples, minibatches=1, ema_eta=0.0)
    low = -10.0 if setting.verified else -3.0
    paid = {0.0: "10/0" if setting.verified else "centred", low: "0/-10" if setting.verified else f"{low:g}"}
    critics = {
        "untrained critic": {"value_norm": False, "critic_from": "policy", "critic_warmup": 0},
        "warm critic": {"value_norm": True, "critic_warmup": 5 * small["critic_warmup"]},
    }
    rows, contrasts = [], []
    for critic, how in critics.items():
        for shift, pay in paid.items():
            names = [f"{pay}, {critic}, {'norm' if on else 'raw'}" for on in (True, False)]
            rows += [
                _ppo(name, small | how, reward_shift=shift, advantage_norm=on) for name, on in zip(names, (True, False))
            ]
            contrasts.append(Contrast("Advantage normalisation", *names, f"reward {pay}, {critic}"))
    first, second = paid.values()
    for critic in critics:
        a, b = f"{second}, {critic}, raw", f"{first}, {critic}, raw"
        contrasts.append(Contrast(f"An offset of {low:g}", a, b, f"advantages raw, {critic}"))
    notes = (
        f"Batches of {SMALL}, one update each, fixed reference, {samples:,} responses a row. The untrained critic "
        "starts as a copy of the policy with a head of zeros, without value normalisation; the warm one has it, and "
        "five times the warm-up.",
    )
    question = "Does normalising advantages help because of the reward's scale, its offset, or a poor critic?"
    return Ablation("norm", question, tuple(rows), tuple(contrasts), notes)


def reference(setting: Setting) -> Ablation:
    """The moving reference beside fixed ones at three KL coefficients."""
    ppo = setting.sections["ppo"]
    base = _batches(setting, ppo.batch_size, setting.samples)
    etas = sorted({ppo.ema_eta or 0.01, 0.05})
    rows, contrasts = [], []
    for factor in (0.5, 1.0, 2.0):
        coef = float(f"{factor * ppo.kl_coef:.3g}")
        rows.append(_ppo(f"fixed, KL {coef:g}", base, ema_eta=0.0, kl_coef=coef))
        for eta in etas if factor == 1.0 else etas[-1:]:
            name = f"EMA {eta:g}, KL {coef:g}"
            rows.append(_ppo(name, base, ema_eta=eta, kl_coef=coef))
            contrasts.append(Contrast(f"An EMA reference of {eta:g}", name, f"fixed, KL {coef:g}", f"KL {coef:g}"))
    weak, strong = (f"fixed, KL {float(f'{f * ppo.kl_coef:.3g}'):g}" for f in (0.5, 2.0))
    contrasts.append(Contrast("A KL coefficient four times as large", strong, weak, "fixed reference"))
    notes = (
        "The reference moves by eta after each update. A moving reference loosens the penalty, so the fair comparison "
        "is at equal KL to the original SFT; that column is the one to read.",
    )
    question = "Does a moving reference do anything that another KL coefficient does not?"
    return Ablation("reference", question, tuple(rows), tuple(contrasts), notes)


def value(setting: Setting) -> Ablation:
    """Value normalisation with a critic of its own and with a shared trunk, and the other keys of the critic."""
    ppo = setting.sections["ppo"]
    base = _batches(setting, ppo.batch_size, setting.samples, ema_eta=0.0)
    shared = {"critic_trunk": "shared", "critic_warmup": 0}
    rows = (
        _ppo("separate, value norm", base, value_norm=True),
        _ppo("separate, raw values", base, value_norm=False),
        _ppo("shared, value norm", base, value_norm=True, **shared),
        _ppo("shared, raw values", base, value_norm=False, **shared),
        _ppo("no value clip", base, value_clip=0.0),
        _ppo("lambda 0.95", base, gae_lambda=0.95),
        _ppo("no critic warm-up", base, critic_warmup=0),
    )
    whole = rows[0].name
    contrasts = (
        Contrast("Value normalisation", whole, "separate, raw values", "a critic of its own"),
        Contrast("Value normalisation", "shared, value norm", "shared, raw values", "a shared trunk"),
        Contrast("A critic of its own", whole, "shared, value norm", "against a shared trunk"),
        Contrast("Clipping the value's move", whole, "no value clip"),
        Contrast("Lambda 1 for 0.95", whole, "lambda 0.95"),
        Contrast("Warming the critic up", whole, "no critic warm-up"),
    )
    return Ablation("value", "Which of the critic's keys does PPO need?", rows, contrasts)


def dpo(setting: Setting) -> Ablation:
    """DPO's keys: NLL on the chosen side, a moving reference, beta."""
    beta = setting.get("dpo", "beta")
    rows = [
        Row("dpo", "dpo"),
        Row("dpo + NLL", "dpo", {"dpo": {"nll_coef": 1.0}}),
        Row("dpo, moving reference", "dpo", {"dpo": {"ema_eta": 0.01}}),
    ]
    rows += [
        Row(f"dpo, beta {float(f'{f * beta:.3g}'):g}", "dpo", {"dpo": {"beta": float(f"{f * beta:.3g}")}})
        for f in (0.5, 2.0, 4.0)
    ]
    contrasts = [
        Contrast("NLL on the chosen side", "dpo + NLL", "dpo"),
        Contrast("A moving reference", "dpo, moving reference", "dpo"),
        *(Contrast(f"Beta {r.name.split()[-1]} for {beta:g}", r.name, "dpo") for r in rows[3:]),
    ]
    return Ablation("dpo", "Which of DPO's keys matter?", tuple(rows), tuple(contrasts), x="trained_tokens")


def beta(setting: Setting) -> Ablation:
    """Table 11: the strength of the KL, for PPO and for DPO, at the paper's four values times the shipped one."""
    found: dict[str, list[Row]] = {}
    for arm, section, key in (("ppo", "ppo", "kl_coef"), ("dpo", "dpo", "beta")):
        own = setting.get(section, key)
        for factor in (0.0, 0.5, 1.0, 2.0) if arm == "ppo" else (0.5, 1.0, 2.0):
            at = float(f"{factor * own:.3g}")
            fixed = {"ema_eta": 0.0} if arm == "ppo" else {}
            found.setdefault(arm, []).append(Row(f"{arm}, {key} {at:g}", arm, {section: {key: at} | fixed}))
    rows = tuple(row for group in found.values() for row in group)
    contrasts = tuple(
        Contrast(f"{group[i].name} for {group[middle].name.split()[-1]}", group[i].name, group[middle].name)
        for group, middle in ((found["ppo"], 2), (found["dpo"], 1))
        for i in range(len(group))
        if i != middle
    )
    note = "The paper's values 0, 0.05, 0.1 and 0.2 as multiples of the shipped one (0, 0.5, 1 and 2 times)."
    return Ablation("beta", "Is there an inside optimum of the KL's strength?", rows, contrasts, (note,))


def sync(setting: Setting) -> Ablation:
    """From offline DPO through DPO-Iter to online DPO at equal samples, beside PPO and RLOO."""
    iterated = setting.sections["dpo_iter"]
    steps = iterated.rounds * iterated.sync_every
    periods = sorted({steps, *(p for p in (iterated.sync_every, 2, 1) if steps % p == 0)}, reverse=True)
    name = {steps: "one round", 1: "online"}
    rows = [Row("dpo", "dpo")]
    for period in periods:
        shown = f"dpo-iter, every {period}" + (f" ({name[period]})" if period in name else "")
        rows.append(Row(shown, "dpo-iter", {"dpo_iter": {"rounds": steps // period, "sync_every": period}}))
    drawn = round(steps * iterated.batch_size / iterated.passes) * iterated.samples_per_prompt
    equal = {arm: _same_samples(setting, arm, drawn) for arm in ("ppo", "rloo")}
    rows += [Row(arm, arm, {arm: changes}) for arm, changes in equal.items()]
    by_period = [row.name for row in rows[1:-2]]
    contrasts = [
        Contrast("Sampling the policy once", by_period[0], "dpo", "one round against the given pairs"),
        *(Contrast("Sampling more often", a, b, f"{a} against {b}") for b, a in pairwise(by_period)),
        Contrast("PPO", "ppo", by_period[-1], "against online DPO"),
        Contrast("RLOO", "rloo", by_period[-1], "against online DPO"),
        Contrast("PPO", "ppo", "dpo", "against offline DPO"),
    ]
    note = (
        f"Every row but dpo draws {drawn:,} responses and labels them with the same judge; DPO-Iter takes {steps} "
        "updates whatever its period."
    )
    return Ablation(
        "sync", "How much of the gain of sampling anew comes from how often?", tuple(rows), tuple(contrasts), (note,)
    )


def _same_samples(setting: Setting, arm: str, samples: int) -> dict[str, Any]:
    size = setting.get(arm, "batch_size")
    return {"steps": max(1, round(samples / size))}


def feedback(setting: Setting) -> Ablation:
    """One task, the same information paid for differently."""
    if not setting.verified:
        return _feedback_of_a_judge(setting)
    samples = setting.samples
    pairs = {"world": {"pairs": max(1, samples // setting.get("world", "samples_per_prompt"))}}
    ppo = _batches(setting, setting.get("ppo", "batch_size"), samples)
    learned = {"feedback": "learned", "critic_from": "reward"}
    coef = setting.get("ppo", "kl_coef")
    graded = {"verifier": {"reward": "graded"}, "ppo": ppo | {"reward_scale": 5.0, "reward_clip": 20.0}}
    rows = (
        Row("sft", "sft"),
        Row("pairs: dpo", "dpo", pairs),
        Row("pairs: dpo + NLL", "dpo-nll", pairs),
        Row("pairs: reward model, ppo", "ppo", pairs | {"ppo": ppo | learned | {"kl_coef": coef / 5}}),
        Row("unpaired: kto", "kto", pairs | {"kto": _kto(setting)}),
        Row("right ones alone: sft-chosen", "sft-chosen", pairs),
        Row("binary verifier: ppo", "ppo", {"ppo": ppo}),
        Row("binary verifier: dpo-iter", "dpo-iter"),
        Row("graded verifier: ppo", "ppo", graded),
    )
    contrasts = (
        Contrast("Pairs for DPO", "pairs: dpo", "sft", "against SFT"),
        Contrast("A reward model and PPO for DPO", "pairs: reward model, ppo", "pairs: dpo", "the same pairs"),
        Contrast("KTO for DPO", "unpaired: kto", "pairs: dpo", "the same samples, unpaired"),
        Contrast("A verifier for a reward model", "binary verifier: ppo", "pairs: reward model, ppo", "PPO"),
        Contrast("A graded verifier for a binary one", "graded verifier: ppo", "binary verifier: ppo", "PPO"),
        Contrast("PPO for DPO-Iter", "binary verifier: ppo", "binary verifier: dpo-iter", "binary verifier"),
        Contrast("PPO for SFT on right ones", "binary verifier: ppo", "right ones alone: sft-chosen"),
    )
    note = (
        f"Every row is paid for with {samples:,} executions: those that made its pairs, or those that its own samples "
        "were run in. The graded verifier pays -1, -0.6, -0.3 and 1, five times, so that its span is the binary one's "
        "10. The reward model's scores are standardised, so its KL coefficient is a fifth."
    )
    return Ablation("feedback", "Which method does each kind of feedback favour?", rows, contrasts, (note,))


def _kto(setting: Setting) -> dict[str, Any]:
    """KTO at DPO's rate where the task ships none of its own."""
    given = setting.sections["kto"].model_fields_set
    return {} if "learning_rate" in given else {"learning_rate": setting.get("dpo", "learning_rate")}


def _feedback_of_a_judge(setting: Setting) -> Ablation:
    ppo = _batches(setting, setting.get("ppo", "batch_size"), setting.samples)
    gold = {"feedback": "gold"}
    rows = (
        Row("sft", "sft"),
        Row("pairs: dpo", "dpo"),
        Row("pairs: reward model, ppo", "ppo", {"ppo": ppo}),
        Row("pairs: reward model, dpo-iter", "dpo-iter"),
        Row("unpaired: kto", "kto"),
        Row("chosen ones alone: sft-chosen", "sft-chosen"),
        Row("graded judge: ppo", "ppo", {"ppo": ppo | gold}),
        Row("graded judge: dpo-iter", "dpo-iter", {"dpo_iter": gold}),
    )
    contrasts = (
        Contrast("Pairs for DPO", "pairs: dpo", "sft", "against SFT"),
        Contrast("A reward model and PPO for DPO", "pairs: reward model, ppo", "pairs: dpo", "the same pairs"),
        Contrast("KTO for DPO", "unpaired: kto", "pairs: dpo", "the same responses, unpaired"),
        Contrast("The judge itself for a reward model", "graded judge: ppo", "pairs: reward model, ppo", "PPO"),
        Contrast(
            "The judge itself for a reward model", "graded judge: dpo-iter", "pairs: reward model, dpo-iter", "DPO-Iter"
        ),
        Contrast("PPO for DPO-Iter", "graded judge: ppo", "graded judge: dpo-iter", "graded judge"),
    )
    note = "Scores of the judge itself count as labels, one for each sample: that is far more than the pairs hold."
    return Ablation("feedback", "Which method does each kind of feedback favour?", rows, contrasts, (note,))


FLOOR = "sft, 64 samples"
"""Of the design overoptimisation: what best-of-n is read off."""


def overoptimisation(setting: Setting) -> Ablation:
    """Gold against proxy over sqrt(KL): PPO with and without its penalty, DPO within its first epoch and beyond."""
    ppo = setting.sections["ppo"]
    base = _batches(setting, ppo.batch_size, setting.samples, ema_eta=0.0)
    dense = {"train": {"snapshots": 20}}

    def of(name: str, arm: str, **changes: Any) -> Row:
        return Row(name, arm, {arm: changes, **dense})

    rows = (
        Row(FLOOR, "sft", {"evaluate": {"samples": 64}}),
        of("ppo", "ppo", **base),
        of("ppo, no penalty, 3 times as long", "ppo", **(base | {"kl_coef": 0.0, "steps": 3 * base["steps"]})),
        of("dpo, first epoch", "dpo", epochs=1.0),
        of("dpo, four epochs", "dpo", epochs=4.0),
    )
    contrasts = (
        Contrast("Going on without a penalty", rows[2].name, "ppo"),
        Contrast("Three more epochs", rows[4].name, rows[3].name, "DPO"),
        Contrast("PPO for DPO", "ppo", rows[3].name, "DPO's first epoch"),
    )
    notes = (
        "Best-of-n is read off 64 samples of SFT a test prompt, every subset counted; its KL is log n - (n - 1) / n. "
        "Curves are on the selection prompts, each as a gain over its own start.",
    )
    question = "How far can each method go before the reward it follows misleads it?"
    return Ablation("overoptimisation", question, rows, contrasts, notes)


DESIGNS: dict[str, Callable[[Setting], Ablation]] = {
    f.__name__: f for f in (ladder, batch, norm, reference, value, dpo, beta, sync, feedback, overoptimisation)
}


def design_named(name: str, setting: Setting) -> Ablation:
    """The design of that name. InputError with the names that exist."""
    if name not in DESIGNS:
        raise InputError(
            f"no design {name!r}",
            where="command line",
            field="DESIGN",
            remedy=f"one of {', '.join(DESIGNS)}, or a key such as ppo.value_norm",
        )
    return DESIGNS[name](setting)


def ablation_of_keys(keys: Sequence[str], setting: Setting, arms: Mapping[str, Any]) -> Ablation:
    """Each key switched off by itself. A key is `section.key`; its section must belong to an arm."""
    rows: dict[str, Row] = {}
    contrasts = []
    for dotted in keys:
        section, _, key = dotted.partition(".")
        owner = next((arm for arm in arms.values() if arm.section == section), None)
        if owner is None:
            raise InputError(
                f"no arm reads {section!r}",
                where="command line",
                field=dotted,
                remedy=f"sections of arms: {', '.join(sorted({a.section for a in arms.values() if a.section}))}",
            )
        kind = type(setting.sections[section])
        if key not in ablatable(kind):
            known = ", ".join(f"{section}.{name}" for name in ablatable(kind))
            raise InputError("has no off value", where="command line", field=dotted, remedy=f"keys that do: {known}")
        off = off_value(kind, key)
        if off == getattr(setting.sections[section], key):
            raise InputError(f"is off already ({off})", where="settings", field=dotted, remedy="leave it out")
        rows.setdefault(owner.name, Row(owner.name, owner.name))
        name = f"{owner.name}, {key}={off}"
        rows[name] = Row(name, owner.name, {section: {key: off}})
        contrasts.append(
            Contrast(f"{dotted}={getattr(setting.sections[section], key)}", owner.name, name, f"not {off}")
        )
    return Ablation("keys", f"What do {', '.join(keys)} do?", tuple(rows.values()), tuple(contrasts))
