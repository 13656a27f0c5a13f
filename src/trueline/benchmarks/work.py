"""What both sides of a comparison are given: the same model, the same rows, the same settings, in one folder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from trueline.errors import InputError
from trueline.seeds import generator, permutation

__all__ = [
    "KINDS",
    "ONLINE",
    "SHAPES",
    "Work",
    "batches_of",
    "in_our_order",
    "make_model",
    "standard_work",
    "write_work",
]

# hidden, intermediate, layers, heads, kv heads, vocabulary, family; tied embeddings. Parameters: 0.98M, 5.64M, 29.4M,
# and the published shapes of Qwen2.5-0.5B and Qwen2.5-1.5B.
SHAPES = {
    "tiny": (128, 384, 4, 4, 4, 1024, "llama"),
    "small": (256, 768, 6, 8, 8, 2048, "llama"),
    "medium": (512, 1536, 8, 8, 8, 4096, "llama"),
    "0.5b": (896, 4864, 24, 14, 2, 151936, "qwen2"),
    "1.5b": (1536, 8960, 28, 12, 2, 151936, "qwen2"),
}
KINDS = ("ppo", "dpo", "reward", "sft", "grpo", "rloo", "rollout")
ONLINE = ("ppo", "grpo", "rloo", "rollout")
_PAD, _END, _MARK, _FIRST = 0, 1, 2, 3
# How long the rows of real preferences are: quantiles (0, 5, ... 100%) of the words and marks of 6,198 prompts and
# 12,396 responses of HH-RLHF's four test files, as shares of their 95th percentile (427 and 212); longer ones are left
# out, as a limit on the length does. Mean 0.277 and 0.299.
_PROMPTS = (
    0.012, 0.021, 0.026, 0.030, 0.037, 0.047, 0.073, 0.112, 0.148, 0.185, 0.220,
    0.255, 0.293, 0.330, 0.373, 0.429, 0.492, 0.575, 0.646, 0.770, 1.0,
)  # fmt: skip
_RESPONSES = (
    0.005, 0.038, 0.052, 0.071, 0.090, 0.108, 0.132, 0.156, 0.179, 0.208, 0.241,
    0.269, 0.307, 0.344, 0.387, 0.434, 0.491, 0.557, 0.651, 0.783, 1.0,
)  # fmt: skip


@dataclass(frozen=True)
class Work:
    """One comparison. Lengths are in tokens, the response's end token included; `ragged` draws each row's prompt and
    responses as long as those of HH-RLHF are, in shares of these limits. `ours` and `peer` hold settings of one side
    alone."""

    kind: str
    size: str = "small"
    batch_size: int = 16
    prompt_tokens: int = 64
    max_new_tokens: int = 64
    ragged: bool = True
    epochs: int = 1
    minibatches: int = 1
    samples_per_prompt: int = 1
    learning_rate: float = 1e-4
    max_grad_norm: float = 1.0
    beta: float = 0.1
    kl_coef: float = 0.05
    precision: str = "fp32"
    device: str = "cpu"
    threads: int = 2
    seed: int = 0
    ours: dict[str, Any] = field(default_factory=dict)
    peer: dict[str, Any] = field(default_factory=dict)

    def described(self) -> dict[str, Any]:
        """For `work` in the record of a comparison."""
        return asdict(self)


def standard_work(kind: str, **changes: Any) -> Work:
    """The work of that name as `docs/performance.md` has it, with the given changes: rows of 64+64 tokens, or of up to
    128+64 where they are ragged (HH-RLHF's prompts are twice as long as its responses).

    Raises InputError for a name or a size that there is not.
    """
    own = {
        "ppo": {"batch_size": 64, "epochs": 4, "learning_rate": 3e-5},
        "grpo": {"batch_size": 64, "samples_per_prompt": 8, "learning_rate": 3e-5},
        "rloo": {"batch_size": 64, "samples_per_prompt": 8, "learning_rate": 3e-5},
        "rollout": {"batch_size": 64},
    }.get(kind, {})
    own |= {"prompt_tokens": 128 if changes.get("ragged", True) else 64}
    for value, known, what in ((kind, KINDS, "NAME"), (changes.get("size", "small"), SHAPES, "--size")):
        if value not in known:
            raise InputError(
                f"there is no {value!r}", where="bench", field=what, remedy=f"use one of {', '.join(known)}"
            )
    return replace(Work(kind, **own), **changes)


def batches_of(work: Work, count: int) -> list[list[dict[str, list[int]]]]:
    """`count` batches of rows of ids: prompt, chosen, rejected. A batch that is sampled from has a row a prompt."""
    return [_batch(work, number) for number in range(count)]


def in_our_order(kind: str, seed: int, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows in the order in which our page visits them in its first epoch, for a side that reads them one after
    another."""
    purpose = "prompts" if kind in ONLINE else f"{kind}/order"
    return [rows[i] for i in permutation(seed, purpose, 0, len(rows))]


def write_work(work: Work, folder: Path, model: Path, reward: Path | None, batches: list[list[dict[str, Any]]]) -> None:
    """One side's folder: `work.json`, `rows.json` (batches, as drawn), `ordered.json` (rows, in our page's order) and
    links to the models."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "work.json").write_text(json.dumps(work.described()))
    (folder / "rows.json").write_text(json.dumps(batches))
    rows = [row for batch in batches for row in batch]
    (folder / "ordered.json").write_text(json.dumps(in_our_order(work.kind, work.seed, rows)))
    for name, target in (("model", model), ("reward", reward)):
        if target is not None:
            (folder / name).unlink(missing_ok=True)
            (folder / name).symlink_to(target.resolve())


def make_model(work: Work, folder: Path) -> None:
    """A model of the work's size with random weights in `folder`, with a tokenizer that maps `t17` to 17."""
    from trueline.models.checkpoints import save_model
    from trueline.models.decoder import DecoderConfig
    from trueline.models.tiny import make_decoder

    hidden, intermediate, layers, heads, kv_heads, vocabulary, family = SHAPES[work.size]
    config = DecoderConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=hidden // heads,
        max_positions=max(2048, work.prompt_tokens + work.max_new_tokens),
        family=family,
        tied=True,
        pad_id=_PAD,
        end_id=_END,
    )
    save_model(make_decoder(config, work.seed), folder)
    write_tokenizer(vocabulary, folder)


