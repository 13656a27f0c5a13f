"""cDPO, IPO, DPO-positive, length-normalised DPO, SimPO, KTO and the online KL: corners by hand, limits, gradients."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck

from trueline.algorithms.dpo import cdpo_loss, dpo_loss, dpo_positive_loss, ln_dpo_loss
from trueline.algorithms.ipo import ipo_loss
from trueline.algorithms.kto import kto_loss, kto_reference_point
from trueline.algorithms.online_kl import online_kl
from trueline.algorithms.simpo import simpo_loss, simpo_rewards
from trueline.theory.enumeration import enumerate_sequences, exact_kl, exact_kl_gradient, sequence_token_logprobs

MODEST = settings(max_examples=25, deadline=None, database=None, derandomize=True)
SEEDS = st.integers(0, 10_000)
BETAS = st.floats(0.01, 5)


def draws(seed, count, *shape):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, *shape, generator=generator, dtype=torch.float64).unbind(0)


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


# The inputs of torchtune's DPO test (golden_vectors.json): margins h = 0, 10, 20. With beta 0.1: d = 0, 1, 2.
PAIRS = [tensor(side) for side in ([-0.5, -10.0, -1.0], [-0.1, -30.0, -21.0], [-0.5, -10.1, -0.1], [-0.1, -20.1, -0.1])]


def softplus(x):
    return math.log1p(math.exp(x))


def test_cdpo_by_hand():
    """-(1 - eps) log sigmoid(d) - eps log sigmoid(-d) = softplus(-d) + eps d."""
    expected = tensor([softplus(-d) + 0.2 * d for d in (0.0, 1.0, 2.0)])
    torch.testing.assert_close(cdpo_loss(*PAIRS, beta=0.1, label_smoothing=0.2), expected)


@given(SEEDS, BETAS, st.floats(0.01, 0.49))
@MODEST
def test_cdpo_limits_and_minimum(seed, beta, eps):
    pair = draws(seed, 4, 6)
    torch.testing.assert_close(cdpo_loss(*pair, beta=beta, label_smoothing=0.0), dpo_loss(*pair, beta=beta))
    same = cdpo_loss(*pair[:2], *pair[:2], beta=beta, label_smoothing=eps)
    torch.testing.assert_close(same, torch.full_like(same, math.log(2)))
    # the slope vanishes where sigmoid(beta h) = 1 - eps, and there alone
    best = tensor([math.log((1 - eps) / eps) / beta])
    for shift, zero in ((0.0, True), (0.5, False), (-0.5, False)):
        chosen = (best + shift).requires_grad_()
        zeros = torch.zeros(1, dtype=torch.float64)
        cdpo_loss(chosen, zeros, zeros, zeros, beta=beta, label_smoothing=eps).backward()
        assert (abs(float(chosen.grad)) < 1e-12) == zero


def test_ipo_by_hand():
    """beta 0.1 aims at h = 5 nats; h is 0, 10, 20."""
    torch.testing.assert_close(ipo_loss(*PAIRS, beta=0.1), tensor([25.0, 25.0, 225.0]))


@given(SEEDS, BETAS)
@MODEST
def test_ipo_is_least_at_its_target_and_punishes_what_is_beyond(seed, beta):
    ref_chosen, ref_rejected, rejected = draws(seed, 3, 1)
    target = 1 / (2 * beta)
    at_target = rejected - ref_rejected + ref_chosen + target
    for shift in (0.0, 1.0, -1.0):
        chosen = (at_target + shift).requires_grad_()
        loss = ipo_loss(chosen, rejected, ref_chosen, ref_rejected, beta=beta)
        loss.backward()
        assert float(loss.detach()) == pytest.approx(shift**2, abs=1e-9)
        assert float(chosen.grad) == pytest.approx(2 * shift, abs=1e-9)
    same = ipo_loss(ref_chosen, ref_rejected, ref_chosen, ref_rejected, beta=beta)
    assert float(same) == pytest.approx(target**2)


def test_ipo_sums_and_does_not_average():
    """A response twice as long with the same log-ratio per token has twice the h (TRL's would be the same)."""
    ratio = tensor([-0.5])
    one, two = (ipo_loss(ratio * n, ratio * 0, ratio * 0, ratio * 0, beta=0.5) for n in (1, 2))
    assert (float(one), float(two)) == (pytest.approx(2.25), pytest.approx(4.0))  # (-0.5 - 1)^2, (-1 - 1)^2


# beta 1; rows: log pi - log ref of chosen and of rejected, penalty, argument of the sigmoid, slopes of it in both
POSITIVE_CORNERS = [
    (0.5, 0.0, 50.0, 0.5, 1.0, -1.0),  # chosen is likelier: DPO
    (0.0, -1.0, 50.0, 1.0, 1.0, -1.0),  # the start of the penalty: none yet
    (-0.1, -2.0, 50.0, 1.9 - 5.0, 51.0, -1.0),  # both fell: the margin DPO is happy with costs 50 * 0.1
    (-0.1, -2.0, 0.0, 1.9, 1.0, -1.0),
    (-20e-5, -1.0, 50.0, 1.0 - 20e-5, 1.0, -1.0),  # 20e-5 nats of 40 are rounding: no penalty
]


@pytest.mark.parametrize("won, lost, penalty, argument, up, down", POSITIVE_CORNERS)
def test_dpo_positive_by_hand(won, lost, penalty, argument, up, down):
    refs = tensor([-40.0]), tensor([-30.0])
    chosen, rejected = (refs[0] + won).requires_grad_(), (refs[1] + lost).requires_grad_()
    loss = dpo_positive_loss(chosen, rejected, *refs, beta=1.0, penalty=penalty)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(softplus(-argument))
    weight = 1 / (1 + math.exp(argument))  # -d/dx of -log sigmoid
    assert float(chosen.grad) == pytest.approx(-weight * up)
    assert float(rejected.grad) == pytest.approx(-weight * down)


@given(SEEDS, BETAS, st.floats(0, 60))
@MODEST
def test_dpo_positive_limits(seed, beta, penalty):
    pair = draws(seed, 4, 6)
    plain = dpo_loss(*pair, beta=beta)
    torch.testing.assert_close(dpo_positive_loss(*pair, beta=beta, penalty=0.0), plain)
    found = dpo_positive_loss(*pair, beta=beta, penalty=penalty)
    risen = pair[0] >= pair[2]
    torch.testing.assert_close(found[risen], plain[risen])
    assert (found >= plain - 1e-12).all()
    same = dpo_positive_loss(*pair[:2], *pair[:2], beta=beta, penalty=penalty)
    torch.testing.assert_close(same, torch.full_like(same, math.log(2)))


def test_dpo_positive_starts_with_dpos_gradient_whatever_the_rounding():
    """float32, the two models scored in other groups: log-probs of one response differ in the last digits."""
    reference = torch.tensor([-61.37, -12.5, -130.0])
    noisy = reference * (1 + 1e-6 * torch.tensor([1.0, -1.0, 1.0]))
    chosen = noisy.clone().requires_grad_()
    dpo_positive_loss(chosen, reference, reference, reference, beta=0.3, penalty=50.0).sum().backward()
    torch.testing.assert_close(chosen.grad, torch.full((3,), -0.15), rtol=1e-3, atol=0)


def test_length_normalised_dpo_by_hand():
    """h = 10 over 4 chosen tokens: log-ratios 0.1 / 4 and -9.9 / 2; beta 0.4 -> 0.4 (0.025 + 4.95) = 1.99."""
    pair = [side[1:2] for side in PAIRS]
    loss = ln_dpo_loss(*pair, tensor([4.0]), tensor([2.0]), beta=0.4)
    assert float(loss) == pytest.approx(softplus(-1.99))


@given(SEEDS, BETAS, st.integers(1, 50))
@MODEST
def test_length_normalised_dpo_limits(seed, beta, length):
    pair = draws(seed, 4, 6)
    ones = torch.ones(6, dtype=torch.long)
    torch.testing.assert_close(ln_dpo_loss(*pair, ones, ones, beta=beta), dpo_loss(*pair, beta=beta))
    same = ln_dpo_loss(*pair, length * ones, length * ones, beta=beta * length)  # of one length: DPO at another beta
    torch.testing.assert_close(same, dpo_loss(*pair, beta=beta))
    # repeating a response's tokens changes sums and lengths, not means
    chosen, rejected, ref_chosen, ref_rejected = pair
    longer = ln_dpo_loss(3 * chosen, rejected, 3 * ref_chosen, ref_rejected, 3 * length * ones, ones, beta=beta)
    torch.testing.assert_close(longer, ln_dpo_loss(*pair, length * ones, ones, beta=beta))
    assert (longer - ln_dpo_loss(*pair, ones, ones, beta=beta)).abs().max() > 1e-6 or length == 1


def test_simpo_by_hand():
    """beta 2, gamma 0.5: means -1.5 and -3, margin 2 * 1.5 - 0.5 = 2.5; without a margin 3."""
    given_ = tensor([-6.0]), tensor([-6.0]), tensor([4.0]), tensor([2.0])
    assert float(simpo_loss(*given_, beta=2.0, gamma=0.5)) == pytest.approx(softplus(-2.5))
    assert float(simpo_loss(*given_, beta=2.0, gamma=0.0)) == pytest.approx(softplus(-3.0))
    assert float(simpo_rewards(given_[0], given_[2], beta=2.0)) == pytest.approx(-3.0)


@given(SEEDS, BETAS, st.floats(0, 3), st.integers(2, 9))
@MODEST
def test_simpo_laws(seed, beta, gamma, times):
    chosen, rejected = draws(seed, 2, 6)
    lengths = torch.arange(1, 7), torch.arange(6, 0, -1)
    loss = simpo_loss(chosen, rejected, *lengths, beta=beta, gamma=gamma)
    # the same text over and over has the same mean; a constant per token on both sides cancels
    repeated = simpo_loss(times * chosen, rejected, times * lengths[0], lengths[1], beta=beta, gamma=gamma)
    torch.testing.assert_close(repeated, loss)
    shifted = simpo_loss(chosen + 0.3 * lengths[0], rejected + 0.3 * lengths[1], *lengths, beta=beta, gamma=gamma)
    torch.testing.assert_close(shifted, loss)
    # a constant per response does not, unless lengths are equal; swapping sides without a margin flips the argument
    assert (simpo_loss(chosen + 1, rejected + 1, *lengths, beta=beta, gamma=gamma) - loss).abs().max() > 1e-6
    plain = simpo_loss(chosen, rejected, *lengths, beta=beta, gamma=0.0)
    swapped = simpo_loss(rejected, chosen, *reversed(lengths), beta=beta, gamma=0.0)
    torch.testing.assert_close((-plain).exp() + (-swapped).exp(), torch.ones_like(plain))
    assert (loss >= plain).all()


def test_kto_by_hand():
    """beta 0.5, z0 1: r = 3 is 2 above, r = -1 is 2 below: sigmoid(1) and sigmoid(-1) of the value's argument."""
    logprobs, ref = tensor([-7.0, -7.0, -11.0, -11.0]), torch.full((4,), -10.0, dtype=torch.float64)
    good = torch.tensor([True, False, True, False])
    found = kto_loss(logprobs, ref, good, tensor(1.0), beta=0.5, desirable_weight=2.0, undesirable_weight=3.0)
    above, below = 1 / (1 + math.exp(1)), 1 / (1 + math.exp(-1))
    torch.testing.assert_close(found, tensor([2 * above, 3 * below, 2 * below, 3 * above]))


@given(SEEDS, st.floats(0.01, 1), st.floats(0, 3), st.floats(0.1, 4), st.floats(0.1, 4))
@MODEST
def test_kto_laws(seed, beta, z0, gain, pain):
    logprobs, ref = draws(seed, 2, 6)
    good = torch.arange(6) % 2 == 0
    weights = {"beta": beta, "desirable_weight": gain, "undesirable_weight": pain}
    loss = kto_loss(logprobs, ref, good, z0, **weights)
    most = torch.where(good, tensor(gain), tensor(pain))
    torch.testing.assert_close(kto_loss(ref + z0, ref, good, z0, **weights), most / 2)
    assert (loss > 0).all() and (loss < most).all()
    # flipping every label turns a loss into the rest of its weight
    other = kto_loss(logprobs, ref, ~good, z0, beta=beta, desirable_weight=pain, undesirable_weight=gain)
    torch.testing.assert_close(loss + other, most)
    torch.testing.assert_close(kto_loss(logprobs + 5, ref + 5, good, z0, **weights), loss)
    logprobs.requires_grad_()
    (slope,) = torch.autograd.grad(kto_loss(logprobs, ref, good, z0, **weights).sum(), logprobs)
    assert (slope[good] < 0).all() and (slope[~good] > 0).all()  # good up, bad down


def test_ktos_reference_point_is_a_mean_that_is_not_negative_and_has_no_gradient():
    logprobs = tensor([-1.0, -2.0, -3.0]).requires_grad_()
    found = kto_reference_point(logprobs, tensor([-2.0, -4.0, -3.0]))
    assert float(found) == 1.0 and not found.requires_grad
    assert float(kto_reference_point(logprobs, tensor([0.0, 0.0, 0.0]))) == 0.0
    good = torch.tensor([True, True, False])
    kto_loss(tensor([0.0, 0.0, 0.0]), tensor([0.0, 0.0, 0.0]).requires_grad_(), good, logprobs.sum(), beta=0.1)
    loss = kto_loss(logprobs, tensor([-2.0, -4.0, -3.0]), good, logprobs.sum(), beta=0.1).sum()
    fixed = kto_loss(logprobs, tensor([-2.0, -4.0, -3.0]), good, -6.0, beta=0.1).sum()
    for one, two in zip(torch.autograd.grad(loss, logprobs), torch.autograd.grad(fixed, logprobs)):
        torch.testing.assert_close(one, two)  # a reference point that was made of the log-probs still gives none


SPACE = enumerate_sequences()


def tables(seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, SPACE.prefix_count, SPACE.vocabulary, generator=generator, dtype=torch.float64).unbind(0)


def expected_gradient(logits, ref_logits, term):
    """E_{y ~ pi}[grad term(log pi(y), log ref(y))] over all 27 sequences: samples fixed, their mean taken exactly."""
    table = logits.clone().requires_grad_()
    logprobs = sequence_token_logprobs(SPACE, table).sum(-1)
    values = term(logprobs, sequence_token_logprobs(SPACE, ref_logits).sum(-1))
    return torch.autograd.grad((logprobs.detach().exp() * values).sum(), table)[0], values


@pytest.mark.parametrize("seed", range(3))
def test_the_online_kls_mean_value_and_gradient_are_the_kls(seed):
    logits, ref_logits = tables(seed)
    gradient, values = expected_gradient(logits, ref_logits, online_kl)
    weights = sequence_token_logprobs(SPACE, logits).sum(-1).exp()
    torch.testing.assert_close((weights * values).sum(), exact_kl(SPACE, logits, ref_logits))
    exact = exact_kl_gradient(SPACE, logits, ref_logits)
    torch.testing.assert_close(gradient, exact)
    constant = torch.full((27,), 1.7, dtype=torch.float64)
    shifted, _ = expected_gradient(logits, ref_logits, lambda p, r: online_kl(p, r, baseline=constant))
    torch.testing.assert_close(shifted, exact)
    # the baseline of training, for a batch of two: each row's is the other row's log-ratio; all 27 x 27 batches
    logprobs = sequence_token_logprobs(SPACE, table := logits.clone().requires_grad_()).sum(-1)
    ref_logprobs = sequence_token_logprobs(SPACE, ref_logits).sum(-1)
    ratios = (logprobs - ref_logprobs).detach()
    mine, others = torch.cartesian_prod(torch.arange(27), torch.arange(27)).T
    terms = online_kl(logprobs[mine], ref_logprobs[mine], baseline=ratios[others])
    (pairwise,) = torch.autograd.grad((weights[mine] * weights[others] * terms).sum(), table)
    torch.testing.assert_close(pairwise, exact)
    # negative controls: the log-ratio as a plain loss has mean gradient 0; a baseline that sees its own row is biased
    naive, _ = expected_gradient(logits, ref_logits, lambda p, r: p - r)
    torch.testing.assert_close(naive, torch.zeros_like(naive), rtol=0, atol=1e-13)
    own, _ = expected_gradient(logits, ref_logits, lambda p, r: online_kl(p, r, baseline=0.5 * (p - r)))
    assert exact.abs().max() > 1e-2 and (own - exact).abs().max() > 1e-2


def test_the_online_kl_vanishes_on_the_reference():
    logprobs = draws(0, 1, 5)[0].requires_grad_()
    found = online_kl(logprobs, logprobs.detach())
    assert not found.any() and not torch.autograd.grad(found.sum(), logprobs)[0].any()


def finite_differences(function, inputs, step=1e-6):
    """Central differences of the summed loss, one coordinate at a time."""
    slopes = []
    for number, x in enumerate(inputs):
        slope = torch.zeros_like(x)
        for i in range(x.numel()):
            nudged = [y.clone() for y in inputs]
            nudged[number].view(-1)[i] += step
            above = function(*nudged).sum()
            nudged[number].view(-1)[i] -= 2 * step
            slope.view(-1)[i] = (above - function(*nudged).sum()) / (2 * step)
        slopes.append(slope)
    return slopes


LENGTHS = torch.tensor([3, 1, 7, 2])
GOOD = torch.tensor([True, False, True, False])
LOSSES = {
    "cdpo": (4, lambda *x: cdpo_loss(*x, beta=0.3, label_smoothing=0.1)),
    "ipo": (4, lambda *x: ipo_loss(*x, beta=0.3)),
    "dpo_positive": (4, lambda *x: dpo_positive_loss(*x, beta=0.3, penalty=5.0)),
    "ln_dpo": (4, lambda *x: ln_dpo_loss(*x, LENGTHS, LENGTHS.flip(0), beta=2.0)),
    "simpo": (2, lambda *x: simpo_loss(*x, LENGTHS, LENGTHS.flip(0), beta=2.0, gamma=0.5)),
    "kto": (2, lambda *x: kto_loss(*x, GOOD, 0.3, beta=0.3, undesirable_weight=1.5)),
}


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_those_of_finite_differences(name):
    count, loss = LOSSES[name]
    inputs = [x.requires_grad_() for x in draws(5, count, 4)]
    assert gradcheck(loss, tuple(inputs))
    found = torch.autograd.grad(loss(*inputs).sum(), inputs)
    with torch.no_grad():
        expected = finite_differences(loss, [x.detach() for x in inputs])
    for one, two in zip(found, expected):
        torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-8)
        assert one.abs().max() > 1e-3


