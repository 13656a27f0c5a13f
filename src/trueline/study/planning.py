"""What a study would take before any of it is paid for: memory of each process, tokens, FLOPs, hours, money.

Arithmetic alone: what the meter of `runs.meter` will count, over rates that were measured in a run or are stated for a
device. FLOPs: 2 per parameter and token forward, 6 for a training step (attention's own products left out, as there).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

__all__ = [
    "DEVICES",
    "SHAPES",
    "Device",
    "Machine",
    "Memory",
    "Plan",
    "Shape",
    "Work",
    "memory_of",
    "plan_arms",
    "remedies",
]

GIB = 2.0**30


@dataclass(frozen=True)
class Shape:
    """A decoder's dimensions."""

    name: str
    parameters: float
    layers: int
    hidden: int
    inner: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int


# Public configurations: Llama 2 (arXiv 2307.09288), Code Llama (2308.12950), Qwen2.5 (2412.15115).
SHAPES: Mapping[str, Shape] = {
    "0.5b": Shape("Qwen2.5-0.5B", 0.494e9, 24, 896, 4864, 14, 2, 64, 151936),
    "1.5b": Shape("Qwen2.5-1.5B", 1.544e9, 28, 1536, 8960, 12, 2, 128, 151936),
    "7b": Shape("Llama-2-7B", 6.738e9, 32, 4096, 11008, 32, 32, 128, 32000),
    "13b": Shape("Code Llama 13B", 13.016e9, 40, 5120, 13824, 40, 40, 128, 32016),
    "34b": Shape("Code Llama 34B", 33.744e9, 48, 8192, 22016, 64, 8, 128, 32000),
}


@dataclass(frozen=True)
class Device:
    """Makers' figures of one device: dense bf16 FLOP/s, bytes/s of memory, bytes of memory; and the price of an hour
    where none is given (USD, on demand, order of magnitude)."""

    flops: float
    bandwidth: float
    memory: float
    price: float


DEVICES: Mapping[str, Device] = {
    "H200": Device(989e12, 4.8e12, 141e9, 4.0),
    "H100": Device(989e12, 3.35e12, 80e9, 3.0),
    "A100": Device(312e12, 2.04e12, 80e9, 2.0),
    "A100-40": Device(312e12, 1.56e12, 40e9, 1.5),
    "L40S": Device(362e12, 0.864e12, 48e9, 1.2),
    "4090": Device(165e12, 1.01e12, 24e9, 0.5),
}


@dataclass(frozen=True)
class Machine:
    """`count` devices and what of them is reached: shares of the peak in training and in forward passes, of the
    bandwidth while sampling; `scaling` is lost to exchanges where there are several."""

    name: str
    device: Device
    count: int
    training: float = 0.40
    scoring: float = 0.50
    sampling: float = 0.50
    scaling: float = 0.90

    @property
    def efficiency(self) -> float:
        """Of one device among all."""
        return self.scaling if self.count > 1 else 1.0


@dataclass(frozen=True)
class Work:
    """What is learnt from: rows of each kind, and mean lengths in tokens."""

    demonstrations: int
    pairs: int
    prompt_tokens: float
    response_tokens: float


@dataclass(frozen=True)
class Memory:
    """Bytes on each device at the peak, by what takes them."""

    parts: Mapping[str, float]

    @property
    def total(self) -> float:
        return sum(self.parts.values())


@dataclass(frozen=True)
class Plan:
    """One stage: optimiser steps, tokens, FLOPs, seconds, money; and memory on each device."""

    stage: str
    steps: int
    sampled_tokens: float
    trained_tokens: float
    flops: float
    seconds: float
    memory: Memory

    def row(self, machine: Machine, price: float) -> dict[str, Any]:
        """As it is written."""
        found = {key: value for key, value in asdict(self).items() if key != "memory"}
        hours = self.seconds / 3600
        memory = {"gib": self.memory.total / GIB, "parts_gib": {k: v / GIB for k, v in self.memory.parts.items()}}
        fits = self.memory.total <= _USABLE * machine.device.memory
        return found | {"hours": hours, "money": hours * machine.count * price, "memory": memory, "fits": fits}


_USABLE = 0.92  # of a device's memory: the rest is the driver's, the libraries' and fragments
_FLOAT, _HALF = 4.0, 2.0
_LOGITS = 2.0**25  # kept for the backward pass at most (models.scoring)


