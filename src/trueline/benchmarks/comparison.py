"""One comparison from its name to its record: prepare, run both sides in turn, show that they agree, reckon."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from operator import truediv
from pathlib import Path
from typing import Any, Literal

from trueline.benchmarks.environments import PPO_TRL, peer_environment, requirements
from trueline.benchmarks.equality import check_equal
from trueline.benchmarks.flops import parameter_count, round_flops, round_tokens
from trueline.benchmarks.machine import describe, peak_gemm
from trueline.benchmarks.sides import Round, Side, our_side, peer_side, rounds_in_turn
from trueline.benchmarks.starting import Start, starting_models
from trueline.benchmarks.work import ONLINE, Work, batches_of, in_our_order, write_work
from trueline.errors import RunError

__all__ = ["Against", "compare", "default_rounds", "spread", "today"]

Against = Literal["trl", "self"]

_IDLE = 0.05
"""Of the other side's round: processor time that a waiting side may burn."""


def default_rounds(kind: str) -> int:
    """Rounds of each side that count."""
    return 3 if kind in ("ppo", "grpo", "rloo") else 7


def compare(
    work: Work, against: Against = "trl", *, rounds: int | None = None, say: Callable[[str], None] = lambda text: None,
    step: Callable[[], None] = lambda: None,
) -> dict[str, Any]:  # fmt: skip
    """The record of our side against the peer, or against itself: the control, whose ratio is about 1.

    `say` hears what is about to begin, `step` each finished round. Raises InputError where the peer cannot be
    installed, RunError where a side dies or the two results differ.
    """
    rounds = rounds or default_rounds(work.kind)
    environment = peer_environment(say) if against == "trl" else None
    with tempfile.TemporaryDirectory(prefix="trueline-bench-") as name, ExitStack() as stack:
        folder = Path(name)
        say("preparing the models")
        start, batches = starting_models(work, folder / "start"), batches_of(work, rounds + 1)
        for side in ("ours", "peer"):
            write_work(work, folder / side, start.model, start.reward, batches)
        say("measuring the best matrix product")
        gemm = peak_gemm(work.precision, work.device, work.threads)
        sides = [our_side(folder / "ours", work.threads)]
        if environment is None:
            sides.append(our_side(folder / "peer", work.threads, "ours again"))
        else:
            sides.append(peer_side(work.kind, folder / "peer", work.threads, environment))
        say("starting both sides")
        for side in sides:  # one after the other: a set-up that times its own settings must be alone
            stack.enter_context(side).ready()
        say(f"{rounds} rounds of each side after one that warms up")
        found = rounds_in_turn(sides, rounds, step)
    return _record(work, against, sides, found, start, batches, gemm)


def _record(
    work: Work, against: Against, sides: Sequence[Side], found: list[list[Round]], start: Start,
    batches: list[list[dict[str, Any]]], gemm: dict[str, Any],
) -> dict[str, Any]:  # fmt: skip
    ours, peer = found
    equal = check_equal(work, [r.result for r in ours], [r.result for r in peer], start.samples)
    ratios = [b.seconds / a.seconds for a, b in zip(ours[1:], peer[1:])]
    names = {"self": "ours again"} | {"trl": _peer_name(work.kind)}
    described = {"what": "trueline, the page that users run"} | _figures(work, ours, batches, gemm)
    against_it = {"what": names[against], **sides[1].facts} | _figures(work, peer, batches, gemm)
    _check_idle(described, against_it)
    return {
        "name": work.kind, "against": against, "ours": described, "peer": against_it,
        "ratio": {**spread(ratios), "all": ratios}, "equal": equal, "rounds": len(ratios),
        "work": work.described() | _about(work, ours, peer, batches, start),
        "machine": describe(work.device, work.threads) | {"gemm": gemm},
        "versions": {"ours": sides[0].versions, "peer": sides[1].versions},
        "date": today(),
    }  # fmt: skip


