"""What went wrong in an arm, told by flags: each has a threshold (docs/metrics.md), a value and one sentence."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from trueline.study.gates import allowed, measured
from trueline.study.matrix import ArmRuns, Study, Variant
from trueline.study.probes import risks
from trueline.study.programs import UNSAFE, by_example, unjudged

__all__ = ["LOUD", "Flag", "collapse_marks", "diagnose"]

OUTSIDE_SHARE, OUTSIDE_RISE = 0.10, 0.05
REFUSAL_RISE = 0.10
LENGTH_DRIFT = 0.25
LOGPROB_FALL = 1.0  # nats per response
ALL_ARMS = "all arms"
BEFORE = "before training"
PREFLIGHT = "pre-flight"
UNCONTAINED, INCIDENTS, NOT_JUDGED = "not contained", "sandbox incidents", "samples not judged"
LOUD = (UNCONTAINED, INCIDENTS, NOT_JUDGED)
"""Flags of the machinery: they stand first, and the page sets them apart."""


@dataclass(frozen=True)
class Flag:
    """One finding on one arm of one variant. `value` is in the unit that the sentence names."""

    name: str
    variant: str
    arm: str
    value: float
    text: str


def collapse_marks(arm: ArmRuns, sft: ArmRuns | None, metric: str) -> tuple[bool, ...]:
    """Per seed: whether the end of training lies below SFT of the same seed. Without SFT, what the cell recorded."""
    ends, floors = arm.figure(metric, "end"), sft.figure(metric, "selected") if sft else None
    if ends is None or floors is None:
        return tuple(cell.collapsed for cell in arm.cells)
    return tuple(end < floor for end, floor in zip(ends, floors))


def diagnose(study: Study) -> tuple[Flag, ...]:
    """All flags of all variants: those of the machinery, then in the order of variants, checks and arms."""
    flags: list[Flag] = list(_machinery(study)) if study.manifest.by_tests else []
    for gate in study.manifest.gates:
        if gate["failed"]:
            what, runs = gate["what"].rstrip(","), gate["failed"]
            text = f"{what} is {measured(gate)}; {allowed(gate)} is hoped for; told in {runs} of {gate['runs']} runs."
            flags.append(Flag(PREFLIGHT, study.primary.name, BEFORE, float(gate["failed"]), text))
    for variant in study.variants:
        for name, value, text in risks(study.manifest.probes.get(variant.name, ())):
            flags.append(Flag(name, variant.name, BEFORE, value, text))
        for check in CHECKS:
            for arm in variant.arms.values():
                flags.extend(check(study, variant, arm))
    return tuple(flags)


def _machinery(study: Study) -> Iterator[Flag]:
    """What casts doubt on every verdict of the sandbox."""
    sandbox, primary = study.manifest.sandbox, study.primary.name
    if UNSAFE in sandbox.get("tiers", ()):
        text = (
            "programs that nobody had read ran without a sandbox: they could have read the tests, or paid themselves."
        )
        yield Flag(UNCONTAINED, primary, ALL_ARMS, float(sandbox.get("executions", 0)), text)
    if incidents := sandbox.get("incidents", ()):
        text = f"{len(incidents)} time(s) a worker hung or died; each is listed under the sandbox."
        yield Flag(INCIDENTS, primary, ALL_ARMS, float(len(incidents)), text)
    for variant in study.variants:
        for arm in variant.arms.values():
            missing, samples = unjudged(arm)
            if missing:
                text = (
                    f"the sandbox could not judge {missing:,} of {samples:,} samples; they are left out of every share."
                )
                yield Flag(NOT_JUDGED, variant.name, arm.name, missing / samples, text)


def _collapse(study: Study, variant: Variant, arm: ArmRuns) -> Iterator[Flag]:
    sft, metric = variant.arms.get("sft"), study.manifest.metric
    if not study.trained_here:
        return  # a checkpoint from elsewhere is where it is; nothing is known of its end of training
    if sft is None or arm.name == "sft" or not any(marks := collapse_marks(arm, sft, metric)):
        return
    seeds = [cell.seed for cell, mark in zip(arm.cells, marks) if mark]
    drop = min(np.subtract(arm.figure(metric, "end"), sft.figure(metric)))
    size = f"{-drop:.2f} {study.manifest.gold_name}"
    text = f"ends below SFT in {len(seeds)} of {len(marks)} seeds (seed {_join(seeds)}), by up to {size}."
    yield Flag("collapse", variant.name, arm.name, float(drop), text)


def _divergence(study: Study, variant: Variant, arm: ArmRuns) -> Iterator[Flag]:
    """Gold falls by more than the margin after its best checkpoint while the proxy goes on rising."""
    falls, seeds = [], []
    for cell in arm.cells:
        names = ("selection/sampled/gold", "selection/sampled/proxy")
        points = [[p.metrics.get(name) for name in names] for p in cell.curve]
        points = [(g, p) for g, p in points if g is not None and p is not None]
        if len(points) < 2:
            continue
        best = max(range(len(points)), key=lambda i: points[i][0])
        fall = points[best][0] - points[-1][0]
        if fall > study.margin and points[-1][1] > points[best][1]:
            falls.append(fall)
            seeds.append(cell.seed)
    if falls:
        shown = by_example(study.manifest)
        proxy = "the share that passes its prompt's example" if shown else "the proxy"
        text = (
            f"{study.manifest.gold_name} falls by {max(falls):.2f} after its best checkpoint while {proxy} goes on "
            f"rising (seed {_join(seeds)}): {'the examples are' if shown else 'the proxy is'} being exploited."
        )
        yield Flag(f"proxy-{study.manifest.gold_name} divergence", variant.name, arm.name, float(max(falls)), text)


def _falling_logprobs(study: Study, variant: Variant, arm: ArmRuns) -> Iterator[Flag]:
    chosen, rejected = _change(arm, "pairs/logps_chosen"), _change(arm, "pairs/logps_rejected")
    if chosen is not None and rejected is not None and chosen < -LOGPROB_FALL and rejected < -LOGPROB_FALL:
        text = (
            f"log-probabilities of chosen ({chosen:+.1f} nats) and rejected ({rejected:+.1f}) both fall: "
            f"probability moves to responses that are in no pair.{_remedy(arm)}"
        )
        yield Flag("both log-probs fall", variant.name, arm.name, chosen, text)


def _remedy(arm: ArmRuns) -> str:
    """What to do, for arms that learn from the pairs alone: the others move by their own samples."""
    if any(point.sampled_tokens for cell in arm.cells for point in cell.curve):
        return " Its own samples decide where to: see the mass outside the pairs."
    return (
        " The loss sees the difference of the two alone. What helps: SFT on the chosen sides first, an NLL term "
        "(dpo-nll), DPO-positive, DPO-Iter, or PPO."
    )


def _outside(study: Study, variant: Variant, arm: ArmRuns) -> Iterator[Flag]:
    share, floor = _mean(arm, "test/sampled/outside"), _mean(variant.arms.get("sft"), "test/sampled/outside")
    if share is not None and share > OUTSIDE_SHARE and share > (floor or 0.0) + OUTSIDE_RISE:
        text = f"{share:.0%} of its samples have a structure that occurs in no preference pair{_beside(floor)}."
        yield Flag("mass outside the pairs", variant.name, arm.name, share, text)


def _over_refusal(study: Study, variant: Variant, arm: ArmRuns) -> Iterator[Flag]:
    key, floor = "test/sampled/refusal_benign", _mean(variant.arms.get("sft"), "test/sampled/refusal_benign")
    shares = [s for s in (_mean(arm, key), _mean(arm, key, "end")) if s is not None]
    if shares and max(shares) > (floor or 0.0) + REFUSAL_RISE:
        text = f"refuses up to {max(shares):.0%} of harmless requests{_beside(floor)}."
        yield Flag("over-refusal", variant.name, arm.name, max(shares), text)


def _length_drift(study: Study, variant: Variant, arm: ArmRuns) -> Iterator[Flag]:
    key = "test/sampled/length"
    length, floor = _mean(arm, key), _mean(variant.arms.get("sft"), key)
    if length is None or not floor or abs(length / floor - 1) <= LENGTH_DRIFT:
        return
    text = (
        f"responses are {length / floor - 1:+.0%} in length against SFT ({length:.1f} tokens beside {floor:.1f}): "
        "see the length-controlled difference."
    )
    yield Flag("length drift", variant.name, arm.name, length / floor - 1, text)


CHECKS: tuple[Callable[[Study, Variant, ArmRuns], Iterator[Flag]], ...] = (
    _collapse,
    _divergence,
    _falling_logprobs,
    _outside,
    _over_refusal,
    _length_drift,
)


def _mean(arm: ArmRuns | None, key: str, pick: str = "selected") -> float | None:
    values = arm.figure(key, pick) if arm else None
    return float(np.mean(values)) if values else None


def _change(arm: ArmRuns, key: str) -> float | None:
    """Mean over seeds of last minus first along the curve; None where a seed has fewer than two points."""
    curves = arm.curve(key)
    return float(np.mean([c[-1][1] - c[0][1] for c in curves])) if all(len(c) > 1 for c in curves) else None


def _beside(floor: float | None) -> str:
    return "" if floor is None else f" (SFT: {floor:.0%})"


def _join(seeds: list[int]) -> str:
    return ", ".join(map(str, seeds))
