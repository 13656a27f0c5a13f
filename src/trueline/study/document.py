"""One page in the look of the reports, from plain parts: headings, paragraphs, tables, figures. No script, no request.

Commands that are no study (theory, ablations, the shift, the map, the findings) say what they found with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from trueline.study.statistics import Interval

__all__ = [
    "Bar",
    "Document",
    "Excerpt",
    "Figure",
    "Fold",
    "Mark",
    "Section",
    "Table",
    "Text",
    "figure_text",
    "interval_text",
    "save",
]

STRIP = 180


@dataclass(frozen=True)
class Text:
    """A paragraph. `kind` is "" (body), "note" (muted), "lead" (what is so, in larger type) or "warning"."""

    text: str
    kind: str = ""


@dataclass(frozen=True)
class Mark:
    """A word in a table that is set apart ("collapsed 2/5"); an empty one shows nothing."""

    text: str


@dataclass(frozen=True)
class Bar:
    """An interval drawn in a table on the scale `low` to `high` of its column; `reference` is a dashed line."""

    interval: Interval
    low: float
    high: float
    reference: float | None = None
    colour: str = "--s0"

    def place(self, value: float) -> float:
        """Pixels from the left; what lies beyond the scale stands at its end."""
        span = self.high - self.low or 1.0
        return round(6 + (STRIP - 12) * min(max((value - self.low) / span, 0.0), 1.0), 2)


@dataclass(frozen=True)
class Table:
    """Rows of texts, numbers, bars and marks. `columns` that start with ">" are set to the right."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str | float | int | Bar | Mark | None]]
    note: str = ""
    digits: int = 2


@dataclass(frozen=True)
class Figure:
    """An inline SVG with its heading and one sentence on what to look for."""

    title: str
    svg: str
    caption: str = ""


@dataclass(frozen=True)
class Excerpt:
    """A text in spans, each with a look: "read" (plain), "trained" (marked), "cut" (struck), or "label"."""

    spans: Sequence[tuple[str, str]]
    title: str = ""


@dataclass(frozen=True)
class Fold:
    """What a reader opens."""

    title: str
    parts: Sequence[Text | Table | Figure | Excerpt]


@dataclass(frozen=True)
class Section:
    """A heading, and below it its parts in order; neighbouring figures stand side by side."""

    title: str
    parts: Sequence[Text | Table | Figure | Excerpt | Fold]


@dataclass(frozen=True)
class Document:
    """`kind` is the command; `title` says the answer in a sentence; `facts` are short labelled values below it."""

    kind: str
    subject: str
    title: str
    lead: str
    sections: Sequence[Section]
    facts: Sequence[tuple[str, str]] = ()
    first: str = ""
    command: str = ""
    foot: Sequence[str] = field(default_factory=tuple)

    def html(self) -> str:
        """The page; the same bytes for the same document."""
        from jinja2 import Environment, PackageLoader, StrictUndefined

        from trueline.study.page import visible

        environment = Environment(
            loader=PackageLoader("trueline.study"),
            autoescape=True,
            undefined=StrictUndefined,
            finalize=visible,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        environment.filters |= {"show": _shown, "kind": lambda part: type(part).__name__}
        return environment.get_template("document.html").render(d=self, width=STRIP, grouped=_grouped)


def save(document: Document, path: Path) -> None:
    """Write the page whole or not at all."""
    part = path.with_name(path.name + ".part")
    part.write_text(document.html(), encoding="utf-8", newline="\n")
    part.replace(path)


def figure_text(value: float | None, digits: int = 2, *, sign: bool = False) -> str:
    """A number for a reader: a real minus, no minus zero, an en dash where there is none."""
    if value is None or value != value or value in (float("inf"), float("-inf")):
        return "–"
    return f"{round(value, digits) + 0.0:{'+' if sign else ''}.{digits}f}".replace("-", "−")


def interval_text(interval: Interval | None, digits: int = 2, *, sign: bool = True) -> str:
    """ "+0.31 [+0.10, +0.52]", or the mean alone where there is no interval."""
    if interval is None:
        return "–"
    mean = figure_text(interval.mean, digits, sign=sign)
    if not interval.finite:
        return f"{mean} (no interval)"
    low, high = (figure_text(v, digits, sign=sign) for v in (interval.low, interval.high))
    return f"{mean} [{low}, {high}]"


def _shown(value: object, digits: int) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool) or not isinstance(value, float):
        return str(value)
    return figure_text(value, digits)


def _grouped(parts: Sequence[object]) -> list[tuple[str, list[object]]]:
    """Neighbouring figures together, everything else by itself."""
    groups: list[tuple[str, list[object]]] = []
    for part in parts:
        name = type(part).__name__
        if name == "Figure" and groups and groups[-1][0] == "Figure":
            groups[-1][1].append(part)
        else:
            groups.append((name, [part]))
    return groups
