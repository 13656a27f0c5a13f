"""`trueline theory`: what can be said of DPO and PPO exactly, in tables small enough to compute everything."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from trueline.commands.theory_page import theory_page
from trueline.experiments.parts import interval_json
from trueline.runs.cell import write_json
from trueline.study.document import save
from trueline.study.statistics import seed_interval
from trueline.theory import coverage, dynamics, misspecified, sensitivity, theorem
from trueline.theory.bandits import highest_unlabelled, sign_descent_peak
from trueline.theory.grid import ARMS, LEARNERS, Beds, GridSettings, Trained, make_beds, train_learner
from trueline.theory.matching import mean_kl, outcomes, penalised_at_kl
from trueline.theory.tabular import (
    bradley_terry_minimizer,
    bradley_terry_population_loss,
    dpo_population_loss,
    wins_table,
)

__all__ = ["theory"]

SEEDS = 24
QUICK_SEEDS = 6
MATCHED = 0.6
"""The KL of pictures and of what is compared over choices, nats."""
BETAS = (0.01, 0.1, 0.3, 1.0, 3.0)
LENGTHS = (25, 50, 100, 200, 400, 800)


def theory(seeds: int, directory: Path, command: str, console: Console) -> dict[str, Any]:
    """Everything, written to theory.json and theory.html; returns the former."""
    began = time.perf_counter()
    torch.set_num_threads(1)  # tables this small gain nothing from a second thread
    directory.mkdir(parents=True, exist_ok=True)
    settings = GridSettings()
    record: dict[str, Any] = {}
    parts: tuple[tuple[str, Callable[[], dict[str, Any]]], ...] = (
        ("theorem", _theorem),
        ("soft_labels", _soft_labels),
        ("support", _support),
        ("flow", _flow),
        ("corners", lambda: _corners(seeds, settings)),
        ("grid", lambda: _grid(seeds, settings)),
        ("sensitivity", lambda: _sensitivity(seeds, settings)),
        ("misspecified", _misspecified),
        ("coverage", lambda: _coverage(seeds, settings)),
    )
    for name, make in parts:
        record[name] = make()
        console.print(f"[{time.perf_counter() - began:6.1f} s] {name}: {record[name]['says']}", markup=False)
    record |= {"seconds": round(time.perf_counter() - began, 1), "seeds": seeds, "command": command}
    write_json(directory / "theory.json", record)
    save(theory_page(record), directory / "theory.html")
    console.print(f"\n{record['seconds']:.0f} s. Page: {directory / 'theory.html'}", markup=False)
    return record


def _theorem() -> dict[str, Any]:
    """Table 1 of the paper: ref = (1/2, 1/2, 0), y1 preferred to y2 once."""
    beta, rejected = 1.0, [10.0**-n for n in range(1, 9)]
    losses = theorem.limit_loss(0.1, rejected, beta=beta)
    ref = torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64)
    gaps = [0.0, 1.0, 5.0, 20.0, 50.0]
    optima = theorem.one_pair_optimum(ref, gaps, beta=beta)
    return {
        "claim": "Theorem 4.1 and its table: DPO's loss goes to 0 with nine tenths of the mass on a response that the "
        "reference never says; no KL-regularised optimum has any mass there.",
        "reference": ref.tolist(),
        "beta": beta,
        "dpo": [
            {"y1": 0.1, "y2": b, "y3": 0.9 - b, "loss": float(loss)} for b, loss in zip(rejected, losses)
        ],
        "ppo": [{"gap": g, "policy": p} for g, p in zip(gaps, optima.tolist())],
        "closed_form": "loss = log(1 + (b / a)^beta)",
        "says": f"DPO's loss is {float(losses[-1]):.1e} with 0.9 on y3; PPO's largest mass on y3 is "
        f"{float(optima[:, 2].max()):.1g}",
    }  # fmt: skip


def _soft_labels() -> dict[str, Any]:
    """The same pair with label 0.8: a line of minimisers, and the reward that would lead to one of them."""
    beta, win, masses = 1.0, 0.8, [0.0, 0.25, 0.5, 0.75, 0.9]
    ref = torch.tensor([0.4, 0.4, 0.2], dtype=torch.float64)
    policies = theorem.soft_label_minimizers(ref, win, masses, beta=beta)
    wins = wins_table(3, [(0, 1, 1.0, win)])
    losses = [float(dpo_population_loss(p, ref, wins, beta=beta)) for p in policies[1:]]
    minimum = float(bradley_terry_population_loss(bradley_terry_minimizer(wins), wins))
    shares = [0.2, 0.02, 2e-3, 2e-6, 2e-12, 0.0]
    refs = torch.tensor([[(1 - s) / 2, (1 - s) / 2, s] for s in shares], dtype=torch.float64)
    prices = theorem.price_of_response(refs, 0.9, beta=beta).tolist()
    return {
        "claim": "Soft labels do not mend it: every mass on y3 is as good, and with full support a reward leads there "
        "too. What a response that the reference hardly says costs grows with a logarithm only.",
        "win": win,
        "policies": policies.tolist(),
        "loss_above_minimum": max(abs(loss - minimum) for loss in losses),
        "prices": [{"ref_y3": s, "reward": p if math.isfinite(p) else None} for s, p in zip(shares, prices)],
        "says": f"all losses within {max(abs(loss - minimum) for loss in losses):.0e} of the minimum; 0.9 on a "
        f"response "
        f"of probability 2e-12 costs a reward of {prices[4]:.0f}",
    }


def _support() -> dict[str, Any]:
    found = theorem.support_inclusion(range(400), beta=0.5)
    return {
        "claim": "The inclusion is an equality where the reference has full support and the classes match, and proper "
        "where it has zeros: then some minimiser of DPO is no optimum of any reward.",
        **asdict(found),
        "says": f"{found.bandits} random bandits: full support, every minimiser rebuilt within "
        f"{found.rebuilt:.0e}; with "
        f"a zero, {found.outside} of {found.bandits} have a minimiser that no reward leads to",
    }


def _flow() -> dict[str, Any]:
    """DPO's gradient descent on a table of three responses, from three references."""
    starts = {"uniform": (1 / 3, 1 / 3, 1 / 3), "rejected likely": (0.05, 0.75, 0.2), "table 1": (0.5, 0.5, 0.0)}
    wins = wins_table(3, [(0, 1, 1.0, 1.0)])
    ways = {}
    for name, ref in starts.items():
        path = dynamics.one_pair_flow(ref)
        start = torch.tensor(ref, dtype=torch.float64)
        bound = float(highest_unlabelled(start, wins)) if ref[2] > 0 else 0.0
        ways[name] = {
            "reference": list(ref), "path": path[::40].tolist(), "highest_y3": float(path[:, 2].max()), "bound": bound,
        }  # fmt: skip
    return {
        "claim": "Gradient descent on a table does not go where the theorem points: from a uniform reference a "
        "response "
        "in no pair only falls. It may rise for a while where the rejected one starts out likely, to a bound.",
        "ways": ways,
        "adam_peak": {"rejected": 3, "of": 8, "peak": sign_descent_peak(8, 3), "start": 1 / 8},
        "says": "; ".join(
            f"{name}: y3 from {way['reference'][2]:.2f} to at most {way['highest_y3']:.3f} (bound {way['bound']:.3f})"
            for name, way in ways.items()
        ),
    }


