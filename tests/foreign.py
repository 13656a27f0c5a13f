"""Model folders that transformers alone wrote: nothing of ours has touched them."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

TEMPLATE = (
    "{%- for m in messages %}{{ '<|start|>' + m.role + '\\n' + m.content + '<|turn_end|>' }}{% endfor -%}"
    "{%- if add_generation_prompt %}{{ '<|start|>assistant\\n' }}{% endif -%}"
)
TEXTS = ["how do i brew tea ?", "first boil the water , then add the leaves .", "i can not help with that ."]


def other_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer that is not the study's: other merges, other template, other ends."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<s>", "</s>", "<|start|>", "<|turn_end|>"], show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )  # fmt: skip
    raw.train_from_iterator(TEXTS * 20, trainer)
    made = PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>", pad_token="</s>")
    made.chat_template = TEMPLATE
    return made


def random_folder(folder: Path, tokenizer, *, scalar: bool = False, seed: int = 5, **changes) -> Path:
    """A random Llama in `folder` with that tokenizer: a causal model, or a one-label sequence classifier."""
    torch.manual_seed(seed)
    end = tokenizer.convert_tokens_to_ids("<|turn_end|>") if "<|turn_end|>" in tokenizer.get_vocab() else None
    settings = {
        "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 160, "initializer_range": 0.3,
        "eos_token_id": tokenizer.eos_token_id if end is None else end, "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
    }  # fmt: skip
    config = LlamaConfig(**settings | ({"num_labels": 1} if scalar else {}) | changes)
    model = LlamaForSequenceClassification(config) if scalar else LlamaForCausalLM(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def resaved(source: Path, folder: Path, *, noise: float = 0.0, seed: int = 0) -> Path:
    """The policy in `source` as transformers writes it, its weights moved by that much."""
    model, generator = AutoModelForCausalLM.from_pretrained(source), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(noise * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    return folder
