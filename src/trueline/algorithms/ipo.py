"""Identity preference optimisation (Azar et al. 2023, arXiv 2310.12036): a margin that is aimed at, not maximised."""

from __future__ import annotations

from torch import Tensor

from trueline.algorithms.dpo import implicit_rewards
from trueline.algorithms.shapes import require_same_shape

__all__ = ["ipo_loss"]


def ipo_loss(chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, *, beta: float) -> Tensor:
    """(h - 1 / (2 beta))^2 per pair, h = (log pi - log ref)(chosen) - (log pi - log ref)(rejected) (equation 17).

    Each [B], the **sums** of `logprobs.sequence_logprobs`: the paper's pi(y|x) is a whole response's probability, and
    beta (its tau) the weight of the KL, as in DPO. TRL divides each log-prob by its response's length instead
    (huggingface/trl pull 1265, on the authors' advice); its beta is then per token and not comparable with this one.

    The minimum, 0, is at h = 1 / (2 beta) nats: deterministic labels cannot drive the margin to infinity. Where the
    policy is the reference it is (1 / (2 beta))^2. Gradient flows through `chosen` and `rejected`. A wrong shape or a
    beta that is not positive raises ValueError.
    """
    require_same_shape(chosen=chosen, rejected=rejected, ref_chosen=ref_chosen, ref_rejected=ref_rejected)
    if not beta > 0:
        raise ValueError(f"beta: must be positive, got {beta}")
    margins = implicit_rewards(chosen, ref_chosen, beta=1.0) - implicit_rewards(rejected, ref_rejected, beta=1.0)
    return (margins - 1 / (2 * beta)).square()
