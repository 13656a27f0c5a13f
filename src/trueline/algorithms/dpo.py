"""Direct preference optimisation (Rafailov et al. 2023, arXiv 2305.18290) and the losses that keep its margin.

Log-probs are sums over a response's tokens, those of `logprobs.sequence_logprobs`. The margin of a pair is
h = (log pi - log ref)(chosen) - (log pi - log ref)(rejected). Each loss is one value per pair, [B]; gradient flows
through `chosen` and `rejected`; a wrong shape or a setting out of range raises ValueError that names the argument.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from trueline.algorithms.masking import masked_mean_per_row
from trueline.algorithms.reward_modeling import bradley_terry_loss
from trueline.algorithms.shapes import require_same_shape, widened

__all__ = ["cdpo_loss", "dpo_loss", "dpo_positive_loss", "implicit_rewards", "ln_dpo_loss", "nll"]

_RESOLUTION = 1e-5  # a difference below this part of a log-prob is its rounding in float32, not a fall


def dpo_loss(chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, *, beta: float) -> Tensor:
    """-log sigmoid(beta h) per pair (equation 7).

    Each [B]. ln 2 where the policy is the reference. It is the Bradley-Terry loss of the implicit rewards.
    """
    _require_pairs(chosen, rejected, ref_chosen, ref_rejected, beta)
    return bradley_terry_loss(
        implicit_rewards(chosen, ref_chosen, beta=beta), implicit_rewards(rejected, ref_rejected, beta=beta)
    )


def cdpo_loss(
    chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, *, beta: float, label_smoothing: float
) -> Tensor:
    """-(1 - eps) log sigmoid(beta h) - eps log sigmoid(-beta h) per pair: labels are wrong with probability eps.

    Mitchell 2023, "A note on DPO with noisy preferences & relationship to IPO", equation 3. Each [B]. ln 2 where the
    policy is the reference, whatever eps; its minimum is at beta h = log((1 - eps) / eps), where DPO has none.
    `label_smoothing` is eps, in [0, 0.5); 0 is DPO.
    """
    _require_pairs(chosen, rejected, ref_chosen, ref_rejected, beta)
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(f"label_smoothing: must lie in [0, 0.5), got {label_smoothing}")
    kept = dpo_loss(chosen, rejected, ref_chosen, ref_rejected, beta=beta)
    flipped = dpo_loss(rejected, chosen, ref_rejected, ref_chosen, beta=beta)
    return (1 - label_smoothing) * kept + label_smoothing * flipped


def dpo_positive_loss(
    chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, *, beta: float, penalty: float
) -> Tensor:
    """-log sigmoid(beta (h - penalty max(0, (log ref - log pi)(chosen)))) per pair (DPOP, equation 3).

    Pal et al. 2024 (arXiv 2402.13228), whose lambda is `penalty`; 0 is DPO. Each [B]. A chosen response that has become
    less likely than under the reference lowers the margin `penalty` times as much, so both sides cannot fall together.
    The start lies on the kink of the max: a fall below 1e-5 of the reference's log-prob is rounding and counts as none.
    """
    _require_pairs(chosen, rejected, ref_chosen, ref_rejected, beta)
    if not penalty >= 0:
        raise ValueError(f"penalty: must not be negative, got {penalty}")
    fall = widened(ref_chosen) - widened(chosen)
    fell = fall > _RESOLUTION * widened(ref_chosen).abs()
    shortfall = torch.where(fell, fall, torch.zeros_like(fall))
    margins = implicit_rewards(chosen, ref_chosen, beta=beta) - implicit_rewards(rejected, ref_rejected, beta=beta)
    return -logsigmoid(margins - beta * penalty * shortfall)


def ln_dpo_loss(
    chosen: Tensor,
    rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    chosen_lengths: Tensor,
    rejected_lengths: Tensor,
    *,
    beta: float,
) -> Tensor:
    """DPO on per-token means: -log sigmoid(beta (log pi/ref (chosen) / |chosen| - log pi/ref (rejected) / |rejected|)).

    Length-normalised DPO of Lambert et al. 2024 (Tulu 3, arXiv 2411.15124, section 5). Each [B]; the log-probs are sums
    still, lengths are response tokens. Length 1 is DPO. beta is larger by about a response's length: 5 in Tulu 3.
    """
    _require_pairs(chosen, rejected, ref_chosen, ref_rejected, beta)
    _require_lengths(chosen, chosen_lengths=chosen_lengths, rejected_lengths=rejected_lengths)
    return bradley_terry_loss(
        implicit_rewards(chosen, ref_chosen, beta=beta) / chosen_lengths,
        implicit_rewards(rejected, ref_rejected, beta=beta) / rejected_lengths,
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


def _require_pairs(chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, beta: float) -> None:
    require_same_shape(chosen=chosen, rejected=rejected, ref_chosen=ref_chosen, ref_rejected=ref_rejected)
    if not beta > 0:
        raise ValueError(f"beta: must be positive, got {beta}")


def _require_lengths(chosen: Tensor, **lengths: Tensor) -> None:
    require_same_shape(chosen=chosen, **lengths)
    for name, values in lengths.items():
        if not bool((values > 0).all()):
            raise ValueError(f"{name}: a response needs at least one token")
