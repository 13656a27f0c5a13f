"""The KL coefficient of the shaped reward: fixed, or steered towards a target."""

from __future__ import annotations

from typing import Any

from torch import Tensor

__all__ = ["AdaptiveKL", "FixedKL"]

State = tuple[dict[str, Tensor], dict[str, Any]]


class FixedKL:
    """A coefficient that stays as it is."""

    def __init__(self, coef: float) -> None:
        self.coef = coef

    def update(self, kl: float, n: int) -> None:
        """Nothing: the measured KL has no say."""

    def state(self) -> State:
        """No tensors; the coefficient."""
        return {}, {"coef": self.coef}

    def load(self, state: State) -> None:
        """Continue with the coefficient of a `state()`."""
        self.coef = float(state[1]["coef"])


class AdaptiveKL:
    """Ziegler et al. 2019 (arXiv 1909.08593), section 2.2: a proportional controller in log space.

    e = clip(KL / target - 1, -0.2, 0.2), coef <- coef (1 + e n / horizon). `kl` is the mean **sequence** KL of the
    batch in nats, positive when the policy has moved; `n` the number of responses it was measured on; `horizon` in
    responses.
    """

    def __init__(self, coef: float, target: float, horizon: float) -> None:
        for name, value in (("coef", coef), ("target", target), ("horizon", horizon)):
            if not value > 0:
                raise ValueError(f"{name}: must be positive, got {value}")
        self.coef, self.target, self.horizon = coef, target, horizon

    def update(self, kl: float, n: int) -> None:
        """Move the coefficient after a batch of `n` responses whose mean KL was `kl`."""
        error = min(max(kl / self.target - 1, -0.2), 0.2)
        self.coef *= 1 + error * n / self.horizon

    def state(self) -> State:
        """No tensors; the coefficient, with the settings it was steered by."""
        return {}, {"coef": self.coef, "target": self.target, "horizon": self.horizon}

    def load(self, state: State) -> None:
        """Continue with the coefficient of a `state()`. Raises ValueError where target or horizon differ."""
        settings = state[1]
        if (settings["target"], settings["horizon"]) != (self.target, self.horizon):
            raise ValueError(f"state: made with {settings}, this controller has {self.state()[1]}")
        self.coef = float(settings["coef"])
