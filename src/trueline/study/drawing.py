"""Inline SVG in the look of our pages: text stays text, colours are CSS variables, bytes depend on the data alone."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from io import StringIO
from typing import Any

import numpy as np

__all__ = [
    "GRID",
    "HEIGHT",
    "SERIES",
    "TEXT",
    "WIDTH",
    "Tile",
    "draw",
    "heat_map",
    "inline",
    "lines",
    "style",
    "tile_map",
]

WIDTH, HEIGHT = 440, 300
# placeholders that the post-pass replaces; no other drawing colour is used
TEXT, GRID = "#010203", "#040506"
SERIES = tuple(f"#0b000{i}" for i in range(8))
"""Colours of series that are no arms, in the order to use them; the page's CSS gives them as --s0 to --s7."""
DASHES = ("-", "--", ":", "-.")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<")


def draw(
    name: str,
    title: str,
    paint: Callable[[Any], None],
    *,
    xlabel: str = "",
    ylabel: str = "",
    size: tuple[int, int] = (WIDTH, HEIGHT),
    colours: Mapping[str, str] | None = None,
) -> str:
    """An SVG to inline, painted on matplotlib axes. `name` must be unique on its page; `colours` maps placeholders to
    CSS values, beside those of `SERIES`, `TEXT` and `GRID`."""
    from matplotlib import rc_context

    with rc_context(style(name)):
        figure, axes = _axes(xlabel, ylabel, size)
        paint(axes)
        stream = StringIO()
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    label = f"{title}: {ylabel} over {xlabel}" if xlabel and ylabel else title
    return inline(stream.getvalue(), name, label, size, colours or {})


def lines(
    name: str,
    title: str,
    series: Mapping[str, tuple[Sequence[float], Sequence[float], Sequence[float] | None]],
    *,
    xlabel: str,
    ylabel: str,
    zero: bool = False,
    logx: bool = False,
    marks: bool = True,
) -> str:
    """Curves by name: x, y, and the half-width of y's interval or None; colours in the order of `SERIES`."""

    def paint(axes: Any) -> None:
        if logx:
            axes.set_xscale("log")
        for i, (x, y, half) in enumerate(series.values()):
            x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
            look = {"marker": MARKERS[i % 8], "markersize": 4.5, "markeredgewidth": 0.0} if marks else {}
            axes.plot(x, y, color=SERIES[i % 8], linestyle=DASHES[i % 4], linewidth=2.0, clip_on=False, **look)
            if half is not None:
                h = np.asarray(half, dtype=float)
                axes.fill_between(x, y - h, y + h, color=SERIES[i % 8], alpha=0.15, linewidth=0)
        if zero:
            axes.axhline(0.0, color=GRID, linewidth=1.2)
        _legend(axes, list(series))

    return draw(name, title, paint, xlabel=xlabel, ylabel=ylabel)


def _legend(axes: Any, names: Sequence[str]) -> None:
    """Names with the colour, dash and mark of their line, where the lines leave room."""
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=SERIES[i % 8], linestyle=DASHES[i % 4], marker=MARKERS[i % 8], markersize=4.5, linewidth=2)
        for i in range(len(names))
    ]
    axes.legend(handles, names, frameon=False, fontsize=10, loc="best", handlelength=2.4, labelcolor=TEXT)


