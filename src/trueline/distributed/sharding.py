"""A model's weights in parts among the processes: torch's FSDP2, one group for each layer and one for the rest.

A layer's weights are put together for its forward and backward pass alone; gradients come back in parts, as sums over
the processes. Optimiser states, the moving reference and gradients are as large as the parts.
"""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn

from trueline.distributed.world import World

__all__ = ["emptied", "full", "is_sharded", "part", "parts", "shard", "whole"]

Model = TypeVar("Model", bound=nn.Module)


def shard(model: Model, world: World) -> Model:
    """The same model with its weights in parts, in place; unchanged where there is one process.

    The model's `with_weights` runs a function with the weights outside the layers put together.
    """
    if world.size == 1:
        return model
    # two seconds of imports, which one process never pays
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

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
    return model


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
def whole(model: Model) -> Model:
    """The model in one piece: a copy that every process gets; the model itself where it is not in parts."""
    if not is_sharded(model):
        return model
    (empty,) = model._empty
    made = copy.deepcopy(empty)
    made.load_state_dict({name: full(tensor.detach()) for name, tensor in model.state_dict().items()}, assign=True)
    if getattr(model.config, "tied", False):
        made.head.weight = made.trunk.embed.weight
    made.trunk.precision = model.trunk.precision
    return made


def emptied(model: Model) -> Model:
    """A copy without weights: their places on no device; buffers as they are."""
    made = copy.deepcopy(model)
    for module in made.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(
                module,
                name,
                nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=parameter.requires_grad),
            )
    return made


def _layers(model: nn.Module) -> list[nn.Module]:
    """The repeated layers: the list of modules that holds most of the weights."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) > 0]
    if not lists:
        return []
    return list(max(lists, key=lambda held: sum(p.numel() for p in held.parameters())))
