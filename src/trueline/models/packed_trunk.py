"""The trunk over packed rows with a backward pass of its own: matrix products of torch, everything else one kernel.

Equal to `Trunk.forward` and autograd up to rounding (tests/models/test_packed.py); that is the reference. What the
backward pass can compute again in one pass over memory (both norms' outputs, the SwiGLU product, the attention's
probabilities) is not kept.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from trueline.models import kernels
from trueline.models.decoder import Attention, DecoderConfig, Trunk
from trueline.models.kernels import pointer
from trueline.models.packed import Packed, pack

__all__ = ["hidden_at", "packed_hidden", "runs_packed"]

_CHUNK = 64  # as in kernels.c
_PER_BLOCK = 7


def hidden_at(trunk: Trunk, tokens: Tensor, wanted: Tensor, prompt_lengths: Tensor | None = None) -> Tensor:
    """Hidden states [W, d] of right-padded `tokens` [B, T] where `wanted` [B, T] is True, in row-major order.

    `prompt_lengths` [B] says how much of a row may be shared with rows that begin alike; without it, all up to the
    first wanted position. Packed where the trunk can, padded otherwise: equal up to rounding.
    """
    if runs_packed(trunk):
        columns = wanted.any(0).nonzero()
        if not len(columns):
            return trunk.embed.weight.new_zeros(0, trunk.config.hidden_size)
        longest = int(columns.max()) + 1
        trunk.check_length(longest)
        return packed_hidden(trunk, pack(tokens, wanted, prompt_lengths))
    return trunk(tokens)[wanted]


def runs_packed(trunk: Trunk) -> bool:
    """Whether this trunk can: fp32 on the CPU, kernels built, a head dimension they know, no autocast, and nobody who
    listens to its modules."""
    config, weight = trunk.config, trunk.embed.weight
    return (
        kernels.available(weight)
        and config.head_dim % kernels.HEAD_WIDTH == 0
        and not config.qk_norm
        and not torch.is_autocast_enabled("cpu")
        and not any(module._forward_hooks or module._forward_pre_hooks for module in trunk.modules())
    )


def packed_hidden(trunk: Trunk, packed: Packed) -> Tensor:
    """The wanted hidden states [W, d], after the last norm; gradient flows to the trunk's parameters."""
    parameters = [trunk.embed.weight]
    for block in trunk.blocks:
        attention: Attention = block.attention
        parameters += [
            block.attention_norm.weight, attention.qkv.weight, attention.qkv.bias, attention.out.weight,
            block.mlp_norm.weight, block.gate_up.weight, block.down.weight,
        ]  # fmt: skip
    kept = _PackedTrunk.apply(
        trunk.config, packed, trunk.cos, trunk.sin, trunk.precision == "bf16", *parameters, trunk.norm.weight
    )
    if len(packed.wanted) == len(packed.kept) and bool((packed.wanted.diff() == 1).all()):
        return kept
    return kept.index_select(0, packed.wanted)


class _PackedTrunk(torch.autograd.Function):
    @staticmethod
    def forward(ctx, config: DecoderConfig, packed: Packed, cos: Tensor, sin: Tensor, low: bool, *parameters: Tensor):
        run = _Run(config, packed, cos, sin, low)
        keep = any(ctx.needs_input_grad)
        embed, blocks, norm = parameters[0], _by_block(parameters), parameters[-1]
        x = embed.index_select(0, packed.tokens)
        saved = []
        for number, weights in enumerate(blocks):
            x, held = run.block(x, *weights, last=number == len(blocks) - 1)
            if keep:
                saved += held
        out, rstd = run.norm(x, norm)
        if keep:
            ctx.run = run
            ctx.save_for_backward(*parameters, x, rstd, *saved)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        run: _Run = ctx.run
        if run.spent:
            raise RuntimeError("a second backward pass: the first one has overwritten what it kept")
        run.spent = True
        count = 2 + _PER_BLOCK * run.config.num_layers
        held = ctx.saved_tensors
        parameters, (x, rstd), saved = held[:count], held[count : count + 2], held[count + 2 :]
        blocks = _by_block(parameters)
        dx, dnorm = run.norm_backward(grad.contiguous(), x, rstd, parameters[-1], None)
        grads: list[Tensor | None] = [dnorm]
        for number in reversed(range(len(blocks))):
            per = len(saved) // len(blocks)
            own = saved[number * per : (number + 1) * per]
            dx, found = run.block_backward(dx, own, *blocks[number], last=number == len(blocks) - 1)
            grads = [*found, *grads]
        embed = parameters[0]
        dembed = torch.ops.aten.embedding_dense_backward(dx, run.packed.tokens, len(embed), -1, False)
        return None, None, None, None, None, dembed, *grads


def _by_block(parameters: tuple[Tensor, ...]) -> list[tuple[Tensor, ...]]:
    inner = parameters[1:-1]
    return [inner[i : i + _PER_BLOCK] for i in range(0, len(inner), _PER_BLOCK)]


