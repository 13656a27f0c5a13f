"""The page of the commands that are no study."""

from __future__ import annotations

from trueline.study.document import Bar, Document, Figure, Fold, Mark, Section, Table, Text, interval_text, save
from trueline.study.drawing import heat_map, lines
from trueline.study.statistics import Interval

HALF = Interval(0.5, 0.25, 0.75, 0.1, 4.0, 0.01)
ENDLESS = Interval(0.5, float("-inf"), float("inf"), float("inf"), 0.0, 1.0)


def page(*parts) -> str:
    return Document("ablate", "dialogue", "It <b>helps</b>", "By half.", (Section("What", parts),)).html()


class TestPage:
    def test_text_from_elsewhere_is_escaped_and_what_cannot_be_seen_is_spelled_out(self):
        html = page(Text("a\u202eb <script>"))
        assert "<script>" not in html and "&lt;script&gt;" in html and "⟨U+202E⟩" in html
        assert "It &lt;b&gt;helps&lt;/b&gt;" in html

    def test_neighbouring_figures_stand_in_one_grid_and_others_apart(self):
        figure = Figure("A", "<svg></svg>")
        assert page(figure, figure).count('class="grid"') == 1
        assert page(figure, Text("between"), figure).count('class="grid"') == 2

    def test_a_table_shows_numbers_with_a_real_minus_marks_and_bars(self):
        html = page(Table(("row", ">x", "bar", ""), (("a", -0.004, Bar(HALF, 0.0, 1.0, 0.5), Mark("collapsed 1/3")),)))
        assert "−0.00" not in html and ">0.00<" in html  # no minus zero
        assert 'class="mark">collapsed 1/3' in html
        assert 'class="strip"' in html and "M90.0 0V20" in html  # the reference stands in the middle of 180 pixels
        assert "M48.0 10H132.0" in html  # 6 + 168 * .25 and .75

    def test_an_interval_without_bounds_draws_no_whisker(self):
        html = page(Table(("row", "bar"), (("a", Bar(ENDLESS, 0.0, 1.0)),)))
        assert 'stroke-width="2" d="M' not in html and 'circle cx="90.0"' in html

    def test_what_is_folded_is_on_the_page(self):
        assert "inside" in page(Fold("more", (Text("inside"),)))

    def test_the_same_document_gives_the_same_bytes(self, tmp_path):
        made = Document("map", "", "t", "", (Section("s", (Figure("f", curve()),)),))
        save(made, tmp_path / "a.html")
        save(made, tmp_path / "b.html")
        assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def curve() -> str:
    series = {"one": ([0, 1], [0, 1], [0.1, 0.1]), "two": ([0, 1], [1, 0], None)}
    return lines("curve", "A curve", series, xlabel="steps", ylabel="gold")


class TestDrawings:
    def test_colours_become_variables_of_the_page(self):
        svg = curve()
        assert "var(--s0)" in svg and "var(--s1)" in svg and "#0b000" not in svg and "#010203" not in svg

    def test_a_heat_map_marks_cells_and_tells_signs_apart(self):
        svg = heat_map(
            "h", "H", [[1.0, -1.0]], rows=["r"], columns=["a", "b"], limits=(-1, 1), marked=[(0, 1)], texts=[["x", ""]]
        )
        assert svg.count("<rect") == 2 and svg.count("<circle") == 1 and "var(--neg)" in svg and ">x</text>" in svg


class TestIntervals:
    def test_one_that_is_endless_says_so(self):
        assert interval_text(ENDLESS) == "+0.50 (no interval)"
        assert interval_text(HALF) == "+0.50 [+0.25, +0.75]"
        assert interval_text(None) == "–"
