"""Conservative DPO (Mitchell 2023): the labels are taken to be wrong with a known probability.

The margin is then aimed at and not driven to infinity.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from pydantic import Field

from trueline.algorithms.dpo import cdpo_loss
from trueline.training.preference import PairLogprobs, PairLosses, ReferenceSettings, fit
from trueline.training.stage import Stage

__all__ = ["LEARNS_FROM", "SEARCH", "Config", "train"]

LEARNS_FROM = "pairs"
# Log ranges of a random search at 1 to 8 billion parameters.
SEARCH: Mapping[str, tuple[float, float]] = {"learning_rate": (1e-7, 1e-5), "beta": (0.03, 0.5)}


class Config(ReferenceSettings):
    """`cdpo.*`"""

    beta: float = Field(0.1, gt=0, description="weight of the KL to the reference that the pairs are fitted under")
    label_smoothing: float = Field(
        0.1, ge=0, lt=0.5, description="probability that a label is wrong; 0 is DPO", json_schema_extra={"off": 0.0}
    )


def objective(config: Config) -> str:
    """The effective objective in one line."""
    extra = f" + {config.nll_coef:g} NLL(chosen)" if config.nll_coef else ""
    reference = f"EMA {config.ema_eta:g} of the policy" if config.ema_eta else "SFT, fixed"
    return (
        f"cDPO: minimise -{1 - config.label_smoothing:g} log sigmoid(d) - {config.label_smoothing:g} log sigmoid(-d), "
        f"d = {config.beta:g} (log pi/ref (chosen) - log pi/ref (rejected)){extra}; "
        f"reference: {reference}; "
        f"{config.epochs:g} epochs, batch {config.batch_size}, lr {config.learning_rate:g} {config.schedule}"
    )


def train(config: Config, stage: Stage) -> None:
    """Train from SFT and save `model/`. Needs `inputs["sft"]` and `inputs["pairs"]`."""

    def loss(pairs: PairLogprobs) -> PairLosses:
        losses = cdpo_loss(*pairs.sides, beta=config.beta, label_smoothing=config.label_smoothing)
        return PairLosses(losses, *pairs.implicit_rewards(config.beta))

    fit(config, stage, objective(config), loss, name="loss/cdpo", start=math.log(2))
