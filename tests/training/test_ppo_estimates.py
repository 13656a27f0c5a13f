"""PPO's estimates on tensors made by hand: where the score lands, what a cut response gets, the units of values."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from trueline.algorithms.averaging import RunningMoments
from trueline.rollout.engine import Rollout
from trueline.training import ppo
from trueline.training.experience import Experience

# Prompt of two tokens in row 0, of one in row 1; three and two response tokens. Row 1 was cut by the length limit.
LENGTHS, PROMPTS = (5, 3), (2, 1)
MASK = torch.tensor([[0, 0, 1, 1, 1], [0, 1, 1, 0, 0]], dtype=torch.bool)


class Table(nn.Module):
    """A critic that gives row i (named by its first token) the values of a table."""

    parameter_count = 1

    def __init__(self, values: list[list[float]]) -> None:
        super().__init__()
        self.values = torch.tensor(values)

    def forward(self, tokens):
        return self.values[tokens[:, 0], : tokens.shape[1]]


@pytest.fixture(autouse=True)
def tables_are_read_like_critics(monkeypatch) -> None:
    def values(critic, tokens, mask):
        before = F.pad(critic(tokens)[:, : tokens.shape[1] - 1], (1, 0))
        return before.masked_fill(~mask, 0.0)

    read = ppo.response_values
    monkeypatch.setattr(ppo, "response_values", lambda c, t, m: (values if isinstance(c, Table) else read)(c, t, m))


def _experience(scores, *, old=0.0, reference=0.0, ended=(True, False)) -> Experience:
    tokens = torch.tensor([[0, 9, 9, 9, 1], [1, 9, 9, 0, 0]])
    zeros = torch.zeros(2, 5)
    rollout = Rollout(tokens, MASK, zeros, torch.tensor(LENGTHS), torch.tensor(PROMPTS), torch.tensor(ended), 0)
    given = torch.tensor(scores)
    known = torch.where(rollout.ended, given, 0.0)
    return Experience(rollout, zeros + old, zeros + reference, known, given, rollout.ended, 0.0)


def _estimate(tiny_world, tmp_path, critic, exp, *, moments=None, kl_coef=0.0, **settings):
    given = {"advantage_norm": False, "value_norm": False} | settings
    stage = tiny_world.stage("ppo", tmp_path / "stage")
    return ppo._estimate(ppo.Config(**given), stage, critic, moments or RunningMoments(), kl_coef, exp)


# The value before the response token at t is the critic's output at t - 1: columns 1, 2, 3 for row 0; 0, 1 for row 1,
# and the value after row 1's last token is its output at column 2.
VALUES = [[9.0, 0.5, 1.0, 1.5, 7.0], [0.25, 0.75, 2.0, 9.0, 9.0]]


def test_the_score_lands_on_the_last_real_token_where_the_response_ended(tiny_world, tmp_path) -> None:
    """gamma = lambda = 1, no KL: every return of row 0 is its score 3; its advantages 3 - (0.5, 1, 1.5)."""
    advantages, returns, values, _ = _estimate(tiny_world, tmp_path, Table(VALUES), _experience([3.0, 3.0]))
    assert returns[0].tolist() == [0, 0, 3, 3, 3]
    assert advantages[0].tolist() == [0, 0, 2.5, 2.0, 1.5]
    assert values[0, 2:].tolist() == [0.5, 1.0, 1.5]


def test_a_cut_response_gets_no_score_and_is_bootstrapped(tiny_world, tmp_path) -> None:
    """Row 1: no score whatever the reward model says; all returns are the critic's value after its last token, 2."""
    for score in (3.0, -50.0):
        advantages, returns, _, _ = _estimate(tiny_world, tmp_path, Table(VALUES), _experience([3.0, score]))
        assert returns[1].tolist() == [0, 2, 2, 0, 0]
        assert advantages[1].tolist() == [0, 1.75, 1.25, 0, 0]
    ended = _estimate(tiny_world, tmp_path, Table(VALUES), _experience([3.0, -50.0], ended=(True, True)))[1]
    assert ended[1].tolist() == [0, -50, -50, 0, 0]


def test_with_lambda_zero_only_the_last_token_sees_the_score(tiny_world, tmp_path) -> None:
    """delta_t = V_{t+1} - V_t inside (0.5, 0.5), 3 - 1.5 at the end; row 1: 0.75 - 0.25 and 2 - 0.75."""
    advantages, _, _, _ = _estimate(tiny_world, tmp_path, Table(VALUES), _experience([3.0, 3.0]), gae_lambda=0.0)
    assert advantages.tolist() == [[0, 0, 0.5, 0.5, 1.5], [0, 0.5, 1.25, 0, 0]]


def test_kl_is_paid_at_every_token_of_either_kind_of_row(tiny_world, tmp_path) -> None:
    """log pi - log ref = 0.5 at each token, coefficient 0.2: -0.1 a token, summed from the end; cut rows pay too."""
    exp = _experience([3.0, 3.0], old=-1.0, reference=-1.5)
    _, returns, _, _ = _estimate(tiny_world, tmp_path, Table(VALUES), exp, kl_coef=0.2)
    torch.testing.assert_close(returns, torch.tensor([[0, 0, 2.7, 2.8, 2.9], [0, 1.8, 1.9, 0, 0]]))