def _corners(seeds: int, settings: GridSettings) -> dict[str, Any]:
    beds = make_beds(range(seeds), settings, uniform=True)
    rows = []
    for learner, optimizer in dynamics.CORNERS:
        corner = dynamics.train_corner(beds, learner, optimizer, beta=settings.beta, steps=settings.steps)
        at = corner.rise_at(MATCHED).view(beds.levels, -1).nanmean(0)
        rows.append({
            "learner": learner, "optimizer": optimizer, "raised": float(corner.raised.double().mean()),
            "largest": float(corner.highest.max()), f"rise_at_kl_{MATCHED}": interval_json(_interval(at)),
        })  # fmt: skip
    gap = dynamics.matched_class_gap(make_beds(range(min(seeds, 8)), settings), settings)
    shares = {f"{row['learner']}, {row['optimizer']}": row["raised"] for row in rows}
    return {
        "claim": "From a uniform reference, responses in no pair rise with an MLP and with Adam, not with a table and "
        "plain gradient descent: the drift is of the parameterisation and the optimiser, not of the loss alone.",
        "rows": rows,
        "matched_class_gap": gap,
        "says": "worlds in which one rises: "
        + ", ".join(f"{name} {share:.0%}" for name, share in shares.items())
        + f"; with one class for policy and reward both routes agree within {gap:.0e}",
    }