def heat_map(
    name: str,
    title: str,
    values: Sequence[Sequence[float]],
    *,
    rows: Sequence[str],
    columns: Sequence[str],
    limits: tuple[float, float],
    marked: Sequence[tuple[int, int]] = (),
    texts: Sequence[Sequence[str]] | None = None,
    xlabel: str = "",
    ylabel: str = "",
    size: int = 34,
) -> str:
    """A table of squares, darker for larger values; with `limits[0] < 0` two hues meet at 0. `marked` cells get a ring.

    Written as plain SVG: a square keeps its own opacity, so that light and dark pages need no second palette.
    """
    low, high = limits
    left, top = 12 + 8 * max((len(r) for r in rows), default=0), 24 + (18 if xlabel else 0)
    width, height = left + size * len(columns) + 6, top + size * len(rows) + 6
    parts = []
    for i, row in enumerate(values):
        parts.append(
            f'<text x="{left - 8}" y="{top + size * i + size / 2 + 4:g}" text-anchor="end">{escape(rows[i])}</text>'
        )
        for j, value in enumerate(row):
            share = 0.0 if not np.isfinite(value) else abs(value) / max(abs(low), abs(high), 1e-12)
            if low >= 0:
                share = 0.0 if not np.isfinite(value) else (value - low) / max(high - low, 1e-12)
            fill, x, y = "var(--neg)" if value < 0 else "var(--high)", left + size * j, top + size * i
            parts.append(
                f'<rect x="{x}" y="{y}" width="{size - 2}" height="{size - 2}" rx="2" '
                f'style="fill:{fill};fill-opacity:{min(max(share, 0.03), 1):.3f}"/>'
            )
            if (i, j) in marked:
                parts.append(
                    f'<circle cx="{x + size / 2 - 1:g}" cy="{y + size / 2 - 1:g}" r="{size / 3:g}" '
                    'style="fill:none;stroke:var(--warn);stroke-width:1.8"/>'
                )
            if texts is not None and texts[i][j]:
                ink = "var(--bg)" if share > 0.55 else "currentColor"
                parts.append(
                    f'<text x="{x + size / 2 - 1:g}" y="{y + size / 2 + 3:g}" text-anchor="middle" '
                    f'style="fill:{ink};font-size:{max(9, size // 4)}px">{escape(texts[i][j])}</text>'
                )
    for j, column in enumerate(columns):
        parts.append(
            f'<text x="{left + size * j + size / 2 - 1:g}" y="{top - 8}" text-anchor="middle">{escape(column)}</text>'
        )
    if xlabel:
        parts.append(f'<text x="{left}" y="12">{escape(xlabel)}</text>')
    if ylabel:
        parts.append(f'<text x="0" y="{top - 8}">{escape(ylabel)}</text>')
    head = (
        f'<svg class="plot heat" viewBox="0 0 {width} {height}" '
        f'style="max-width:{width}px;fill:currentColor;font-size:11px" role="img" aria-labelledby="{name}-title">'
        f'<title id="{name}-title">{escape(title)}</title>'
    )
    return head + "".join(parts) + "</svg>"


@dataclass(frozen=True)
class Tile:
    """One place of a map: a CSS colour and how strongly it shows (0 to 1), lines of text, the first of them larger, and
    a warning below them."""

    colour: str
    strength: float
    lines: Sequence[str] = ()
    warning: str = ""


def tile_map(
    name: str,
    title: str,
    tiles: Sequence[Sequence[Tile]],
    *,
    rows: Sequence[str],
    columns: Sequence[str],
    xlabel: str,
    ylabel: str,
    paths: Sequence[Sequence[tuple[float, float]]] = (),
    size: tuple[int, int] = (164, 84),
) -> str:
    """A table of tiles, the first row at the bottom, as axes have it. `paths` are drawn over it: points (x, y) in steps
    of the grid, (0, 0) the middle of the first tile."""
    width, height = size
    left, top = 16 + 7 * max(len(r) for r in rows), 26
    bottom = top + height * len(rows)
    parts = [f'<text x="0" y="14" style="fill:var(--muted)">{escape(ylabel)}</text>']
    for i, row in enumerate(tiles):
        y = bottom - height * (i + 1)
        parts.append(f'<text x="{left - 10}" y="{y + height / 2 + 4:g}" text-anchor="end">{escape(rows[i])}</text>')
        for j, tile in enumerate(row):
            x = left + width * j
            parts.append(
                f'<rect x="{x}" y="{y}" width="{width - 3}" height="{height - 3}" rx="3" '
                f'style="fill:{tile.colour};fill-opacity:{tile.strength:.2f}"/>'
            )
            parts += _written(tile, x + (width - 3) / 2, y, height)
    for j, column in enumerate(columns):
        x = left + width * j + (width - 3) / 2
        parts.append(f'<text x="{x:g}" y="{bottom + 16}" text-anchor="middle">{escape(column)}</text>')
    right = left + width * len(columns)
    parts.append(
        f'<text x="{(left + right) / 2:g}" y="{bottom + 36}" text-anchor="middle" style="fill:var(--muted)">'
        f"{escape(xlabel)}</text>"
    )
    for path in paths:
        points = " ".join(
            f"{left + width * (x + 0.5) - 1.5:.1f},{bottom - height * (y + 0.5) - 1.5:.1f}" for x, y in path
        )
        parts.append(
            f'<polyline points="{points}" style="fill:none;stroke:var(--text);stroke-width:2.5;stroke-dasharray:7 4"/>'
        )
    head = (
        f'<svg class="plot heat" viewBox="0 0 {right + 4} {bottom + 44}" '
        f'style="max-width:{right + 4}px;fill:currentColor;font-size:12px" role="img" aria-labelledby="{name}-title">'
        f'<title id="{name}-title">{escape(title)}</title>'
    )
    return head + "".join(parts) + "</svg>"


