"""Sampling by transformers' `generate`: a round is one batch of prompts, at the fastest of its settings.

The settings are timed on the first batch before anything counts: dynamic cache, static cache, and static cache with the
compiled forward pass (`work.peer["compile"]` False leaves that one out). Runs in the peer's own environment.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from typing import Any

import torch
from wire import Wire

__all__: list[str] = []

wire = Wire()
work = wire.work
torch.set_num_threads(work["threads"])

import transformers  # noqa: E402
from transformers import AutoModelForCausalLM, CompileConfig  # noqa: E402

PAD, END = 0, 1
DEVICE = "cuda" if work["device"] == "cuda" else "cpu"


def compiled() -> dict[str, Any]:
    """The static cache with a compiled forward pass on any device."""
    config = CompileConfig(fullgraph=False)
    config._compile_all_devices = True
    return {"cache_implementation": "static", "compile_config": config}


def settings() -> dict[str, dict[str, Any]]:
    """What is tried."""
    found = {"dynamic cache": {}, "static cache": {"cache_implementation": "static", "disable_compile": True}}
    if work["peer"].get("compile", True) and (DEVICE == "cuda" or shutil.which("g++")):
        found["static cache, compiled"] = compiled()
    return found


def batch(rows: list[dict[str, Any]], setting: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Prompts padded on the left, and their mask. A static cache gets one width for all batches: another width would
    be another cache, and another compilation."""
    longest = max(len(row["prompt"]) for row in rows)
    width = work["prompt_tokens"] if "cache_implementation" in setting else longest
    ids = torch.tensor([[PAD] * (width - len(row["prompt"])) + row["prompt"] for row in rows])
    starts = torch.tensor([width - len(row["prompt"]) for row in rows])
    mask = (torch.arange(width) >= starts[:, None]).long()
    return ids.to(DEVICE), mask.to(DEVICE)


@torch.inference_mode()
def generate(rows: list[dict[str, Any]], setting: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Tokens, the prompts' mask and their width."""
    ids, mask = batch(rows, setting)
    with torch.autocast(DEVICE, torch.bfloat16, enabled=work["precision"] == "bf16" and DEVICE == "cpu"):
        tokens = model.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=work["max_new_tokens"], do_sample=True, top_k=0,
            top_p=1.0, temperature=1.0, eos_token_id=END, pad_token_id=PAD, **setting,
        )  # fmt: skip
    return tokens, mask, ids.shape[1]


def timed(rows: list[dict[str, Any]], setting: dict[str, Any]) -> float:
    """Seconds of the faster of two calls once the first one has paid for what is paid once."""
    spent = []
    for _ in range(3):
        begun = time.perf_counter()
        generate(rows, setting)
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        spent.append(time.perf_counter() - begun)
    return min(spent[1:])


@torch.inference_mode()
def described(tokens: torch.Tensor, prompt_mask: torch.Tensor, width: int) -> dict[str, float]:
    """Mean length and nats per token of what was sampled; scored after the clock has stopped."""
    response = tokens[:, width:]
    ends = response == END
    lengths = torch.where(ends.any(1), ends.int().argmax(1) + 1, response.shape[1])
    mask = torch.arange(response.shape[1], device=tokens.device) < lengths[:, None]
    seen = torch.cat([prompt_mask, mask.long()], 1)
    places = (seen.cumsum(1) - 1).clamp(min=0)
    logits = model(tokens, attention_mask=seen, position_ids=places).logits[:, width - 1 : -1].float()
    logprobs = logits.log_softmax(-1).gather(-1, response[..., None]).squeeze(-1)
    return {
        "val/length": float(lengths.float().mean()),
        "objective/entropy": float(-(logprobs * mask).sum() / mask.sum()),
    }


if __name__ == "__main__":
    torch.manual_seed(work["seed"])
    batches = json.loads((wire.folder / "rows.json").read_text())
    dtype = torch.bfloat16 if work["precision"] == "bf16" and DEVICE == "cuda" else torch.float32
    model = AutoModelForCausalLM.from_pretrained(wire.folder / "model", dtype=dtype).to(DEVICE).eval()
    seconds: dict[str, float] = {}
    for name, setting in settings().items():
        try:
            seconds[name] = timed(batches[0], setting)
        except Exception as error:  # a setting that does not work on this machine is not the best one
            print(f"{name}: {type(error).__name__}: {error}", file=sys.stderr)
    best = min(seconds, key=seconds.get)
    versions = {"transformers": transformers.__version__, "torch": torch.__version__}
    wire.say(ready=True, versions=versions, setting=f"generate, {best}", tried=seconds)
    number = 0
    while True:
        wire.order()
        tokens, prompt_mask, width = generate(batches[number % len(batches)], settings()[best])
        wire.stop()
        wire.answer(result=described(tokens, prompt_mask, width))
        number += 1