class _Run:
    """One pass over one packed batch: what the steps of all blocks share."""

    def __init__(self, config: DecoderConfig, packed: Packed, cos: Tensor, sin: Tensor, low: bool = False) -> None:
        self.config, self.packed, self.cos, self.sin, self.low = config, packed, cos, sin, low
        self.lib, self.threads, self.spent = kernels.library(), kernels.threads(), False
        shape = (config.num_heads, config.num_kv_heads, config.head_dim)
        self.families = packed.families(*shape, skip=False)
        self.last_families = packed.families(*shape, skip=True)

    def linear(self, x: Tensor, weight: Tensor, add: Tensor | None = None) -> Tensor:
        """x W^T (+ add)."""
        if not self.low:
            return x @ weight.t() if add is None else torch.addmm(add, x, weight.t())
        out = x.bfloat16() @ weight.bfloat16().t()
        return out.float() if add is None else add + out

    def back(self, grad: Tensor, weight: Tensor) -> Tensor:
        """The gradient of x."""
        return (grad.bfloat16() @ weight.bfloat16()).float() if self.low else grad @ weight

    def of_weight(self, grad: Tensor, x: Tensor) -> Tensor:
        """The gradient of W."""
        return (grad.bfloat16().t() @ x.bfloat16()).float() if self.low else grad.t() @ x

    def norm(self, x: Tensor, weight: Tensor, *, keep: bool = True) -> tuple[Tensor, Tensor]:
        rows, width = x.shape
        y, rstd = torch.empty_like(x), x.new_empty(rows if keep else 0)
        self.lib.rms_norm(
            pointer(x), pointer(weight), pointer(y), pointer(rstd) if keep else None, rows, width, self.config.norm_eps,
            self.threads,
        )  # fmt: skip
        return y, rstd

    def norm_backward(self, dy: Tensor, x: Tensor, rstd: Tensor, weight: Tensor, add: Tensor | None):
        rows, width = x.shape
        dx, partial = torch.empty_like(x), x.new_empty(-(-rows // _CHUNK), width)
        self.lib.rms_norm_backward(
            pointer(dy), pointer(x), pointer(rstd), pointer(weight), pointer(add), pointer(dx), pointer(partial), rows,
            width, self.threads,
        )  # fmt: skip
        return dx, partial.sum(0)

    def rotate(self, qkv: Tensor, sign: float) -> None:
        heads = self.config.num_heads + self.config.num_kv_heads
        self.lib.rotate(
            pointer(qkv), pointer(self.packed.positions), pointer(self.cos), pointer(self.sin), *qkv.shape, heads,
            self.config.head_dim, sign, self.threads,
        )  # fmt: skip

    def block(
        self, x, attention_norm, qkv_weight, qkv_bias, out_weight, mlp_norm, gate_up_weight, down_weight, *, last
    ):
        normed, rstd = self.norm(x, attention_norm)
        qkv = self.linear(normed, qkv_weight)
        if qkv_bias is not None:
            qkv += qkv_bias
        self.rotate(qkv, 1.0)
        attended = x.new_empty(len(x), self.config.num_heads * self.config.head_dim)
        lse = x.new_empty(len(x), self.config.num_heads)
        families = self.last_families if last else self.families
        if self.lib.attention(pointer(qkv), pointer(attended), pointer(lse), families, self.threads):
            raise MemoryError("attention: no memory for its working space")
        read, into = (attended, x)
        if last:  # from here on, only what is read
            read, into = attended.index_select(0, self.packed.kept), x.index_select(0, self.packed.kept)
        middle = self.linear(read, out_weight, into)
        mlp_normed, mlp_rstd = self.norm(middle, mlp_norm)
        gate_up = self.linear(mlp_normed, gate_up_weight)
        act = self.swiglu(gate_up)
        out = self.linear(act, down_weight, middle)
        return out, [x, rstd, qkv, attended, lse, middle, mlp_rstd, gate_up]

    def swiglu(self, gate_up: Tensor) -> Tensor:
        rows, width = gate_up.shape[0], gate_up.shape[1] // 2
        act = gate_up.new_empty(rows, width)
        self.lib.swiglu(pointer(gate_up), pointer(act), rows, width, self.threads)
        return act

    def block_backward(
        self,
        dout,
        saved,
        attention_norm,
        qkv_weight,
        qkv_bias,
        out_weight,
        mlp_norm,
        gate_up_weight,
        down_weight,
        *,
        last,
    ):
        x, rstd, qkv, attended, lse, middle, mlp_rstd, gate_up = saved
        # 1. The MLP: out = middle + swiglu(norm(middle) Wgu^T) Wd^T.
        dact = self.back(dout, down_weight)
        dgate_up, act = gate_up, torch.empty_like(dact)  # becomes its own gradient
        self.lib.swiglu_backward(pointer(dgate_up), pointer(dact), pointer(act), *act.shape, self.threads)
        ddown = self.of_weight(dout, act)
        normed, _ = self.norm(middle, mlp_norm, keep=False)
        dgate_up_weight = self.of_weight(dgate_up, normed)
        dmiddle, dmlp_norm = self.norm_backward(self.back(dgate_up, gate_up_weight), middle, mlp_rstd, mlp_norm, dout)
        # 2. The attention: middle = x + attention(norm(x) Wqkv^T) Wo^T.
        read = attended.index_select(0, self.packed.kept) if last else attended
        dout_weight = self.of_weight(dmiddle, read)
        dread, dresidual = self.back(dmiddle, out_weight), dmiddle
        if last:
            dread = torch.empty_like(attended).index_copy_(0, self.packed.kept, dread)
            dresidual = torch.zeros_like(x).index_copy_(0, self.packed.kept, dmiddle)
        dqkv = torch.empty_like(qkv)
        families = self.last_families if last else self.families
        if self.lib.attention_backward(
            pointer(qkv), pointer(attended), pointer(dread), pointer(lse), pointer(dqkv), families, self.threads
        ):
            raise MemoryError("attention: no memory for its working space")
        self.rotate(dqkv, -1.0)
        normed, _ = self.norm(x, attention_norm, keep=False)
        dqkv_weight = self.of_weight(dqkv, normed)
        dbias = None if qkv_bias is None else dqkv.sum(0)
        dx, dattention_norm = self.norm_backward(self.back(dqkv, qkv_weight), x, rstd, attention_norm, dresidual)
        return dx, [dattention_norm, dqkv_weight, dbias, dout_weight, dmlp_norm, dgate_up_weight, ddown]