def _grid(seeds: int, settings: GridSettings) -> dict[str, Any]:
    """Section 4.2 of the paper, every learner, arm, number of pairs and KL."""
    beds = make_beds(range(seeds), settings)
    found: dict[str, Any] = {"pairs": list(settings.pairs), "kls": list(settings.kls), "learners": {}}
    for kind in LEARNERS:
        trained = train_learner(kind, beds, settings)
        found["learners"][kind] = _measured(trained, settings)
        found["learners"][kind]["outside_mass"] = _outside(trained)
        if kind == "mlp":
            found["pictures"] = _pictures(beds, trained)
    gap = _cell(found["learners"]["mlp"]["gaps"], settings.pairs[1], MATCHED)
    even = _cell(found["learners"]["table"]["gaps"], settings.pairs[1], MATCHED)
    found["claim"] = (
        "The 8 x 8 study at matched KL: PPO's optimum against DPO, IPO and DPO with an online KL, over seeds, coverage "
        "and parameterisations."
    )
    found["says"] = (
        f"PPO less DPO in mass on the best response, {settings.pairs[1]} pairs a prompt, KL {MATCHED}: MLP "
        f"{gap['mean']:+.3f} [{gap['ci95'][0]:+.3f}, {gap['ci95'][1]:+.3f}], table {even['mean']:+.3f} "
        f"[{even['ci95'][0]:+.3f}, {even['ci95'][1]:+.3f}]"
    )
    return found


def _cell(gaps: Sequence[dict[str, Any]], pairs: int, kl: float) -> dict[str, Any]:
    return next(g for g in gaps if g["pairs"] == pairs and g["kl"] == kl and g["against"] == "dpo")


def _measured(trained: Trained, settings: GridSettings) -> dict[str, Any]:
    levels, rows, gaps = len(settings.pairs), [], []
    for kl in settings.kls:
        per_arm = {arm: outcomes(trained.at_kl(arm, kl), trained.worlds) for arm in ARMS}
        for level, pairs in enumerate(settings.pairs):

            def of(values: Tensor, level: int = level) -> Tensor:
                return values.view(levels, -1)[level]

            for arm, found in per_arm.items():
                figures = {name: interval_json(_interval(of(values))) for name, values in found._asdict().items()}
                missing = int(of(found.best).isnan().sum())
                rows.append({"arm": arm, "pairs": pairs, "kl": kl, "unreached": missing, **figures})
            for other in ARMS[1:]:
                difference = of(per_arm["ppo-exact"].best) - of(per_arm[other].best)
                gaps.append({"against": other, "pairs": pairs, "kl": kl} | (interval_json(_interval(difference)) or {}))
    return {"rows": rows, "gaps": gaps}


def _outside(trained: Trained) -> dict[str, Any]:
    """Mass on the responses in no pair along training, over KL: exact, and at equal KL for the penalised optimum."""
    kls = [0.05 * i for i in range(1, 25)]
    ref, worlds = trained.worlds.ref, trained.worlds
    optima = [outcomes(penalised_at_kl(ref, trained.rewards, kl)[0], worlds).outside for kl in kls]
    lines = {"ppo-exact": torch.stack(optima)}
    for arm in ("dpo", "ipo", "dpo-online-kl"):
        path = trained.paths[arm]
        mass = path.softmax(-1).masked_fill(worlds.covered, 0.0).sum(-1).mean(-1)
        lines[arm] = _first_at(mean_kl(path, ref.expand_as(path)), mass, kls)
    start = float(ref.exp().masked_fill(worlds.covered, 0.0).sum(-1).mean())
    shown = {arm: [_mean_of_most(row) for row in table] for arm, table in lines.items()}
    return {"kls": kls, "start": start, "mass": shown}


def _first_at(kl: Tensor, values: Tensor, targets: Sequence[float]) -> Tensor:
    """Values [T, N] where the KL first reaches each target, linear between two places, [K, N]; nan where it "
    "does not."""
    worlds = torch.arange(kl.shape[1])
    rows = []
    for target in targets:
        past = kl >= target
        after = past.double().argmax(0).clamp(min=1)
        low, high = kl[after - 1, worlds], kl[after, worlds]
        at = torch.lerp(values[after - 1, worlds], values[after, worlds], ((target - low) / (high - low)).clamp(0, 1))
        rows.append(torch.where(past.any(0), at, torch.nan))
    return torch.stack(rows)


def _mean_of_most(values: Tensor) -> float | None:
    """Mean over worlds where nine in ten have a value."""
    known = ~values.isnan()
    return float(values[known].mean()) if known.double().mean() > 0.9 else None


def _pictures(beds: Beds, trained: Trained) -> dict[str, Any]:
    """The paper's Figure 1 for one seed: the second level of coverage, matched KL."""
    world = len(beds.seeds)  # the first seed at the second number of pairs
    tables = {"reference": trained.worlds.ref[world].exp()}
    tables |= {arm: trained.at_kl(arm, MATCHED)[world].exp() for arm in ("ppo-exact", "dpo", "dpo-online-kl")}
    covered = trained.worlds.covered[world].nonzero().tolist()
    kl = {name: float(mean_kl(t.log(), trained.worlds.ref[world])) for name, t in tables.items()}
    return {"tables": {n: t.tolist() for n, t in tables.items()}, "covered": covered, "kl": kl}


