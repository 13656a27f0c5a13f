"""Finished cells are taken over from the run directories beside one's own, whole or not at all."""

from __future__ import annotations

import os

import pytest

from trueline.runs.store import HOLDER, neighbours, take_over


def run_of(parent, name, **cells):
    """A run directory with cells: name -> whether it is finished."""
    directory = parent / name
    (directory / "cells").mkdir(parents=True)
    (directory / "manifest.json").write_text("{}")
    for cell, finished in cells.items():
        folder = directory / "cells" / cell
        (folder / "policy").mkdir(parents=True)
        (folder / "policy" / "weights").write_text(f"{name} {cell}")
        (folder / "half.tmp").write_text("left over")
        if finished:
            (folder / "done.json").write_text("{}")
    return directory


@pytest.fixture
def runs(tmp_path):
    return tmp_path / "runs"


def test_a_finished_cell_is_linked_and_an_unfinished_one_is_not(runs) -> None:
    other, own = run_of(runs, "other", a=True, b=False), run_of(runs, "own")
    stores = neighbours(own)
    assert stores == [other / "cells"]
    assert take_over(own / "cells" / "a", stores)
    assert not take_over(own / "cells" / "b", stores) and not (own / "cells" / "b").exists()
    linked = own / "cells" / "a" / "policy" / "weights"
    assert linked.read_text() == "other a"
    assert os.path.samefile(linked, other / "cells" / "a" / "policy" / "weights")
    assert not list((own / "cells").rglob("*.tmp"))


def test_what_is_there_already_is_left_alone(runs) -> None:
    run_of(runs, "other", a=True)
    own = run_of(runs, "own", a=False)
    assert not take_over(own / "cells" / "a", neighbours(own))
    assert (own / "cells" / "a" / "policy" / "weights").read_text() == "own a"


def test_a_directory_outlives_its_neighbour(runs) -> None:
    import shutil

    other, own = run_of(runs, "other", a=True), run_of(runs, "own")
    take_over(own / "cells" / "a", neighbours(own))
    shutil.rmtree(other)
    assert (own / "cells" / "a" / "policy" / "weights").read_text() == "other a"


def test_folders_without_a_manifest_are_no_runs(runs) -> None:
    other, own = run_of(runs, "other", a=True), run_of(runs, "own")
    (other / "manifest.json").unlink()
    assert neighbours(own) == []


def test_runs_below_one_holder_see_what_the_holder_lies_beside_and_are_seen(runs) -> None:
    beside = run_of(runs, "beside", a=True)
    first, second = run_of(runs / "held", "first", b=True), run_of(runs / "held", "second")
    assert set(neighbours(beside)) == {first / "cells", second / "cells"}
    assert neighbours(second) == [first / "cells"]  # nothing says that `held` is ours
    (runs / "held" / HOLDER).write_text("{}")
    assert set(neighbours(second)) == {first / "cells", beside / "cells"}
