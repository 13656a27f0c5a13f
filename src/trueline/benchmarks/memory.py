"""PPO's peak memory against what it cannot do without: its models, optimiser states, gradients and one micro-batch."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trueline.benchmarks.comparison import today
from trueline.benchmarks.flops import parameter_count
from trueline.benchmarks.machine import describe
from trueline.benchmarks.peers.wire import resident_mb
from trueline.benchmarks.sides import our_side, rounds_in_turn
from trueline.benchmarks.starting import starting_models
from trueline.benchmarks.work import Work, batches_of, write_work
from trueline.errors import RunError

__all__ = ["main", "measure_memory", "parts_of"]

_MICRO_TOKENS = 8192


def measure_memory(work: Work, say: Callable[[str], None] = lambda text: None) -> dict[str, Any]:
    """The record of two PPO iterations of `work`: the peak, and its parts, in MB.

    Models count four bytes a parameter. One micro-batch is measured: what a forward and backward pass adds at its peak
    to weights and gradients. The interpreter with its libraries is a part on a CPU, and none on a GPU. A copy of SFT
    is no part: where a run keeps one it is in the peak alone.
    """
    with tempfile.TemporaryDirectory(prefix="trueline-bench-") as name:
        folder = Path(name)
        say("preparing the models")
        start = starting_models(work, folder / "start", look=False)
        write_work(work, folder / "ours", start.model, start.reward, batches_of(work, 2))
        say("one micro-batch by itself")
        alone = _alone(folder / "ours")
        say("two iterations")
        with our_side(folder / "ours", work.threads) as side:
            side.ready()
            rounds = rounds_in_turn([side], 1)[0]
    peak = max(r.device_peak_mb if work.device == "cuda" else r.peak_mb for r in rounds)
    parts = parts_of(work, alone["micro_mb"], alone["base_mb"])
    total = sum(parts.values())
    return {
        "name": "memory", "peak_mb": peak, "sum_mb": total, "share": peak / total, "parts_mb": parts,
        "sft_copy_mb": parts["policy"], "seconds": rounds[-1].seconds,
        "work": work.described() | {"parameters": parameter_count(work.size)},
        "machine": describe(work.device, work.threads), "versions": {"ours": side.versions}, "date": today(),
    }  # fmt: skip


def parts_of(work: Work, micro_mb: float, base_mb: float) -> dict[str, float]:
    """Megabytes by name: four models of the policy's size, two moments and a gradient of the two that are trained."""
    model = 4 * parameter_count(work.size) / 2**20
    names = ("policy", "critic", "reference", "reward model")
    return {name: model for name in names} | {
        "optimiser states": 4 * model,
        "gradients": 2 * model,
        "one micro-batch": micro_mb,
        "interpreter and libraries": base_mb,
    }


def _alone(folder: Path) -> dict[str, float]:
    command = [sys.executable, "-m", "trueline.benchmarks.memory", str(folder)]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise RunError(f"bench memory: the micro-batch failed: {result.stderr.strip()[-800:]}")
    return json.loads(result.stdout)


def main() -> None:
    """FOLDER: print what the libraries take, and what one micro-batch adds to a model and its gradients."""
    import torch

    from trueline.models.checkpoints import load_decoder
    from trueline.models.scoring import Sampling, response_logprobs
    from trueline.training.pages import page

    work = json.loads((Path(sys.argv[1]) / "work.json").read_text())
    torch.set_num_threads(work["threads"])
    page("ppo")
    on_gpu = work["device"] == "cuda"
    base = 0.0 if on_gpu else resident_mb()["resident_mb"]
    policy = load_decoder(Path(sys.argv[1]) / "model").to("cuda" if on_gpu else "cpu")
    policy.trunk.precision = work["precision"]
    for parameter in policy.parameters():
        parameter.grad = torch.zeros_like(parameter)
    before = torch.cuda.memory_allocated() / 2**20 if on_gpu else resident_mb()["resident_mb"]
    width = work["prompt_tokens"] + work["max_new_tokens"]
    rows = max(1, min(work["batch_size"], work["ours"].get("micro_tokens", _MICRO_TOKENS) // width))
    tokens = torch.randint(3, policy.config.vocab_size, (rows, width), device=policy.head.weight.device)
    mask = torch.zeros(tokens.shape, dtype=torch.bool, device=tokens.device)
    mask[:, work["prompt_tokens"] :] = True
    logprobs, _ = response_logprobs(policy, tokens, mask, Sampling())
    logprobs.sum().backward()
    after = resident_mb()["device_peak_mb"] if on_gpu else resident_mb()["peak_mb"]
    print(json.dumps({"base_mb": base, "micro_mb": after - before}))


if __name__ == "__main__":
    main()
