"""Every architecture of the table: SFT, reward, DPO and PPO train it, its gates hold, transformers reads the result."""

from __future__ import annotations

import math

import pytest

from .every_architecture import MAKERS, measure

pytestmark = pytest.mark.integration


@pytest.mark.parametrize("name", MAKERS)
def test_four_methods_train_it_and_transformers_reads_it(name, tmp_path) -> None:
    found = measure(name, tmp_path)
    assert found["dpo"] == pytest.approx(math.log(2), abs=1e-4)
    assert found["reward"] == pytest.approx(math.log(2), abs=1e-4)
    assert found["ppo"] < 1e-4 and found["logprobs"] < 1e-4 and found["scores"] < 1e-4
