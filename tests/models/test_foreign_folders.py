"""Folders that transformers alone wrote, model and tokenizer: loaded, scored and sampled like there."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast, Qwen2Config, Qwen3Config

from trueline.data.chat import ChatTokenizer
from trueline.models.checkpoints import load_decoder, save_model
from trueline.models.scoring import Sampling, forbidden_mask
from trueline.rollout.native import NativeEngine
from trueline.types import Prompt

CONFIGS = {"llama": LlamaConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config}
SPECIALS = ["<s>", "</s>", "<|start|>", "<|turn_end|>"]
VOCAB = 320  # padded beyond the tokenizer's, as published models are
TURNS = (
    "{%- for m in messages %}{{ '<|start|>' + m.role + '\\n' + m.content + '<|turn_end|>' }}{% endfor -%}"
    "{%- if add_generation_prompt %}{{ '<|start|>assistant\\n' }}{% endif -%}"
)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=SPECIALS, initial_alphabet=alphabet, show_progress=False
    )
    raw.train_from_iterator(["how do i brew tea ?", "first boil the water , then add the leaves ."] * 20, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>")


def write(folder, tokenizer, family, *, dtype=torch.float32, tied=False, ends=(3, 1), template=TURNS, shard="5GB"):
    """A folder as a user of transformers leaves it, and the model that is in it, in fp32."""
    torch.manual_seed(5)
    config = CONFIGS[family](
        vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=tied, initializer_range=0.3,
        bos_token_id=0, eos_token_id=list(ends) if len(ends) > 1 else ends[0], pad_token_id=1,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).to(dtype)
    model.save_pretrained(folder, max_shard_size=shard)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def greedy(folder, ids: list[int], ends, count: int, forbidden=None) -> list[int]:
    engine = NativeEngine(pad_id=0, end_id=ends)
    engine.load_weights(load_decoder(folder), 0)
    return engine.generate([ids], None, max_new_tokens=count, sampling=Sampling(forbidden=forbidden)).responses()[0]


def generated(model, ids: list[int], ends, count: int) -> list[int]:
    with torch.no_grad():
        out = model.generate(
            torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long), do_sample=False,
            max_new_tokens=count, eos_token_id=list(ends) if ends else None, pad_token_id=0,
        )  # fmt: skip
    return out[0, len(ids) :].tolist()


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize(
    ("dtype", "tied", "shard"),
    [(torch.float32, False, "5GB"), (torch.float32, True, "30KB"), (torch.bfloat16, False, "20KB"),
     (torch.bfloat16, True, "5GB")],
)  # fmt: skip
def test_logits_and_greedy_tokens_are_those_of_transformers(tmp_path, tokenizer, family, dtype, tied, shard) -> None:
    theirs = write(tmp_path, tokenizer, family, dtype=dtype, tied=tied, shard=shard)
    assert (tmp_path / "model.safetensors.index.json").exists() == (shard != "5GB")
    tokens = torch.randint(4, VOCAB, (3, 64), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, found = theirs(tokens).logits, load_decoder(tmp_path)(tokens)
    assert (found - expected).abs().max() < 1e-4
    assert expected.std() > 0.3  # a flat distribution would hide a difference
    for row in tokens[:, :20].tolist():
        assert greedy(tmp_path, row, (), 12) == generated(theirs, row, (), 12)


@pytest.mark.parametrize("family", CONFIGS)
def test_bf16_weights_stay_bf16_where_asked(tmp_path, tokenizer, family) -> None:
    """Two bf16 computations round apart, by far less than the logits' spread."""
    write(tmp_path, tokenizer, family, dtype=torch.bfloat16)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    tokens = torch.randint(4, VOCAB, (3, 64), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, found = theirs(tokens).logits.float(), load_decoder(tmp_path, torch.bfloat16)(tokens)
    assert found.dtype == torch.bfloat16
    assert (found.float() - expected).std() < 0.03 * expected.std()


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("which", [0, 1])
def test_generation_stops_at_any_of_several_ends(tmp_path, tokenizer, family, which) -> None:
    theirs = write(tmp_path, tokenizer, family)
    for start in range(4, 200, 12):
        prompt = list(range(start, start + 12))
        free = generated(theirs, prompt, (), 12)
        stop = next((token for token in free if free.index(token) >= 3), None)
        if stop is not None:  # met first at the fourth token or later: greedy decoding of a random model likes to loop
            break
    absent = next(token for token in range(4, VOCAB) if token not in free)
    ends = (stop, absent) if which == 0 else (absent, stop)
    found = greedy(tmp_path, prompt, ends, 12)
    assert found == generated(theirs, prompt, ends, 12) == free[: free.index(stop) + 1]
    assert greedy(tmp_path, prompt, absent, 12) == free


@pytest.mark.parametrize("template", [TURNS, None])
@pytest.mark.parametrize("family", CONFIGS)
def test_a_folder_is_sampled(tmp_path, tokenizer, family, template) -> None:
    """Padded embeddings and other special tokens never come; each response stops at an end or at the limit."""
    write(tmp_path, tokenizer, family, template=template)
    chat, policy = ChatTokenizer.load(tmp_path), load_decoder(tmp_path)
    assert (chat.end_ids, chat.forbidden_ids) == (((3, 1), (0, 2)) if template else ((1, 3), (0, 2)))
    assert policy.config.end_id == (3, 1) and chat.vocab_size < policy.config.vocab_size == VOCAB
    engine = NativeEngine(pad_id=chat.pad_id, end_id=chat.end_ids)
    engine.load_weights(policy, 0)
    sampling = Sampling(temperature=2.0, forbidden=forbidden_mask(chat.vocab_size, chat.forbidden_ids))
    ids = chat.encode_prompt(Prompt.ask("how do i brew tea ?"))
    draws = np.random.default_rng(0).random((300, 12))
    rollout = engine.generate([ids] * 300, draws, max_new_tokens=12, sampling=sampling)
    for response, ended in zip(rollout.responses(), rollout.ended.tolist()):
        assert max(response) < chat.vocab_size and not set(response) & set(chat.forbidden_ids)
        assert not set(response[:-1]) & {1, 3} and (response[-1] in (1, 3)) == ended
        assert chat.decode(response) == chat.decode([i for i in response if i not in (1, 3)])
    lasts = {response[-1] for response in rollout.responses()}
    assert lasts >= {1, 3}  # both ends were met


def test_prompts_are_those_of_transformers(tmp_path, tokenizer) -> None:
    write(tmp_path, tokenizer, "llama")
    chat = ChatTokenizer.load(tmp_path)
    messages = [{"role": "user", "content": "how do i brew tea ?"}]
    theirs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert chat.encode_prompt(Prompt.ask("how do i brew tea ?")) == theirs


def test_several_ends_survive_a_save_of_ours(tmp_path, tokenizer) -> None:
    write(tmp_path / "theirs", tokenizer, "qwen2", ends=(3, 1))
    chat, policy = ChatTokenizer.load(tmp_path / "theirs"), load_decoder(tmp_path / "theirs")
    chat.save(tmp_path / "tokenizer")
    assert ChatTokenizer.load(tmp_path / "tokenizer").end_ids == (3, 1)
    save_model(policy, tmp_path / "ours")
    chat.save(tmp_path / "ours")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "ours").generation_config.eos_token_id == [3, 1]
    assert load_decoder(tmp_path / "ours").config == policy.config
    again = PreTrainedTokenizerFast.from_pretrained(tmp_path / "ours")
    again.save_pretrained(tmp_path / "ours")
    assert ChatTokenizer.load(tmp_path / "ours").end_ids == (3, 1)
