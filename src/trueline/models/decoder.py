"""A decoder-only transformer of the Llama family: RMSNorm, rotary positions, SwiGLU, grouped-query attention.

Qwen2 (bias on query, key and value) and Qwen3 (RMSNorm on queries and keys) are the same module with a switch each.
Batches are padded on the right, so a causal mask alone keeps padding out of every real token, and a token's position
is its index: no attention mask, no position ids, the same numbers in training, scoring and decoding.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any, Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from trueline.models.fused import rotate

__all__ = ["Decoder", "DecoderConfig", "Headed", "KVCache", "Precision", "Trunk", "in_precision"]

Precision = Literal["fp32", "bf16"]
Result = TypeVar("Result")


@dataclass(frozen=True)
class DecoderConfig:
    """The shape of a decoder. `family` is the Hugging Face `model_type` it is saved as.

    `end_id` is its `eos_token_id`: one token, or several that each end a response.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_positions: int
    family: str = "llama"
    rope_theta: float = 10000.0
    norm_eps: float = 1e-6
    tied: bool = False
    pad_id: int | None = None
    end_id: int | tuple[int, ...] | None = None
    bos_id: int | None = None

    @property
    def parameter_count(self) -> int:
        """Of a decoder of this shape, a tied head counted once."""
        wide = (self.num_heads + 2 * self.num_kv_heads) * self.head_dim
        attention = self.hidden_size * (wide + self.num_heads * self.head_dim) + wide * self.qkv_bias
        norms = 2 * self.hidden_size + 2 * self.head_dim * self.qk_norm
        layer = attention + 3 * self.hidden_size * self.intermediate_size + norms
        embeddings = self.vocab_size * self.hidden_size * (1 if self.tied else 2)
        return embeddings + self.num_layers * layer + self.hidden_size

    @property
    def qkv_bias(self) -> bool:
        return self.family == "qwen2"

    @property
    def qk_norm(self) -> bool:
        return self.family == "qwen3"


def in_precision(run: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A method of a trunk, run under autocast where its precision is bf16."""

    @wraps(run)
    def running(self: Trunk, *args: Any) -> Tensor:
        if self.precision == "fp32":
            return run(self, *args)
        with torch.autocast(next(self.parameters()).device.type, torch.bfloat16):
            return run(self, *args).float()

    return running


class KVCache:
    """Keys and values of every layer, preallocated: [layers, rows, kv heads, positions, head_dim]."""

    def __init__(
        self, config: DecoderConfig, rows: int, positions: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        shape = (config.num_layers, rows, config.num_kv_heads, positions, config.head_dim)
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros_like(self.keys)

    def keep(self, rows: Tensor) -> None:
        """Drop every row that is not in `rows` (indices)."""
        self.keys, self.values = self.keys.index_select(1, rows), self.values.index_select(1, rows)


class RMSNorm(nn.Module):
    """x * rsqrt(mean(x^2) + eps) * weight (Zhang and Sennrich 2019), computed in fp32."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        # where an input is in bf16 (queries and keys), torch has no kernel for the two types and warns
        return F.rms_norm(x.to(self.weight.dtype), self.weight.shape, self.weight, self.eps).to(x.dtype)


class Attention(nn.Module):
    """Causal grouped-query attention with rotary positions."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.dim = config.num_heads, config.num_kv_heads, config.head_dim
        width = (self.heads + 2 * self.kv_heads) * self.dim
        self.qkv = nn.Linear(config.hidden_size, width, bias=config.qkv_bias)
        self.out = nn.Linear(self.heads * self.dim, config.hidden_size, bias=False)
        self.q_norm = RMSNorm(self.dim, config.norm_eps) if config.qk_norm else None
        self.k_norm = RMSNorm(self.dim, config.norm_eps) if config.qk_norm else None

    def project(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [B, heads, T, dim], keys and values [B, kv heads, T, dim], rotated."""
        rows, length, _ = x.shape
        qkv = self.qkv(x).view(rows, length, self.heads + 2 * self.kv_heads, self.dim)
        qk, v = qkv.split((self.heads + self.kv_heads, self.kv_heads), dim=2)
        if self.q_norm is not None:
            qk = torch.cat((self.q_norm(qk[:, :, : self.heads]), self.k_norm(qk[:, :, self.heads :])), dim=2)
        qk = rotate(qk.transpose(1, 2), cos, sin)  # queries and keys at once: half as many small operations
        return qk[:, : self.heads], qk[:, self.heads :], v.transpose(1, 2)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, causal: Tensor) -> Tensor:
        rows, length, _ = x.shape
        q, k, v = self.project(x, cos, sin)
        if x.device.type == "cpu" and length <= 512:
            # Two plain matmuls: the backward of the fused CPU kernel was several times slower at these lengths.
            group = self.heads // self.kv_heads
            q = q.reshape(rows * self.kv_heads, group * length, self.dim)
            k, v = (t.reshape(rows * self.kv_heads, length, self.dim) for t in (k, v))
            scores = torch.baddbmm(causal.repeat(group, 1), q, k.transpose(1, 2), alpha=self.dim**-0.5)
            mixed = torch.bmm(scores.softmax(-1), v).view(rows, self.heads, length, self.dim)
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=self.heads != self.kv_heads)
        return self.out(mixed.transpose(1, 2).reshape(rows, length, self.heads * self.dim))

    def decode(self, x: Tensor, cos: Tensor, sin: Tensor, keys: Tensor, values: Tensor, at: Tensor, allowed: Tensor):
        """One new token a row: write its key and value at index `at` [B], attend to `allowed` [B, 1, 1, S]."""
        rows = x.shape[0]
        q, k, v = self.project(x, cos, sin)
        index = torch.arange(rows, device=x.device)
        keys[index, :, at], values[index, :, at] = k[:, :, 0].to(keys.dtype), v[:, :, 0].to(values.dtype)
        group = self.heads // self.kv_heads
        q = q.view(rows, self.kv_heads, group, self.dim) * self.dim**-0.5
        scores = torch.matmul(q, keys.transpose(-1, -2)) + allowed
        mixed = torch.matmul(scores.softmax(-1), values)
        return self.out(mixed.reshape(rows, 1, self.heads * self.dim))


