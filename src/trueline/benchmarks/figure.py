"""The scaling curves as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

__all__ = ["draw_curves"]

_PANELS = {
    "batch": "samples in a batch",
    "length": "response length in tokens",
    "size": "parameters of the model",
    "processes": "processes of one thread",
}
_COLOURS = {"rollout": "#0072b2", "sft": "#009e73", "ppo": "#d55e00"}
_NAMES = {"rollout": "sampling", "sft": "SFT step", "ppo": "PPO iteration, 1 epoch"}
_INK, _GRID = "#333333", "#e3e3e3"


def draw_curves(record: dict[str, Any], path: Path) -> None:
    """Milliseconds of a sample on log axes, a panel a curve, each line named at its end."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.4), dpi=140, facecolor="white", layout="constrained")
    panels = figure.subplots(1, len(_PANELS), sharey=True)
    for panel, (curve, label) in zip(panels, _PANELS.items()):
        for kind, colour in _COLOURS.items():
            points = sorted(
                (p["x"], 1000 * p["per_sample"]) for p in record["points"] if p["curve"] == curve and p["label"] == kind
            )
            if points:
                x, y = zip(*points)
                panel.plot(x, y, color=colour, marker="o", markersize=4, linewidth=1.6)
                if curve == "batch":
                    panel.annotate(
                        _NAMES[kind],
                        (x[0], y[0]),
                        xytext=(0, 8),
                        textcoords="offset points",
                        color=colour,
                        fontsize=8,
                        bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},
                    )
        _dress(panel, label, sorted({p["x"] for p in record["points"] if p["curve"] == curve}))
    panels[0].set_ylabel("milliseconds a sample", color=_INK, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _dress(panel: Any, label: str, ticks: list[float]) -> None:
    panel.set_xscale("log", base=2)
    panel.set_yscale("log")
    panel.set_xlabel(label, color=_INK, fontsize=9)
    panel.set_xticks(ticks, [_short(x) for x in ticks])
    panel.minorticks_off()
    panel.yaxis.set_major_formatter(lambda y, _: f"{y:g}")
    panel.margins(x=0.12, y=0.15)
    panel.grid(color=_GRID, linewidth=0.8)
    panel.tick_params(colors=_INK, labelsize=8, length=0)
    for side in panel.spines.values():
        side.set_visible(False)


def _short(x: float) -> str:
    return f"{x / 1e6:.1f}M" if x >= 1e6 else f"{x / 1e6:.2f}M" if x >= 1e5 else f"{x:g}"
