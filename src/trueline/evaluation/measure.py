"""What is measured of a policy on a set of prompts: gold, proxy, KL to the original SFT, entropy, length, structure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import isfinite, nan

import numpy as np
import torch
from torch import Tensor

from trueline.algorithms.divergence import kl_k1, kl_k3
from trueline.algorithms.logprobs import sequence_logprobs
from trueline.data.batches import common_prompts, micro_batches
from trueline.errors import RunError
from trueline.models.decoder import Decoder
from trueline.models.scoring import Sampling, response_logprobs
from trueline.rollout.engine import Rollout, RolloutEngine
from trueline.rollout.native import NativeEngine
from trueline.seeds import uniforms
from trueline.types import Judgement, Prompt

__all__ = ["EVALUATION_SEED", "Instruments", "Measured", "Sampler", "measure", "metrics_of", "sample_texts"]

EVALUATION_SEED = 20240410
"""Evaluation draws are the same for every arm and every training seed."""

Scorer = Callable[[Sequence[Prompt], Sequence[str], Rollout], list[Judgement]]
"""(prompts, texts, rollout) -> one judgement a row."""


@dataclass(frozen=True)
class Sampler:
    """How responses are drawn for an evaluation: the same for every arm."""

    encode: Callable[[Prompt], Sequence[int]]
    decode: Callable[[Sequence[int]], str]
    sampling: Sampling
    pad_id: int
    end_id: int | Sequence[int]
    max_new_tokens: int
    seed: int
    token_limit: int = 8192
    engine: Callable[[Decoder], RolloutEngine] | None = None
    """What samples in place of the native engine; the log-probs of its samples are computed again here."""


@dataclass(frozen=True)
class Instruments:
    """What a sample is held against. `outside` says whether a sample lies outside the preference data.

    `rerender` is there where the policy has a tokenizer of its own: its texts are then written out again with the
    study's, for judges and lengths, and everything that compares log-probs with SFT's is left out. `statistics` is what
    the judgements of one prompt's samples say together. `start` is the policy that training started from, where it was
    not SFT; `refuses` reads a refusal off a text, where no judge is embedded that knows.
    """

    gold: Scorer
    sft: Decoder
    proxy: Callable[[Sequence[Prompt], Sequence[str], Rollout], Tensor] | None = None
    outside: Callable[[Sequence[Prompt], Sequence[str], Rollout], list[bool]] | None = None
    rerender: Callable[[Sequence[Prompt], Sequence[str], Rollout], Rollout] | None = None
    statistics: Callable[[Sequence[Judgement]], Mapping[str, float]] | None = None
    start: Decoder | None = None
    refuses: Callable[[str], bool] | None = None


@dataclass(frozen=True)
class Measured:
    """Samples and what was measured of each: lists over prompts of lists over samples; `parts` by the judge's names, no
    samples where a part does not concern the prompt.

    `kl`, `kl_k3` and `nll` are None where the policy's tokenizer is not SFT's, `kl_start` (to where training started)
    also where that was SFT. `gold` is NaN where a sample could not be judged. `together` has a figure per prompt, NaN
    where there is none; `notes` are the judge's words on a sample.
    """

    prompts: list[Prompt]
    texts: list[list[str]]
    gold: list[list[float]]
    kl: list[list[float]] | None
    kl_k3: list[list[float]] | None
    nll: list[list[float]] | None
    length: list[list[int]]
    ended: list[list[bool]]
    proxy: list[list[float]] | None = None
    outside: list[list[bool]] | None = None
    parts: Mapping[str, list[list[float]]] = field(default_factory=dict)
    together: Mapping[str, list[float]] = field(default_factory=dict)
    notes: list[list[str]] = field(default_factory=list)
    kl_start: list[list[float]] | None = None
    refused: list[list[bool]] | None = None


@torch.no_grad()
def measure(
    policy: Decoder,
    prompts: Sequence[Prompt],
    sampler: Sampler,
    instruments: Instruments,
    *,
    samples: int,
    stream: str,
    greedy: bool = False,
    best_of: int = 1,
) -> Measured:
    """`samples` responses to each prompt, measured. With `best_of` n, each is the proxy's favourite of n draws."""
    asked = [p for p in prompts for _ in range(samples * best_of)]
    rollout, texts = sample_texts(policy, asked, sampler, stream=stream, greedy=greedy)
    if instruments.rerender:
        rollout = instruments.rerender(asked, texts, rollout)
    proxy = instruments.proxy(asked, texts, rollout) if instruments.proxy else None
    if best_of > 1:
        if proxy is None:
            raise ValueError("best_of: needs a proxy to choose with")
        favourite = proxy.view(-1, best_of).argmax(1) + torch.arange(0, len(asked), best_of, device=proxy.device)
        rollout, proxy = rollout.select(favourite), proxy[favourite]
        texts, asked = [texts[i] for i in favourite.tolist()], [asked[i] for i in favourite.tolist()]
    judged = instruments.gold(asked, texts, rollout)
    if judged and not any(isfinite(j.score) for j in judged):
        raise RunError(f"none of {len(judged)} responses could be judged: {judged[0].note or 'no score is finite'}")
    kl, k3, nll = (None, None, None) if instruments.rerender else _against_sft(instruments.sft, rollout, sampler)
    outside = instruments.outside(asked, texts, rollout) if instruments.outside else None

    def shaped(values: Sequence | None) -> list[list] | None:
        if values is None:
            return None
        return [list(values[i : i + samples]) for i in range(0, len(values), samples)]

    return Measured(
        list(prompts),
        shaped(texts),
        shaped([j.score for j in judged]),
        shaped(kl),
        shaped(k3),
        shaped(nll),
        shaped(rollout.response_lengths.tolist()),
        shaped(rollout.ended.tolist()),
        None if proxy is None else shaped(proxy.tolist()),
        shaped(outside),
        _parts(shaped(judged)),
        _together(instruments, shaped(judged)),
        shaped([j.note for j in judged]),
        None if kl is None else shaped(_to_start(instruments, rollout, sampler)),
        shaped([instruments.refuses(text) for text in texts]) if instruments.refuses else None,
    )


