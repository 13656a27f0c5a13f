"""Model FLOPs of the useful work of a round, counted alike for both sides (`runs.meter`): 2 per parameter and token of
a forward pass, 6 of a training step, real tokens alone, attention's own products left out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trueline.benchmarks.work import ONLINE, SHAPES, Work

__all__ = ["parameter_count", "round_flops", "round_tokens"]

# passes over every token of a sample: sampling, reference, reward model, critic, and the updates
_FORWARDS = {"ppo": 4, "grpo": 3, "rloo": 3, "rollout": 1}


def parameter_count(size: str) -> int:
    """Parameters of a size, tied embeddings once."""
    hidden, intermediate, layers, heads, kv_heads, vocabulary, family = SHAPES[size]
    keys = hidden // heads * kv_heads
    biases = hidden + 2 * keys if family == "qwen2" else 0
    layer = 2 * hidden * hidden + 2 * hidden * keys + 3 * hidden * intermediate + 2 * hidden + biases
    return vocabulary * hidden + layers * layer + hidden


def round_tokens(work: Work, rows: Sequence[dict[str, Any]], mean_length: float | None) -> float:
    """Real tokens of a round: of its rows, or, where they were sampled, of the mean prompt and the mean sampled length.

    A prompt that several responses share counts once: computing it again is no useful work.
    """
    prompt = sum(len(row["prompt"]) for row in rows)
    if work.kind in ONLINE:
        if mean_length is None:
            raise ValueError("mean_length: a round that samples must say how long its responses were")
        return work.batch_size * (prompt / len(rows) / work.samples_per_prompt + mean_length)
    sides = ("chosen",) if work.kind == "sft" else ("chosen", "rejected")
    return float(prompt + sum(len(row[side]) for row in rows for side in sides))


def round_flops(work: Work, tokens: float) -> float:
    """FLOPs of a round of that many tokens; reference, reward model and critic have the policy's size."""
    n = parameter_count(work.size)
    trained = {"ppo": 2 * work.epochs, "rollout": 0}.get(work.kind, 1)
    forwards = _FORWARDS.get(work.kind, 1 if work.kind == "dpo" else 0)
    return n * tokens * (2.0 * forwards + 6.0 * trained)
