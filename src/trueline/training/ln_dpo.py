"""Length-normalised DPO (Lambert et al. 2024, Tulu 3, arXiv 2411.15124): log-ratios per token.

A long response then has no larger implicit reward than a short one for its length alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from pydantic import Field

from trueline.algorithms.dpo import ln_dpo_loss
from trueline.training.preference import PairLogprobs, PairLosses, ReferenceSettings, fit
from trueline.training.stage import Stage

__all__ = ["LEARNS_FROM", "SEARCH", "Config", "train"]

LEARNS_FROM = "pairs"
# Log ranges of a random search at 1 to 8 billion parameters.
SEARCH: Mapping[str, tuple[float, float]] = {"learning_rate": (1e-7, 1e-5), "beta": (1.0, 20.0)}


class Config(ReferenceSettings):
    """`ln_dpo.*`"""

    beta: float = Field(5.0, gt=0, description="weight of the per-token KL to the reference")


def objective(config: Config) -> str:
    """The effective objective in one line."""
    extra = f" + {config.nll_coef:g} NLL(chosen)" if config.nll_coef else ""
    reference = f"EMA {config.ema_eta:g} of the policy" if config.ema_eta else "SFT, fixed"
    return (
        f"length-normalised DPO: minimise -log sigmoid({config.beta:g} (log pi/ref (chosen) per token "
        f"- log pi/ref (rejected) per token)){extra}; "
        f"reference: {reference}; "
        f"{config.epochs:g} epochs, batch {config.batch_size}, lr {config.learning_rate:g} {config.schedule}"
    )


def train(config: Config, stage: Stage) -> None:
    """Train from SFT and save `model/`. Needs `inputs["sft"]` and `inputs["pairs"]`."""

    def loss(pairs: PairLogprobs) -> PairLosses:
        losses = ln_dpo_loss(*pairs.sides, pairs.chosen_lengths, pairs.rejected_lengths, beta=config.beta)
        chosen, rejected = pairs.implicit_rewards(config.beta)
        return PairLosses(losses, chosen / pairs.chosen_lengths, rejected / pairs.rejected_lengths)

    fit(config, stage, objective(config), loss, name="loss/ln_dpo", start=math.log(2))