def memory_of(
    shape: Shape,
    stage: str,
    *,
    processes: int,
    micro_tokens: int,
    rows: int,
    length: float,
    checkpointing: bool = False,
    base: float = 0.0,
    packed: bool = False,
    low: bool = False,
    served: bool = False,
) -> Memory:
    """Bytes on each of `processes` at the peak of a stage.

    Weights, gradients and moments are fp32 and lie in parts; one layer and what is outside the layers are put together
    for a pass. Sampling puts the policy together whole, with keys and values of `rows` rows of `length` tokens: on GPUs
    (`low`) in bf16 but for the embeddings; a server (`served`) has memory of its own. `base` is the interpreter with
    its libraries (a CPU's). `packed`: our kernels on a CPU, which keep less.
    """
    model, parts = _FLOAT * shape.parameters, {}
    trained = {"ppo": 2}.get(stage, 1)
    frozen = {"ppo": 2, "rloo": 2, "dpo": 0, "dpo-iter": 2, "reward": 0, "sft": 0}.get(stage, 0)
    parts["weights"] = (trained + frozen) * model / processes
    parts["optimiser states"] = 2 * trained * model / processes
    parts["gradients"] = model / processes  # of one network at a time
    if processes > 1:
        layer = (shape.parameters - 2 * shape.vocab * shape.hidden) / shape.layers
        parts["put together"] = _FLOAT * (2 * layer + 2 * shape.vocab * shape.hidden)
    parts["activations"] = _activations(shape, micro_tokens, checkpointing, packed)
    if stage in ("ppo", "rloo", "dpo-iter") and not served:
        sampling = _cache(shape, low) * rows * length
        if low:  # a copy for the products; embeddings are the policy's own where they are in one piece
            table = shape.vocab * shape.hidden
            sampling += _HALF * (shape.parameters - table) + (_FLOAT * table if processes > 1 else 0.0)
        elif processes > 1:
            sampling += model
        # sampling and a training pass do not happen at one time: what is larger counts
        parts["sampling beyond activations"] = max(0.0, sampling - parts["activations"])
    if base:
        parts["interpreter and libraries"] = base
    return Memory(parts)


def _cache(shape: Shape, low: bool) -> float:
    """Bytes of keys and values of one token."""
    return 2 * shape.layers * shape.kv_heads * shape.head_dim * (_HALF if low else _FLOAT)


def _activations(shape: Shape, tokens: int, checkpointing: bool, packed: bool) -> float:
    """What one micro-batch keeps for its backward pass, in bytes, and the largest scratch beside it."""
    wide, triple = shape.heads * shape.head_dim, (shape.heads + 2 * shape.kv_heads) * shape.head_dim
    block = 2 * shape.hidden + triple + wide + shape.heads + 2 * shape.inner
    scratch = 2 * shape.inner + triple + wide + 4 * shape.hidden
    if not packed:  # autograd keeps the norms' and the gate's inputs and outputs as well
        block += 3 * shape.hidden + 2 * shape.inner + triple
    layers = 1 if checkpointing else shape.layers
    kept = layers * block + (shape.layers * shape.hidden if checkpointing else 0) + scratch
    logits = min(_LOGITS, tokens * shape.vocab)
    return _FLOAT * (tokens * kept + 2 * logits)


def plan_arms(
    shape: Shape, sections: Mapping[str, Any], work: Work, machine: Machine, stages: Sequence[str], **memory: Any
) -> list[Plan]:
    """The stages of a study in order, each with its own cost."""
    return [_plan(stage, shape, sections, work, machine, memory) for stage in stages]


