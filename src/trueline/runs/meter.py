"""What a run spent, counted the same way for every method, so that budgets compare.

FLOPs: 2 per parameter and token for a forward pass, 6 for a training step (forward and backward), 4 where the weights
are frozen under adapters; attention's own products are left out (a few percent at these lengths). Tokens are real ones,
prompts included; padding is not counted.
"""

from __future__ import annotations

import resource
import sys
from dataclasses import asdict, dataclass, fields
from typing import Any

__all__ = ["CLOCKS", "COST_KEYS", "BudgetMeter", "Cost"]

CLOCKS = ("seconds", "peak_memory_bytes")
"""Costs that differ between two equal runs."""


@dataclass(frozen=True)
class Cost:
    """Totals. `seconds` is wall clock without evaluation; `peak_memory_bytes` of the process."""

    seconds: float = 0.0
    flops: float = 0.0
    sampled_tokens: int = 0
    trained_tokens: int = 0
    reward_calls: int = 0
    labels: int = 0
    prompts: int = 0
    peak_memory_bytes: int = 0

    def __add__(self, other: Cost) -> Cost:
        """Both costs together: the peak is the larger one, everything else adds up."""
        total = {f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)}
        return Cost(**total | {"peak_memory_bytes": max(self.peak_memory_bytes, other.peak_memory_bytes)})

    def as_dict(self) -> dict[str, Any]:
        """The totals by name."""
        return asdict(self)


COST_KEYS = tuple(f.name for f in fields(Cost))


class BudgetMeter:
    """Counts as training goes along; `trained` are the FLOPs of a training step per parameter and token."""

    def __init__(self, trained: float = 6.0) -> None:
        self.trained = trained
        self.flops = 0.0
        self.sampled_tokens = self.trained_tokens = self.reward_calls = self.labels = self.prompts = 0
        self.seconds = 0.0

    def forward(self, parameters: int, tokens: int) -> None:
        """A forward pass of a model of `parameters` over `tokens`."""
        self.flops += 2.0 * parameters * tokens

    def train(self, parameters: int, tokens: int) -> None:
        """A training step of a model of `parameters` on `tokens`."""
        self.flops += self.trained * parameters * tokens
        self.trained_tokens += tokens

    def sample(self, parameters: int, prompt_tokens: int, sampled: int) -> None:
        """Sampling `sampled` tokens behind `prompt_tokens`."""
        self.flops += 2.0 * parameters * (prompt_tokens + sampled)
        self.sampled_tokens += sampled

    def cost(self) -> Cost:
        """The totals so far."""
        return Cost(
            self.seconds,
            self.flops,
            self.sampled_tokens,
            self.trained_tokens,
            self.reward_calls,
            self.labels,
            self.prompts,
            peak_memory(),
        )

    def state(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Every count. The clock is no part of what a run computes: its log keeps it."""
        names = ("flops", "sampled_tokens", "trained_tokens", "reward_calls", "labels", "prompts")
        return {}, {name: getattr(self, name) for name in names}

    def load(self, state: tuple[dict[str, Any], dict[str, Any]]) -> None:
        """Back to the totals of a state."""
        for name, value in state[1].items():
            setattr(self, name, value)


def peak_memory() -> int:
    """Largest resident size of this process so far, in bytes."""
    usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return usage if sys.platform == "darwin" else usage * 1024
