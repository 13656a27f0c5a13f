"""The trunk over packed rows with a backward pass of its own: matrix products of torch, everything else one kernel.

Equal to `Trunk.forward` and autograd up to rounding (tests/models/test_packed.py); that is the reference. What the
backward pass can compute again in one pass over memory (both norms' outputs, the SwiGLU product, the attention's
probabilities) is not kept; what is kept lies in one run of memory (`workspace`).
"""

from __future__ import annotations

from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from trueline.models import kernels, workspace
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
    """Whether this trunk can: our own, its activations kept, fp32 on the CPU, kernels built, a head dimension they
    know, no autocast, and nobody who
    listens to its modules."""
    if not isinstance(trunk, Trunk) or (trunk.again and torch.is_grad_enabled()):
        return False
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
    parameters.append(trunk.norm.weight)
    # inside the function gradients are off, and its inputs ask for one under no_grad too
    keep = torch.is_grad_enabled() and any(p is not None and p.requires_grad for p in parameters)
    run = _Run(trunk.config, packed, trunk.cos, trunk.sin, trunk.precision == "bf16", keep=keep)
    kept = _PackedTrunk.apply(run, *parameters)
    if len(packed.wanted) == len(packed.kept) and bool((packed.wanted.diff() == 1).all()):
        return kept
    return kept.index_select(0, packed.wanted)


class _PackedTrunk(torch.autograd.Function):
    @staticmethod
    def forward(ctx, run: _Run, *parameters: Tensor):
        embed, blocks, norm = parameters[0], _by_block(parameters), parameters[-1]
        x = torch.index_select(embed, 0, run.packed.tokens, out=run.room[0].x)
        for number, weights in enumerate(blocks):
            x = run.block(x, *weights, number=number)
        out, rstd = run.norm(x, norm, own=True)
        if run.keep:
            ctx.run, ctx.last = run, (x, rstd)
            ctx.save_for_backward(*parameters)
        else:
            run.done()
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        run: _Run = ctx.run
        if run.memory is None:
            raise RuntimeError("a second backward pass: the first one has overwritten what it kept")
        parameters, (x, rstd) = ctx.saved_tensors, ctx.last
        blocks = _by_block(parameters)
        dx, dnorm = run.norm_backward(grad.contiguous(), x, rstd, parameters[-1], None)
        grads: list[Tensor | None] = [dnorm]
        for number in reversed(range(len(blocks))):
            dx, found = run.block_backward(dx, *blocks[number], number=number)
            grads = [*found, *grads]
        embed = parameters[0]
        dembed = torch.ops.aten.embedding_dense_backward(dx, run.packed.tokens, len(embed), -1, False)
        run.done()
        return None, dembed, *grads


def _by_block(parameters: tuple[Tensor, ...]) -> list[tuple[Tensor, ...]]:
    inner = parameters[1:-1]
    return [inner[i : i + _PER_BLOCK] for i in range(0, len(inner), _PER_BLOCK)]


class _Kept(NamedTuple):
    """What the backward pass of a block reads: its input first."""

    x: Tensor
    qkv: Tensor
    attended: Tensor
    lse: Tensor
    middle: Tensor
    gate_up: Tensor


class _Scratch(NamedTuple):
    """What the steps of a block pass to each other; the next block writes over it."""

    inner: Tensor
    more_inner: Tensor
    qkv: Tensor
    attended: Tensor
    normed: Tensor
    dnormed: Tensor
    dmiddle: Tensor
    dx: Tensor
    low: Tensor


