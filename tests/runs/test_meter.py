"""The budget meter's arithmetic, by hand."""

from __future__ import annotations

import json

from trueline.runs.meter import COST_KEYS, BudgetMeter, Cost, peak_memory


def test_flops_and_tokens_by_hand() -> None:
    """100 parameters. Sampling 30 tokens behind 10: 2 x 100 x 40 = 8000. A forward pass over 50: 10000. A training step
    on 50: 6 x 100 x 50 = 30000. Only sampled tokens count as sampled, only trained ones as trained."""
    meter = BudgetMeter()
    meter.sample(100, 10, 30)
    meter.forward(100, 50)
    meter.train(100, 50)
    cost = meter.cost()
    assert (cost.flops, cost.sampled_tokens, cost.trained_tokens) == (48000.0, 30, 50)
    assert (cost.reward_calls, cost.labels, cost.prompts) == (0, 0, 0)


def test_costs_add_and_the_peak_does_not() -> None:
    one = Cost(1.0, 2.0, 3, 4, 5, 6, 7, 80)
    other = Cost(10.0, 20.0, 30, 40, 50, 60, 70, 8)
    assert one + other == Cost(11.0, 22.0, 33, 44, 55, 66, 77, 80)
    assert one + Cost() == one
    assert tuple(one.as_dict()) == COST_KEYS


def test_state_round_trip_through_json_continues_alike() -> None:
    one, other = BudgetMeter(), BudgetMeter()
    one.train(333, 7)
    one.sample(333, 3, 4)
    one.labels, one.prompts, one.reward_calls, one.seconds = 5, 6, 7, 0.1 + 0.2
    tensors, plain = one.state()
    other.load((tensors, json.loads(json.dumps(plain))))
    assert other.state() == one.state()
    for meter in (one, other):
        meter.forward(10, 3)
    assert other.state() == one.state()


def test_a_fresh_meter_is_zero_but_for_memory() -> None:
    cost = BudgetMeter().cost()
    assert Cost(peak_memory_bytes=cost.peak_memory_bytes) == cost
    assert 10 * 2**20 < peak_memory() < 2**42  # bytes: a Python process with torch is neither below 10 MiB nor 4 TiB
