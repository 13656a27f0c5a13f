"""The experiments as a user runs them, very small: figures on disk, cells that are shared, input that is refused."""

from __future__ import annotations

import json

import pytest

from program import trueline
from trueline.cli import app
from trueline.errors import InputError

pytestmark = pytest.mark.integration  # every test here starts the program

SMALL = (
    "world.demonstrations=200 world.pairs=40 sft.epochs=0.5 reward.epochs=0.5 dpo.epochs=0.5 ppo.steps=2 "
    "ppo.batch_size=32 both.batch_size=32 ppo.critic_warmup=0 both.critic_warmup=0 dpo_iter.rounds=1 "
    "dpo_iter.sync_every=1 evaluate.samples=1 evaluate.test_prompts=12 "
    "evaluate.shown=1 select.prompts=8 train.snapshots=2 study.probe=false"
).split()


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def ablation(runs):
    done = trueline("ablate", "dialogue", "ppo.value_norm", *SMALL, "--seeds", "0,1", "-o", "ablate", cwd=runs)
    assert done.returncode == 0, done.stderr
    return done


def test_an_ablation_says_what_its_key_did(runs, ablation) -> None:
    record = json.loads((runs / "ablate" / "ablation.json").read_text())
    (design,) = record["designs"]
    (effect,) = design["effects"]
    assert [row["name"] for row in design["rows"]] == ["ppo", "ppo, value_norm=False"]
    assert effect["a"] == "ppo" and len(effect["per_seed"]) == 2 and effect["sentence"] in _flat(ablation.stdout)
    figures = [row["picks"]["selected"]["test/sampled/gold"]["per_seed"] for row in design["rows"]]
    assert effect["per_seed"] == pytest.approx([a - b for a, b in zip(*figures)])
    page = (runs / "ablate" / "ablation.html").read_text()
    assert "ppo.value_norm" in page and "<script" not in page


def test_a_map_takes_over_what_the_ablation_trained(runs, ablation) -> None:
    """SFT and pairs do not know who asked for them."""
    done = trueline(
        "map", "dialogue", "world.label_noise=0,0.3", "dpo.beta=0.05,0.5", *SMALL, "study.budget=0", "--seeds", "0",
        "-o", "map", cwd=runs,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    record = json.loads((runs / "map" / "map.json").read_text())
    assert [(p["world.label_noise"], p["dpo.beta"]) for p in record["places"]] == [
        (0.0, 0.05), (0.0, 0.5), (0.3, 0.05), (0.3, 0.5),
    ]  # fmt: skip
    for place in record["places"]:
        best = max(place["arms"], key=lambda arm: place["arms"][arm]["picks"]["selected"]["test/sampled/gold"]["mean"])
        assert place["wins"]["selected"]["arm"] == best
    shared = {c.name for c in (runs / "ablate" / "cells").iterdir()} & {
        c.name for c in (runs / "map" / "cells").iterdir()
    }
    linked = [name for name in shared if _same_file(runs, name)]
    assert len(linked) >= 3  # SFT, pairs and reward model at least
    assert (runs / "map" / "map.html").stat().st_size > 10_000


def _same_file(runs, name: str) -> bool:
    files = [runs / run / "cells" / name / "done.json" for run in ("ablate", "map")]
    return all(f.exists() for f in files) and files[0].samefile(files[1])


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("ablate", "dialogue", "stairs"), ("no design 'stairs'", "ladder")),
        (("ablate", "dialogue", "ppo.nothing"), ("ppo.nothing", "has no off value")),
        (("ablate", "dialogue", "world.pairs"), ("world.pairs", "no arm reads")),
        (("map", "dialogue", "world.shift=0,1"), ("a map has two dials, 1 given",)),
        (("map", "dialogue", "world.shift=0,1", "evaluate.samples=1,2"), ("evaluate.samples", "no dial")),
        (("map", "dialogue", "world.shift=0,7", "world.pairs=100,200"), ("world.shift", "<= 1")),
        (("map", "code", "world.pairs=100,200", "world.slip=0,1"), ("world.pairs", "study.budget")),
        (("findings", "--seeds", "0"), ("an interval needs two seeds",)),
        (("findings", "world.nothing=1"), ("world.nothing",)),
    ],
)
def test_what_cannot_be_run_is_told_before_anything_runs(tmp_path, arguments, words) -> None:
    with pytest.raises(InputError) as caught:
        app([*arguments, "-o", str(tmp_path / "out")], standalone_mode=False)
    said = str(caught.value)
    assert all(word in said for word in words) and "\n" not in said, said
    assert not (tmp_path / "out" / "cells").exists()


def _flat(text: str) -> str:
    return " ".join(text.split())


def test_the_theory_in_small(tmp_path) -> None:
    done = trueline("theory", "--seeds", "2", "-o", "theory", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "theory" / "theory.json").read_text())
    parts = {name: part for name, part in record.items() if isinstance(part, dict)}
    assert set(parts) == {
        "theorem", "soft_labels", "support", "flow", "corners", "grid", "sensitivity", "misspecified", "coverage",
    }  # fmt: skip
    assert all(part["claim"] and part["says"] for part in parts.values())
    assert record["theorem"]["dpo"][-1]["loss"] < 1e-6 and record["theorem"]["ppo"][-1]["policy"][2] == 0
    page = (tmp_path / "theory" / "theory.html").read_text()
    assert page.count("<svg") >= 9 and "<script" not in page
