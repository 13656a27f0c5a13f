"""Synthetic run directories for the tests of the study."""

from __future__ import annotations

from dataclasses import replace

import pytest

from trueline.study.comparisons import CANDIDATES
from trueline.study.matrix import load

from .study_builder import Spec, build_run

LIGHT = Spec(prompts=24, samples=1, second_variant=False, seed_sd=0.02, noise_sd=0.2, splits={"test": 0.0})
LIGHT = replace(LIGHT, arms=("sft", *CANDIDATES))


@pytest.fixture
def make_study(tmp_path):
    """`make_study(**changes)`: a light synthetic study, loaded."""

    def make(**changes):
        return load(build_run(tmp_path / "run", replace(LIGHT, **changes)))

    return make
