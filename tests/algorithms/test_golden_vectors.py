"""Every row of the golden vectors goes through our functions, or stands in NOT_OURS with the reason."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from trueline.algorithms.advantages import gae, rloo_advantages, shape_rewards
from trueline.algorithms.controllers import AdaptiveKL
from trueline.algorithms.divergence import kl_k1, kl_k2, kl_k3
from trueline.algorithms.dpo import dpo_loss
from trueline.algorithms.logprobs import token_logprobs
from trueline.algorithms.masking import masked_mean, masked_mean_per_row, masked_var
from trueline.algorithms.ppo import clipped_policy_loss
from trueline.algorithms.sft import sft_loss
from trueline.algorithms.simpo import simpo_loss

FILE = Path(__file__).resolve().parents[1] / "data" / "golden_vectors.json"
ROWS = {row["id"]: row for row in json.loads(FILE.read_text())["rows"]}
NOT_OURS = {"rso_hinge_tt": "the RSO hinge is another loss than DPO's; trueline does not have it"}
WRONG_UPSTREAM = ["ppo_clip_low_tt_AS_WRITTEN_IS_WRONG", "ppo_noclip_tt_AS_WRITTEN_IS_WRONG"]


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def everywhere(x):
    return torch.ones_like(x, dtype=torch.bool)


def dpo(row):
    names = ("policy_chosen_logprobs", "policy_rejected_logprobs", "ref_chosen_logprobs", "ref_rejected_logprobs")
    return {"losses": dpo_loss(*(tensor(row["inputs"][name]) for name in names), beta=row["params"]["beta"])}


def simpo(row):
    chosen, rejected = (tensor(row["inputs"][f"policy_{side}_logprobs"]) for side in ("chosen", "rejected"))
    ones = torch.ones_like(chosen)
    return {"losses": simpo_loss(chosen, rejected, ones, ones, **row["params"])}


def policy_loss(row):
    logprobs, old = tensor(row["inputs"]["pi_logprobs"]), tensor(row["inputs"]["pi_old_logprobs"])
    losses = clipped_policy_loss(
        logprobs, old, tensor(row["inputs"]["advantages"]), clip_range=row["params"]["epsilon"]
    )
    ratios = (logprobs - old).exp()
    return {"policy_loss_mean": losses.mean(), "per_token": losses, "ratios": ratios, "ratio": ratios[0]}


def policy_loss_from_logits(row):
    given, actions = row["inputs"], torch.tensor(row["inputs"]["actions"])
    new, old = (token_logprobs(tensor(given[name]), actions) for name in ("logits", "old_logits"))
    advantages = tensor(given["advantages"])
    both = [logprobs.expand_as(advantages) for logprobs in (new, old)]
    losses = clipped_policy_loss(*both, advantages, clip_range=row["params"]["epsilon"])
    return {"loss": masked_mean_per_row(losses, everywhere(losses))}


def shaped(row):
    scores, logprobs, ref = (tensor(row["inputs"][name]) for name in ("scores", "logprobs", "ref_logprobs"))
    mask, coef = everywhere(logprobs), row["params"]["kl_coeff"]
    without = shape_rewards(torch.zeros_like(scores), logprobs, ref, mask, kl_coef=coef)
    rewards = shape_rewards(scores, logprobs, ref, mask, kl_coef=coef)
    return {"kl": kl_k1(logprobs, ref), "kl_rewards": without, "rewards": rewards}


def gae_returns(row):
    rewards, values = tensor(row["inputs"]["rewards"]), tensor(row["inputs"]["values"])
    settings = {name: row["params"][name] for name in ("gamma", "lam")}
    return {"returns": gae(rewards, values, everywhere(rewards), **settings)[1]}


def gae_whitened(row):
    # upstream's mask enters the statistics only, the recursion runs over all places; its variance is the unbiased one
    rewards, values = tensor(row["inputs"]["rewards"]), tensor(row["inputs"]["values"])
    mask = tensor(row["inputs"]["mask"]).bool()
    advantages, returns = gae(rewards, values, everywhere(rewards))
    std = masked_var(advantages, mask, unbiased=True).sqrt()
    return {"returns": returns, "advantages": (advantages - masked_mean(advantages, mask)) / std}


def gae_advantages(row):
    # a discount of 0 ends an episode: the row falls apart into responses, all but the last with bootstrap 0
    rewards, values, discounts = (tensor(row["inputs"][name]) for name in ("r_t", "values", "discount_t"))
    found = []
    for reward, value, discount in zip(rewards, values, discounts):
        ends = [t + 1 for t in range(len(reward)) if discount[t] == 0 or t + 1 == len(reward)]
        gamma, parts, start = float(discount.max()), [], 0
        for end in ends:
            part, bootstrap = reward[None, start:end], value[end : end + 1] * (discount[end - 1] > 0)
            lam = row["params"]["lam"]
            known = value[None, start:end]
            parts.append(gae(part, known, everywhere(part), gamma=gamma, lam=lam, bootstrap=bootstrap)[0][0])
            start = end
        found.append(torch.cat(parts))
    return {"advantages": torch.stack(found)}


def varying_discounts(row):
    # gamma may vary per step: in units of D_t = d_0 ... d_{t-1} the recursion is the undiscounted one
    rewards = tensor(row["inputs"]["r_t"])
    gamma = row.get("params", {}).get("gamma", 1.0)
    discounts = (
        tensor(row["inputs"]["discount_t"]) if "discount_t" in row["inputs"] else torch.full_like(rewards, gamma)
    )
    scale = torch.cat([torch.ones_like(discounts[:, :1]), discounts.cumprod(1)], dim=1)
    after = tensor(row["inputs"]["v_t"]) if "v_t" in row["inputs"] else torch.zeros_like(rewards)
    if "bootstrap_v" in row["inputs"]:
        after[:, -1] = tensor(row["inputs"]["bootstrap_v"])
    before = torch.cat([torch.zeros_like(after[:, :1]), (after * scale[:, 1:])[:, :-1]], dim=1)
    lam = row.get("params", {}).get("lam", 1.0)
    bootstrap = after[:, -1] * scale[:, -1]
    returns = gae(rewards * scale[:, :-1], before, everywhere(rewards), lam=lam, bootstrap=bootstrap)[1]
    return {"returns": returns / scale[:, :-1]}


def kl(row):
    logprobs, ref = tensor(row["inputs"]["logprobs"]), tensor(row["inputs"]["ref_logprobs"])
    counts = tensor(row["inputs"].get("mask", torch.ones_like(logprobs).tolist())).bool()
    return {f"k{i}": k(logprobs, ref).masked_fill(~counts, 0.0) for i, k in enumerate((kl_k1, kl_k2, kl_k3), start=1)}


def kl_penalty(row):
    k3 = kl_k3(tensor(row["inputs"]["logprobs"]), tensor(row["inputs"]["ref_logprobs"]))
    return {"k3": k3, "mean": k3.mean(), "loss": row["params"]["coef"] * k3.mean()}


def controller(row):
    adaptive = AdaptiveKL(row["params"]["init_kl_coef"], row["params"]["target"], row["params"]["horizon"])
    adaptive.update(row["inputs"]["current"], row["inputs"]["n_steps"])
    return {"value": tensor(adaptive.coef)}


def rloo(row):
    # upstream gives a group of one the advantage 0; a leave-one-out mean of nobody is an error here
    scores = tensor(row["inputs"]["sequence_rewards"])
    with pytest.raises(ValueError, match="group_size"):
        rloo_advantages(scores[4:], group_size=1)
    return {"advantages": torch.cat([rloo_advantages(scores[:4], group_size=2), torch.zeros(1)])}


def reinforce(row):
    advantages, logprobs = tensor(row["inputs"]["advantages"]), tensor(row["inputs"]["pi_logprobs"])
    return {"loss": (advantages * sft_loss(logprobs)).mean()}


def masked(function, name, **settings):
    return lambda row: {
        name: function(tensor(row["inputs"]["x"]), tensor(row["inputs"]["mask"]).bool(), **settings),
    }


COMPUTE = {
    "dpo_loss": dpo,
    "simpo_loss": simpo,
    "ppo_policy_loss_mean": policy_loss,
    "ppo_policy_loss_mean_from_logits": policy_loss_from_logits,
    "token_rewards_with_kl": shaped,
    "masked_mean": masked(masked_mean, "mean"),
    "masked_mean_per_row": masked(masked_mean_per_row, "means"),
    "masked_var_unbiased": masked(masked_var, "var", unbiased=True),
    "gae_returns": gae_returns,
    "gae_advantages": gae_advantages,
    "gae_advantages_whitened": gae_whitened,
    "lambda_returns": varying_discounts,
    "discounted_returns": varying_discounts,
    "kl_estimators": kl,
    "kl_penalty_k3_mean": kl_penalty,
    "adaptive_kl_controller": controller,
    "rloo_advantages": rloo,
    "reinforce_loss_mean": reinforce,
}


@pytest.mark.parametrize("row", [row for id, row in ROWS.items() if id not in NOT_OURS], ids=lambda row: row["id"])
def test_value_equals_the_golden_one(row):
    found = COMPUTE[row["kind"]](row)
    for name, expected in row["expected"].items():
        expected = tensor(expected)
        torch.testing.assert_close(found[name].double(), expected, rtol=row["rtol"], atol=row["atol"], msg=name)


@pytest.mark.parametrize("id", WRONG_UPSTREAM)
def test_wrong_upstream_value_is_not_ours(id):
    row = ROWS[id]
    ours = float(policy_loss(row)["policy_loss_mean"])
    assert ours == pytest.approx(row["expected"]["policy_loss_mean"], rel=1e-6)
    assert abs(ours - row["expected_in_original_test"]) > 1


def test_every_row_is_exercised_or_excused():
    assert len(ROWS) == 29
    assert {id for id, row in ROWS.items() if row["kind"] not in COMPUTE} == set(NOT_OURS)
    assert sorted(id for id, row in ROWS.items() if "expected_in_original_test" in row) == WRONG_UPSTREAM
    for row in ROWS.values():
        assert set(row["source"]) == {"repo", "commit", "path", "test", "licence"}
