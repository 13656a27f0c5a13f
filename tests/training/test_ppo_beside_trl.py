"""PPO beside TRL 1.12.0's trainer, component by component, and every difference explained.

`tests/data/make_trl_ppo.py` recorded one iteration of TRL: policy, reference, reward model and critic of our making,
its samples, and what it computes of them. Equal parts are held equal; where the two differ by design the difference is
derived from TRL's figures, so that it is known to be that and nothing else:

* where a response ended, TRL pays the score at the padding **after** the end token, and the critic has a state there;
  ours pays it at the end token, which is the last state there is (docs/methods/ppo.md);
* TRL divides centred advantages by the root of the unbiased variance plus 1e-8, ours by the biased deviation plus 1e-5;
* TRL scores a response that was cut off; ours does not, and bootstraps its return from the critic.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.data import make_trl_ppo

from trueline.algorithms.advantages import gae, shape_rewards
from trueline.algorithms.divergence import kl_k1
from trueline.algorithms.masking import masked_mean, masked_moments, normalize
from trueline.algorithms.ppo import clipped_policy_loss, clipped_value_loss
from trueline.models.heads import last_scores, response_values
from trueline.models.scoring import Sampling, response_logprobs
from trueline.runs.cell import read_json

FOLDER = Path(__file__).resolve().parents[1] / "data" / "trl_trajectories"
RECORD = read_json(FOLDER / "ppo.json")
SETTINGS, CONTEXT = RECORD["settings"], RECORD["batch"]["context_length"]
BATCH = {name: torch.tensor(value) for name, value in RECORD["batch"].items()}
REAL, WITH_NEXT = ~BATCH["padding_mask"], ~BATCH["padding_mask_p1"]  # with_next: one position after the end token
END, CUT = 1, BATCH["sequence_lengths"] == REAL.shape[1] - 1


@pytest.fixture(scope="module")
def models():
    return make_trl_ppo.models(FOLDER)


@pytest.fixture(scope="module")
def rollout():
    """Rows without the peer's padding on the left: (tokens [B, T], response mask, lengths, columns of TRL's [B, t])."""
    rows, asked = [], make_trl_ppo.prompts_of(FOLDER)
    for tokens, last in zip(RECORD["batch"]["query_responses"], RECORD["batch"]["sequence_lengths"]):
        first = next(i for i, token in enumerate(tokens) if token != 0)
        asked.remove(tokens[first:CONTEXT])  # both sides read the same prompts, the peer in an order of its own
        rows.append((tokens[first:CONTEXT], tokens[CONTEXT : CONTEXT + last + 1]))
    width = max(len(p) + len(r) for p, r in rows)
    tokens = torch.tensor([p + r + [0] * (width - len(p) - len(r)) for p, r in rows])
    mask = torch.tensor([[len(p) <= i < len(p) + len(r) for i in range(width)] for p, r in rows])
    return tokens, mask, torch.tensor([len(p) + len(r) for p, r in rows])


def ours(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Values at response tokens [B, T] in TRL's columns [B, t]."""
    found = torch.zeros(REAL.shape)
    return found.masked_scatter(REAL, values[mask])


def close(a, b, mask=REAL, tolerance: float = 2e-5) -> None:
    gap = (torch.as_tensor(a).double() - torch.as_tensor(b).double()).abs()
    assert float((gap[mask] if gap.ndim == 2 else gap).max()) < tolerance


def test_the_record_has_rows_that_ended_and_rows_that_were_cut() -> None:
    assert 0 < int(CUT.sum()) < len(CUT) and RECORD["versions"]["trl"] == "1.12.0"


def test_log_probs_of_policy_and_reference_are_the_peers(models, rollout) -> None:
    tokens, mask, _ = rollout
    for name, theirs in (("policy", "logprobs"), ("reference", "ref_logprobs")):
        with torch.no_grad():
            found, _ = response_logprobs(models[name], tokens, mask, Sampling())
        close(ours(found, mask), BATCH[theirs])


def test_scores_are_read_at_the_last_token_of_either_kind_of_row(models, rollout) -> None:
    tokens, _, lengths = rollout
    with torch.no_grad():
        close(last_scores(models["reward"], tokens, lengths), BATCH["scores"])


def test_values_are_those_of_the_state_before_each_token(models, rollout) -> None:
    tokens, mask, _ = rollout
    with torch.no_grad():
        close(ours(response_values(models["critic"], tokens, mask), mask), BATCH["values"])


