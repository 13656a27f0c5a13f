"""Fresh models, scalar heads, fingerprints, and scores of a learned reward model."""

from __future__ import annotations

import math

import pytest
import torch

from trueline.models.fingerprints import fingerprint, fingerprint_tensors
from trueline.models.heads import last_values, scalar_from
from trueline.models.tiny import SIZES, make_decoder, sized
from trueline.rewards.learned import LearnedReward

from .small import ragged, small_config, small_decoder, small_scalar


def test_a_seed_is_a_model() -> None:
    one, same, other = (make_decoder(small_config(), seed) for seed in (4, 4, 5))
    assert fingerprint(one) == fingerprint(same) != fingerprint(other)


@pytest.mark.parametrize("size", SIZES)
def test_the_named_sizes_are_consistent(size) -> None:
    config = sized(size, vocab_size=64, max_positions=32, pad_id=0, end_id=1)
    assert config.num_heads * config.head_dim == config.hidden_size
    assert config.num_heads % config.num_kv_heads == 0 and config.head_dim % 2 == 0


def test_parameter_count_by_hand() -> None:
    """d=32, f=48, 2 layers, 4 heads and 2 kv heads of 8, V=37. A layer: qkv 32 x (32 + 16 + 16) = 2048, out 1024, gate
    and up 3072, down 1536, two norms 64: 7744. Twice that 15488, embedding 1184, last norm 32, head 1184: 17888.
    """
    assert make_decoder(small_config(), 0).parameter_count == 17888
    assert make_decoder(small_config(tied=True), 0).parameter_count == 17888 - 1184


def test_initial_scale() -> None:
    """Projections 1/sqrt(fan in), those that write to the residual stream by sqrt(2 layers) less, embeddings 0.02."""
    model = make_decoder(sized("small", vocab_size=512, max_positions=16, pad_id=0, end_id=1), 0)
    block = model.trunk.blocks[1]
    for weight, std in (
        (block.gate_up.weight, 1 / math.sqrt(256)),
        (block.down.weight, 1 / math.sqrt(640) / math.sqrt(8)),
        (block.attention.out.weight, 1 / math.sqrt(256) / math.sqrt(8)),
        (model.trunk.embed.weight, 0.02),
        (model.head.weight, 0.02),
    ):
        assert float(weight.detach().std()) == pytest.approx(std, rel=0.02)
    assert (model.trunk.norm.weight == 1).all()


def test_a_context_that_is_exceeded_is_named() -> None:
    with pytest.raises(ValueError, match="65 tokens exceed the model's context of 64"):
        small_decoder()(torch.ones(1, 65, dtype=torch.long))


def test_a_scalar_model_copies_the_trunk_and_starts_at_zero() -> None:
    policy = small_decoder("qwen3")
    critic = scalar_from(policy, bias=True)
    tokens, _ = ragged()
    assert (critic(tokens) == 0).all()
    assert fingerprint(critic.trunk) == fingerprint(policy.trunk)
    with torch.no_grad():
        critic.trunk.embed.weight.add_(1)
    assert fingerprint(critic.trunk) != fingerprint(policy.trunk)  # a copy: the policy is untouched
    assert critic.parameter_count == policy.parameter_count - policy.head.weight.numel() + 33


def test_a_critic_from_a_reward_model_keeps_its_head_where_asked() -> None:
    reward = small_scalar(bias=False)
    tokens, _ = ragged()
    kept = scalar_from(reward, bias=True, keep_head=True)
    torch.testing.assert_close(kept(tokens), reward(tokens))
    assert (scalar_from(reward, bias=True)(tokens) == 0).all()
    with pytest.raises(TypeError, match="keep_head"):
        scalar_from(small_decoder(), bias=True, keep_head=True)


def test_last_values_reads_the_last_real_token() -> None:
    values = torch.arange(12.0).view(3, 4)
    assert last_values(values, torch.tensor([1, 4, 2])).tolist() == [0.0, 7.0, 9.0]


def test_fingerprints_see_every_bit_name_shape_and_dtype() -> None:
    base = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([3.0])}
    seen = {fingerprint_tensors(base)}
    assert fingerprint_tensors(dict(reversed(base.items()))) in seen
    for change in (
        {"a": torch.tensor([1.0, math.nextafter(2.0, 3.0)], dtype=torch.float64)},
        {"a": torch.tensor([1.0, 2.0 + 2.0**-22])},
        {"a": torch.tensor([[1.0, 2.0]])},
        {"a": torch.tensor([1.0, -2.0])},
        {"c": torch.tensor([0.0])},
    ):
        digest = fingerprint_tensors(base | change)
        assert digest not in seen
        seen.add(digest)
    assert fingerprint_tensors({"a": base["b"], "b": base["a"]}) not in seen
    assert all(len(digest) == 16 for digest in seen)


def test_fingerprint_of_half_precision_and_of_a_strided_tensor() -> None:
    tensor = torch.arange(6.0).view(2, 3)
    assert fingerprint_tensors({"a": tensor.t()}) == fingerprint_tensors({"a": tensor.t().contiguous()})
    assert fingerprint_tensors({"a": tensor.bfloat16()}) != fingerprint_tensors({"a": tensor})


@pytest.mark.parametrize("limit", [1, 40, 10**6])
def test_scores_do_not_depend_on_the_grouping(limit) -> None:
    model = small_scalar(bias=False).double()
    tokens, lengths = ragged(rows=9)
    scores = LearnedReward(model, token_limit=limit).scores(tokens, lengths)
    alone = [model(row[None, :n])[0, -1].item() for row, n in zip(tokens, lengths)]
    torch.testing.assert_close(scores.double(), torch.tensor(alone, dtype=torch.float64), rtol=0, atol=1e-6)


def test_standardized_scores_by_hand() -> None:
    model = small_scalar(bias=False)
    tokens, lengths = ragged()
    raw = LearnedReward(model).scores(tokens, lengths)
    scaled = LearnedReward(model, {"mean": 2.0, "std": 4.0}).standardized(tokens, lengths)
    torch.testing.assert_close(scaled, (raw - 2.0) / 4.0)
    with pytest.raises(ValueError, match="calibration"):
        LearnedReward(model).standardized(tokens, lengths)
