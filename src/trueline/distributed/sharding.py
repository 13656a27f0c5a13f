"""A model's weights in parts among the processes: torch's FSDP2, one group for each layer and one for the rest.

A layer's weights are put together for its forward and backward pass alone; gradients come back in parts, as sums over
the processes. Optimiser states, the moving reference and gradients are as large as the parts.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from torch import Tensor, nn

from trueline.distributed.world import World

__all__ = ["Rows", "each_whole", "emptied", "full", "is_sharded", "part", "parts", "shard", "whole", "whole_for_leader"]

Model = TypeVar("Model", bound=nn.Module)
Rows = Callable[[str, int, int], Tensor]
"""Rows start to stop of the weight of a name."""


def shard(model: Model, world: World, rows: Rows | None = None) -> Model:
    """The same model with its weights in parts, in place; unchanged where there is one process.

    With `rows` the model's weights are on no device yet: each process reads its part alone. The model's `with_weights`
    runs a function with the weights outside the layers put together.
    """
    if world.size == 1:
        return model
    # two seconds of imports, which one process never pays
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

    if rows is not None:
        _place_buffers(model, world)
    model._empty = (emptied(model),)  # in a tuple: no submodule
    mesh = init_device_mesh(world.device.type, (world.size,))
    for layer in _layers(model):
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh, reshard_after_forward=True)
    register_fsdp_forward_method(model, "with_weights")
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)  # losses are divided by the whole batch's counts already
            module.set_force_sum_reduction_for_comms(True)  # gloo knows no scaled sum
    if rows is not None:
        _fill(model, world, rows)
    return model


@torch.no_grad()
def _fill(model: nn.Module, world: World, rows: Rows) -> None:
    """Give a model in parts that lie on no device their numbers."""
    from torch.distributed.tensor import DTensor

    made: dict[int, nn.Parameter] = {}
    state = {}
    for name, tensor in model.named_parameters(remove_duplicate=False):  # a tied weight has two names
        if id(tensor) not in made:
            share = -(-len(tensor) // world.size)  # as torch.chunk divides rows
            start = min(len(tensor), world.rank * share)
            own = rows(name, start, min(len(tensor), start + share)).to(world.device, tensor.dtype)
            placed = DTensor.from_local(
                own, tensor.device_mesh, tensor.placements, run_check=False, shape=tensor.shape, stride=tensor.stride()
            )
            made[id(tensor)] = nn.Parameter(placed, requires_grad=tensor.requires_grad)
        state[name] = made[id(tensor)]
    model.load_state_dict(state, assign=True)


def _place_buffers(model: nn.Module, world: World) -> None:
    """Bring the buffers of a model without weights to the device; they are made where it is made."""
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if name not in module._non_persistent_buffers_set:
                raise ValueError(f"{name}: a buffer whose numbers are stored has none here")
            module._buffers[name] = buffer.to(world.device)


def is_sharded(model: nn.Module) -> bool:
    """Whether its weights lie in parts."""
    return hasattr(model, "_empty")


def full(tensor: Tensor) -> Tensor:
    """A tensor put together from its parts; every process must ask. Others are themselves."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def part(tensor: Tensor) -> Tensor:
    """This process's part of a tensor; the tensor itself where it is in one piece."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def parts(model: nn.Module) -> list[Tensor]:
    """This process's part of every weight; the weights themselves where they are in one piece."""
    return [part(p) for p in model.parameters()]


@torch.no_grad()
def whole(model: Model, *, low: bool = False) -> Model:
    """The model in one piece: a copy that every process gets; the model itself where it is not in parts.

    With `low` weights that only matrix products read are in bfloat16: what a trunk in that precision makes of them in
    each pass, so that its numbers stay the same. Others are as they are, and shared where they can be.
    """
    names = model.products() if low else frozenset()
    if not is_sharded(model) and not names:
        return model
    return _made(model, names, here=True)


@torch.no_grad()
def whole_for_leader(model: Model, world: World) -> Model | None:
    """The model in one piece, in the host's memory, for the process that leads; None for the others, which must ask
    too. The model itself where it is not in parts."""
    if not is_sharded(model):
        return model
    return _made(model, frozenset(), here=world.leads, device="cpu")


@torch.no_grad()
def each_whole(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The model's tensors, each put together when it is asked for; every process must ask for all."""
    for name, tensor in model.state_dict().items():
        yield name, full(tensor.detach())


def _made(model: Model, low: frozenset[str], *, here: bool, device: str | None = None) -> Model | None:
    """A copy with weights put together one at a time, those in `low` after they are rounded."""
    state = {}
    for name, tensor in model.state_dict().items():
        tensor = full(tensor.detach().bfloat16() if name in low else tensor.detach())
        if here:
            state[name] = tensor if device is None else tensor.to(device)
    if not here:
        return None
    made = emptied(model)
    made.load_state_dict(state, assign=True)
    if getattr(model.config, "tied", False) and "head.weight" not in low:
        made.head.weight = made.trunk.embed.weight
    made.trunk.precision = model.trunk.precision
    return made


def emptied(model: Model) -> Model:
    """A copy in one piece without weights: their places on no device; buffers as they are. No weight is copied on the
    way."""
    if is_sharded(model):
        return copy.deepcopy(model._empty[0])
    places = {
        id(held): nn.Parameter(torch.empty_like(held, device="meta"), requires_grad=held.requires_grad)
        for held in model.parameters()
    }
    return copy.deepcopy(model, places)  # what the memo holds is not copied


def _layers(model: nn.Module) -> list[nn.Module]:
    """The repeated layers: the list of modules that holds most of the weights."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) > 0]
    if not lists:
        return []
    return list(max(lists, key=lambda held: sum(p.numel() for p in held.parameters())))
