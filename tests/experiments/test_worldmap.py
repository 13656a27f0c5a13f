"""The map: which settings are dials, who wins at a place, where two methods change places."""

from __future__ import annotations

import numpy as np
import pytest
from tests.experiments.arm_runs import arm_of, drawn

from trueline.commands.resolve import resolve
from trueline.errors import InputError
from trueline.experiments.map_page import boundary, map_page, summary
from trueline.experiments.worldmap import ARMS, Dial, default_dials, dials_of, lead, places_of, rows_of

X = Dial("world", "shift", (0.0, 1.0), ("0", "1"))
Y = Dial("world", "pairs", (300, 4800), ("300", "4800"))


@pytest.fixture(scope="module")
def sections():
    return resolve("dialogue", [], False)[1]


class TestDials:
    def test_values_are_read_as_settings_are(self, sections) -> None:
        dials, rest = dials_of(sections, ["world.shift=0,.5,1", "world.pairs=300,3000"])
        assert [d.values for d in dials] == [(0.0, 0.5, 1.0), (300, 3000)] and not rest
        assert all(isinstance(v, float) for v in dials[0].values)
        assert dials[0].texts == ("0", ".5", "1")

    def test_a_list_is_a_value_unless_its_parts_are_joined(self, sections) -> None:
        dials, rest = dials_of(sections, ["world.coverage=help+refusal,help+evasion+refusal", "study.seeds=0,1"])
        assert rest == ["study.seeds=0,1"]
        assert dials[0].values == (("help", "refusal"), ("help", "evasion", "refusal"))

    @pytest.mark.parametrize(
        "item, field",
        [
            ("world.nothing=1,2", "world.nothing"),
            ("nowhere.x=1,2", "nowhere.x"),
            ("evaluate.samples=1,2", "evaluate.samples"),
            ("study.margin=0.1,0.2", "study.margin"),
            ("world.shift=1,1", "world.shift"),
            ("world.shift=0,2", "world.shift"),
            ("world.pairs=some,many", "world.pairs"),
        ],
    )
    def test_what_is_none_is_refused_by_name(self, sections, item, field) -> None:
        with pytest.raises(InputError) as caught:
            dials_of(sections, [item])
        assert field in str(caught.value)

    def test_a_task_s_own(self, sections) -> None:
        shift, pairs = default_dials(sections)
        assert (shift.name, shift.values) == ("world.shift", (0.0, 0.5, 1.0))
        assert (pairs.name, pairs.values) == ("world.pairs", (300, 2400, 9600))
        code = default_dials(resolve("code", [], False)[1])
        assert [d.name for d in code] == ["study.budget", "world.pairs_from"]

    def test_pairs_are_no_dial_where_executions_pay_for_them(self) -> None:
        code = resolve("code", [], False)[1]
        dials, _ = dials_of(code, ["world.pairs=100,200", "world.slip=0.1,0.6"])
        with pytest.raises(InputError, match=r"study\.budget"):
            rows_of(code, *dials, ARMS)


def test_the_cap_grows_with_pairs_above_the_task_s_own(sections) -> None:
    rows = rows_of(sections, X, Dial("world", "pairs", (300, 2400, 9600), ("300", "2400", "9600")), ARMS)
    caps = [rows[0, j, "dpo"].changes.get("study", {}).get("budget") for j in range(3)]
    assert caps == [None, None, 4 * sections["study"].budget]
    assert len(rows) == 2 * 3 * 5 and len({row.name for row in rows.values()}) == len(rows)


def grid_of(means, **how):
    """Places of a 2 x 2 grid: means[x][y][arm]."""
    rows = {(i, j, arm): _Named(f"{arm}{i}{j}") for i in (0, 1) for j in (0, 1) for arm in ("sft", *ARMS)}
    runs = {}
    for (i, j, arm), row in rows.items():
        mean = 0.0 if arm == "sft" else means[i][j][arm]
        runs[row.name] = arm_of(arm, drawn(mean, start=hash((i, j)) % 50 + len(arm), **how))
    return places_of(rows, runs, ARMS)


class _Named:
    def __init__(self, name: str) -> None:
        self.name = name


CLEAR = {"dpo": 0.2, "dpo-iter": 0.5, "ppo": 1.0, "dpo+ppo": 0.6}
OTHER = {"dpo": 1.0, "dpo-iter": 0.5, "ppo": -0.4, "dpo+ppo": 0.6}


class TestPlaces:
    def test_the_winner_its_lead_and_who_is_not_told_apart(self) -> None:
        places = grid_of([[CLEAR, CLEAR], [OTHER, CLEAR | {"dpo+ppo": 1.0}]])
        first, close = places[0].wins["selected"], places[3].wins["selected"]
        assert (first.arm, first.next, first.best, first.certain) == ("ppo", "dpo+ppo", ("ppo",), True)
        assert first.by.mean == pytest.approx(0.4, abs=0.05) and first.seeds == 5
        assert set(close.best) == {"ppo", "dpo+ppo"} and not close.certain
        assert places[2].wins["end"].arm == "dpo"

    def test_collapses_are_counted_by_seed(self) -> None:
        places = grid_of([[CLEAR, CLEAR], [OTHER, CLEAR]])
        assert places[2].collapsed == {"dpo": 0, "dpo-iter": 0, "ppo": 5, "dpo+ppo": 0}

    def test_the_summary_counts_places(self) -> None:
        places = grid_of([[CLEAR, CLEAR], [OTHER, CLEAR]])
        assert "PPO at 3, DPO at 1 of 4 places; at 4 of them all others are behind" in summary(places)

    def test_the_boundary_lies_where_the_lead_is_nought(self) -> None:
        places = grid_of([[CLEAR, CLEAR], [OTHER, OTHER]])
        grid = lead(places, "ppo", "dpo", "selected")
        assert grid.shape == (2, 2) and grid[0, 0] > 0 > grid[0, 1]
        (line,) = boundary(grid)
        expected = grid[0, 0] / (grid[0, 0] - grid[0, 1])
        assert line[0] == pytest.approx((expected, 0.0), abs=1e-6)
        assert boundary(np.ones((2, 2))) == [] and boundary(np.array([[1.0, -1.0]])) == []

    def test_the_page_shows_every_place(self) -> None:
        class World:
            name = "dialogue"

            def threats(self):
                return ["we made this world"]

        places = grid_of([[CLEAR, CLEAR], [OTHER, CLEAR]])
        html = map_page(X, Y, places, World(), "gold", (), "trueline map dialogue").html()
        assert html.count("▼ PPO 5/5") == 3  # once in each of the three maps
        assert "they do not change places" not in html and html.count("<polyline") == 2
        assert "4800" in html and "we made this world" in html
