"""The rows of the shift's tables, and whether a measured difference agrees with the paper's."""

from __future__ import annotations

import numpy as np
import pytest
from tests.experiments.arm_runs import arm_of

from trueline.commands.resolve import resolve
from trueline.experiments.rows import plan_rows
from trueline.experiments.shift import Claim, Table, tables_of
from trueline.experiments.shift_findings import AGREES, DISAGREES, UNDECIDED, findings_of, sentence, tally
from trueline.experiments.shift_page import record_of, shift_page
from trueline.study.design import Design
from trueline.training.pages import arms


@pytest.fixture(scope="module", params=["safe-dialogue", "dialogue"])
def tables(request):
    return request.param, resolve(request.param, [], False)[1]


def test_every_row_can_be_planned_and_every_claim_names_rows_with_the_paper_s_figures(tables) -> None:
    task, sections = tables
    found = tables_of(sections)
    expected = {"safe-dialogue": ["safety", "coverage", "reference"], "dialogue": ["coverage", "reference"]}
    assert [table.name for table in found] == expected[task]
    design = Design(sections, arms(), learned_gold=False, signatures=True)
    for table in found:
        names = {row.name for row in table.rows}
        plan_rows(design, table.rows, (0,))
        for claim in table.claims:
            assert {claim.a, claim.b, *(claim.less or ())} <= names
            assert claim.directions() and set(claim.directions().values()) <= {1, -1}
            for metric, (a, b) in claim.paper.items():
                assert (a > b) == (claim.directions()[metric] > 0)


def rows_of(**means):
    """Rows with gold and a safety rate; five seeds around the means."""
    rng = np.random.default_rng(0)
    rows = {}
    for name, (gold, safe) in means.items():
        noise = rng.normal(0, 0.02, (5, 1))
        more = {"test/sampled/safe": safe + rng.normal(0, 0.01, 5)}
        rows[name] = arm_of(name, gold + noise + np.zeros((5, 8)), more=more)
    return rows


def table_of(*claims):
    return Table("t", "T", "?", "table 0", (), claims, {}, "scale")


class TestWords:
    ROWS = rows_of(a=(1.0, 0.9), b=(0.2, 0.5), c=(1.0, 0.1))

    def test_each_metric_has_its_own_word(self) -> None:
        claim = Claim("a for b", "a", "b", {"gold": (3.0, 1.0), "safe": (10.0, 50.0)})
        gold, safe = findings_of(table_of(claim), self.ROWS)
        assert (gold.word, safe.word) == (AGREES, DISAGREES) and gold.firm and safe.firm
        assert gold.judged.mean == pytest.approx(0.8, abs=0.05)
        said = sentence([gold, safe])
        assert "gold +0.80" in said or "gold +0.8" in said
        assert "safety rate +4" in said and "points" in said and "disagrees" in said

    def test_words_alone_give_a_direction(self) -> None:
        (found,) = findings_of(table_of(Claim("x", "a", "b", words={"gold": -1})), self.ROWS)
        assert found.word == DISAGREES and "paper: less" in sentence([found])

    def test_a_difference_of_differences(self) -> None:
        (found,) = findings_of(table_of(Claim("x", "a", "b", words={"gold": 1}, less=("c", "b"))), self.ROWS)
        assert found.judged.mean == pytest.approx(0.0, abs=0.1) and found.word == UNDECIDED

    def test_the_correction_is_over_the_metrics_of_a_claim_and_firmly_over_the_table(self) -> None:
        weak = rows_of(a=(0.03, 0.5), b=(0.0, 0.5))
        claims = [Claim(str(i), "a", "b", words={"gold": 1, "safe": 1}) for i in range(6)]
        found = findings_of(table_of(*claims), weak)
        gold = found[0]
        assert gold.p_adjusted == pytest.approx(2 * gold.judged.p) or gold.p_adjusted >= gold.judged.p
        assert gold.p_table >= gold.p_adjusted

    def test_a_metric_that_no_row_has_is_left_out_and_the_tally_counts_the_rest(self) -> None:
        claims = (Claim("x", "a", "b", words={"gold": 1, "nothing": 1}), Claim("y", "a", "c", words={"gold": 1}))
        found = findings_of(table_of(*claims), self.ROWS)
        assert [f.metric for f in found] == ["gold", "gold"]
        assert tally(found).startswith("1 of 2 differences go the paper's way (1 firmly), 0 the other way")


def test_the_page_and_the_record_hold_every_sentence() -> None:
    sections = resolve("dialogue", [], False)[1]
    tables = tables_of(sections)
    names = list(dict.fromkeys(row.name for table in tables for row in table.rows))
    rows = rows_of(**{name: (0.1 * i, 0.5) for i, name in enumerate(names)})
    found = {table.name: findings_of(table, rows) for table in tables}
    html = shift_page(tables, rows, found, "dialogue", "ours", "trueline shift dialogue").html()
    for table in tables:
        record = record_of(table, rows, rows["SFT"], found[table.name])
        assert record["tally"] in html.replace("&#39;", "'")
        assert [row["name"] for row in record["rows"]] == [row.name for row in table.rows]
        assert len(record["sentences"]) == len(table.claims)
