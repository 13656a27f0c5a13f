"""The page of `trueline theory`, from its record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trueline.study.document import Document, Figure, Section, Table, Text, figure_text
from trueline.study.drawing import heat_map, lines

__all__ = ["theory_page"]

NAMES = {
    "ppo-exact": "PPO (exact optimum)",
    "ppo-sampled": "PPO (sampled)",
    "dpo": "DPO",
    "ipo": "IPO",
    "dpo-online-kl": "DPO + online KL",
    "dpo-penalised": "DPO, penalised to the KL",
    "reference": "Reference",
}
SHOWN = ("ppo-exact", "dpo", "ipo", "dpo-online-kl", "dpo-penalised")


def theory_page(record: Mapping[str, Any]) -> Document:
    """Every part with its claim first."""
    sections = [
        Section("Theorem 4.1 and its table", _theorem(record["theorem"], record["soft_labels"], record["support"])),
        Section("Where gradient descent goes", _dynamics(record["flow"], record["corners"])),
        Section("Eight prompts, eight responses, at matched KL", _grid(record["grid"])),
        Section("What the difference hangs on", _sensitivity(record["sensitivity"])),
        Section("A policy class that cannot hold the truth", _misspecified(record["misspecified"])),
        Section("Coverage coefficients", _coverage(record["coverage"])),
    ]
    title = "DPO's minimisers include policies that no reward leads to; whether training goes there is another question"
    facts = (("Seeds", str(record["seeds"])), ("Seconds", f"{record['seconds']:.0f}"), ("Arithmetic", "float64, exact"))
    lead = (
        "Everything here is computed exactly on tables, or trained on 8 x 8 worlds whose every response is known. "
        "Intervals are 95% over seeds."
    )
    return Document("theory", "arXiv 2404.10719, section 4", title, lead, sections, facts, command=record["command"])


def _small(value: float) -> str:
    return figure_text(value, 3) if abs(value) >= 1e-3 or value == 0 else f"{value:.0e}".replace("-", "−")


def _ci(entry: Mapping[str, Any] | None, digits: int = 3, *, sign: bool = False) -> str:
    if not entry or entry["mean"] != entry["mean"]:
        return "not reached"
    low, high = entry["ci95"]
    bounds = "" if low is None else f" [{figure_text(low, digits, sign=sign)}, {figure_text(high, digits, sign=sign)}]"
    return figure_text(entry["mean"], digits, sign=sign) + bounds


def _theorem(table: Mapping[str, Any], soft: Mapping[str, Any], support: Mapping[str, Any]) -> list[Any]:
    dpo = Table(
        ("pi(y1)", ">pi(y2)", ">pi(y3)", ">DPO's loss"),
        [(_small(r["y1"]), _small(r["y2"]), _small(r["y3"]), _small(r["loss"])) for r in table["dpo"]],
        "DPO, reference (1/2, 1/2, 0), y1 preferred to y2: the loss is log(1 + (pi(y2) / pi(y1))^beta).",
    )
    ppo = Table(
        ("r(y1) − r(y2)", ">pi(y1)", ">pi(y2)", ">pi(y3)"),
        [(figure_text(r["gap"], 0), *(_small(p) for p in r["policy"])) for r in table["ppo"]],
        "PPO: the KL-regularised optimum, whatever the reward.",
    )
    prices = Table(
        ("ref(y3)", ">reward above y1's"),
        [(_small(r["ref_y3"]), _or_infinite(r["reward"])) for r in soft["prices"]],
        "Soft labels (0.8): each of these policies is a minimiser of DPO, and the reward that makes it PPO's "
        "optimum is:",
    )
    return [Text(table["claim"], "lead"), dpo, ppo, Text(soft["claim"]), prices, Text(f"{support['says']}.")]


def _dynamics(flow: Mapping[str, Any], corners: Mapping[str, Any]) -> list[Any]:
    series = {
        name: ([40 * i for i in range(len(way["path"]))], [p[2] for p in way["path"]], None)
        for name, way in flow["ways"].items()
    }
    figure = Figure(
        "A response in no pair, along DPO's gradient descent",
        lines("flow", "pi(y3) over steps", series, xlabel="steps", ylabel="pi(y3)", marks=False),
        "Three responses, y1 preferred to y2, by reference. From the uniform one y3 only falls.",
    )
    key = next(name for name in corners["rows"][0] if name.startswith("rise_at"))
    rows = [
        (
            r["learner"],
            r["optimizer"],
            f"{100 * r['raised']:.0f}%",
            figure_text(r["largest"], 3),
            _ci(r[key], sign=True),
        )
        for r in corners["rows"]
    ]
    table = Table(
        ("learner", "optimiser", ">worlds where one rises", ">largest rise", f">at KL {key.rsplit('_', 1)[1]}"),
        rows,
        "The largest rise of probability over the reference of a response in no pair of its prompt, uniform reference.",
    )
    gap = Text(
        f"With one and the same MLP class for policy and reward the two routes agree within "
        f"{corners['matched_class_gap']:.0e}: the difference between DPO and PPO is one of classes and of training."
    )
    return [Text(flow["claim"], "lead"), figure, Text(corners["claim"], "lead"), table, gap]


def _grid(grid: Mapping[str, Any]) -> list[Any]:
    pictures = grid["pictures"]
    most = max(max(map(max, table)) for table in pictures["tables"].values())
    names = [str(i + 1) for i in range(8)]
    marked = [(x, y) for x, y in pictures["covered"]]
    figures = [
        Figure(
            NAMES[name] if name == "reference" else f"{NAMES[name]}, KL {pictures['kl'][name]:.2f}",
            heat_map(
                f"heat-{name}", NAMES[name], table, rows=names, columns=names, limits=(0.0, most), marked=marked,
                xlabel="response", ylabel="", size=36,
            ),
            "Rows are prompts; the best response is the diagonal. A ring: the response is in a pair of its prompt.",
        )
        for name, table in pictures["tables"].items()
    ]  # fmt: skip
    parts: list[Any] = [Text(grid["claim"], "lead"), Text(f"{grid['says']}."), *figures]
    parts += [_coverage_figure(grid, kind) for kind in ("mlp", "table")]
    parts += [_outside_figure(grid, kind) for kind in ("mlp", "table")]
    parts += [_gap_table(grid, kind) for kind in ("mlp", "table")]
    return parts


def _coverage_figure(grid: Mapping[str, Any], kind: str, kl: float = 0.6) -> Figure:
    series = {}
    for arm in SHOWN:
        rows = [r for r in grid["learners"][kind]["rows"] if r["arm"] == arm and r["kl"] == kl and r["best"]]
        half = [(r["best"]["ci95"][1] or r["best"]["mean"]) - r["best"]["mean"] for r in rows]
        series[NAMES[arm]] = ([r["pairs"] for r in rows], [r["best"]["mean"] for r in rows], half)
    title = f"Mass on the best response, {'MLP' if kind == 'mlp' else 'table'}, KL {kl}"
    svg = lines(f"best-{kind}", title, series, xlabel="pairs a prompt", ylabel="mean mass on the best response")
    return Figure(title, svg, "Every prompt has one pair with its best response in it; the other pairs are random.")


def _outside_figure(grid: Mapping[str, Any], kind: str) -> Figure:
    found = grid["learners"][kind]["outside_mass"]
    series: dict[str, tuple[Sequence[float], Sequence[float], None]] = {}
    for arm, mass in found["mass"].items():
        kept = [(kl, m) for kl, m in zip(found["kls"], mass) if m is not None]
        if kept:
            xs, ys = zip(*kept)
            series[NAMES[arm]] = ((0.0, *xs), (found["start"], *ys), None)
    title = f"Mass on responses in no pair, {'MLP' if kind == 'mlp' else 'table'}"
    svg = lines(f"outside-{kind}", title, series, xlabel="KL to the reference (nats)", ylabel="mass", marks=False)
    return Figure(title, svg, "Exact, along training, mean over worlds.")


def _gap_table(grid: Mapping[str, Any], kind: str) -> Table:
    rows = []
    for pairs in grid["pairs"]:
        for kl in grid["kls"]:
            found = [g for g in grid["learners"][kind]["gaps"] if g["pairs"] == pairs and g["kl"] == kl]
            by = {g["against"]: g for g in found}
            cells = (_ci(by[a] if "mean" in by[a] else None, sign=True) for a in ("dpo", "ipo", "dpo-online-kl"))
            rows.append((f"{pairs} pairs, KL {kl}", *cells))
    columns = ("where", ">less DPO", ">less IPO", ">less DPO + online KL")
    name = "MLP" if kind == "mlp" else "Table"
    return Table(columns, rows, f"{name}: PPO's optimum less the other, mass on the best response, paired by seed.")


def _sensitivity(found: Mapping[str, Any]) -> list[Any]:
    rows = [(f"DPO, beta {r['beta']:g}, stopped at the KL", _ci(r["best"])) for r in found["dpo"]]
    rows += [(f"PPO, reward model of {r['steps']} steps", _ci(r["best"])) for r in found["ppo"]]
    note = f"MLPs, {found['pairs']} pairs a prompt, KL {found['kl']}: mean mass on the best response."
    return [Text(found["claim"], "lead"), Table(("how", ">mass [95%]"), rows, note)]


def _misspecified(found: Mapping[str, Any]) -> list[Any]:
    rows = [
        (name, *(figure_text(p, 3) for p in policy), figure_text(found["true_reward"][name], 2))
        for name, policy in found["policies"].items()
    ]
    note = (
        f"True rewards {found['rewards']}; a share of {found['share']} of the pairs compares y2 with y3. DPO "
        f"reverses the "
        f"order above {found['reversal_share']:.2f}. The reference has {found['true_reward']['reference']:.2f}."
    )
    return [
        Text(found["claim"], "lead"),
        Table(("policy", ">pi(y1)", ">pi(y2)", ">pi(y3)", ">true reward"), rows, note),
    ]


def _coverage(found: Mapping[str, Any]) -> list[Any]:
    rows = [
        (f"{r['pairs']} pairs a prompt", _ci(r["best_policy"], 1), _or_infinite(r["every_policy"]))
        for r in found["rows"]
    ]
    balls = [(f"KL {r['kl']}", _ci(r["coefficient"], 1)) for r in found["kl_ball"]]
    return [
        Text(found["claim"], "lead"),
        Table(("data", ">best policy", ">every policy"), rows, "max pi / mu over what the policy says."),
        Table(("within", ">reference covers it up to"), balls, "sup of pi / ref over all policies within the KL."),
    ]


def _or_infinite(value: float | None) -> str:
    return "infinite" if value is None else figure_text(value, 1)
