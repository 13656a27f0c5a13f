"""The answer: PPO against DPO first, then the set of best arms and its cheapest member, or why it cannot be told."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

from trueline.study.comparisons import (
    ALPHA,
    CANDIDATES,
    FAMILY,
    LEAD,
    Comparison,
    arm_interval,
    compare,
    differences,
    find,
)
from trueline.study.diagnostics import collapse_marks
from trueline.study.matrix import ArmRuns, Study
from trueline.study.statistics import equivalent, paired_interval, seeds_needed

__all__ = ["CANNOT_TELL", "NO_DIFFERENCE", "Verdict", "display", "judge"]

NO_DIFFERENCE, CANNOT_TELL = "no-difference", "cannot-tell"
WEAK_GOLD = 0.55
POWER = 0.8
"""Of the study that the verdict asks for: how often it would part the two, were the difference what it seems."""
NAMES = {
    "sft": "SFT",
    "sft-chosen": "SFT on chosen",
    "best-of-n": "best-of-n",
    "dpo": "DPO",
    "dpo-iter": "DPO-Iter",
    "ppo": "PPO",
    "dpo+ppo": "DPO+PPO",
    "rloo": "RLOO",
    "cdpo": "cDPO",
    "ipo": "IPO",
    "dpo-positive": "DPO-positive",
    "ln-dpo": "length-normalised DPO",
    "simpo": "SimPO",
    "kto": "KTO",
    "dpo-nll": "DPO with NLL",
}


@dataclass(frozen=True)
class Verdict:
    """`answer` is an arm, `no-difference` or `cannot-tell`; `best` holds the candidates that nothing rules out.

    `margin` is in units of `metric`. `text` is two to four sentences, `lead` the first of them.
    """

    answer: str
    best: tuple[str, ...]
    cheapest: str | None
    metric: str
    margin: float
    text: str
    lead: str


@dataclass(frozen=True)
class _Case:
    """Everything that the rules look at, gathered once."""

    study: Study
    rows: tuple[Comparison, ...]
    arms: dict[str, ArmRuns]
    means: dict[str, float]

    @property
    def top(self) -> str:
        return max(self.arms, key=self.means.__getitem__)


def display(arm: str) -> str:
    """An arm's name as prose writes it."""
    return NAMES.get(arm, arm)


def judge(study: Study) -> Verdict:
    """The verdict on the primary variant, by DESIGN's rules, in this order: one seed, or a learned gold whose accuracy
    has a lower bound of 0.55 or less (or none), or tests that no program of any arm passed, is `cannot-tell`; all
    candidates pairwise within the margin is `no-difference`; a best set of one arm is that arm; a separated lead
    comparison with a best set that leaves some candidate out is the cheapest of the set (charged FLOPs); anything else
    is `cannot-tell`.
    """
    case = _gather(study)
    best = _best_set(case)
    answer, reason = _decide(case, best)
    cheapest = _cheapest(case, best) if best and study.trained_here else None
    lead = _lead(case)
    sentences = [lead, _second(answer, reason, best, cheapest), "; ".join(_notes(case)), _scope(case)]
    text = " ".join(_sentence(s) for s in sentences if s)
    return Verdict(answer, best, cheapest, study.manifest.metric, study.margin, text, _sentence(lead))


def _gather(study: Study) -> _Case:
    ran = study.primary.arms
    arms, means = {}, {}
    for name in (c for c in CANDIDATES if c in ran):
        estimate = arm_interval(ran[name], study.manifest.metric)
        if estimate is not None:
            arms[name], means[name] = ran[name], estimate[0].mean
    return _Case(study, compare(study, study.primary), arms, means)


def _best_set(case: _Case) -> tuple[str, ...]:
    if not case.arms or _gate(case.study):
        return tuple(case.arms)
    return tuple(arm for arm in case.arms if arm == case.top or not find(case.rows, arm, case.top).separated)


def _gate(study: Study) -> str:
    """Why no answer is given whatever the numbers say; empty where one may be."""
    gold, bounds = study.manifest.gold, study.manifest.gold.get("accuracy_ci95")
    if gold.get("kind") in ("learned", "given") and (not bounds or bounds[0] is None or bounds[0] <= WEAK_GOLD):
        known = f"lower bound {bounds[0]:.2f}" if bounds and bounds[0] is not None else "unknown"
        who = "a judge that was handed in" if gold["kind"] == "given" else "itself a learned model"
        return f"gold is {who} and its accuracy ({known}) is too near to chance"
    if study.manifest.by_tests and not _anything_passed(study):
        return "no program of any arm passed its tests, so start from a model that solves some problems"
    if len(study.manifest.seeds) == 1:
        return "training runs differ by their seed and only one was run; run at least three"
    return ""


