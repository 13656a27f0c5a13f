"""From prompts to experience, shared by the methods that learn from their own samples: sample, score, re-score."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from trueline.algorithms.divergence import kl_k1, kl_k3
from trueline.algorithms.logprobs import sequence_logprobs
from trueline.algorithms.ppo import truncated_importance
from trueline.data.batches import Tokenized, common_prompts, micro_batches
from trueline.models.decoder import Decoder
from trueline.models.scoring import exact_kl, response_logprobs
from trueline.rollout.engine import Rollout
from trueline.seeds import permutation, uniforms
from trueline.training.feedback import Score
from trueline.training.memory import each
from trueline.training.preflight import end_gate, logprob_gate, sampled_gate
from trueline.training.stage import Stage

__all__ = ["Experience", "collect", "kl_metrics", "over_rows", "rescore"]

_PROBE_ROWS, _PROBE_SHARE = 64, 8
"""The full-vocabulary KL and, under a moving reference, the KL to SFT are measured on an eighth of the rows, 64 at
most: two more passes over all of a small batch would be a twentieth of a step."""


@dataclass(frozen=True)
class Experience:
    """One batch of samples with what is known of them before the update; all [B, T] unless said.

    old_logprobs are recomputed by the trainer; ref_logprobs are of the present reference; scores [B] are clipped and
    zero where there is none. `scored` [B] is False for a response that did not end by itself, and for one that could
    not be judged; raw_scores are NaN for the latter.
    """

    rollout: Rollout
    old_logprobs: Tensor
    ref_logprobs: Tensor
    scores: Tensor
    raw_scores: Tensor
    scored: Tensor
    clipped: float
    names: tuple[str, ...] = ()
    """The prompts' ids, row by row."""
    engine_ratio: float = 1.0
    """Mean of exp |engine's - trainer's log-prob| over the sampled tokens."""
    importance: Tensor | None = None
    """What a token's policy loss is multiplied with, where the engine's distribution is corrected for."""

    def name_of(self, row: int) -> str:
        """What a row is called in errors."""
        return self.names[row] if self.names else str(row)


def over_rows(stage: Stage, rollout: Rollout, function: Callable[[Tensor, Tensor], Tensor], token_limit: int) -> Tensor:
    """`function(tokens, response_mask)` -> [b, t] over groups of rows of similar length, put together as [B, T]."""
    out = torch.zeros(rollout.tokens.shape, device=rollout.tokens.device)
    alike = common_prompts(rollout.tokens, rollout.prompt_lengths)

    def compute(group: np.ndarray) -> None:
        rows = torch.from_numpy(group).to(rollout.tokens.device)
        width = int(rollout.lengths[rows].max())
        values = function(rollout.tokens[rows, :width], rollout.response_mask[rows, :width])
        out[rows[:, None], torch.arange(width, device=out.device)] = values.float()

    each(micro_batches(rollout.lengths.tolist(), token_limit, alike), compute, stage.room, [out])
    return out


@torch.no_grad()
def rescore(stage: Stage, model: Decoder, rollout: Rollout) -> Tensor:
    """Log-probs of the sampled responses under `model`, [B, T]."""
    limit = 2 * stage.limits.micro_tokens
    stage.meter.forward(model.parameter_count, int(rollout.lengths.sum()))
    return over_rows(stage, rollout, lambda t, m: response_logprobs(model, t, m, stage.sampling)[0], limit)


