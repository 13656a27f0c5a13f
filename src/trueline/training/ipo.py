"""Identity preference optimisation (Azar et al. 2023, arXiv 2310.12036): a squared distance to a target margin.

Labels without noise cannot drive the margin to infinity, as they can in DPO.
"""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field

from trueline.algorithms.ipo import ipo_loss
from trueline.training.preference import PairLogprobs, PairLosses, ReferenceSettings, fit
from trueline.training.stage import Stage

__all__ = ["LEARNS_FROM", "SEARCH", "Config", "train"]

LEARNS_FROM = "pairs"
# Log ranges of a random search at 1 to 8 billion parameters.
SEARCH: Mapping[str, tuple[float, float]] = {"learning_rate": (1e-7, 1e-5), "beta": (0.01, 1.0)}


class Config(ReferenceSettings):
    """`ipo.*`"""

    beta: float = Field(0.1, gt=0, description="weight of the KL (the paper's tau); the target margin is 1 / (2 beta)")


def objective(config: Config) -> str:
    """The effective objective in one line."""
    extra = f" + {config.nll_coef:g} NLL(chosen)" if config.nll_coef else ""
    reference = f"EMA {config.ema_eta:g} of the policy" if config.ema_eta else "SFT, fixed"
    return (
        f"IPO: minimise (log pi/ref (chosen) - log pi/ref (rejected) - {1 / (2 * config.beta):g})^2{extra}; "
        f"reference: {reference}; "
        f"{config.epochs:g} epochs, batch {config.batch_size}, lr {config.learning_rate:g} {config.schedule}"
    )


def train(config: Config, stage: Stage) -> None:
    """Train from SFT and save `model/`. Needs `inputs["sft"]` and `inputs["pairs"]`."""

    def loss(pairs: PairLogprobs) -> PairLosses:
        return PairLosses(ipo_loss(*pairs.sides, beta=config.beta), *pairs.implicit_rewards(config.beta))

    target = 1 / (2 * config.beta)
    # The square's slope is twice the target: a thousandth of a nat of rounding is allowed.
    gate = {"start": target**2, "tolerance": 2e-3 * max(1.0, target)}
    fit(config, stage, objective(config), loss, name="loss/ipo", **gate)