class Block(nn.Module):
    """Pre-norm attention and SwiGLU."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.attention = Attention(config)
        self.mlp_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.gate_up = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=False)
        self.down = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, causal: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x), cos, sin, causal)
        return x + self.mlp(x)

    def mlp(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(self.mlp_norm(x)).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


class Trunk(nn.Module):
    """Embeddings, blocks and the last norm: tokens [B, T] -> hidden states [B, T, hidden_size].

    `precision` is that of the matrix products, a head's on top included: "fp32", or "bf16" with a copy of the weights
    that is made for each pass (an optimiser may change a weight unseen: torch's fused AdamW counts up no version). The
    weights stay in fp32, as does everything between the products.
    """

    precision: Precision = "fp32"
    again = False

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        # On no device there is nothing to draw, and torch would import its compiler to draw it: 80 MB and a second.
        table = torch.empty(config.vocab_size, config.hidden_size)
        self.embed = nn.Embedding(*table.shape, _weight=table if table.is_meta else None)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.norm_eps)
        # Angles in fp32, as transformers and vLLM compute them: at position 2000 off by 1e-4, but alike everywhere.
        # On the CPU also where weights are made on no device.
        even = torch.arange(0, config.head_dim, 2, device="cpu").float()
        positions = torch.arange(config.max_positions, device="cpu").float()
        angles = torch.outer(positions, 1.0 / config.rope_theta ** (even / config.head_dim)).repeat(1, 2)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    @in_precision
    def forward(self, tokens: Tensor) -> Tensor:
        """Hidden states of right-padded `tokens` [B, T]; those at padding are meaningless and must not be read."""
        length = tokens.shape[1]
        self.check_length(length)
        x = self.embed(tokens)
        cos, sin = self.cos[:length].to(x.dtype), self.sin[:length].to(x.dtype)
        causal = torch.full((length, length), -math.inf, dtype=x.dtype, device=x.device).triu(1)
        again = self.again and torch.is_grad_enabled()
        for block in self.blocks:
            x = checkpoint(block, x, cos, sin, causal, use_reentrant=False) if again else block(x, cos, sin, causal)
        return self.norm(x)

    @property
    def parameter_count(self) -> int:
        """Without heads."""
        return sum(p.numel() for p in self.parameters())

    def compute_again(self) -> None:
        """From now on keep each block's input alone for the backward pass, which computes the block again."""
        self.again = True

    def twin(self) -> Trunk:
        """A trunk of its own with equal weights."""
        made = Trunk(self.config)
        made.load_state_dict(self.state_dict())
        made.precision, made.again = self.precision, self.again
        return made.to(self.embed.weight)

    def cache(self, rows: int, positions: int) -> KVCache:
        """An empty cache for `rows` sequences of at most `positions` tokens, in what the products of a step take."""
        weight = self.embed.weight
        dtype = weight.dtype if self.precision == "fp32" else torch.bfloat16
        return KVCache(self.config, rows, positions, dtype, weight.device)

    @in_precision
    def prefill(self, tokens: Tensor, lengths: Tensor, cache: KVCache) -> Tensor:
        """Hidden states [B, hidden_size] at the last of each row's `lengths` [B] tokens; fills the cache with all T."""
        length = tokens.shape[1]
        self.check_length(length)
        x = self.embed(tokens)
        cos, sin = self.cos[:length].to(x.dtype), self.sin[:length].to(x.dtype)
        causal = torch.full((length, length), -math.inf, dtype=x.dtype, device=x.device).triu(1)
        for layer, block in enumerate(self.blocks):
            normed = block.attention_norm(x)
            _, k, v = block.attention.project(normed, cos, sin)
            cache.keys[layer, :, :, :length], cache.values[layer, :, :, :length] = k, v
            x = x + block.attention(normed, cos, sin, causal)
            x = x + block.mlp(x)
        return self.norm(x[torch.arange(len(x), device=x.device), lengths - 1])

    @in_precision
    def decode(self, tokens: Tensor, at: Tensor, cache: KVCache) -> Tensor:
        """Hidden states [B, hidden_size] of one new token a row, `tokens` [B] at index `at` [B]."""
        x = self.embed(tokens)[:, None]
        cos, sin = self.cos[at][:, None, None].to(x.dtype), self.sin[at][:, None, None].to(x.dtype)
        reach = int(at.max()) + 1
        allowed = torch.zeros(len(tokens), 1, 1, reach, dtype=x.dtype, device=x.device)
        allowed.masked_fill_(torch.arange(reach, device=x.device) > at[:, None, None, None], -math.inf)
        for layer, block in enumerate(self.blocks):
            keys, values = cache.keys[layer, :, :, :reach], cache.values[layer, :, :, :reach]
            x = x + block.attention.decode(block.attention_norm(x), cos, sin, keys, values, at, allowed)
            x = x + block.mlp(x)
        return self.norm(x)[:, 0]

    def check_length(self, length: int) -> None:
        """Raises ValueError for a row that is longer than the context."""
        if length > self.config.max_positions:
            raise ValueError(f"{length} tokens exceed the model's context of {self.config.max_positions}")


class Headed(nn.Module):
    """A trunk with a head that are called apart from each other."""

    def with_weights(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """`function(self, *arguments)`: weights that lie in parts among processes are put together for it."""
        return function(self, *arguments)

    def products(self) -> frozenset[str]:
        """The names of weights that matrix products alone read, where that is known: bf16 rounds them in each pass."""
        return frozenset()


class Decoder(Headed):
    """A trunk with a language-model head: the policy and the reference."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.trunk = Trunk(config)
        self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tied:
            self.head.weight = self.trunk.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits [B, T, V] of right-padded tokens [B, T]. `models.scoring` keeps no such tensor and is what trains."""
        return self.head(self.trunk(tokens))

    def products(self) -> frozenset[str]:
        """Those of its linear layers, the head included where it is tied."""
        layers = [name for name, module in self.named_modules() if isinstance(module, nn.Linear)]
        return frozenset(f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias"))

    @property
    def parameter_count(self) -> int:
        """Number of parameters, a tied head counted once: the N of the FLOP accounting."""
        return sum(p.numel() for p in self.parameters())
