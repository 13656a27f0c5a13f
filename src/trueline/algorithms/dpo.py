"""Direct preference optimisation (Rafailov et al. 2023, arXiv 2305.18290).

Log-probs are sums over a response's tokens.
"""

from __future__ import annotations

from torch import Tensor

from trueline.algorithms.masking import masked_mean_per_row
from trueline.algorithms.reward_modeling import bradley_terry_loss
from trueline.algorithms.shapes import require_same_shape, widened

__all__ = ["dpo_loss", "implicit_rewards", "nll"]


def dpo_loss(chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, *, beta: float) -> Tensor:
    """-log sigmoid(beta [(log pi - log ref)(chosen) - (log pi - log ref)(rejected)]) per pair (equation 7).

    Each [B], the sequence log-probs of `logprobs.sequence_logprobs`. ln 2 where the policy is the reference. It is the
    Bradley-Terry loss of the implicit rewards. Gradient flows through `chosen` and `rejected`.
    """
    require_same_shape(chosen=chosen, rejected=rejected, ref_chosen=ref_chosen, ref_rejected=ref_rejected)
    if not beta > 0:
        raise ValueError(f"beta: must be positive, got {beta}")
    return bradley_terry_loss(
        implicit_rewards(chosen, ref_chosen, beta=beta), implicit_rewards(rejected, ref_rejected, beta=beta)
    )


def implicit_rewards(logprobs: Tensor, ref_logprobs: Tensor, *, beta: float) -> Tensor:
    """beta (log pi - log ref) per response: the reward whose KL-regularised optimum this policy is (section 4)."""
    require_same_shape(logprobs=logprobs, ref_logprobs=ref_logprobs)
    return beta * (widened(logprobs) - widened(ref_logprobs))


def nll(logprobs: Tensor, mask: Tensor) -> Tensor:
    """-(1/|y|) sum_t log pi(y_t) per row, [B, T] -> [B]: the term on the chosen response of Pang et al. 2024.

    arXiv 2404.19733, section 2: the negative log-likelihood is divided by the response's own length, the DPO term is
    not. Raises ValueError where a row counts no token.
    """
    return -masked_mean_per_row(logprobs, mask)
