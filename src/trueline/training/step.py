"""The only place that calls backward: accumulate micro-batches, check, clip, step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, MutableMapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

from trueline.distributed.sharding import full
from trueline.distributed.world import World, current
from trueline.errors import NumericsError, RunError
from trueline.training.adamw import AdamW
from trueline.training.memory import Part, Room, is_out_of_memory

__all__ = ["StepResult", "learning_rate_at", "make_optimizer", "optimize"]

Micro = TypeVar("Micro")
Schedule = Literal["constant", "linear", "cosine"]
_SHOWN = 8


@dataclass(frozen=True)
class StepResult:
    """The loss of the whole batch and the gradient's norm before clipping."""

    loss: float
    grad_norm: float


def make_optimizer(model: nn.Module, learning_rate: float, *, weight_decay: float = 0.0) -> AdamW:
    """AdamW, betas 0.9 and 0.95 (the paper's engine), eps 1e-8."""
    return AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.95), eps=1e-8, weight_decay=weight_decay)


def learning_rate_at(step: int, *, peak: float, total: int, warmup: int, schedule: Schedule) -> float:
    """The learning rate of step number `step` (from 0): a linear warm-up, then constant, or falling to a tenth at the
    end linearly or along a cosine."""
    if step < warmup:
        return peak * (step + 1) / warmup
    if schedule == "constant":
        return peak
    share = min(1.0, (step - warmup) / max(1, total - warmup))
    fall = share if schedule == "linear" else 0.5 * (1 - math.cos(math.pi * share))
    return peak * (1 - 0.9 * fall)


def optimize(
    model: nn.Module,
    optimizer: AdamW | torch.optim.Optimizer,
    micros: Iterable[Micro],
    loss_of: Callable[[Micro], Tensor],
    *,
    learning_rate: float,
    max_grad_norm: float,
    what: str,
    accept: Callable[[], bool] = lambda: True,
    sums: Sequence[MutableMapping[str, float]] = (),
    room: Room | None = None,
    name_of: Callable[[int], str] = str,
) -> StepResult:
    """One optimiser step on the sum of `loss_of` over the micro-batches.

    Each loss is already divided by denominators of the whole batch, so the sum is the batch's loss whatever the
    grouping. A loss or gradient that is not finite raises NumericsError, which names the rows that make it so
    (`name_of` a row's index), and the step is not applied. `accept` is asked
    once all micro-batches are through; False leaves the weights as they are.

    With `room`, a micro-batch that does not fit in memory is halved and the step begun again, as are those of later
    steps. `sums` are what `loss_of` adds its metrics to: they begin at 0 in every attempt.
    """
    micros = list(micros)
    world = current()
    if world.size > 1:
        room = None  # halving on one process alone would leave the others waiting
    while True:
        total = _accumulate(optimizer, micros if room is None else room.divide(micros), loss_of, sums, room)
        if total is not None:
            break
        optimizer.zero_grad(set_to_none=True)
        if not room.shrink(micros):
            raise RunError(
                f"{what}: out of memory with one row at a time; lower model.max_prompt_tokens or model.max_new_tokens, "
                "or set train.gradient_checkpointing=true"
            )
    norm = float(full(nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm if max_grad_norm > 0 else math.inf)))
    if not (math.isfinite(total) and math.isfinite(norm)):
        rows, count = _offending(model, optimizer, micros, loss_of)
        raise NumericsError(
            f"{what}: loss {total}, gradient norm {norm}: the step was not applied; {_named(rows, count, name_of)}; "
            "lower the learning rate, or look at these rows, and go on from the last checkpoint",
            rows=tuple(name_of(row) for row in rows),
        )
    if accept():
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        optimizer.step()
    return StepResult(total, norm)


def _offending(
    model: nn.Module, optimizer: AdamW | torch.optim.Optimizer, micros: Iterable[Micro], loss_of: Callable
) -> tuple[list[int], int]:
    """The rows whose own loss or gradient is not finite, and how many rows there are."""
    found, count = [], 0
    single = Room()
    single.parts = 2**30  # one row at a time
    for micro in single.divide(micros):
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(micro)
        loss.backward()
        gradients = (full(p.grad) for p in model.parameters() if p.grad is not None)
        if not math.isfinite(loss.item()) or not all(bool(g.isfinite().all()) for g in gradients):
            found.append(int(micro.rows[0] if isinstance(micro, Part) else micro[0]))
        count += 1
    optimizer.zero_grad(set_to_none=True)
    return found, count


def _named(rows: Sequence[int], count: int, name_of: Callable[[int], str]) -> str:
    if len(rows) == count:
        return f"all {count} rows give no finite number: the weights do not"
    if not rows:
        return f"each of the {count} rows by itself is finite: their sum is not"
    shown = ", ".join(name_of(row) for row in rows[:_SHOWN])
    return f"{len(rows)} of {count} rows give no finite number: {shown}{', ...' if len(rows) > _SHOWN else ''}"


def _accumulate(
    optimizer: AdamW | torch.optim.Optimizer,
    micros: Iterable[Micro],
    loss_of: Callable[[Micro], Tensor],
    sums: Sequence[MutableMapping[str, float]],
    room: Room | None,
) -> float | None:
    """The batch's loss, its gradient in the parameters; None where memory ran out."""
    optimizer.zero_grad(set_to_none=True)
    for values in sums:
        values.update(dict.fromkeys(values, 0.0))
    world, total = current(), 0.0
    try:
        for micro in micros:
            if world.size > 1:
                total += _share(world, micro, loss_of, sums)
                continue
            loss = loss_of(micro)
            loss.backward()
            total += loss.detach().item()
    except (RuntimeError, MemoryError) as error:
        if room is None or not is_out_of_memory(error):
            raise
        return None
    if world.size > 1:
        keys = [(values, name) for values in sums for name in values]
        total, *found = world.total(total, *(values[name] for values, name in keys))
        for (values, name), value in zip(keys, found):
            values[name] = value
    return total


def _share(world: World, micro: Micro, loss_of: Callable[[Micro], Tensor], sums: Sequence[MutableMapping]) -> float:
    """This process's part of a micro-batch. One that gets no row computes a row of the others' and counts nothing of
    it: every process takes part in every pass."""
    rows = micro.rows if isinstance(micro, Part) else micro
    mine = world.part(rows)
    counts = len(mine) > 0
    held = [dict(values) for values in sums]
    part = mine if counts else rows[:1]
    loss = loss_of(replace(micro, rows=part) if isinstance(micro, Part) else part)
    (loss if counts else loss * 0.0).backward()
    if counts:
        return loss.detach().item()
    for values, before in zip(sums, held):
        values.update(before)
    return 0.0
