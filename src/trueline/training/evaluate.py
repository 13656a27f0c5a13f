"""The evaluation of one arm at one seed: its checkpoints on the selection split, three of them on the test prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from pydantic import Field

from trueline.algorithms.advantages import best_of_n_kl
from trueline.algorithms.logprobs import sequence_logprobs
from trueline.config import Section
from trueline.data.batches import collate, micro_batches
from trueline.evaluation.measure import EVALUATION_SEED, Instruments, Measured, Sampler, measure, metrics_of
from trueline.models.checkpoints import load_decoder
from trueline.models.decoder import Decoder
from trueline.models.scoring import response_logprobs
from trueline.rewards.learned import LearnedReward
from trueline.rollout.engine import Rollout
from trueline.runs import checkpoint
from trueline.runs.cell import read_json, read_jsonl, write_json, write_jsonl
from trueline.runs.meter import BudgetMeter, Cost
from trueline.training.pairs import read_pairs
from trueline.training.policies import load_policy, load_reward_model, load_start
from trueline.training.stage import Progress, Stage, batch_on
from trueline.types import Judgement, Pair, Prompt

__all__ = ["Config", "train"]

Outside = Callable[[Sequence[Prompt], Sequence[str], Rollout], list[bool]] | None


class Config(Section):
    """`evaluate.*`"""

    samples: int = Field(2, ge=1, description="responses per test prompt at temperature 1")
    test_prompts: int = Field(0, ge=0, description="at most so many prompts of each test split; 0: all")
    curve_prompts: int = Field(64, ge=2, description="prompts of the selection split at each checkpoint")
    curve_pairs: int = Field(64, ge=1, description="training pairs whose log-probs are followed over training")
    best_of: int = Field(8, ge=2, description="n of the best-of-n arm")
    shown: int = Field(6, ge=1, description="test prompts whose samples are kept for the report")


@dataclass(frozen=True)
class Point:
    """One checkpoint of an arm with what it had cost so far."""

    step: int
    policy: Callable[[], Decoder]
    spent: dict[str, float]


def objective(config: Config) -> str:
    """What this stage does in one line."""
    return (
        f"evaluate: {config.samples} samples per test prompt, temperature 1, and greedy; "
        f"checkpoints on {config.curve_prompts} selection prompts"
    )


def train(config: Config, stage: Stage) -> None:
    """Write `evaluation.json`, `scores.jsonl` and `samples.jsonl`.

    Inputs: `arm` (the trained cell; SFT's own for the arms sft and best-of-n), `sft`, `pairs`; `reward` for the proxy;
    `gold` and `selection` where judges are learned; `density` where the task has no signatures.
    """
    stage.begin({}, objective(config))
    best_of = config.best_of if stage.method == "best-of-n" else 1
    training = read_pairs(stage.inputs["pairs"]).training
    sft = load_policy(stage, "sft")
    points = _points(stage, sft)
    sampler = _sampler(stage)
    # 1. Every checkpoint on the selection split, with the selection judge.
    selection = stage.task.prompts("selection")[: config.curve_prompts]
    outside = _outside(stage, training)
    instruments = _instruments(stage, sft, outside, judge="selection")
    baseline = read_json(stage.inputs["baseline"] / "evaluation.json") if "baseline" in stage.inputs else None
    curve = []
    if baseline is not None and "start" not in stage.inputs and best_of == 1:
        curve, points = [baseline["curve"][0]], points[1:]  # the start is SFT, which has been measured on these draws
    for number, point in enumerate(points):
        policy = point.policy()
        measured = measure(policy, selection, sampler, instruments, samples=1, stream="selection", best_of=best_of)
        metrics = metrics_of(measured, "selection/sampled") | _pair_logps(stage, policy, training[: config.curve_pairs])
        curve.append({"step": point.step, **point.spent, "metrics": metrics})
        stage.report(Progress(stage.cell.directory.name, "evaluate", number + 1, len(points) + 1))
    picks = _picks(curve)
    # 2. The end, the proxy's pick and the selected one on the test prompts, with gold.
    instruments = _instruments(stage, sft, outside, judge="gold")
    figures, scores, samples = {}, [], []
    by_step: dict[int, dict] = {}
    for name, step in sorted(picks.items(), key=lambda pick: pick[0] != "selected"):
        if step not in by_step:
            policy = next(point.policy() for point in points if point.step == step)
            everything = name == "selected"  # greedy decoding and the other splits: of the selected checkpoint alone
            by_step[step] = _test(config, stage, policy, sampler, instruments, best_of, everything=everything)
        results = by_step[step]
        figures[name] = {k: v for prefix, m in results.items() for k, v in metrics_of(m, prefix).items()}
        if name != "proxy":
            scores += [row for prefix, m in results.items() for row in _score_rows(name, prefix, m)]
        if name == "selected":
            samples += _sample_rows(config, results)
    # 3. What it leaves.
    arm = stage.inputs["arm"]
    end = figures["end"]["test/sampled/gold"]
    collapsed = baseline is not None and end < baseline["figures"]["end"]["test/sampled/gold"]
    evaluation = {"curve": curve, "picks": picks, "figures": figures, "collapsed": collapsed}
    if best_of > 1:
        evaluation["analytic_kl"] = best_of_n_kl(best_of)
    write_json(stage.cell / "evaluation.json", evaluation)
    write_jsonl(stage.cell / "scores.jsonl", scores)
    watched = _watched(stage, arm) if best_of == 1 else []
    write_jsonl(stage.cell / "samples.jsonl", watched + samples)
    drawn = _best_of_n_cost(config, stage, sft, figures["selected"]["test/sampled/length"]) if best_of > 1 else None
    write_json(stage.cell / "cost.json", _costs(stage, drawn))
    stage.cell.finish(method="evaluate", seed=stage.seed, gold=figures["selected"]["test/sampled/gold"])


def _watched(stage: Stage, arm: Path) -> list[dict]:
    """The samples that training left behind, with gold where a judge is embedded."""
    if not (arm / "samples.jsonl").exists():
        return []
    prompts = {prompt.id: prompt for prompt in stage.task.prompts("selection")}
    rows = list(read_jsonl(arm / "samples.jsonl"))
    if not stage.task.learned_gold:
        for row in rows:
            row["gold"] = stage.task.judge(prompts[row["prompt_id"]], row["response"]).score
    return rows


def _points(stage: Stage, sft: Decoder) -> list[Point]:
    """The checkpoints of the arm; the start (its own policy before any step) comes first."""
    arm: Path = stage.inputs["arm"]
    nothing = {"flops": 0.0, "sampled_tokens": 0, "trained_tokens": 0}
    if arm == stage.inputs["sft"]:
        return [Point(0, lambda: sft, nothing)]
    spent = {row["step"]: row for row in read_jsonl(arm / "metrics.jsonl")} if (arm / "metrics.jsonl").exists() else {}

    def load(step: int) -> Callable[[], Decoder]:
        def policy() -> Decoder:
            model = load_decoder(arm / "model").to(stage.device)
            model.load_state_dict(checkpoint.read_policy(arm / "checkpoints", step))
            return model

        return policy

    start = load_start(stage) if "start" in stage.inputs else sft
    points = [Point(0, lambda: start, nothing)]
    for step in checkpoint.steps(arm / "checkpoints"):
        if step == 0:
            continue  # a run that found nothing to learn from: its end is its start
        row = spent[step]
        points.append(Point(step, load(step), {name: row[f"spent/{name}"] for name in nothing}))
    return points


def _picks(curve: list[dict]) -> dict[str, int]:
    trained = curve[1:] or curve  # the start is another arm's policy
    proxy = [
        point["metrics"].get("selection/sampled/proxy", point["metrics"]["selection/sampled/gold"]) for point in trained
    ]
    gold = [point["metrics"]["selection/sampled/gold"] for point in trained]
    return {
        "end": trained[-1]["step"],
        "proxy": trained[int(np.argmax(proxy))]["step"],
        "selected": trained[int(np.argmax(gold))]["step"],
    }


def _test(
    config: Config,
    stage: Stage,
    policy: Decoder,
    sampler: Sampler,
    instruments: Instruments,
    best_of: int,
    *,
    everything: bool,
) -> dict[str, Measured]:
    """What is measured on the test prompts, by `<split>/<decoding>`."""
    limit = config.test_prompts or None

    def on(split: str, samples: int, *, greedy: bool = False) -> Measured:
        prompts = stage.task.prompts(split)[:limit]
        return measure(
            policy, prompts, sampler, instruments, samples=samples, stream=split, greedy=greedy, best_of=best_of
        )

    results = {"test/sampled": on("test", config.samples)}
    if everything:
        if best_of == 1:
            results["test/greedy"] = on("test", 1, greedy=True)
        results |= {f"{split}/sampled": on(split, 1) for split in stage.task.eval_splits}
    return results


def _sampler(stage: Stage) -> Sampler:
    return Sampler(
        stage.prompt_ids,
        stage.tokenizer.decode,
        stage.sampling,
        stage.tokenizer.pad_id,
        stage.tokenizer.end_id,
        stage.limits.max_new_tokens,
        EVALUATION_SEED,
        2 * stage.limits.micro_tokens,
    )


def _instruments(stage: Stage, sft: Decoder, outside: Outside, *, judge: str) -> Instruments:
    if stage.task.learned_gold:
        learned = LearnedReward(*load_reward_model(stage, judge))

        def gold(prompts, texts, rollout):
            return [Judgement(score) for score in learned.standardized(rollout.tokens, rollout.lengths).tolist()]
    else:

        def gold(prompts, texts, rollout):
            return [stage.task.judge(p, t) for p, t in zip(prompts, texts)]

    proxy = None
    if "reward" in stage.inputs:
        reward = LearnedReward(*load_reward_model(stage))

        def proxy(rollout):
            return reward.standardized(rollout.tokens, rollout.lengths)

    return Instruments(gold, sft, proxy, outside)


def _outside(stage: Stage, training: list[Pair]) -> Outside:
    """Membership by signature where the task has one; by likelihood under a model fitted to the pairs otherwise."""
    if stage.task.signature(training[0].prompt, training[0].chosen) is not None:
        known = {stage.task.signature(p.prompt, side) for p in training for side in (p.chosen, p.rejected)}
        return lambda prompts, texts, rollout: [stage.task.signature(p, t) not in known for p, t in zip(prompts, texts)]
    if "density" not in stage.inputs:
        return None
    density = load_policy(stage, "density")
    held_out = [
        stage.tokenize(p.prompt, side)
        for p in training[-(len(training) // 10 or 1) :]
        for side in (p.chosen, p.rejected)
    ]
    batches = [
        batch_on(collate([held_out[i] for i in g], stage.tokenizer.pad_id), stage)
        for g in micro_batches([len(h) for h in held_out], 2 * stage.limits.micro_tokens)
    ]
    limit = float(np.quantile(np.concatenate([_nll(stage, density, b.tokens, b.response_mask) for b in batches]), 0.99))

    def outside(prompts: Sequence[Prompt], texts: Sequence[str], rollout) -> list[bool]:
        return (_nll(stage, density, rollout.tokens, rollout.response_mask) > limit).tolist()

    return outside


@torch.no_grad()
def _nll(stage: Stage, model: Decoder, tokens, mask) -> np.ndarray:
    """Mean negative log-likelihood per response token of each row."""
    out = np.zeros(len(tokens))
    for group in micro_batches([tokens.shape[1]] * len(tokens), 2 * stage.limits.micro_tokens):
        scored, _ = response_logprobs(model, tokens[group], mask[group], stage.sampling)
        out[group] = (-scored.sum(1) / mask[group].sum(1)).cpu().numpy()
    return out


@torch.no_grad()
def _pair_logps(stage: Stage, policy: Decoder, pairs: list[Pair]) -> dict[str, float]:
    """Mean sequence log-prob of the chosen and of the rejected sides of the same training pairs."""
    means = {}
    for side in ("chosen", "rejected"):
        items = [stage.tokenize(p.prompt, getattr(p, side)) for p in pairs]
        total = 0.0
        for group in micro_batches([len(item) for item in items], 2 * stage.limits.micro_tokens):
            batch = batch_on(collate([items[i] for i in group], stage.tokenizer.pad_id), stage)
            scored, _ = response_logprobs(policy, batch.tokens, batch.response_mask, stage.sampling)
            total += float(sequence_logprobs(scored, batch.response_mask).sum())
        means[f"pairs/logps_{side}"] = total / len(items)
    return means


def _score_rows(pick: str, prefix: str, measured: Measured) -> list[dict]:
    split, decoding = prefix.split("/")
    rows = []
    for i, prompt in enumerate(measured.prompts):
        row = {
            "pick": pick,
            "split": split,
            "decoding": decoding,
            "prompt": prompt.id,
            "kind": prompt.kind,
            "gold": measured.gold[i],
            "kl": _round(measured.kl[i]),
            "length": measured.length[i],
        }
        if measured.proxy is not None:
            row["proxy"] = _round(measured.proxy[i])
        rows.append(row)
    return rows


def _sample_rows(config: Config, results: dict[str, Measured]) -> list[dict]:
    rows = []
    for prefix, measured in results.items():
        split, decoding = prefix.split("/")
        for i in _shown(measured.prompts, config.shown):
            row = {
                "pick": "selected",
                "split": split,
                "decoding": decoding,
                "prompt_id": measured.prompts[i].id,
                "prompt": measured.prompts[i].text,
                "response": measured.texts[i][0],
                "gold": measured.gold[i][0],
                "kl": round(measured.kl[i][0], 3),
            }
            if measured.proxy is not None:
                row["proxy"] = round(measured.proxy[i][0], 3)
            rows.append(row)
    return rows


def _shown(prompts: list[Prompt], count: int) -> list[int]:
    """The first prompts of each kind in turn, so that every kind is seen."""
    kinds: dict[str, list[int]] = {}
    for index, prompt in enumerate(prompts):
        kinds.setdefault(prompt.kind, []).append(index)
    turns = [row[turn] for turn in range(count) for row in kinds.values() if turn < len(row)]
    return turns[:count]


def _round(values: list[float]) -> list[float]:
    return [round(value, 4) for value in values]


def _best_of_n_cost(config: Config, stage: Stage, sft: Decoder, length: float) -> Cost:
    """What best-of-n spends at inference to answer each test prompt once: n draws of `length` tokens, n scores."""
    meter, test = BudgetMeter(), stage.task.prompts("test")[: config.test_prompts or None]
    asked = config.best_of * sum(len(stage.prompt_ids(p)) for p in test)
    drawn = round(config.best_of * len(test) * length)
    meter.sample(sft.parameter_count, asked, drawn)
    meter.forward(load_reward_model(stage)[0].parameter_count, asked + drawn)
    return replace(meter.cost(), reward_calls=config.best_of * len(test), prompts=len(test))


def _costs(stage: Stage, drawn: Cost | None) -> dict:
    """The arm's own cost and, with what came before it, the charged.

    Its own is what its training cell spent; best-of-n: `drawn`.
    """
    if drawn is not None:
        own = drawn
    elif stage.inputs["arm"] == stage.inputs["sft"]:
        own = Cost()
    else:
        own = Cost(**read_json(stage.inputs["arm"] / "cost.json")["own"])
    charged = own
    for name in stage.charged:
        charged = charged + Cost(**read_json(stage.inputs[name] / "cost.json")["own"])
    return {"own": own.as_dict(), "charged": charged.as_dict()}