@pytest.mark.parametrize("name", LOSSES)
def test_one_value_per_row_whatever_the_rest_of_the_batch(name):
    count, loss = LOSSES[name]
    inputs = draws(6, count, 4)
    whole = loss(*inputs)
    assert whole.shape == (4,)
    for row in range(4):
        others = [torch.where(torch.arange(4) == row, x, x * 3 - 1) for x in inputs]
        assert loss(*others)[row] == whole[row]


def test_half_precision_log_probs_are_widened():
    half = [x.to(torch.bfloat16) for x in draws(7, 4, 4)]
    for count, loss in LOSSES.values():
        found = loss(*half[:count])
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, loss(*(x.float() for x in half[:count])))


def test_errors_name_the_argument():
    three, two, good = torch.zeros(3), torch.zeros(2), torch.ones(3, dtype=torch.bool)
    ones, both = torch.ones(3), (torch.zeros(3),) * 4
    for call, name in (
        (lambda: cdpo_loss(three, three, three, two, beta=0.1, label_smoothing=0.1), "ref_rejected"),
        (lambda: cdpo_loss(*both, beta=0.1, label_smoothing=0.5), "label_smoothing"),
        (lambda: cdpo_loss(*both, beta=0.0, label_smoothing=0.1), "beta"),
        (lambda: ipo_loss(three, two, three, three, beta=0.1), "rejected"),
        (lambda: ipo_loss(*both, beta=-1.0), "beta"),
        (lambda: dpo_positive_loss(three, three, two, three, beta=0.1, penalty=1.0), "ref_chosen"),
        (lambda: dpo_positive_loss(*both, beta=0.1, penalty=-1.0), "penalty"),
        (lambda: ln_dpo_loss(*both, ones, two, beta=0.1), "rejected_lengths"),
        (lambda: ln_dpo_loss(*both, three, ones, beta=0.1), "chosen_lengths"),
        (lambda: simpo_loss(three, three, ones, two, beta=0.1, gamma=0.0), "rejected_lengths"),
        (lambda: simpo_loss(three, three, ones, ones, beta=0.1, gamma=-0.1), "gamma"),
        (lambda: simpo_loss(three, three, three, ones, beta=0.1, gamma=0.1), "lengths"),
        (lambda: kto_loss(three, two, good, 0.0, beta=0.1), "ref_logprobs"),
        (lambda: kto_loss(three, three, ones, 0.0, beta=0.1), "desirable"),
        (lambda: kto_loss(three, three, good, 0.0, beta=0.1, undesirable_weight=0.0), "undesirable_weight"),
        (lambda: kto_reference_point(three, two), "ref_logprobs"),
        (lambda: kto_reference_point(three[:0], three[:0]), "mismatched"),
        (lambda: online_kl(three, two), "ref_logprobs"),
        (lambda: online_kl(three, three, baseline=two), "baseline"),
    ):
        with pytest.raises(ValueError, match=name):
            call()
