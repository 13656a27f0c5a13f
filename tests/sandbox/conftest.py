"""A pool for the whole session of these tests, and the reason to skip where no sandbox can work."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from trueline.errors import InputError
from trueline.sandbox import Limits, Pool


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Each of these starts processes: none belongs to the quick unit part."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.integration)


@pytest.fixture(scope="package")
def pool() -> Iterator[Pool]:
    """One worker of the best tier, with short limits."""
    if not sys.platform.startswith("linux"):
        pytest.skip("the sandbox needs Linux")
    try:
        shared = Pool(1, Limits(cpu_seconds=0.5, wall_seconds=2.0, memory_bytes=256 << 20))
    except InputError as error:
        pytest.skip(str(error))
    with shared:
        yield shared
