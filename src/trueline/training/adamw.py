"""AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101) over torch's own fused update.

torch's optimiser class imports its compiler when one is made: 75 MB and a second in every process, for nothing that is
used here. Its functional form is the same update, bit for bit (`tests/training/test_adamw.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from trueline.distributed.sharding import part

__all__ = ["AdamW"]


class AdamW:
    """theta <- theta - lr (m_hat / (sqrt(v_hat) + eps) + weight_decay theta), moments of the gradients with `betas`.

    The members that are used here of `torch.optim.Optimizer`, under its names: `param_groups[0]["lr"]` is the learning
    rate of the next step, states are `step`, `exp_avg` and `exp_avg_sq` by the parameter's place. Parameters without a
    gradient are left as they are.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        self.param_groups = [
            {"params": list(parameters), "lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        ]
        self.state: dict[int, dict[str, Tensor]] = {}

    @torch.no_grad()
    def step(self) -> None:
        """One update with the gradients that are there."""
        (group,) = self.param_groups
        held = [(i, p) for i, p in enumerate(group["params"]) if p.grad is not None]
        if not held:
            return
        states = [self.state.get(i) or self.state.setdefault(i, _begin(p)) for i, p in held]
        adamw(  # elementwise: each process steps its own parts
            [part(p) for _, p in held],
            [part(p.grad) for _, p in held],
            [part(state["exp_avg"]) for state in states],
            [part(state["exp_avg_sq"]) for state in states],
            [],
            [state["step"] for state in states],
            fused=True,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients, or with `set_to_none` False fill them with zeros."""
        for parameter in self.param_groups[0]["params"]:
            if set_to_none:
                parameter.grad = None
            elif parameter.grad is not None:
                parameter.grad.zero_()

    def state_dict(self) -> dict[str, Any]:
        """The states by the parameter's place, and the settings."""
        (group,) = self.param_groups
        settings = {key: value for key, value in group.items() if key != "params"}
        return {"state": dict(self.state), "param_groups": [settings | {"params": list(range(len(group["params"])))}]}

    def load_state_dict(self, stored: Mapping[str, Any]) -> None:
        """Take the states; settings are the caller's, from the configuration."""
        parameters = self.param_groups[0]["params"]
        self.state = {
            index: {name: _like(value, parameters[index], name) for name, value in slot.items()}
            for index, slot in stored["state"].items()
        }


def _like(value: Tensor, parameter: nn.Parameter, name: str) -> Tensor:
    if name == "step":
        return value.to(parameter.device, torch.float32)
    value = value.to(parameter.device, parameter.dtype)
    if not hasattr(parameter, "to_local") or hasattr(value, "to_local"):
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)


def _begin(parameter: nn.Parameter) -> dict[str, Tensor]:
    return {
        "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
        "exp_avg": torch.zeros_like(parameter, memory_format=torch.preserve_format),
        "exp_avg_sq": torch.zeros_like(parameter, memory_format=torch.preserve_format),
    }
