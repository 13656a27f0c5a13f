"""What both sides are given: rows, their order, and the count of the useful work."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from trueline.benchmarks.flops import parameter_count, round_flops, round_tokens
from trueline.benchmarks.work import SHAPES, batches_of, in_our_order, standard_work, write_tokenizer, write_work
from trueline.errors import InputError
from trueline.training.sft import epoch_rows

ROW = {"prompt": [3, 4, 2], "chosen": [5, 6, 7, 1], "rejected": [8, 1]}


def test_ragged_rows_are_as_long_as_hh_rlhfs() -> None:
    """Mean shares of the limit .277 and .299 (standard deviations .25 and .24: 320 rows err by .014)."""
    rows = [row for batch in batches_of(standard_work("dpo", size="tiny"), 20) for row in batch]
    for name, limit, mean in (("prompt", 128, 0.277), ("chosen", 64, 0.299), ("rejected", 64, 0.299)):
        lengths = [len(row[name]) for row in rows]
        assert min(lengths) >= 2 and max(lengths) <= limit
        assert abs(sum(lengths) / 320 / limit - mean) < 0.06
    assert {row["prompt"][-1] for row in rows} == {2} and {row["chosen"][-1] for row in rows} == {1}
    inner = {i for row in rows for i in row["prompt"][:-1] + row["chosen"][:-1]}
    assert min(inner) >= 3 and max(inner) < SHAPES["tiny"][5]


def test_even_rows_are_full_and_rows_are_a_function_of_the_seed() -> None:
    work = standard_work("sft", size="tiny", ragged=False)
    batches = batches_of(work, 2)
    assert {len(row[name]) for batch in batches for row in batch for name in row} == {64}
    assert batches == batches_of(work, 3)[:2] != batches_of(replace(work, seed=1), 2)


@pytest.mark.parametrize("kind", ["sft", "reward", "dpo"])
def test_the_peer_reads_rows_in_the_order_that_our_page_visits_them(kind) -> None:
    work = standard_work(kind, size="tiny", seed=3)
    rows = [row for batch in batches_of(work, 4) for row in batch]
    visited = [rows[i] for step in range(4) for i in epoch_rows(3, f"{kind}/order", step, 16, len(rows))]
    assert in_our_order(kind, 3, rows) == visited != rows


def test_a_sides_folder_holds_work_rows_and_links(tmp_path) -> None:
    work, model = standard_work("dpo", size="tiny"), tmp_path / "model"
    model.mkdir()
    write_work(work, tmp_path / "side", model, None, batches_of(work, 2))
    assert json.loads((tmp_path / "side" / "work.json").read_text()) == work.described()
    assert len(json.loads((tmp_path / "side" / "ordered.json").read_text())) == 32
    assert (tmp_path / "side" / "model").resolve() == model and not (tmp_path / "side" / "reward").exists()


def test_the_tokenizer_gives_exactly_the_ids_with_and_without_spaces(tmp_path) -> None:
    from tokenizers import Tokenizer

    write_tokenizer(32, tmp_path)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text in ("t3 t17 t2 t5 <end>", "t3 t17 t2t5<end>"):
        assert tokenizer.encode(text, add_special_tokens=False).ids == [3, 17, 2, 5, 1]
    assert tokenizer.decode([3, 17], skip_special_tokens=True) == "t3t17"


def test_names_and_sizes_that_there_are_not() -> None:
    with pytest.raises(InputError, match=r"there is no 'pppo'.*ppo"):
        standard_work("pppo")
    with pytest.raises(InputError, match=r"--size.*'huge'.*tiny"):
        standard_work("ppo", size="huge")


@pytest.mark.parametrize("size", ["tiny", "small"])
def test_parameters_are_those_of_the_model(size) -> None:
    from trueline.models.decoder import Decoder, DecoderConfig

    hidden, intermediate, layers, heads, kv_heads, vocabulary, family = SHAPES[size]
    model = Decoder(DecoderConfig(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=intermediate, num_layers=layers, num_heads=heads,
        num_kv_heads=kv_heads, head_dim=hidden // heads, max_positions=128, family=family, tied=True,
    ))  # fmt: skip
    assert parameter_count(size) == model.parameter_count


def test_parameters_of_a_published_shape() -> None:
    assert parameter_count("0.5b") == 494_032_768  # Qwen2.5-0.5B's model card: 0.49B


def test_tokens_and_flops_by_hand() -> None:
    n = parameter_count("tiny")
    sft, dpo = standard_work("sft", size="tiny"), standard_work("dpo", size="tiny")
    assert round_tokens(sft, [ROW], None) == 3 + 4 and round_flops(sft, 7) == 6 * 7 * n
    assert round_tokens(dpo, [ROW], None) == 3 + 4 + 2  # the prompt once
    assert round_flops(dpo, 9) == (6 + 2) * 9 * n  # and the reference's forward pass
    assert round_flops(standard_work("reward", size="tiny"), 9) == 6 * 9 * n
    ppo = standard_work("ppo", size="tiny")
    assert round_tokens(ppo, [ROW], 10.0) == 64 * (3 + 10)
    # sample, reference, reward model, critic; 4 epochs of policy and critic
    assert round_flops(ppo, 1) == (2 * 4 + 6 * 8) * n
    grpo = standard_work("grpo", size="tiny")
    assert round_tokens(grpo, [ROW], 10.0) == 8 * 3 + 64 * 10 and round_flops(grpo, 1) == (2 * 3 + 6) * n
    assert round_flops(standard_work("rollout", size="tiny"), 1) == 2 * n
    with pytest.raises(ValueError, match="mean_length"):
        round_tokens(ppo, [ROW], None)