def _written(tile: Tile, x: float, y: float, height: int) -> list[str]:
    """The tile's lines, in the middle of it, and its warning at its foot."""
    ink = "var(--bg)" if tile.strength > 0.55 else "currentColor"
    total = 15 * len(tile.lines) + (14 if tile.warning else 0)
    start = y + (height - 3 - total) / 2 + 12
    texts = []
    for k, line in enumerate(tile.lines):
        look = "font-size:13.5px;font-weight:620" if k == 0 else "font-size:11px"
        at = start + 15 * k
        texts.append(f'<text x="{x:g}" y="{at:g}" text-anchor="middle" style="fill:{ink};{look}">{escape(line)}</text>')
    if tile.warning:
        at = start + 15 * len(tile.lines)
        colour = ink if tile.strength > 0.55 else "var(--warn)"
        texts.append(
            f'<text x="{x:g}" y="{at:g}" text-anchor="middle" style="fill:{colour};font-size:11px;font-weight:600">'
            f"{escape(tile.warning)}</text>"
        )
    return texts


def style(name: str) -> dict[str, Any]:
    """matplotlib's settings of every figure."""
    return {
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "font.family": "DejaVu Sans",
        "font.size": 12,
        "text.parse_math": False,
        "text.color": TEXT,
        "axes.labelcolor": TEXT,
        "axes.edgecolor": GRID,
        "xtick.color": GRID,
        "ytick.color": GRID,
        "xtick.labelcolor": TEXT,
        "ytick.labelcolor": TEXT,
        "grid.color": GRID,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.spines.left": False,
        "axes.unicode_minus": True,
        "path.simplify": False,
    }


def _axes(xlabel: str, ylabel: str, size: tuple[int, int]) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(size[0] / 72, size[1] / 72))
    axes = figure.add_axes((0.115, 0.155, 0.865, 0.745))
    figure.patch.set_visible(False)
    axes.patch.set_visible(False)
    axes.grid(axis="y", linewidth=0.8)
    axes.tick_params(length=0, pad=6)
    axes.locator_params(nbins=6)
    axes.set_xlabel(xlabel, labelpad=6)
    # the unit of y stands above the axis, where it reads level
    axes.text(0.0, 1.05, ylabel, transform=figure.transFigure, va="top").set_position((0.0, 0.99))
    return figure, axes


def inline(svg: str, name: str, label: str, size: tuple[int, int], colours: Mapping[str, str]) -> str:
    """From a file of its own to a guest in a page: no prolog, no metadata, own ids, the page's colours and fonts."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.S)
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>\s*", "", svg, flags=re.S)
    svg = re.sub(r"<!--.*?-->\s*", "", svg, flags=re.S).replace("xlink:href", "href")
    svg = _own_ids(svg, name)
    for placeholder, colour in colours.items():
        svg = svg.replace(placeholder, colour)
    for i, placeholder in enumerate(SERIES):
        svg = svg.replace(placeholder, f"var(--s{i})")
    svg = svg.replace(TEXT, "currentColor").replace(GRID, "var(--line)")
    svg = svg.replace(" font-family: 'DejaVu Sans';", "")
    svg = re.sub(r' transform="rotate\(-0 [^"]*"', "", svg)
    head = f'<svg class="plot" viewBox="0 0 {size[0]} {size[1]}" role="img" aria-labelledby="{name}-title">'
    return f'{head}<title id="{name}-title">{escape(label)}</title>' + svg[svg.index(">") + 1 :].strip()


def _own_ids(svg: str, prefix: str) -> str:
    used = set(re.findall(r"(?:href=\"|url\()#([\w.-]+)", svg))
    svg = re.sub(r' id="([^"]*)"', lambda m: f' id="{prefix}-{m[1]}"' if m[1] in used else "", svg)
    return re.sub(r"(href=\"|url\()#([\w.-]+)", rf"\1#{prefix}-\2", svg)
