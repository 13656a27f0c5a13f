"""Pains of other systems that no other test of ours holds by itself; `pains.py` names their threads."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from training.small import rows, run_small
from trueline.config import load
from trueline.errors import InputError
from trueline.models.checkpoints import load_decoder
from trueline.models.foreign import quiet
from trueline.models.scoring import Sampling, response_logprobs
from trueline.tasks.task import PairSources
from trueline.training.pages import page, pages
from trueline.training.pairs import write_pairs
from trueline.types import Pair

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.mark.parametrize("key", ["ppo.top_k=50", "ppo.top_p=0.9", "rloo.top_k=50", "ppo.min_length=4"])
def test_a_sampler_that_truncates_cannot_be_asked_for(key) -> None:
    """1: trained log-probs are those of the whole distribution, so samples must be too."""
    sections = {name: page(name).Config for name in ("ppo", "rloo")}
    with pytest.raises(InputError, match="unknown"):
        load(sections, overrides=[key])


def test_a_folder_with_dropout_scores_without_it(tmp_path) -> None:
    """4: a policy in training mode is another policy than the one that sampled."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=60, n_embd=16, n_layer=2, n_head=2, n_positions=32, resid_pdrop=0.5, attn_pdrop=0.5, embd_pdrop=0.5,
        bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    with quiet():
        GPT2LMHeadModel(config).save_pretrained(tmp_path)
    policy = load_decoder(tmp_path)
    tokens = torch.randint(2, 60, (3, 12))
    mask = torch.ones_like(tokens, dtype=torch.bool)
    mask[:, 0] = False
    once, again = (response_logprobs(policy, tokens, mask, Sampling())[0] for _ in range(2))
    assert torch.equal(once, again)


@pytest.mark.integration
def test_a_larger_coefficient_holds_the_policy_closer(tiny_world, tmp_path) -> None:
    """7: a sign that is wrong drives the policy away."""
    settings = {"critic_warmup": 0, "learning_rate": 5e-3, "steps": 8, "batch_size": 32}
    ends = {}
    for coefficient in (0.0, 5.0):
        run = run_small(
            tiny_world, "ppo", tmp_path / f"{coefficient}", settings=settings | {"kl_coef": coefficient}, max_steps=8
        )
        ends[coefficient] = sum(row["objective/kl_exact"] for row in rows(run)[-3:])
    assert ends[5.0] < 0.7 * ends[0.0]


@pytest.mark.integration
@pytest.mark.parametrize("method", ["dpo", "reward", "simpo"])
def test_pairs_that_cutting_makes_equal_are_refused(method, tiny_world, tmp_path) -> None:
    """11 and 12: two sides that are equal after truncation teach nothing, and a loss of ln 2 would say nothing."""
    prompts = tiny_world.task.prompts("train")[:4]
    same = [Pair(prompt, "one two three four yes", "one two three four no") for prompt in prompts]
    cell = tmp_path / "pairs"
    cell.mkdir()
    write_pairs(cell, PairSources(same))
    with pytest.raises(InputError, match="two different sides within the length limit"):
        run_small(tiny_world, method, tmp_path / "run", inputs={"pairs": cell}, lengths=(24, 2))


@pytest.mark.integration
def test_every_metric_that_is_written_is_in_the_glossary(tiny_world, tmp_path) -> None:
    """40: a number that nobody explains is read by nobody."""
    text = (DOCS / "metrics.md").read_text(encoding="utf-8")
    explained = set(re.findall(r"`([a-z_]+(?:/[a-z_0-9]+)?)`", text))
    methods = sorted(set(pages()) & {"sft", "reward", "dpo", "ipo", "kto", "simpo", "dpo-iter", "ppo", "rloo"})
    assert len(methods) == 9
    for method in methods:
        settings = {"critic_warmup": 0} if method == "ppo" else {}
        run = run_small(tiny_world, method, tmp_path / method, settings=settings, max_steps=2)
        missing = set(rows(run)[0]) - explained
        assert not missing, (method, missing)