def _sensitivity(seeds: int, settings: GridSettings) -> dict[str, Any]:
    beds = make_beds(range(seeds), settings)
    level = slice(seeds, 2 * seeds)  # two pairs a prompt

    def best(logprobs: Tensor) -> list[Any]:
        return [interval_json(_interval(outcomes(table, beds.worlds).best[level])) for table in logprobs]

    by_beta = best(sensitivity.dpo_by_beta(beds, BETAS, MATCHED, steps=settings.steps * 2))
    by_length = best(sensitivity.reward_by_length(beds, LENGTHS, MATCHED))
    betas = [{"beta": b, "best": v} for b, v in zip(BETAS, by_beta)]
    lengths = [{"steps": n, "best": v} for n, v in zip(LENGTHS, by_length)]
    known = [row for row in betas if row["best"] and row["best"]["mean"] == row["best"]["mean"]]
    return {
        "claim": "The difference at matched KL hangs on choices that the paper does not report: DPO's beta (with the "
        "stop that reaches the KL) and the length of the reward model's training.",
        "kl": MATCHED, "pairs": settings.pairs[1], "dpo": betas, "ppo": lengths,
        "says": f"mass on the best response: DPO {known[0]['best']['mean']:.3f} (beta {known[0]['beta']}) to "
        f"{known[-1]['best']['mean']:.3f} (beta {known[-1]['beta']}), PPO {lengths[0]['best']['mean']:.3f} "
        f"({LENGTHS[0]} steps) to {lengths[-1]['best']['mean']:.3f} ({LENGTHS[-1]})",
    }  # fmt: skip


def _misspecified() -> dict[str, Any]:
    case = misspecified.OneParameter()
    recovered = misspecified.recovered_rewards(case)
    theta = misspecified.dpo_theta(case)
    best = misspecified.best_theta(case, recovered)
    policies = {
        "dpo": misspecified.linear_policy(case, theta),
        "ppo, the same class": misspecified.linear_policy(case, best),
        "ppo, any policy": misspecified.free_policy(case, recovered),
    }
    values = {name: float((p * case.true_rewards).sum()) for name, p in policies.items()}
    ref = float((case.ref * case.true_rewards).sum())
    return {
        "claim": "Where the policy class cannot hold the truth, DPO can reverse the order that a reward model gets "
        "right, by which pairs were compared how often, with endless data.",
        "rewards": list(case.rewards), "share": case.share, "reversal_share": misspecified.reversal_share(case),
        "theta": {"dpo": theta, "dpo, by search": misspecified.population_theta(case), "ppo": best},
        "recovered": recovered.tolist(),
        "policies": {name: p.tolist() for name, p in policies.items()},
        "true_reward": values | {"reference": ref},
        "says": f"true reward: reference {ref:.2f}, DPO {values['dpo']:.2f}, PPO {values['ppo, the same class']:.2f}; "
        f"DPO reverses above a share of {misspecified.reversal_share(case):.2f} of the pairs (y2, y3)",
    }  # fmt: skip


def _coverage(seeds: int, settings: GridSettings) -> dict[str, Any]:
    beds = make_beds(range(seeds), settings)
    data, ref = beds.worlds.data, beds.worlds.ref.exp()
    best = torch.eye(ref.shape[-1], dtype=torch.float64).expand_as(ref)
    one = coverage.single_policy_coefficient(best, data).view(beds.levels, -1)
    ball = {kl: coverage.kl_ball_coefficient(ref, kl).view(beds.levels, -1)[0] for kl in settings.kls}
    everything = coverage.all_policy_coefficient(data).view(beds.levels, -1)
    rows = [
        {"pairs": pairs, "best_policy": interval_json(_interval(one[level])),
         "every_policy": float(everything[level].min()) if everything[level].isfinite().any() else None}
        for level, pairs in enumerate(settings.pairs)
    ]  # fmt: skip
    balls = [{"kl": kl, "coefficient": interval_json(_interval(values))} for kl, values in ball.items()]
    return {
        "claim": "Coverage coefficients: the pairs cover the best policy and not every policy; what stays "
        "within a KL of "
        "the reference is covered by the reference.",
        "rows": rows, "kl_ball": balls,
        "says": f"best policy {rows[0]['best_policy']['mean']:.1f} to {rows[-1]['best_policy']['mean']:.1f}, "
        f"every policy "
        f"infinite, within {settings.kls[-1]} nats of the reference {balls[-1]['coefficient']['mean']:.1f}",
    }  # fmt: skip


def _interval(values: Tensor) -> Any:
    """Over the seeds that have a value; None where fewer than two have."""
    known = values[~values.isnan()]
    return seed_interval(known.tolist()) if len(known) > 1 else None
