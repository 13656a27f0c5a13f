"""Averages over training: the moving reference, and the running moments that normalise values."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from trueline.algorithms.masking import Moments, masked_moments

__all__ = ["RunningMoments", "ema_update_"]


@torch.no_grad()
def ema_update_(target_params: Iterable[Tensor], source_params: Iterable[Tensor], *, eta: float) -> None:
    """target <- eta source + (1 - eta) target, in place: the moving reference, after every optimiser step.

    arXiv 2404.10719, section 5; eta 0.001 in ReaLHF's example. The parameters come in the same order on both sides.
    Keep targets in float32: in bfloat16 a step of eta 0.001 is below the rounding and the reference never moves.
    Raises ValueError on eta outside [0, 1], on a different number of parameters or on a different shape.
    """
    targets, sources = list(target_params), list(source_params)
    if not 0 <= eta <= 1:
        raise ValueError(f"eta: must lie in [0, 1], got {eta}")
    if len(targets) != len(sources):
        raise ValueError(f"source_params: {len(sources)} tensors for {len(targets)} targets")
    for index, (target, source) in enumerate(zip(targets, sources)):
        if target.shape != source.shape:
            raise ValueError(f"source_params: tensor {index} is {tuple(source.shape)}, target {tuple(target.shape)}")
    if targets:
        torch._foreach_lerp_(targets, [source.to(target) for target, source in zip(targets, sources)], eta)


class RunningMoments:
    """Exponential running mean and standard deviation of returns, debiased like Adam's moments.

    m <- beta m + (1 - beta) mean(x), s <- beta s + (1 - beta) mean(x^2), w <- beta w + (1 - beta); the estimates are
    m / w and s / w - (m / w)^2. ReaLHF's `exp` value normalisation: beta 0.99995, every batch the same weight whatever
    its size, the variance never below `var_floor`, float64. Until the first update it is the identity.
    """

    def __init__(self, *, beta: float = 0.99995, eps: float = 1e-5, var_floor: float = 1e-2) -> None:
        if not 0 <= beta < 1:
            raise ValueError(f"beta: must lie in [0, 1), got {beta}")
        self.beta, self.eps, self.var_floor = beta, eps, var_floor
        self._mean, self._square, self._weight = (torch.zeros((), dtype=torch.float64) for _ in range(3))

    def update(self, x: Tensor, mask: Tensor) -> None:
        """Take in the counted tokens of one batch. An empty mask changes nothing."""
        self.update_from(masked_moments(x, mask))

    def update_from(self, moments: Moments) -> None:
        """Take in one batch given by its moments, for instance those merged over all ranks."""
        count, mean, m2 = (float(m) for m in moments)
        if count:
            self._mean.lerp_(torch.tensor(mean, dtype=torch.float64), 1 - self.beta)
            self._square.lerp_(torch.tensor(m2 / count + mean * mean, dtype=torch.float64), 1 - self.beta)
            self._weight.lerp_(torch.ones((), dtype=torch.float64), 1 - self.beta)

    @property
    def mean(self) -> float:
        """The debiased mean; 0 before the first update."""
        return float(self._mean / self._weight) if self._weight else 0.0

    @property
    def std(self) -> float:
        """The debiased standard deviation, from a variance of at least `var_floor`; 1 before the first update."""
        if not self._weight:
            return 1.0
        var = float(self._square / self._weight) - self.mean**2
        return max(var, self.var_floor) ** 0.5

    def normalize(self, x: Tensor) -> Tensor:
        """(x - mean) / (std + eps). Not clipped: ReaLHF's +-5 on normalised returns is the caller's step."""
        return (x - self.mean) / (self.std + self.eps)

    def denormalize(self, x: Tensor) -> Tensor:
        """x (std + eps) + mean, the inverse of `normalize`."""
        return x * (self.std + self.eps) + self.mean

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The accumulators as tensors and the settings as JSON."""
        tensors = {"mean": self._mean, "square": self._square, "weight": self._weight}
        settings = {"beta": self.beta, "eps": self.eps, "var_floor": self.var_floor}
        return {name: tensor.clone() for name, tensor in tensors.items()}, settings

    def load(self, state: tuple[dict[str, Tensor], dict[str, Any]]) -> None:
        """Continue from a `state()`. Raises ValueError where it was made with other settings."""
        tensors, settings = state
        own = self.state()[1]
        if settings != own:
            raise ValueError(f"state: made with {settings}, these running moments have {own}")
        self._mean, self._square, self._weight = (
            tensors[name].detach().to("cpu", torch.float64, copy=True) for name in ("mean", "square", "weight")
        )