class _Run:
    """One pass over one packed batch: what the steps of all blocks share.

    `room` holds what each block keeps for the backward pass, and behind the last block the input of the last norm;
    where no backward pass will come, all blocks write over one another's.
    """

    def __init__(
        self, config: DecoderConfig, packed: Packed, cos: Tensor, sin: Tensor, low: bool = False, *, keep: bool = False
    ) -> None:
        self.config, self.packed, self.cos, self.sin, self.low, self.keep = config, packed, cos, sin, low, keep
        self.lib, self.threads = kernels.library(), kernels.threads()
        self.rstds: list[tuple[Tensor, Tensor]] = []
        self.memory, self.room, self.scratch = self._room()
        shape = (config.num_heads, config.num_kv_heads, config.head_dim)
        self.families = packed.families(*shape, skip=False)
        self.last_families = packed.families(*shape, skip=True)

    def _room(self) -> tuple[Tensor, list[_Kept], _Scratch]:
        """Memory for what each block keeps and passes on; of the last one only what is read goes past the attention."""
        kept, scratch = self._shapes()
        memory, views = workspace.lend("trunk", [*chain(*kept), *scratch])
        per, count = len(_Kept._fields), len(views) - len(scratch)
        held = views[:count]
        if self.keep:
            held += [held[-1][:0]] * (per - 1)  # behind the last block there is its output alone
            room = [_Kept(*held[at : at + per]) for at in range(0, len(held), per)]
        else:
            one, read = _Kept(*held), len(self.packed.kept)
            last = one._replace(middle=one.middle[:read], gate_up=one.gate_up[:read])
            room = [*[one] * (self.config.num_layers - 1), last, one._replace(x=one.x[:read])]
        return memory, room, _Scratch(*views[count:])

    def _shapes(self) -> tuple[list[list[tuple[int, ...]]], list[tuple[int, ...]]]:
        """Of what is kept, by block, and of the scratch."""
        config, every, read = self.config, len(self.packed), len(self.packed.kept)
        width, inner, wide = config.hidden_size, config.intermediate_size, config.num_heads * config.head_dim
        triple = wide + 2 * config.num_kv_heads * config.head_dim

        def block(rows: int) -> list[tuple[int, ...]]:
            own = [(every, n) for n in (width, triple, wide, config.num_heads)]
            return [*own, (rows, width), (rows, 2 * inner)]

        back = int(self.keep)  # what only a backward pass needs
        widths = (
            max(inner, width), max(inner, wide) * back, triple * back, wide * back, width, *[width * back] * 3,
        )  # fmt: skip
        # one side of a product is `width` or `wide`, the other (or what comes out) at most the widest
        widest = max(width, wide) + max(2 * inner, triple, width, wide)
        low = workspace.floats_of_low(every * widest, pieces=2) if self.low else 0
        last = [block(read), [(read, width)]]
        kept = [*[block(every)] * (config.num_layers - 1), *last] if self.keep else [block(every)]
        return kept, [*[(every * n,) for n in widths], (low,)]

    def at(self, name: str, rows: int, width: int) -> Tensor:
        """That scratch as [rows, width]."""
        return getattr(self.scratch, name)[: rows * width].view(rows, width)

    def done(self) -> None:
        """What was kept is not needed any more."""
        workspace.give_back("trunk", self.memory)
        self.memory, self.room, self.scratch = None, [], None

    def linear(self, x: Tensor, weight: Tensor, out: Tensor, add: Tensor | None = None) -> Tensor:
        """x W^T (+ add)."""
        if not self.low:
            return torch.mm(x, weight.t(), out=out) if add is None else torch.addmm(add, x, weight.t(), out=out)
        out.copy_(self._low_product(x, weight.bfloat16().t()))
        return out if add is None else out.add_(add)

    def back(self, grad: Tensor, weight: Tensor, out: Tensor) -> Tensor:
        """The gradient of x."""
        return out.copy_(self._low_product(grad, weight.bfloat16())) if self.low else torch.mm(grad, weight, out=out)

    def of_weight(self, grad: Tensor, x: Tensor) -> Tensor:
        """The gradient of W."""
        if not self.low:
            return grad.t() @ x
        sides = workspace.low(self.scratch.low, grad.shape, x.shape)
        return (sides[0].copy_(grad).t() @ sides[1].copy_(x)).float()

    def _low_product(self, x: Tensor, factor: Tensor) -> Tensor:
        """x times a bf16 factor, in bf16, until the next product. Allocated one by one, sides and products of this size
        would leave the C library's heap with twice as much that is free as is ever used of it."""
        side, product = workspace.low(self.scratch.low, x.shape, (len(x), factor.shape[1]))
        return torch.mm(side.copy_(x), factor, out=product)

    def norm(self, x: Tensor, weight: Tensor, *, keep: bool = True, own: bool = False) -> tuple[Tensor, Tensor]:
        rows, width = x.shape
        y, rstd = torch.empty_like(x) if own else self.at("normed", *x.shape), x.new_empty(rows if keep else 0)
        self.lib.rms_norm(
            pointer(x), pointer(weight), pointer(y), pointer(rstd) if keep else None, rows, width, self.config.norm_eps,
            self.threads,
        )  # fmt: skip
        return y, rstd

    def norm_backward(
        self, dy: Tensor, x: Tensor, rstd: Tensor, weight: Tensor, add: Tensor | None, into: str = ""
    ) -> tuple[Tensor, Tensor]:
        rows, width = x.shape
        dx, partial = self.at(into, *x.shape) if into else torch.empty_like(x), x.new_empty(-(-rows // _CHUNK), width)
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
        self, x, attention_norm, qkv_weight, qkv_bias, out_weight, mlp_norm, gate_up_weight, down_weight, *, number
    ) -> Tensor:
        last = number == self.config.num_layers - 1
        own = self.room[number]
        normed, rstd = self.norm(x, attention_norm)
        qkv, attended = self.linear(normed, qkv_weight, own.qkv), own.attended
        if qkv_bias is not None:
            qkv += qkv_bias
        self.rotate(qkv, 1.0)
        families = self.last_families if last else self.families
        if self.lib.attention(pointer(qkv), pointer(attended), pointer(own.lse), families, self.threads):
            raise MemoryError("attention: no memory for its working space")
        read, into = (attended, x)
        if last:  # from here on, only what is read
            read, into = attended.index_select(0, self.packed.kept), x.index_select(0, self.packed.kept)
        middle = self.linear(read, out_weight, own.middle, into)
        mlp_normed, mlp_rstd = self.norm(middle, mlp_norm)
        gate_up = self.linear(mlp_normed, gate_up_weight, own.gate_up)
        self.rstds.append((rstd, mlp_rstd))
        return self.linear(self.swiglu(gate_up), down_weight, self.room[number + 1].x, middle)

    def swiglu(self, gate_up: Tensor) -> Tensor:
        rows, width = gate_up.shape[0], gate_up.shape[1] // 2
        act = self.at("inner", rows, width)
        self.lib.swiglu(pointer(gate_up), pointer(act), rows, width, self.threads)
        return act

    def block_backward(
        self, dout, attention_norm, qkv_weight, qkv_bias, out_weight, mlp_norm, gate_up_weight, down_weight, *, number
    ) -> tuple[Tensor, list[Tensor | None]]:
        last = number == self.config.num_layers - 1
        x, qkv, attended, lse, middle, gate_up = self.room[number]
        rstd, mlp_rstd = self.rstds[number]
        rows, inner = len(dout), down_weight.shape[1]
        # 1. The MLP: out = middle + swiglu(norm(middle) Wgu^T) Wd^T.
        dact, act = self.back(dout, down_weight, self.at("inner", rows, inner)), self.at("more_inner", rows, inner)
        dgate_up = gate_up  # becomes its own gradient
        self.lib.swiglu_backward(pointer(dgate_up), pointer(dact), pointer(act), *act.shape, self.threads)
        ddown = self.of_weight(dout, act)
        normed, _ = self.norm(middle, mlp_norm, keep=False)
        dgate_up_weight = self.of_weight(dgate_up, normed)
        dnormed = self.back(dgate_up, gate_up_weight, self.at("dnormed", *middle.shape))
        dmiddle, dmlp_norm = self.norm_backward(dnormed, middle, mlp_rstd, mlp_norm, dout, "dmiddle")
        # 2. The attention: middle = x + attention(norm(x) Wqkv^T) Wo^T.
        spare, more = self.at("inner", *x.shape), self.at("more_inner", *attended.shape)
        read = attended
        if last:
            read = torch.index_select(attended, 0, self.packed.kept, out=more[:rows])
        dout_weight = self.of_weight(dmiddle, read)
        dread, dresidual = self.back(dmiddle, out_weight, self.at("attended", *read.shape)), dmiddle
        if last:
            dread = more.index_copy_(0, self.packed.kept, dread)
            dresidual = spare.zero_().index_copy_(0, self.packed.kept, dmiddle)
        dqkv = self.at("qkv", *qkv.shape)
        families = self.last_families if last else self.families
        if self.lib.attention_backward(
            pointer(qkv), pointer(attended), pointer(dread), pointer(lse), pointer(dqkv), families, self.threads
        ):
            raise MemoryError("attention: no memory for its working space")
        self.rotate(dqkv, -1.0)
        normed, _ = self.norm(x, attention_norm, keep=False)
        dqkv_weight = self.of_weight(dqkv, normed)
        dbias = None if qkv_bias is None else dqkv.sum(0)
        dnormed = self.back(dqkv, qkv_weight, self.at("dnormed", *x.shape))
        dx, dattention_norm = self.norm_backward(dnormed, x, rstd, attention_norm, dresidual, "dx")
        return dx, [dattention_norm, dqkv_weight, dbias, dout_weight, dmlp_norm, dgate_up_weight, ddown]
