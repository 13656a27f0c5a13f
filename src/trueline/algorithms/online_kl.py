"""The online half of HyPO (Song et al. 2024, arXiv 2406.01462): reverse KL on the policy's own fresh samples.

An offline loss says nothing of what the policy does away from the pairs; this term does.
"""

from __future__ import annotations

from torch import Tensor

from trueline.algorithms.shapes import require_same_shape, widened

__all__ = ["online_kl"]


def online_kl(logprobs: Tensor, ref_logprobs: Tensor, *, baseline: Tensor | None = None) -> Tensor:
    """KL(pi || ref) per response y sampled from pi, [B], [B] -> [B] (algorithm 1). With d = log pi(y) - log ref(y):

        value       d                                   its mean is the KL of whole responses
        gradient    sg(d - baseline) grad log pi(y)     its mean is the KL's gradient

    Differentiating d itself would give grad log pi, whose mean is 0: samples are fixed, the distribution is what moves.
    Log-probs are sums over the response. `baseline` [B] lowers the variance; it leaves the mean gradient alone where
    row i does not depend on response i (the mean of the other rows, say). Gradient flows through `logprobs` alone, and
    the samples must be of the very weights that score them. A wrong shape raises ValueError.
    """
    require_same_shape(logprobs=logprobs, ref_logprobs=ref_logprobs)
    wide = widened(logprobs)
    ratios = (wide - widened(ref_logprobs)).detach()
    weights = ratios
    if baseline is not None:
        require_same_shape(logprobs=logprobs, baseline=baseline)
        weights = ratios - baseline.detach()
    return ratios + weights * (wide - wide.detach())