def sample_texts(policy: Decoder, asked: Sequence[Prompt], sampler: Sampler, *, stream: str, greedy: bool = False):
    """One response per row of `asked`, drawn from the stream of that name: a rollout and its texts."""
    if sampler.engine is None:
        engine: RolloutEngine = NativeEngine(pad_id=sampler.pad_id, end_id=sampler.end_id)
        engine.load_weights(policy, 0)
    else:
        engine = sampler.engine(policy)
    ids = [sampler.encode(p) for p in asked]
    draws = None if greedy else uniforms(sampler.seed, stream, 0, range(len(ids)), sampler.max_new_tokens)
    rollout = engine.generate(ids, draws, max_new_tokens=sampler.max_new_tokens, sampling=sampler.sampling)
    if sampler.engine is not None:
        rollout = replace(rollout, logprobs=_rescore(policy, rollout, sampler))
    return rollout, [sampler.decode(response) for response in rollout.responses()]


def metrics_of(measured: Measured, prefix: str) -> dict[str, float]:
    """Means over prompts and samples, keyed `<prefix>/<name>`; `prefix` is `<split>/<decoding>`."""
    names = {
        "gold": measured.gold,
        "kl": measured.kl,
        "kl_k3": measured.kl_k3,
        "kl_start": measured.kl_start,
        "entropy": measured.nll,
        "length": measured.length,
        "ended": measured.ended,
        "proxy": measured.proxy,
        "outside": measured.outside,
        "refusal": measured.refused,
    }
    out = {f"{prefix}/{name}": _mean(values) for name, values in names.items() if values is not None}
    for name, values in measured.together.items():
        out[f"{prefix}/{name}"] = _mean(values)
        for kind in sorted({prompt.kind for prompt in measured.prompts} - {""}):
            own = [value for prompt, value in zip(measured.prompts, values) if prompt.kind == kind]
            out[f"{prefix}/{name}_{kind}"] = _mean(own)
    out |= {f"{prefix}/{name}": float(np.mean(np.concatenate(rows))) for name, rows in measured.parts.items()}
    kinds = {prompt.kind for prompt in measured.prompts}
    if len(kinds) > 1 and not measured.parts:  # a judge with parts of its own says more than this
        for name, values in (("gold", measured.gold), ("refusal", measured.refused)):
            for kind in sorted(kinds) if values is not None else ():
                rows = [row for prompt, row in zip(measured.prompts, values) if prompt.kind == kind]
                out[f"{prefix}/{name}_{kind or 'other'}"] = _mean(rows)
    texts = [text for row in measured.texts for text in row]
    out[f"{prefix}/distinct"] = len(set(texts)) / len(texts)
    return out


def _against_sft(sft: Decoder, rollout: Rollout, sampler: Sampler) -> tuple[list[float], list[float], list[float]]:
    """Sequence log-ratio to SFT (k1), its k3, and the negative log-prob per token, of each sample."""
    reference, mask = _rescore(sft, rollout, sampler), rollout.response_mask
    kl = sequence_logprobs(kl_k1(rollout.logprobs, reference), mask)
    k3 = sequence_logprobs(kl_k3(rollout.logprobs, reference), mask)
    nll = -sequence_logprobs(rollout.logprobs, mask) / rollout.response_lengths
    return kl.tolist(), k3.tolist(), nll.tolist()


def _mean(values: Sequence) -> float:
    """Over everything that is a number."""
    flat = np.asarray(values, dtype=np.float64).ravel()
    return float(np.mean(flat[np.isfinite(flat)]))


def _together(instruments: Instruments, judged: list[list[Judgement]]) -> dict[str, list[float]]:
    if instruments.statistics is None:
        return {}
    rows = [instruments.statistics(row) for row in judged]
    return {name: [row.get(name, nan) for row in rows] for name in dict.fromkeys(n for row in rows for n in row)}


def _parts(judged: list[list[Judgement]]) -> dict[str, list[list[float]]]:
    names = dict.fromkeys(name for row in judged for judgement in row for name in judgement.parts)
    return {name: [[j.parts[name] for j in row if name in j.parts] for row in judged] for name in names}


def _to_start(instruments: Instruments, rollout: Rollout, sampler: Sampler) -> list[float] | None:
    """Sequence log-ratio to the policy that training started from (k1) of each sample."""
    if instruments.start is None:
        return None
    reference = _rescore(instruments.start, rollout, sampler)
    return sequence_logprobs(kl_k1(rollout.logprobs, reference), rollout.response_mask).tolist()


def _rescore(model: Decoder, rollout: Rollout, sampler: Sampler) -> Tensor:
    out = torch.zeros_like(rollout.logprobs)
    alike = common_prompts(rollout.tokens, rollout.prompt_lengths)
    for group in micro_batches(rollout.lengths.tolist(), sampler.token_limit, alike):
        rows = torch.from_numpy(group).to(out.device)
        width = int(rollout.lengths[rows].max())
        scored, _ = response_logprobs(
            model, rollout.tokens[rows, :width], rollout.response_mask[rows, :width], sampler.sampling
        )
        out[rows[:, None], torch.arange(width, device=out.device)] = scored
    return out