def _moments(mean: float, spread: float) -> RunningMoments:
    """Moments that have seen the values mean - spread and mean + spread."""
    moments = RunningMoments(beta=0.5)
    moments.update(torch.tensor([mean - spread, mean + spread]), torch.ones(2, dtype=torch.bool))
    return moments


def test_values_and_returns_come_back_in_the_same_units(tiny_world, tmp_path) -> None:
    """A critic that is right in reward units: its values equal the returns there, so they must be equal normalised,
    whatever the moments were before the batch. Every value is the score 3 (row 1: a bootstrap of 3)."""
    before = _moments(10.0, 5.0)
    normalised = float(before.normalize(torch.tensor(3.0)))
    critic = Table([[normalised] * 5] * 2)
    advantages, returns, values, metrics = _estimate(
        tiny_world, tmp_path, critic, _experience([3.0, 3.0]), moments=before, value_norm=True
    )
    torch.testing.assert_close(values[MASK], returns[MASK])
    assert advantages[MASK].abs().max() < 1e-5
    assert metrics["objective/returns"] == pytest.approx(3.0, abs=1e-5)
    # The moments have moved, so the old units would have been wrong by far more than the tolerance.
    after = float(before.normalize(torch.tensor(3.0)))
    assert abs(after - normalised) > 0.1 and values[0, 2] == pytest.approx(after, abs=1e-5)


def test_value_normalisation_leaves_advantages_in_reward_units(tiny_world, tmp_path) -> None:
    """The same critic in reward units, once through moments and once without: equal advantages."""
    held = _moments(1.0, 2.0)
    table = Table([[float(held.normalize(torch.tensor(v))) for v in row] for row in VALUES])
    normed = _estimate(tiny_world, tmp_path, table, _experience([3.0, 3.0]), moments=held, value_norm=True)[0]
    plain = _estimate(tiny_world, tmp_path, Table(VALUES), _experience([3.0, 3.0]))[0]
    torch.testing.assert_close(normed, plain, atol=1e-5, rtol=0)


def test_a_value_that_did_not_move_is_not_clipped(tiny_world, tmp_path) -> None:
    """The clipped loss at values equal to the old ones is half the squared error, whatever the clip width: with old
    values in other units than the returns it would not be."""
    from trueline.algorithms.ppo import clipped_value_loss

    held = _moments(10.0, 5.0)
    _, returns, values, _ = _estimate(
        tiny_world, tmp_path, Table(VALUES), _experience([3.0, 3.0]), moments=held, value_norm=True
    )
    reward_units = held.denormalize(values)[MASK]
    before = _moments(10.0, 5.0)
    expected = [float(before.denormalize(torch.tensor(v))) for v in (0.5, 1.0, 1.5, 0.25, 0.75)]
    assert reward_units.tolist() == pytest.approx(expected, abs=1e-4)
    loss = clipped_value_loss(values, values, returns, clip_range=1e-3)
    torch.testing.assert_close(loss, 0.5 * (values - returns).square())


def test_advantage_normalisation_is_over_all_response_tokens_of_the_batch(tiny_world, tmp_path) -> None:
    plain = _estimate(tiny_world, tmp_path, Table(VALUES), _experience([3.0, 3.0]))[0][MASK]
    normed = _estimate(tiny_world, tmp_path, Table(VALUES), _experience([3.0, 3.0]), advantage_norm=True)[0]
    expected = (plain - plain.mean()) / (plain.std(correction=0) + 1e-5)
    torch.testing.assert_close(normed[MASK], expected)
    assert not normed[~MASK].any()


def test_the_critic_that_starts_from_the_reward_model_predicts_the_score(tiny_world, tmp_path) -> None:
    """At the last token it equals the standardised score times reward_scale; from the policy it says 0 everywhere."""
    from trueline.models.heads import last_values
    from trueline.training.feedback import reward_source
    from trueline.training.policies import load_policy

    stage = tiny_world.stage("ppo", tmp_path / "stage")
    policy = load_policy(stage, "sft")
    prompts = tiny_world.task.prompts("train")[:12]
    import numpy as np

    draws = np.random.default_rng(0).random((12, 40))
    rollout = stage.engine(policy).generate(
        [stage.prompt_ids(p) for p in prompts], draws, max_new_tokens=40, sampling=stage.sampling
    )
    scores = reward_source(stage, "learned")(prompts, rollout)
    critic = ppo._critic(ppo.Config(reward_scale=2.0), stage, policy)
    with torch.no_grad():
        torch.testing.assert_close(
            last_values(critic(rollout.tokens), rollout.lengths), 2.0 * scores, atol=1e-4, rtol=1e-4
        )
        assert not ppo._critic(ppo.Config(critic_from="policy"), stage, policy)(rollout.tokens).any()