def _anything_passed(study: Study) -> bool:
    """Whether any arm solved anything; True where nothing is known."""
    tables = [arm.table(study.manifest.metric) for arm in study.primary.arms.values()]
    known = [table[1] for table in tables if table is not None]
    return not known or any((solved > 0).any() for solved in known)


def _decide(case: _Case, best: tuple[str, ...]) -> tuple[str, str]:
    if reason := _gate(case.study):
        return CANNOT_TELL, reason
    if len(case.arms) < 2:
        return CANNOT_TELL, "at least two of DPO, DPO-Iter, PPO and both must run for a comparison"
    pairs = [find(case.rows, a, b) for a, b in combinations(case.arms, 2)]
    if all(equivalent(pair.interval, case.study.margin) for pair in pairs):
        return NO_DIFFERENCE, ""
    if len(best) == 1:
        return best[0], ""
    lead = find(case.rows, *LEAD)
    if lead is not None and lead.separated and len(best) < len(case.arms):
        return _cheapest(case, best), ""
    return CANNOT_TELL, _what_it_takes(case, best)


def _cheapest(case: _Case, arms: tuple[str, ...]) -> str:
    """By charged FLOPs; the highest where costs are not known."""
    if not case.study.trained_here:
        return max(arms, key=case.means.__getitem__)
    return min(arms, key=lambda arm: case.arms[arm].charged("flops"))


def _what_it_takes(case: _Case, best: tuple[str, ...]) -> str:
    lead = find(case.rows, *LEAD)
    pair = (lead.a, lead.b) if lead is not None and not lead.separated else (case.top, _runner_up(case, best))
    d = differences(case.arms[pair[0]], case.arms[pair[1]], case.study.manifest.metric)
    # wide enough to part the two, or narrow enough to lie within the margin, whichever comes first
    target = max(abs(float(d.mean())), case.study.margin - abs(float(d.mean())))
    declared = sum(row.family == "declared" for row in case.rows) if pair in FAMILY else 1
    seeds = seeds_needed(d, target, 1 - ALPHA / max(declared, 1), power=POWER)
    names = f"{display(pair[0])} against {display(pair[1])}"
    if seeds is None:
        return f"{names} would take more than 200 seeds on these prompts: add evaluation prompts first"
    more = max(seeds, d.shape[0] + 1)
    return f"about {more} seeds would settle {names}, four times in five, if the difference stays as it is"


def _runner_up(case: _Case, best: tuple[str, ...]) -> str:
    return max((arm for arm in best if arm != case.top), key=case.means.__getitem__)


def _lead(case: _Case) -> str:
    row, world = find(case.rows, *LEAD), case.study.manifest.world
    if row is None:
        missing = " and ".join(display(arm) for arm in LEAD if arm not in case.arms)
        return f"PPO and DPO were not compared, since {missing} did not run, in {world}"
    if case.study.manifest.by_tests:
        return f"{_lead_by_tests(row)} in {world}"
    mean, unit = row.interval.mean, f"{case.study.manifest.metric.rsplit('/', 1)[1]} points"
    if not row.interval.finite:
        return f"PPO minus DPO is {mean:+.2f} {unit} on one seed, which carries no interval, in {world}"
    bounds = f"(95% interval {row.interval.low:+.2f} to {row.interval.high:+.2f})"
    if row.separated:
        return f"PPO scores {abs(mean):.2f} {unit} {'above' if mean > 0 else 'below'} DPO {bounds} in {world}"
    if row.interval.low > 0 or row.interval.high < 0:
        side = "above" if mean > 0 else "below"
        once = f"PPO scores {abs(mean):.2f} {unit} {side} DPO {bounds} in {world}"
        return f"{once}, but not beyond doubt once the four declared comparisons are corrected for"
    return f"PPO and DPO are not separated: PPO minus DPO is {mean:+.2f} {unit} {bounds} in {world}"


