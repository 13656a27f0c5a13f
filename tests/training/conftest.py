"""One uninterrupted small run of each page, made when a test first asks for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from .small import run_small


@pytest.fixture(scope="session")
def finished(tiny_world, tmp_path_factory) -> Callable[[str], Path]:
    """`finished(method)`: the cell of that page's small run at seed 0."""
    cells: dict[str, Path] = {}

    def cell(method: str) -> Path:
        if method not in cells:
            cells[method] = run_small(tiny_world, method, tmp_path_factory.mktemp("finished") / method)
        return cells[method]

    return cell


@pytest.fixture(scope="session", autouse=True)
def _short_calibration():
    """512 samples at the end of each reward run would be most of its time."""
    from trueline.training import reward

    held, reward._CALIBRATION_SAMPLES = reward._CALIBRATION_SAMPLES, 32
    yield
    reward._CALIBRATION_SAMPLES = held