def today() -> str:
    """The date of a record."""
    return datetime.now(UTC).strftime("%Y-%m-%d")


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, smallest and largest."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def _figures(work: Work, rounds: list[Round], batches: list, gemm: dict[str, Any]) -> dict[str, Any]:
    """One side's figures; the round that warmed up is left out of all but the memory."""
    counted = rounds[1:]
    tokens = [
        round_tokens(work, _rows(work, batches, number), round_.result.get("val/length"))
        for number, round_ in enumerate(counted, 1)
    ]
    flops = [round_flops(work, count) for count in tokens]
    seconds = [round_.seconds for round_ in counted]
    speeds = [flop / second for flop, second in zip(flops, seconds)]
    sampled = [work.batch_size * r.result["val/length"] for r in counted] if work.kind in ONLINE else []
    device = [r.device_peak_mb for r in rounds if r.device_peak_mb is not None]
    return {
        "seconds": spread(seconds) | {"all": seconds},
        "cpu_seconds": spread([r.cpu for r in counted]) | {"all": [r.cpu for r in counted]},
        "waited_cpu_seconds": max(r.waited_cpu for r in counted),
        "peak_mb": max(r.peak_mb for r in rounds),
        **({"device_peak_mb": max(device)} if device else {}),
        "tokens_per_second": statistics.median(count / second for count, second in zip(tokens, seconds)),
        "samples_per_second": statistics.median(work.batch_size / second for second in seconds),
        **({"sampled_tokens_per_second": statistics.median(map(truediv, sampled, seconds))} if sampled else {}),
        "model_flops": statistics.median(flops),
        "gflops": statistics.median(speeds) / 1e9,
        "gemm_share": statistics.median(speeds) / 1e9 / gemm["gflops"],
    }  # fmt: skip


def _rows(work: Work, batches: list, number: int) -> list[dict[str, Any]]:
    """Rows of that round: where an order is shuffled, any batch of prompts stands for the mean of all."""
    if work.kind == "rollout":
        return batches[number % len(batches)]
    rows = [row for batch in batches for row in batch]
    if work.kind in ONLINE:
        return rows
    return in_our_order(work.kind, work.seed, rows)[number * work.batch_size : (number + 1) * work.batch_size]


def _check_idle(ours: dict[str, Any], peer: dict[str, Any]) -> None:
    for waiting, running in ((ours, peer), (peer, ours)):
        allowed = max(0.05, _IDLE * running["seconds"]["max"])
        if waiting["waited_cpu_seconds"] > allowed:
            raise RunError(
                f"bench: {waiting['what']} burnt {waiting['waited_cpu_seconds']:.2f} processor seconds while it waited "
                f"for a round of {running['seconds']['max']:.2f}: it disturbed the other side"
            )


def _about(work: Work, ours: list[Round], peer: list[Round], batches: list, start: Start) -> dict[str, Any]:
    rows = [row for batch in batches for row in batch]
    lengths = {name: sum(len(row[name]) for row in rows) / len(rows) for name in ("prompt", "chosen")}
    found: dict[str, Any] = {"parameters": parameter_count(work.size), "mean_prompt": lengths["prompt"]}
    if work.kind in ONLINE:
        found["mean_sampled"] = {
            name: statistics.mean(r.result["val/length"] for r in side[1:])
            for name, side in (("ours", ours), ("peer", peer))
        }
        found["ended"] = start.samples["ended"]["mean"]
    else:
        found["mean_response"] = lengths["chosen"]
    notes = {
        "dpo": "our rounds include the reference's scores of their pairs, once; the peer computes them each step",
        "grpo": "our KL is in the scores, the peer's in the loss; both score every token under the reference once",
    }
    tuned = "gradient checkpointing off, everything else at its defaults"
    if work.kind == "ppo":
        tuned += f"; {work.peer.get('gradient_accumulation_steps', 1)} gradient accumulation steps, the faster choice"
    if work.kind == "rollout":
        tuned = "the fastest of dynamic cache, static cache and static cache with a compiled forward pass"
    found["tuned"] = f"peer: {tuned}; {work.precision} on both sides"
    return found | ({"note": notes[work.kind]} if work.kind in notes else {})


def _peer_name(kind: str) -> str:
    versions = dict(item.partition("==")[::2] for item in requirements())
    trl = PPO_TRL if kind == "ppo" else versions["trl"]
    return f"transformers {versions['transformers']} generate" if kind == "rollout" else f"TRL {trl} {kind}"
