"""One, two and four processes train the same model: losses, samples and weights agree."""

from __future__ import annotations

import pytest
from safetensors.torch import load_file
from tests.distributed.together import run_together
from tests.training.small import rows, small

pytestmark = pytest.mark.integration

LATE = [pytest.param(method, marks=pytest.mark.nightly) for method in ("sft", "reward", "rloo", "dpo-iter")]
METHODS = ("dpo", "ppo", *LATE)


def _settings(method: str) -> dict:
    return small(method) | ({"ema_eta": 0.05} if method == "ppo" else {})


def _gap(a: list[dict], b: list[dict]) -> float:
    assert [row.keys() for row in a] == [row.keys() for row in b]
    # where both sides of a pair score alike, as at the first step, rounding decides who is called right
    skipped = {"rewards/accuracies"}
    return max(
        abs(x[k] - y[k]) / max(1.0, abs(x[k]))
        for x, y in zip(a, b)
        for k in x.keys() - skipped
        if isinstance(x[k], float | int)
    )


@pytest.mark.parametrize("method", METHODS)
def test_in_double_precision_losses_and_weights_agree_to_1e_10(method, tiny_world, tmp_path) -> None:
    sizes = (1, 2, 4) if method == "ppo" else (1, 2)
    for size in sizes:
        run_together(size, method, tmp_path / str(size), tiny_world, _settings(method))
    one = tmp_path / "1"
    assert len(rows(one)) == 4
    for size in sizes[1:]:
        other = tmp_path / str(size)
        assert _gap(rows(one), rows(other)) < 1e-10
        assert (
            rows(one, "samples") == rows(other, "samples") if method != "reward" else True
        )  # the same samples, in double
        for path in (one / "model", one / "reward_model", one / "critic"):
            if (path / "model.safetensors").exists():
                mine, theirs = (load_file(root / "model.safetensors") for root in (path, other / path.name))
                assert max(float((mine[name] - theirs[name]).abs().max()) for name in mine) < 1e-10


@pytest.mark.nightly
@pytest.mark.parametrize("method", ["dpo", "ppo"])
def test_a_checkpoint_of_two_processes_goes_on_with_one_and_with_four(method, tiny_world, tmp_path) -> None:
    """Reshard 2 -> 1 -> 4: the end is that of a run that never stopped."""
    run_together(2, method, tmp_path / "whole", tiny_world, _settings(method), max_steps=4, snapshots=4)
    parts = tmp_path / "parts"
    for size, steps in ((2, 1), (1, 2), (4, 4)):
        (parts / "done.json").unlink(missing_ok=True)
        run_together(size, method, parts, tiny_world, _settings(method), max_steps=steps, snapshots=4)
    assert _gap(rows(tmp_path / "whole"), rows(parts)) < 1e-10
