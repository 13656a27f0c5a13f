"""DPO-positive (Pal et al. 2024, arXiv 2402.13228): a chosen response that becomes less likely is penalised.

The loss of DPO is content when both sides fall and the rejected one falls faster; this one is not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from pydantic import Field

from trueline.algorithms.dpo import dpo_positive_loss
from trueline.training.preference import PairLogprobs, PairLosses, ReferenceSettings, fit
from trueline.training.stage import Stage

__all__ = ["LEARNS_FROM", "SEARCH", "Config", "train"]

LEARNS_FROM = "pairs"
# Log ranges of a random search at 1 to 8 billion parameters.
SEARCH: Mapping[str, tuple[float, float]] = {"learning_rate": (1e-7, 1e-5), "beta": (0.03, 0.5)}


class Config(ReferenceSettings):
    """`dpo_positive.*`"""

    beta: float = Field(0.3, gt=0, description="weight of the KL to the reference that the pairs are fitted under")
    penalty: float = Field(
        50.0,
        ge=0,
        description="weight of the chosen response's fall below the reference (lambda); 0 is DPO",
        json_schema_extra={"off": 0.0},
    )


def objective(config: Config) -> str:
    """The effective objective in one line."""
    extra = f" + {config.nll_coef:g} NLL(chosen)" if config.nll_coef else ""
    reference = f"EMA {config.ema_eta:g} of the policy" if config.ema_eta else "SFT, fixed"
    return (
        f"DPOP: minimise -log sigmoid({config.beta:g} (log pi/ref (chosen) - log pi/ref (rejected) "
        f"- {config.penalty:g} max(0, log ref/pi (chosen)))){extra}; "
        f"reference: {reference}; "
        f"{config.epochs:g} epochs, batch {config.batch_size}, lr {config.learning_rate:g} {config.schedule}"
    )


def train(config: Config, stage: Stage) -> None:
    """Train from SFT and save `model/`. Needs `inputs["sft"]` and `inputs["pairs"]`."""

    def loss(pairs: PairLogprobs) -> PairLosses:
        losses = dpo_positive_loss(*pairs.sides, beta=config.beta, penalty=config.penalty)
        return PairLosses(losses, *pairs.implicit_rewards(config.beta))

    fit(config, stage, objective(config), loss, name="loss/dpo_positive", start=math.log(2))