def _plan(
    stage: str, shape: Shape, sections: Mapping[str, Any], work: Work, machine: Machine, memory: Mapping[str, Any]
) -> Plan:
    n, both = shape.parameters, work.prompt_tokens + work.response_tokens
    count = _Count()
    if stage == "sft":
        config = sections["sft"]
        steps = max(1, round(config.epochs * work.demonstrations / config.batch_size))
        count.train(n, steps * config.batch_size * both)
    elif stage == "reward":
        config = sections["reward"]
        steps = max(1, round(config.epochs * (1 - config.held_out) * work.pairs / config.batch_size))
        count.train(n, steps * config.batch_size * 2 * both)
    elif stage == "dpo":
        config = sections["dpo"]
        steps = max(1, round(config.epochs * work.pairs / config.batch_size))
        count.forward(n, 2 * work.pairs * both)
        count.train(n, steps * config.batch_size * 2 * both)
    elif stage == "dpo-iter":
        config = sections["dpo_iter"]
        steps = config.rounds * config.sync_every
        asked = config.rounds * max(1, round(config.sync_every * config.batch_size / config.passes))
        drawn = asked * config.samples_per_prompt
        count.sample(n, drawn, work)
        count.forward(n, drawn * both)  # the reward model
        count.forward(n, 2 * asked * both)  # the reference, of the pair that is kept
        count.train(n, steps * config.batch_size * 2 * both)
    else:
        config = sections["ppo" if stage == "ppo" else "rloo"]
        steps, drawn = config.steps, config.steps * config.batch_size
        count.sample(n, drawn, work)
        count.forward(n, drawn * both * (4 if stage == "ppo" else 3))  # policy, reference, reward, critic
        passes = getattr(config, "epochs", 1)
        count.train(n, drawn * both * passes * (2 if stage == "ppo" else 1))
    rows = getattr(config, "batch_size", 1)
    need = memory_of(shape, stage, processes=machine.count, rows=-(-rows // machine.count), length=both, **memory)
    seconds = count.seconds(shape, machine, rows, work, low=memory.get("low", False))
    return Plan(
        stage,
        steps,
        count.sampled,
        count.trained,
        count.flops,
        seconds,
        need,
    )


class _Count:
    """FLOPs by kind, for kinds differ in speed."""

    def __init__(self) -> None:
        self.training = self.scoring = self.sampling = self.sampled = self.trained = 0.0

    def forward(self, parameters: float, tokens: float) -> None:
        self.scoring += 2 * parameters * tokens

    def train(self, parameters: float, tokens: float) -> None:
        self.training += 6 * parameters * tokens
        self.trained += tokens

    def sample(self, parameters: float, rows: float, work: Work) -> None:
        self.sampling += 2 * parameters * rows * (work.prompt_tokens + work.response_tokens)
        self.sampled += rows * work.response_tokens

    @property
    def flops(self) -> float:
        return self.training + self.scoring + self.sampling

    def seconds(self, shape: Shape, machine: Machine, rows: int, work: Work, *, low: bool = False) -> float:
        """Over all devices: training and scoring at their share of the peak; a sampled token of every row at once costs
        one reading of weights and cache, or its products, whichever takes longer."""
        peak = machine.device.flops * machine.count * machine.efficiency
        spent = self.training / (machine.training * peak) + self.scoring / (machine.scoring * peak)
        if not self.sampled:
            return spent
        each = max(1.0, rows / machine.count)
        cache = _cache(shape, low) * each
        weights = (_HALF if low else _FLOAT) * shape.parameters
        read = weights + cache * (work.prompt_tokens + work.response_tokens / 2)
        step = max(
            read / (machine.sampling * machine.device.bandwidth),
            2 * shape.parameters * each / (machine.scoring * machine.device.flops),
        )
        return spent + self.sampled / (each * machine.count) * step


def remedies(
    shape: Shape, stage: str, machine: Machine, *, micro_tokens: int, rows: int, length: float, **memory: Any
) -> list[str]:
    """The smallest changes that make a stage fit, the cheapest first; empty where none of them does."""
    room = _USABLE * machine.device.memory
    found = []
    short = max(512, int(length))
    changes: list[tuple[str, int, dict[str, Any]]] = [
        ("train.gradient_checkpointing=true", machine.count, {"checkpointing": True}),
        (f"train.micro_tokens={short}", machine.count, {"micro_tokens": short}),
        (f"train.gradient_checkpointing=true train.micro_tokens={short}", machine.count,
         {"checkpointing": True, "micro_tokens": short}),
        ("rollout.engine=vllm, a server on GPUs of its own", machine.count, {"served": True}),
        ("rollout.engine=vllm, a server on GPUs of its own, and train.gradient_checkpointing=true", machine.count,
         {"served": True, "checkpointing": True}),
    ]  # fmt: skip
    more = [count for count in (2, 4, 8, 16, 32, 64, 128) if count > machine.count]
    changes += [(f"--gpus {count}x{machine.name}", count, {}) for count in more if count < 128]
    changes += [
        (f"--gpus {count}x{machine.name} and train.gradient_checkpointing=true", count, {"checkpointing": True})
        for count in more
    ]
    for text, processes, change in changes:
        settings = {"micro_tokens": micro_tokens, "checkpointing": False} | memory | change
        each = -(-rows * machine.count // processes)
        if memory_of(shape, stage, processes=processes, rows=each, length=length, **settings).total <= room:
            found.append(text)
    return found[:2]
