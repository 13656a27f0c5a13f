"""PPO derived again in float64 numpy from the equations alone: a decoder, its losses, GAE, normalisations, AdamW.

Nothing here imports trueline: weights are read by their Hugging Face names.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

Weights = dict[str, np.ndarray]


@dataclass(frozen=True)
class Shape:
    """What the weights' sizes do not say."""

    layers: int
    heads: int
    kv_heads: int
    theta: float
    eps: float


def hidden(weights: Weights, shape: Shape, tokens: list[int], prefix: str = "model.") -> np.ndarray:
    """The final hidden states [t, d] of one sequence: RMSNorm, rotary embeddings, grouped-query attention, SwiGLU."""
    x = weights[f"{prefix}embed_tokens.weight"][tokens]
    length = len(tokens)
    causal = np.tril(np.ones((length, length), dtype=bool))
    for layer in range(shape.layers):
        name = f"{prefix}layers.{layer}."
        w = {key.removeprefix(name): value for key, value in weights.items() if key.startswith(name)}
        h = _rms(x, w["input_layernorm.weight"], shape.eps)
        q, k, v = (h @ w[f"self_attn.{p}_proj.weight"].T for p in "qkv")
        size = q.shape[1] // shape.heads
        q, k, v = (_split(part, size) for part in (q, k, v))
        q, k = _rotate(q, shape.theta), _rotate(k, shape.theta)
        k, v = (np.repeat(part, shape.heads // shape.kv_heads, axis=0) for part in (k, v))
        scores = np.where(causal, q @ k.transpose(0, 2, 1) / np.sqrt(size), -np.inf)
        share = np.exp(scores - scores.max(-1, keepdims=True))
        share /= share.sum(-1, keepdims=True)
        mixed = (share @ v).transpose(1, 0, 2).reshape(length, -1)
        x = x + mixed @ w["self_attn.o_proj.weight"].T
        h = _rms(x, w["post_attention_layernorm.weight"], shape.eps)
        gate, up = h @ w["mlp.gate_proj.weight"].T, h @ w["mlp.up_proj.weight"].T
        x = x + (gate / (1 + np.exp(-gate)) * up) @ w["mlp.down_proj.weight"].T
    return _rms(x, weights[f"{prefix}norm.weight"], shape.eps)


def _rms(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * weight


def _split(x: np.ndarray, size: int) -> np.ndarray:
    return x.reshape(len(x), -1, size).transpose(1, 0, 2)


def _rotate(x: np.ndarray, theta: float) -> np.ndarray:
    half = x.shape[-1] // 2
    angle = np.arange(x.shape[1])[:, None] / theta ** (np.arange(half) / half)
    first, second = x[..., :half], x[..., half:]
    return np.concatenate(
        [first * np.cos(angle) - second * np.sin(angle), second * np.cos(angle) + first * np.sin(angle)], axis=-1
    )


def logprobs(
    weights: Weights, shape: Shape, prompt: list[int], response: list[int], forbidden: list[int]
) -> np.ndarray:
    """log pi(y_t | x, y_<t) of the response [r]; forbidden tokens have no share."""
    tokens = prompt + response
    logits = hidden(weights, shape, tokens)[len(prompt) - 1 : -1] @ weights["lm_head.weight"].T
    logits[:, forbidden] = -np.inf
    top = logits.max(-1, keepdims=True)
    logs = logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))
    return logs[np.arange(len(response)), response]


def values(weights: Weights, shape: Shape, prompt: list[int], response: list[int]) -> np.ndarray:
    """V before each response token and after the last one [r + 1]."""
    states = hidden(weights, shape, prompt + response)[len(prompt) - 1 :]
    return (states @ weights["score.weight"].T)[:, 0] + weights["score.bias"]


def advantages(rewards: np.ndarray, before: np.ndarray, after: float, gamma: float, lam: float) -> np.ndarray:
    """A_t = sum_k (gamma lam)^k delta_{t+k}, delta_t = r_t + gamma V_{t+1} - V_t, as the sum itself."""
    following = np.append(before[1:], after)
    delta = rewards + gamma * following - before
    return np.array([sum((gamma * lam) ** k * delta[t + k] for k in range(len(delta) - t)) for t in range(len(delta))])


def adamw(parameter: np.ndarray, gradients: list[np.ndarray], rates: list[float]) -> np.ndarray:
    """The parameter after AdamW's steps without weight decay: betas 0.9 and 0.95, eps 1e-8."""
    m, v = np.zeros_like(parameter), np.zeros_like(parameter)
    for step, (gradient, rate) in enumerate(zip(gradients, rates), 1):
        m, v = 0.9 * m + 0.1 * gradient, 0.95 * v + 0.05 * gradient**2
        parameter = parameter - rate * (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.95**step)) + 1e-8)
    return parameter
