"""Writes a synthetic run directory, file for file as a study's executor does, with known arm means and variances."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from math import log
from pathlib import Path

import numpy as np

from trueline.runs.meter import CLOCKS

# What programs of each arm pass of their hidden tests, and how the others fail.
PASS = {"sft": 0.25, "sft-chosen": 0.5, "best-of-n": 0.5, "dpo": 0.35, "dpo-nll": 0.4, "dpo-iter": 0.45}
PASS |= {"ppo": 0.6, "dpo+ppo": 0.62, "rloo": 0.55}
TIERS = {"test": ("introductory", "interview", "competition"), "hard": ("hard",)}
EASIER = {"introductory": 0.3, "interview": 0.0, "competition": -0.2, "hard": -0.3}
ERRORS = {"syntax": 0.1, "runtime": 0.1, "wrong": 0.7, "timeout": 0.05, "memory": 0.03, "output": 0.02}
ARMS = ("sft", "sft-chosen", "best-of-n", "dpo", "dpo-iter", "ppo", "dpo+ppo", "rloo")
MEANS = dict(zip(ARMS, (0.30, 0.55, 0.80, 0.95, 1.30, 1.80, 1.92, 1.55)))
FLOPS = dict(zip(ARMS, (2e11, 3e11, 4e11, 9e11, 1.4e12, 1.5e12, 1.6e12, 1.4e12)))
KLS = dict(zip(ARMS, (0.0, 0.4, 0.9, 2.8, 1.6, 2.1, 2.3, 1.9)))
QUIRKY = (
    "<script>alert(1)</script> \"quoted\" 'single' </svg></style> <img src=x onerror=alert(1)> "
    "\x1b[31mred\x1b[0m \u202eevil\u2066 \ud800 & $x^2$ {{ 7*7 }} javascript:alert(1)"
)


@dataclass(frozen=True)
class Spec:
    """What the synthetic study is like; standard deviations are in gold points."""

    means: dict[str, float] = field(default_factory=lambda: dict(MEANS))
    flops: dict[str, float] = field(default_factory=lambda: dict(FLOPS))
    seeds: tuple[int, ...] = (0, 1, 2)
    arms: tuple[str, ...] = ARMS
    prompts: int = 60
    samples: int = 2
    seed_sd: float = 0.03
    prompt_sd: float = 0.6
    noise_sd: float = 0.5
    ends: dict[tuple[str, int], float] = field(default_factory=dict)  # (arm, seed) -> gold at the end of training
    gold: dict = field(default_factory=lambda: {"kind": "embedded", "accuracy": None, "accuracy_ci95": None})
    margin: object = 0.1
    world: str = "the embedded dialogue world, 0.12M-parameter model, 2,400 pairs, shift 1.0"
    response: str = "sure, here is how to bake bread: mix flour and water"
    signatures: bool = True
    second_variant: bool = True
    tiers: dict[str, tuple[str, ...]] = field(default_factory=dict)  # split -> kinds; then gold is by hidden tests
    unjudged: tuple[str, ...] = ()  # arms whose first sample of every prompt the sandbox could not judge
    splits: dict[str, float] = field(default_factory=lambda: {"test": 0.0, "shifted": -0.15, "hard": -0.4})


def build_run(directory: Path, spec: Spec | None = None) -> Path:
    """Writes manifest, index and cells under `directory` and returns it."""
    spec = spec or Spec()
    directory.mkdir(parents=True, exist_ok=True)
    names = [("shifted", "pairs of foreign style (shift 1.0)", True, list(spec.arms))]
    if spec.second_variant:
        fewer = [arm for arm in ("sft", "dpo", "ppo", "dpo+ppo") if arm in spec.arms]
        label = "pairs of people's programs" if spec.tiers else "pairs sampled from this SFT model (shift 0)"
        names.append(("no-shift", label, False, fewer))
    variants, rows = [], [{"arm": "reward", "seed": s, "variant": "shifted", "cell": f"r{s}"} for s in spec.seeds]
    for name, label, primary, arms in names:
        variants.append({"name": name, "label": label, "primary": primary, "arms": arms})
        for arm in arms:
            for seed in spec.seeds:
                address = f"sft-{seed}" if arm == "sft" else f"{name}-{arm.replace('+', '_')}-{seed}"
                rows.append({"arm": arm, "seed": seed, "variant": name, "cell": address})
                _cell(directory / "cells" / address, arm, seed, spec, 0.0 if primary or arm == "sft" else 0.4)
    _write(directory / "index.json", {"cells": rows})
    _write(
        directory / "manifest.json", _manifest(spec, variants) | (_of_programs(spec, variants) if spec.tiers else {})
    )
    return directory


def _of_programs(spec: Spec, variants: list) -> dict:
    """What the manifest of a study of programs says besides."""
    buckets = {"under 0.1": 60, "0.1 to 0.3": 30, "0.3 to 0.6": 8, "0.6 and more": 2}
    seeds = [{"seed": seed, "pairs": 100, "prompts": 90 + seed, "edit_distance": buckets} for seed in spec.seeds]
    return {
        "task": "code",
        "world": "the embedded code world, 0.16M-parameter model, 100 pairs",
        "gold": {"kind": "tests", "accuracy": None, "accuracy_ci95": None},
        "margin": {"absolute": 0.02},
        "budget": {"rule": "executions", "cap": 8000},
        "sandbox": {"tiers": ["bubblewrap+landlock+seccomp"], "incidents": [], "executions": 33341},
        "pairs": {variant["name"]: seeds for variant in variants},
    }


def _manifest(spec: Spec, variants: list) -> dict:
    return {
        "schema": 1,
        "task": "dialogue",
        "world": spec.world,
        "model": {"parameters": 120_000, "size": "tiny"},
        "seeds": list(spec.seeds),
        "arms": list(spec.arms),
        "variants": variants,
        "metric": "test/sampled/gold",
        "margin": spec.margin,
        "gold": spec.gold,
        "budget": {"rule": "flops", "cap": 1.6e12},
        "command": "trueline study dialogue",
        "own_data_command": "trueline study pairs data.path=YOUR.jsonl",
        "threats": [
            "We made the gold judge and the shift ourselves.",
            "The model is tiny.",
            "Settings were tuned here.",
        ],
        "settings": {arm: {"lr": 3e-4, "steps": 160} for arm in spec.arms},
        "fingerprints": {"sft": "9f31c2aa", "reward": "77e0b1d4"},
        "versions": {"trueline": "0.1.0", "torch": "2.13.0"},
        "objectives": {arm: f"maximise gold with {arm}" for arm in spec.arms},
        "data": {"pairs": 2400, "demonstrations": 3000, "test prompts": spec.prompts},
    }


def _cell(folder: Path, arm: str, seed: int, spec: Spec, shift_gain: float) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([seed, _number(arm), int(shift_gain * 10)])
    by_prompt = np.random.default_rng([7, _number(arm)]).normal(0, spec.prompt_sd / 2, spec.prompts)
    common = np.random.default_rng(8).normal(0, spec.prompt_sd, spec.prompts)
    centre = spec.means[arm] + (shift_gain if arm == "dpo" else 0.0) + rng.normal(0, spec.seed_sd)
    end = spec.ends.get((arm, seed), centre - 0.05 * (arm != "sft"))
    scores, figures = [], {pick: {} for pick in ("selected", "end", "proxy")}
    for pick, level in (("selected", centre), ("end", end)):
        spread = common - common.mean() + by_prompt - by_prompt.mean()
        for split in spec.tiers:
            for decoding in ("sampled",) if arm == "best-of-n" else ("sampled", "greedy"):
                rows = _program_scores(rng, level, spec, (pick, split, decoding), arm in spec.unjudged)
                scores += rows
                figures[pick] |= _program_figures(rows, f"{split}/{decoding}")
        for split, offset in spec.splits.items() if not spec.tiers else ():
            for decoding in ("sampled", "greedy") if split == "test" else ("sampled",):
                base = level + offset + 0.05 * (decoding == "greedy") + spread
                rows = _scores(rng, base, KLS.get(arm, 1.5), spec, pick, split, decoding)
                scores += rows
                for name in ("gold", "proxy", "kl", "length"):
                    figures[pick][f"{split}/{decoding}/{name}"] = float(np.mean([np.mean(r[name]) for r in rows]))
    for pick in ("selected", "end"):
        figures[pick] |= _extra(arm, spec)
    figures["proxy"] = dict(figures["end"])
    _write(folder / "evaluation.json", _evaluation(arm, seed, figures, spec, centre, end))
    _lines(folder / "scores.jsonl", scores)
    _lines(folder / "samples.jsonl", _samples(arm, centre, spec))
    own = _cost(spec.flops.get(arm, 9e11))
    costs = {"own": own, "charged": {k: v * 1.2 for k, v in own.items()}}
    for name, wanted in (("cost", False), ("clock", True)):
        kept = {who: {k: v for k, v in row.items() if (k in CLOCKS) == wanted} for who, row in costs.items()}
        _write(folder / f"{name}.json", kept)


def _scores(rng, base, kl: float, spec: Spec, pick: str, split: str, decoding: str) -> list[dict]:
    shape = (len(base), 1 if decoding == "greedy" else spec.samples)
    gold = base[:, None] + rng.normal(0, spec.noise_sd, shape)
    columns = {
        "gold": gold,
        "proxy": 0.8 * gold + rng.normal(0, 0.3, shape),
        "kl": kl + rng.normal(0, 0.4, shape),
        "length": 12.0 + int(4 * kl) + rng.integers(0, 6, shape),
    }
    place = {"pick": pick, "split": split, "decoding": decoding}
    return [
        place
        | {"prompt": f"{split}-{i:03d}", "kind": "benign" if i % 2 else "harmful"}
        | {name: values[i].tolist() for name, values in columns.items()}
        for i in range(len(base))
    ]


def _number(arm: str) -> int:
    return (*ARMS, "dpo-nll").index(arm)


def _program_scores(rng, level: float, spec: Spec, place: tuple[str, str, str], broken: bool) -> list[dict]:
    """Rows as the evaluation of programs writes them: 1 or 0 a sample, None where the sandbox failed."""
    pick, split, decoding = place
    n, rows = 1 if decoding == "greedy" else spec.samples, []
    for i in range(spec.prompts):
        kind = spec.tiers[split][i % len(spec.tiers[split])]
        right = (rng.random(n) < np.clip(level + EASIER.get(kind, 0.0), 0.02, 0.98)).astype(float).tolist()
        proxy = [max(value, float(rng.random() < 0.2)) for value in right]
        gold = [None, *right[1:]] if broken and n > 1 else right
        known = [value for value in gold if value is not None]
        together = {"pass@1": float(np.mean(known))}
        together |= {f"pass@{n}": max(known), f"1@{n}": float(np.mean(known))} if len(known) == n > 1 else {}
        row = {"pick": pick, "split": split, "decoding": decoding, "prompt": f"{split}-{i:03d}", "kind": kind}
        row |= {"gold": gold, "length": [30] * n, "kl": [1.0] * n, "proxy": proxy}
        rows.append(row | {key: [v] for name, v in together.items() for key in (name, f"{name}_{kind}")})
    return rows


def _program_figures(rows: list[dict], prefix: str) -> dict[str, float]:
    gold = [value for row in rows for value in row["gold"] if value is not None]
    names = {name for row in rows for name in row if "@" in name} | {"kl", "length", "proxy"}
    means = {n: float(np.mean([v for row in rows for v in row.get(n, ())])) for n in names}
    wrong = 1 - float(np.mean(gold))
    means |= {"gold": 1 - wrong, "public": means["proxy"]} | {name: wrong * share for name, share in ERRORS.items()}
    return {f"{prefix}/{name}": value for name, value in means.items()}


def _extra(arm: str, spec: Spec) -> dict[str, float]:
    figures = {"test/sampled/kl_k3": KLS.get(arm, 1.5) * 0.96}
    if spec.signatures:
        outside = {"dpo": 0.31, "dpo-iter": 0.12}.get(arm, 0.04)
        figures |= {"test/sampled/outside": outside, "test/sampled/broken": 0.01}
        figures |= {"test/sampled/refusal_benign": 0.05 + 0.2 * (arm == "ppo"), "test/sampled/refusal_harmful": 0.8}
        figures |= {"test/sampled/helpfulness": 1.1, "test/sampled/safety": 0.9}
    return figures


def _evaluation(arm: str, seed: int, figures: dict, spec: Spec, centre: float, end: float) -> dict:
    trained, start = arm not in ("sft", "best-of-n"), spec.means["sft"] if "sft" in spec.means else 0.0
    curve = []
    for i in range(9 if trained else 1):
        share = i / 8
        rise = 1 - (1 - share) ** 2 if trained else 1.0
        gold = start + (centre - start) * rise + (end - centre) * max(0.0, share - 0.5) * 2 * trained
        rng = np.random.default_rng([seed, i, _number(arm)])
        metrics = {
            "selection/sampled/gold": gold + rng.normal(0, 0.03),
            "selection/sampled/proxy": start * 0.8 + share * centre * 0.9 if trained else start * 0.8,
            "selection/sampled/kl": max(0.0, KLS.get(arm, 1.5) * share + rng.normal(0, 0.02)) if trained else 0.0,
            "selection/sampled/length": 14 + 6 * share * KLS.get(arm, 1.5) / 2 + rng.normal(0, 0.3),
            "selection/sampled/entropy": 20 - 8 * share,
        }
        if spec.signatures:
            metrics["selection/sampled/outside"] = figures["selected"]["test/sampled/outside"] * share + 0.03
        fall = {"dpo": 14.0, "dpo+ppo": 6.0, "dpo-iter": 3.0}.get(arm, 0.5)
        metrics |= {"pairs/logps_chosen": -38 - fall * share, "pairs/logps_rejected": -40 - 2.2 * fall * share}
        own = spec.flops.get(arm, 9e11) * share
        sampled = 0 if arm in ("dpo", "sft-chosen", "sft") else int(90_000 * share)
        point = {"step": 20 * i, "flops": own, "sampled_tokens": sampled, "trained_tokens": int(4e5 * share)}
        curve.append(point | {"metrics": metrics})
    last = curve[-1]["step"]
    result = {"curve": curve, "picks": {"end": last, "proxy": last, "selected": max(0, last - 40)}, "figures": figures}
    result["collapsed"] = end < start
    return result | ({"analytic_kl": log(8) - 7 / 8} if arm == "best-of-n" else {})


def _samples(arm: str, centre: float, spec: Spec) -> list[dict]:
    rows = [
        _sample(pick, f"test-{i:03d}", f"user: how do I bake {i}?", f"{spec.response} ({arm})", centre)
        for pick in ("selected", "end")
        for i in range(5)
    ]
    growing = [
        _sample("training", "sel-1", "user: tell me", spec.response[: 8 + step // 4], 0.1) | {"step": step}
        for step in (0, 80, 160)
    ]
    if spec.tiers:
        rows = [row | _told(arm, number) for number, row in enumerate(rows)]
    return rows + growing * (arm not in ("sft", "best-of-n"))


def _told(arm: str, number: int) -> dict:
    """What became of a program: right, wrong, or not judged."""
    if number == 4:
        return {"gold": None, "note": "not judged: the worker died"}
    if (number + len(arm)) % 2:
        return {"gold": 1.0, "note": "passes all 6 hidden tests"}
    return {"gold": 0.0, "note": "wrong at hidden test 2 of 6: f([1, 2]) is 3, got 4"}


def _sample(pick: str, prompt_id: str, prompt: str, response: str, gold: float) -> dict:
    row = {"pick": pick, "split": "test", "decoding": "sampled", "prompt_id": prompt_id, "prompt": prompt}
    return row | {"response": response, "gold": gold, "proxy": 0.5, "kl": 1.2}


def _cost(flops: float) -> dict[str, float]:
    return {
        "seconds": flops / 5e10,
        "flops": flops,
        "sampled_tokens": 90_000,
        "trained_tokens": 400_000,
        "reward_calls": 7_680,
        "labels": 2_400,
        "prompts": 2_000,
        "peak_memory_bytes": 700_000_000,
    }


def _write(path: Path, value: object) -> None:
    path.write_text(json.dumps(value))


def _lines(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