def _lead_by_tests(row: Comparison) -> str:
    """As `_lead` of programs, where gold is a share of problems."""
    mean, interval = row.interval.mean, row.interval
    if not interval.finite:
        return f"PPO minus DPO is {mean:+.2f} in pass@1 on one seed, which carries no interval,"
    bounds = f"95% interval {interval.low:+.2f} to {interval.high:+.2f}"
    solves = f"PPO solves {abs(mean):.2f} {'more' if mean > 0 else 'less'} of the problems than DPO (pass@1; {bounds})"
    if row.separated:
        return solves
    if interval.low > 0 or interval.high < 0:
        return f"{solves}, but not beyond doubt once the four declared comparisons are corrected for,"
    return f"PPO and DPO are not separated: PPO minus DPO is {mean:+.2f} in pass@1 ({bounds})"


def _second(answer: str, reason: str, best: tuple[str, ...], cheapest: str | None) -> str:
    if answer == CANNOT_TELL:
        return f"This study cannot tell which is best: {reason}"
    if answer == NO_DIFFERENCE:
        price = f"{display(cheapest)} is the cheapest" if cheapest else "what they cost is not known here"
        return f"{_listed(best)} lie within the margin of one another; {price}"
    if len(best) == 1:
        return f"{display(answer)} is the best arm"
    of_them = f"{display(answer)} is the {'cheapest' if cheapest else 'highest'} of them"
    return f"The best arms, not separated from the highest, are {_listed(best)}; {of_them}"


def _notes(case: _Case) -> Iterator[str]:
    ran, metric = case.study.primary.arms, case.study.manifest.metric
    for name, arm in case.arms.items() if case.study.trained_here else ():
        marks = collapse_marks(arm, ran.get("sft"), metric)
        if any(marks):
            yield f"{display(name)} ended below SFT in {sum(marks)} of {len(marks)} seeds (collapsed)"
    if case.arms and "sft" in ran:
        yield from _beside_sft(case)
    for name in ran if case.arms else ():
        if name not in case.arms and name != "sft":
            yield from _beaten_by(case, name)


def _beside_sft(case: _Case) -> Iterator[str]:
    row = find(case.rows, case.top, "sft")
    if row is None or (row.interval.mean > 0 and (row.separated or not row.interval.finite)):
        return
    word = "is worse than" if row.separated else "is not shown to be better than"
    yield f"{display(case.top)}, the highest of the candidates, {word} SFT ({_difference(row)})"


def _beaten_by(case: _Case, name: str) -> Iterator[str]:
    d = differences(case.study.primary.arms[name], case.arms[case.top], case.study.manifest.metric)
    if d is not None and d.mean() > 0:
        row = Comparison(name, case.top, "", paired_interval(d), "exploratory")
        word = "beats" if row.separated else "is above, though not separated from,"
        yield f"{display(name)} {word} {display(case.top)} ({_difference(row)})"


def _difference(row: Comparison) -> str:
    interval = row.interval
    bounds = f", {interval.low:+.2f} to {interval.high:+.2f}" if interval.finite else ", one seed"
    return f"{interval.mean:+.2f}{bounds}"


def _scope(case: _Case) -> str:
    """The size of the lead difference in a unit that travels, and how far the answer reaches."""
    seeds, metric = len(case.study.manifest.seeds), case.study.manifest.metric
    table = next((arm.table(metric) for arm in case.study.primary.arms.values()), None)
    ground = f"{seeds} seed{'s' * (seeds > 1)}" + (f" and {len(table[0])} prompts" if table is not None else "")
    row, sd = find(case.rows, *LEAD), case.study.gold_sd
    if row is None or not row.interval.finite:
        return f"Measured on {ground}; nothing here reaches beyond this base, data and scale"
    size = f"{abs(row.interval.mean) / sd:.2f} standard deviations of SFT's gold, " if sd else ""
    if case.study.manifest.by_tests:
        size = f"{case.means[LEAD[0]]:.2f} of the problems beside {case.means[LEAD[1]]:.2f}, "
    figures = f"{size}Holm p {_p(row.p_adjusted)}, {ground}"
    return f"PPO against DPO in other figures: {figures}; nothing here reaches beyond this base, data and scale"


def _listed(arms: tuple[str, ...]) -> str:
    names = [display(arm) for arm in arms]
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _p(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"= {p:.3f}"


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:].rstrip(".") + "."