def test_the_token_rewards_are_the_peers_with_its_place_of_the_score() -> None:
    logprobs, reference = BATCH["logprobs"], BATCH["ref_logprobs"]
    close(kl_k1(logprobs, reference), BATCH["kl"])
    given = {"kl_coef": SETTINGS["kl_coef"]}
    theirs = shape_rewards(BATCH["scores"], logprobs, reference, WITH_NEXT, **given)
    close(theirs, BATCH["rewards"], WITH_NEXT, 1e-6)
    # ours: the same sum, the score one place earlier where the response ended
    mine = shape_rewards(BATCH["scores"], logprobs, reference, REAL, **given)
    close(mine.sum(1), BATCH["rewards"].sum(1), tolerance=1e-5)
    moved = (mine - BATCH["rewards"]).abs().masked_fill(~WITH_NEXT, 0).max(1).values > 1e-3
    assert torch.equal(moved, ~CUT)


def test_advantages_and_returns_are_the_peers_on_its_states() -> None:
    advantages, returns = gae(
        BATCH["rewards"], BATCH["values"], WITH_NEXT, gamma=SETTINGS["gamma"], lam=SETTINGS["lam"]
    )
    close(returns, BATCH["returns"], WITH_NEXT)
    moments = masked_moments(advantages, REAL)
    unbiased = moments.var * moments.count / (moments.count - 1)
    whitened = (advantages - moments.mean) / (unbiased + 1e-8).sqrt()
    close(whitened, BATCH["advantages"])
    # ours divides by the biased deviation: a factor that is the same for every token
    factor = (unbiased / moments.var).sqrt()
    close(normalize(advantages, REAL), whitened * factor, tolerance=1e-4)


def test_the_extra_state_is_what_the_ended_rows_differ_by() -> None:
    """Paying at the end token leaves out V(after the end): by the recursion A differs there by what that state adds."""
    gamma, lam = SETTINGS["gamma"], SETTINGS["lam"]
    theirs, _ = gae(BATCH["rewards"], BATCH["values"], WITH_NEXT, gamma=gamma, lam=lam)
    paid = shape_rewards(BATCH["scores"], BATCH["logprobs"], BATCH["ref_logprobs"], REAL, kl_coef=SETTINGS["kl_coef"])
    mine, _ = gae(paid, BATCH["values"], REAL, gamma=gamma, lam=lam)
    for row in range(len(REAL)):
        last = int(BATCH["sequence_lengths"][row])
        if CUT[row]:
            close(mine[row][None], theirs[row][None], REAL[row][None])
            continue
        score, after = BATCH["scores"][row], BATCH["values"][row, last + 1]
        # theirs at the end token: -V + gamma V_after + gamma lam (score - V_after); ours: -V + score (KL cancels)
        for t in range(last + 1):
            extra = gamma * after + gamma * lam * (score - after) - score
            assert float(theirs[row, t] - mine[row, t]) == pytest.approx(
                float(extra) * (gamma * lam) ** (last - t), abs=2e-5
            )


@pytest.mark.parametrize("number", [0, 1])
def test_both_losses_of_both_passes_are_the_peers(number) -> None:
    """The first pass has ratio 1, the second a policy that moved: clips bind there."""
    found = RECORD["passes"][number]
    order = torch.tensor(found["mini_batch_inds"])
    real, with_next = REAL[order], WITH_NEXT[order]
    new, old = torch.tensor(found["new_logprobs"]), BATCH["logprobs"][order]
    policy = clipped_policy_loss(new, old, BATCH["advantages"][order], clip_range=SETTINGS["cliprange"])
    assert float(masked_mean(policy, real)) == pytest.approx(found["pg_loss"], abs=1e-6)
    value = clipped_value_loss(
        torch.tensor(found["vpred"]), BATCH["values"][order], BATCH["returns"][order],
        clip_range=SETTINGS["cliprange_value"],
    )  # fmt: skip
    assert float(masked_mean(value, with_next)) == pytest.approx(found["vf_loss"], rel=1e-5)
    assert found["loss"] == pytest.approx(found["pg_loss"] + SETTINGS["vf_coef"] * found["vf_loss"], rel=1e-5)
    if number:
        assert float(((new - old).exp() - 1).abs()[real].max()) > SETTINGS["cliprange"]