@torch.no_grad()
def collect(
    stage: Stage,
    policy: Decoder,
    reference: Decoder,
    score: Score,
    *,
    iteration: int,
    prompts: int,
    samples_per_prompt: int,
    reward_scale: float,
    reward_clip: float,
    reward_shift: float = 0.0,
    least_ended: float = 0.0,
) -> Experience:
    """Sample `samples_per_prompt` responses to each of the next `prompts` prompts and score them.

    Rows of one prompt are consecutive. Raises NumericsError where the engine's log-probs and the trainer's differ by
    more than 1e-4 (fp32; in bf16 the gap is reported alone): sampling and scoring would not be the same distribution;
    and at the first step where fewer than `least_ended` of the responses end, or a row's log-probs hang on the others.
    """
    # 1. Sample.
    pool = stage.task.prompts("train")
    wanted = [pool[i] for i in _prompt_rows(stage.seed, iteration, prompts, len(pool))]
    asked = [p for p in wanted for _ in range(samples_per_prompt)]
    ids = [stage.prompt_ids(p) for p in asked]
    limit = stage.limits.max_new_tokens
    draws = uniforms(stage.seed, f"{stage.method}/rollout", iteration, range(len(ids)), limit)
    rollout = stage.engine(policy).generate(ids, draws, max_new_tokens=limit, sampling=stage.sampling)
    stage.meter.sample(policy.parameter_count, sum(map(len, ids)), rollout.sampled_tokens)
    stage.meter.prompts += prompts
    # 2. Score: raw, then shifted, scaled and clipped, and only where the response ended by itself and was judged.
    raw = score(asked, rollout)
    scaled = (raw + reward_shift) * reward_scale
    scored = rollout.ended & raw.isfinite()
    scores = torch.where(scored, scaled.clamp(-reward_clip, reward_clip), 0.0)
    # 3. Re-score under the policy as the trainer sees it, and under the reference.
    old = rescore(stage, policy, rollout)
    ratio = sampled_gate(stage, policy, rollout.logprobs, old, rollout.response_mask)
    if iteration == 0:
        end_gate(stage, float(rollout.ended.float().mean()), least=least_ended, hard=True)
        logprob_gate(stage, policy, [Tokenized(p, tuple(r)) for p, r in zip(ids, rollout.responses())])
    clipped = float((scaled.abs() > reward_clip).float().mean())
    return Experience(
        rollout,
        old,
        rescore(stage, reference, rollout),
        scores,
        raw,
        scored,
        clipped,
        tuple(p.id for p in asked),
        ratio,
        _importance(stage, old, rollout),
    )


def _importance(stage: Stage, recomputed: Tensor, rollout: Rollout) -> Tensor | None:
    if stage.rollout.importance == "off":
        return None
    return truncated_importance(recomputed, rollout.logprobs, cap=stage.rollout.importance_cap)


def _prompt_rows(seed: int, iteration: int, count: int, pool: int) -> list[int]:
    rows: list[int] = []
    position = iteration * count
    while len(rows) < count:
        epoch, offset = divmod(position + len(rows), pool)
        rows += permutation(seed, "prompts", epoch, pool)[offset : offset + count - len(rows)].tolist()
    return rows


@torch.no_grad()
def kl_metrics(stage: Stage, policy: Decoder, sft: Decoder, reference_moves: bool, exp: Experience) -> dict[str, float]:
    """What a step says of its samples. `objective/kl` is the mean sequence log-ratio to the **original SFT** (k1) and
    `objective/kl_k3` beside it; `objective/kl_exact` the same quantity with each step's full-vocabulary KL.
    `objective/entropy` is estimated on the batch's own samples, in nats per token.
    """
    rollout, mask = exp.rollout, exp.rollout.response_mask
    rows = torch.arange(min(_PROBE_ROWS, max(1, len(rollout) // _PROBE_SHARE)), device=mask.device)
    probe = rollout.select(rows)
    if reference_moves:
        old, against, probed_mask = (
            exp.old_logprobs[rows, : probe.tokens.shape[1]],
            rescore(stage, sft, probe),
            probe.response_mask,
        )
    else:
        old, against, probed_mask = exp.old_logprobs, exp.ref_logprobs, mask
    exact = exact_kl(policy, sft, probe.tokens, probe.response_mask, stage.sampling)
    stage.meter.forward(policy.parameter_count + sft.parameter_count, int(probe.lengths.sum()))
    lengths = rollout.response_lengths.float()
    count = int(mask.sum())
    judged = exp.raw_scores[exp.raw_scores.isfinite()]
    return {
        "objective/kl": float(sequence_logprobs(kl_k1(old, against), probed_mask).mean()),
        "objective/kl_k3": float(sequence_logprobs(kl_k3(old, against), probed_mask).mean()),
        "objective/kl_exact": float(exact.sum() / len(probe)),
        "objective/kl_reference": float(sequence_logprobs(kl_k1(exp.old_logprobs, exp.ref_logprobs), mask).mean()),
        "objective/entropy": float(-exp.old_logprobs.sum() / count),
        "objective/scores": float(judged.mean()) if len(judged) else 0.0,
        "objective/scores_std": float(judged.std()) if len(judged) > 1 else 0.0,
        "objective/unjudged": int((rollout.ended & ~exp.raw_scores.isfinite()).sum()),
        "objective/scores_clipped": exp.clipped,
        "objective/engine_gap": float((exp.old_logprobs - rollout.logprobs).abs().max()),
        "objective/engine_ratio": exp.engine_ratio,
        "val/num_eos_tokens": int(rollout.ended.sum()),
        "val/length": float(lengths.mean()),
    }
