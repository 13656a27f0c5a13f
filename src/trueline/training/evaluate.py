"""The evaluation of one arm at one seed: its picked checkpoints on the test prompts, with gold."""

from __future__ import annotations

from dataclasses import replace
from math import isfinite
from pathlib import Path
from typing import Literal

from pydantic import Field

from trueline.algorithms.advantages import best_of_n_kl
from trueline.config import Section
from trueline.evaluation.measure import Instruments, Measured, Sampler, measure, metrics_of
from trueline.models.decoder import Decoder
from trueline.rewards.endpoint import EndpointJudge
from trueline.runs.cell import read_json, read_jsonl, write_json, write_jsonl
from trueline.runs.costs import read_costs, write_costs
from trueline.runs.meter import BudgetMeter, Cost
from trueline.training.agreement import against_reference, agreement, is_given
from trueline.training.instruments import instruments_of, outside_of, own_tokenizer, points_of, sampler_of
from trueline.training.policies import load_policy, load_reward_model
from trueline.training.stage import Progress, Stage
from trueline.types import Prompt

__all__ = ["Config", "train"]


class Config(Section):
    """`evaluate.*`"""

    samples: int = Field(2, ge=1, description="responses per test prompt at temperature 1")
    test_prompts: int = Field(0, ge=0, description="at most so many prompts of each test split; 0: all")
    best_of: int = Field(8, ge=2, description="n of the best-of-n arm")
    shown: int = Field(6, ge=1, description="test prompts whose samples are kept for the report")
    judge_url: str = Field("", description="base address of an OpenAI-compatible endpoint that is taken for gold")
    judge_model: str = Field("", description="the model to ask there")
    judge_prompt: Literal["fenced", "paper"] = Field(
        "fenced", description="the question: ours, against texts that speak to the judge, or the paper's to the letter"
    )
    judge_retries: int = Field(1000, ge=0, description="retries in all before the endpoint is given up")
    judge_key_env: str = Field("TRUELINE_JUDGE_KEY", description="environment variable that holds its key, if any")


def objective(config: Config) -> str:
    """What this stage does in one line."""
    return f"evaluate: the picked checkpoints on the test prompts, {config.samples} samples each, and greedy"


def train(config: Config, stage: Stage) -> None:
    """Write `evaluation.json`, `scores.jsonl` and `samples.jsonl`.

    Inputs: those of `select`, with `gold` where the judge is learned; `picked`, this arm's selection; `baseline`, SFT's
    own evaluation.
    """
    stage.begin({}, objective(config))
    best_of = config.best_of if stage.method == "best-of-n" else 1
    sft = load_policy(stage, "sft")
    points = {point.step: point for point in points_of(stage, sft)}
    selection = read_json(stage.inputs["picked"] / "selection.json")
    curve, picks = selection["curve"], selection["picks"]
    # 1. The end, the proxy's pick and the selected one on the test prompts.
    foreign = own_tokenizer(stage)
    sampler = sampler_of(stage, foreign)
    instruments = instruments_of(stage, sft, outside_of(stage), judge="gold", foreign=foreign)
    outer = _endpoint(config, stage)
    if outer is not None:
        instruments = replace(instruments, gold=against_reference(outer, sft, sampler_of(stage)))
    figures, scores, samples = {}, [], []
    by_step: dict[int, dict] = {}
    for number, (name, step) in enumerate(sorted(picks.items(), key=lambda pick: pick[0] != "selected")):
        if step not in by_step:
            everything = name == "selected"  # greedy decoding and the other splits: of the selected checkpoint alone
            by_step[step] = _test(
                config, stage, points[step].policy(), sampler, instruments, best_of, everything=everything
            )
            stage.report(Progress(stage.cell.directory.name, "evaluate", number + 1, len(picks)))
        results = by_step[step]
        figures[name] = {k: v for prefix, m in results.items() for k, v in metrics_of(m, prefix).items()}
        if name != "proxy":
            scores += [row for prefix, m in results.items() for row in _score_rows(name, prefix, m)]
        if name == "selected":
            samples += _sample_rows(config, results)
    # 2. What it leaves.
    baseline = read_json(stage.inputs["baseline"] / "evaluation.json") if "baseline" in stage.inputs else None
    end = figures["end"]["test/sampled/gold"]
    collapsed = baseline is not None and end < baseline["figures"]["end"]["test/sampled/gold"]
    evaluation = {"curve": curve, "picks": picks, "figures": figures, "collapsed": collapsed}
    if foreign is not None:
        evaluation["refused"] = "its tokenizer is not SFT's: KL, entropy and log-probs of pairs cannot be compared"
    if stage.method == "sft" and (outer is not None or is_given(stage, "gold")):
        evaluation["agreement"] = agreement(stage, instruments, outer)
    if outer is not None:
        evaluation["judge"] = {"model": config.judge_model, "prompt": config.judge_prompt} | outer.usage
    if best_of > 1:
        evaluation["analytic_kl"] = best_of_n_kl(best_of)
    write_json(stage.cell / "evaluation.json", evaluation)
    write_jsonl(stage.cell / "scores.jsonl", scores)
    watched = _watched(stage, stage.inputs["arm"]) if best_of == 1 else []
    write_jsonl(stage.cell / "samples.jsonl", watched + samples)
    drawn = _best_of_n_cost(config, stage, sft, figures["selected"]["test/sampled/length"]) if best_of > 1 else None
    write_costs(stage.cell.directory, _costs(stage, drawn))
    stage.cell.finish(method="evaluate", seed=stage.seed, gold=figures["selected"]["test/sampled/gold"])


