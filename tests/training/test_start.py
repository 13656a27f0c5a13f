"""What a method starts from: SFT, an earlier cell's end, or the checkpoint that a selection chose."""

from __future__ import annotations

import pytest

from trueline.models.checkpoints import load_decoder
from trueline.models.fingerprints import fingerprint
from trueline.runs import checkpoint
from trueline.runs.cell import write_json
from trueline.training.policies import load_start

from .small import run_small

pytestmark = pytest.mark.integration


def test_the_start_is_the_checkpoint_that_was_picked(tiny_world, tmp_path) -> None:
    """A DPO half that collapsed at its end must not be what PPO starts from."""
    half = run_small(tiny_world, "dpo", tmp_path / "half")
    early, end = checkpoint.steps(half / "checkpoints")
    pick = tmp_path / "pick"
    pick.mkdir()
    write_json(pick / "selection.json", {"picks": {"selected": early, "end": end}})

    def start(**inputs):
        return load_start(tiny_world.stage("ppo", tmp_path / "stage", inputs=inputs))

    wanted = load_decoder(half / "model")
    assert fingerprint(start(start=half)) == fingerprint(wanted)  # no pick: the end
    wanted.load_state_dict(checkpoint.read_policy(half / "checkpoints", early))
    assert fingerprint(start(start=half, start_pick=pick)) == fingerprint(wanted)
    assert fingerprint(start(start=half, start_pick=pick)) != fingerprint(start(start=half))
    assert fingerprint(start()) == fingerprint(load_decoder(tiny_world.cells["sft"] / "model"))