def write_tokenizer(vocabulary: int, folder: Path) -> None:
    """A word for each id (`t17`), so that a side that wants text is given exactly these ids. Words may stand next to
    each other with or without a space: some trainers put a decoded response straight behind its prompt."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    words = {"<pad>": _PAD, "<end>": _END} | {f"t{i}": i for i in range(_MARK, vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex("t[0-9]+"), "isolated")]
    )
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(["<pad>", "<end>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    plain = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": "<pad>",
        "eos_token": "<end>",
        "unk_token": "<pad>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(plain))


def _batch(work: Work, number: int) -> list[dict[str, list[int]]]:
    draw = generator(work.seed, "benchmark/rows", number)
    rows = [_row(work, draw) for _ in range(work.batch_size // work.samples_per_prompt)]
    return [row for row in rows for _ in range(work.samples_per_prompt if work.kind == "rollout" else 1)]


def _row(work: Work, draw: Any) -> dict[str, list[int]]:
    """A prompt ends with one mark, so that a model can learn where a response begins."""
    vocabulary = SHAPES[work.size][5]

    def ids(longest: int, last: int, quantiles: tuple[float, ...]) -> list[int]:
        length = longest
        if work.ragged:
            share = np.interp(draw.random(), np.linspace(0, 1, len(quantiles)), quantiles)
            length = max(2, round(longest * float(share)))
        return [*draw.integers(_FIRST, vocabulary, size=length - 1).tolist(), last]

    names = {"prompt": (work.prompt_tokens, _MARK, _PROMPTS)}
    names["chosen"] = names["rejected"] = (work.max_new_tokens, _END, _RESPONSES)
    return {name: ids(*how) for name, how in names.items()}


def rows_forever(work: Work) -> Iterator[dict[str, list[int]]]:
    """Rows of the work's lengths that no comparison uses."""
    draw = generator(work.seed, "benchmark/starting-model")
    while True:
        yield _row(work, draw)