def _endpoint(config: Config, stage: Stage) -> EndpointJudge | None:
    if not config.judge_url:
        return None
    cache = stage.cell / "judge.jsonl"
    return EndpointJudge(
        config.judge_url,
        config.judge_model,
        cache=cache,
        key_env=config.judge_key_env,
        retries=config.judge_retries,
        form=config.judge_prompt,
    )


def _watched(stage: Stage, arm: Path) -> list[dict]:
    """The samples that training left behind, with gold where a judge is embedded."""
    if not (arm / "samples.jsonl").exists():
        return []
    rows = list(read_jsonl(arm / "samples.jsonl"))
    if rows and not stage.task.learned_gold:
        prompts = {prompt.id: prompt for prompt in stage.task.prompts("selection")}
        judged = stage.task.judge_many([prompts[row["prompt_id"]] for row in rows], [row["response"] for row in rows])
        rows = [row | {"gold": _number(j.score)} for row, j in zip(rows, judged)]
    return rows


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

    # Where each draw is a program to run, a few are enough of the other picks, and where each sample is one of many.
    verified = stage.task.verified
    few = min(2, config.samples) if verified else config.samples
    samples = few if best_of > 1 or not everything else config.samples
    results = {"test/sampled": on("test", samples)}
    if everything:
        others = stage.task.eval_splits
        if best_of == 1:
            greedy = ("test", *others) if verified else ("test",)
            results |= {f"{split}/greedy": on(split, 1, greedy=True) for split in greedy}
        results |= {f"{split}/sampled": on(split, samples if verified else 1) for split in others}
    return results


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
            "gold": [_number(value) for value in measured.gold[i]],
            "length": measured.length[i],
        }
        for name, values in measured.together.items():  # each also by the prompt's kind, for a row of its own
            row |= {key: [_number(values[i])] for key in (name, *([f"{name}_{prompt.kind}"] if prompt.kind else []))}
        row |= {name: _round(values[i]) for name, values in measured.parts.items() if values[i]}
        for name, values in (("kl", measured.kl), ("kl_start", measured.kl_start), ("refusal", measured.refused)):
            if values is not None:
                row[name] = _round(values[i])
        if measured.proxy is not None:
            row["proxy"] = [_number(value) for value in _round(measured.proxy[i])]
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
                "gold": _number(measured.gold[i][0]),
                "kl": None if measured.kl is None else round(measured.kl[i][0], 3),
            }
            if measured.proxy is not None:
                row["proxy"] = _number(round(measured.proxy[i][0], 3))
            if measured.notes[i][0]:
                row["note"] = measured.notes[i][0]
            rows.append(row)
    return rows


def _shown(prompts: list[Prompt], count: int) -> list[int]:
    """The first prompts of each kind in turn, so that every kind is seen."""
    kinds: dict[str, list[int]] = {}
    for index, prompt in enumerate(prompts):
        kinds.setdefault(prompt.kind, []).append(index)
    turns = [row[turn] for turn in range(count) for row in kinds.values() if turn < len(row)]
    return turns[:count]


def _number(value: float) -> float | None:
    """None where a sample could not be judged: JSON has no NaN."""
    return value if isfinite(value) else None


def _round(values: list[float]) -> list[float]:
    return [round(value, 4) for value in values]


def _best_of_n_cost(config: Config, stage: Stage, sft: Decoder, length: float) -> Cost:
    """What best-of-n spends at inference to answer each test prompt once: n draws of `length` tokens, n scores or runs
    of the prompt's own tests."""
    meter, test = BudgetMeter(), stage.task.prompts("test")[: config.test_prompts or None]
    asked = config.best_of * sum(len(stage.prompt_ids(p)) for p in test)
    drawn = round(config.best_of * len(test) * length)
    meter.sample(sft.parameter_count, asked, drawn)
    if "reward" in stage.inputs:
        meter.forward(load_reward_model(stage)[0].parameter_count, asked + drawn)
    return replace(meter.cost(), reward_calls=config.best_of * len(test), prompts=len(test))


def _costs(stage: Stage, drawn: Cost | None) -> dict[str, Cost]:
    """The arm's own cost and, with what came before it, the charged.

    Its own is what its training cell spent; best-of-n: `drawn`.
    """
    if drawn is not None:
        own = drawn
    elif stage.inputs["arm"] == stage.inputs["sft"]:
        own = Cost()
    else:
        own = read_costs(stage.inputs["arm"])["own"]
    charged = own
    for name in stage.charged:
        charged = charged + read_costs(stage.inputs[name])["own"]
    return {"own": own, "charged": charged}
