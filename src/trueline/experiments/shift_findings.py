"""Whether the differences between rows go the way they go in the paper: agrees, disagrees, undecided."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from trueline.experiments.shift import Claim, Table
from trueline.study.comparisons import ALPHA, differences
from trueline.study.document import figure_text, interval_text
from trueline.study.matrix import ArmRuns
from trueline.study.statistics import Array, Interval, holm, paired_interval

__all__ = ["AGREES", "DISAGREES", "NAMES", "UNDECIDED", "Finding", "findings_of", "key_of", "sentence", "tally"]

AGREES, DISAGREES, UNDECIDED = "agrees", "disagrees", "undecided"
NAMES = {
    "helpfulness": "helpfulness",
    "helpfulness_benign": "helpfulness on harmless requests",
    "harm": "harm",
    "safe": "safety rate",
    "refusal_benign": "refusals of harmless requests",
    "refusal_harmful": "refusals of harmful requests",
    "refusal": "refusals",
    "gold": "gold",
}
"""What a reader calls a metric."""
SHARES = ("safe", "refusal_benign", "refusal_harmful", "refusal")
"""Metrics that are shares; the paper gives them in percent."""


@dataclass(frozen=True)
class Finding:
    """One claim on one metric. `direction` is the sign of the paper's difference; `judged` is a - b at the checkpoint
    that the claim names, `beside` at the other one, selected or last. `p_adjusted` is Holm's over the metrics of the
    claim, which is one question; `p_table` over everything that the table asks."""

    claim: Claim
    metric: str
    direction: int
    judged: Interval
    p_adjusted: float
    p_table: float
    beside: Interval | None
    word: str

    @property
    def firm(self) -> bool:
        """Whether the word also stands with the correction over the whole table."""
        return self.word != UNDECIDED and self.p_table < ALPHA


def key_of(metric: str) -> str:
    """The key of the figure on the test prompts, sampled at temperature 1."""
    return f"test/sampled/{metric}"


def findings_of(table: Table, rows: Mapping[str, ArmRuns]) -> tuple[Finding, ...]:
    """Every claim on every metric that was measured, in the order of the table."""
    found = {claim: _measured(claim, rows) for claim in table.claims}
    every = [(claim, metric) for claim, own in found.items() for metric in own]
    over_table = dict(zip(every, holm([found[claim][metric].p for claim, metric in every])))
    made = []
    for claim, own in found.items():
        within = holm([interval.p for interval in own.values()])
        for (metric, interval), p in zip(own.items(), within):
            other = _difference(claim, rows, metric, "end" if claim.pick == "selected" else "selected")
            beside = None if other is None else paired_interval(other)
            sign = claim.directions()[metric]
            word = _word(interval, p, sign)
            made.append(Finding(claim, metric, sign, interval, p, over_table[claim, metric], beside, word))
    return tuple(made)


def _measured(claim: Claim, rows: Mapping[str, ArmRuns]) -> dict[str, Interval]:
    """The claim's metrics that both rows have, with a - b where it is judged."""
    found = {metric: _difference(claim, rows, metric, claim.pick) for metric in claim.directions()}
    return {metric: paired_interval(d) for metric, d in found.items() if d is not None}


def _word(interval: Interval, p_adjusted: float, direction: int) -> str:
    if not (interval.finite and p_adjusted < ALPHA):
        return UNDECIDED
    return AGREES if interval.mean * direction > 0 else DISAGREES


def _difference(claim: Claim, rows: Mapping[str, ArmRuns], metric: str, pick: str) -> Array | None:
    """a - b as [seed, prompt], less the same of `claim.less` where it is a difference of differences."""
    first = differences(rows[claim.a], rows[claim.b], key_of(metric), pick)
    if first is None or claim.less is None:
        return first
    second = differences(*(rows[name] for name in claim.less), key_of(metric), pick)
    return None if second is None or second.shape != first.shape else first - second


def sentence(findings: Sequence[Finding]) -> str:
    """One line for one claim: each metric with its interval, the paper's difference, and whether they agree."""
    parts = []
    for f in findings:
        scale = 100.0 if f.metric in SHARES else 1.0
        shown = Interval(*(scale * v for v in (f.judged.mean, f.judged.low, f.judged.high)), 0.0, 1.0, 1.0)
        unit = " points" if f.metric in SHARES else ""
        parts.append(f"{NAMES[f.metric]} {interval_text(shown, 1 if unit else 2)}{unit} ({_paper(f)}): {_said(f)}")
    claim = findings[0].claim
    return f"{claim.what}{', at the end of training' if claim.pick == 'end' else ''}: {'; '.join(parts)}."


def _said(finding: Finding) -> str:
    return finding.word + (" (firmly)" if finding.firm else "")


def _paper(finding: Finding) -> str:
    """The paper's difference, or what it says of one."""
    if finding.metric not in finding.claim.paper:
        return f"paper: {'more' if finding.direction > 0 else 'less'}"
    a, b = finding.claim.paper[finding.metric]
    return f"paper {figure_text(a - b, 2 if finding.metric not in SHARES else 1, sign=True)}"


def tally(findings: Sequence[Finding]) -> str:
    """ "7 of 12 differences go the paper's way (3 firmly), 1 the other way (0 firmly), 4 are undecided." """
    agree, against = ([f for f in findings if f.word == word] for word in (AGREES, DISAGREES))
    rest = len(findings) - len(agree) - len(against)
    firm = [sum(f.firm for f in group) for group in (agree, against)]
    return (
        f"{len(agree)} of {len(findings)} differences go the paper's way ({firm[0]} firmly), {len(against)} the other "
        f"way ({firm[1]} firmly), {rest} {'is' if rest == 1 else 'are'} undecided."
    )
