"""The machine of a result: what it is, which precision pays on it, and how fast its best matrix product is."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from trueline.errors import RunError

__all__ = ["cpu_flags", "describe", "main", "peak_gemm", "precision_for", "threads_here"]

# rows, inner, columns: the best one is taken, so a peak is not the shape's fault
_SHAPES = {
    "cpu": ((1024, 1024, 1024), (2048, 1024, 2048), (4096, 1024, 1024), (2048, 2048, 2048)),
    "cuda": ((4096, 4096, 4096), (8192, 8192, 8192), (8192, 4096, 16384)),
}


def threads_here() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_flags() -> set[str]:
    """Features of the processor, as Linux names them; empty elsewhere."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return set()
    return set(next((line.split(":", 1)[1].split() for line in text.splitlines() if line.startswith("flags")), []))


def precision_for(device: str, flags: set[str] | None = None) -> str:
    """The precision class of both sides: bf16 where the machine has instructions for it. Without them bf16 autocast was
    ten times slower than fp32 on a CPU."""
    flags = cpu_flags() if flags is None else flags
    return "bf16" if device == "cuda" or flags & {"amx_bf16", "avx512_bf16"} else "fp32"


def describe(device: str, threads: int) -> dict[str, Any]:
    """For `machine` in a record."""
    found = {"cpu": _cpu_name(), "cores": threads_here(), "threads": threads, "memory_gb": _memory_gb()}
    found |= {"system": platform.platform(), "bf16": precision_for("cpu") == "bf16"}
    if device == "cuda":
        import torch

        found["gpu"] = torch.cuda.get_device_name(0)
    return found


def _cpu_name() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _memory_gb() -> float:
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)


def peak_gemm(precision: str, device: str, threads: int, seconds: float = 0.5) -> dict[str, Any]:
    """GFLOP/s of the best of some shapes in a process of its own: `seconds` on each shape, the median product."""
    command = [sys.executable, "-m", "trueline.benchmarks.machine", precision, device, str(threads), str(seconds)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    if result.returncode:
        raise RunError(f"bench: the matrix products failed: {result.stderr.strip()[-400:]}")
    return json.loads(result.stdout)


def main() -> None:
    """PRECISION DEVICE THREADS SECONDS: print the best shape's figures as JSON."""
    precision, device, threads, seconds = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
    name = {"fp32": "float32", "bf16": "bfloat16"}[precision]
    import torch

    torch.set_num_threads(threads)
    dtype = getattr(torch, name)
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    found = []
    for rows, inner, columns in _SHAPES[device]:
        a, b = (torch.randn(size, device=device).to(dtype) for size in ((rows, inner), (inner, columns)))
        speeds, begun = [], time.perf_counter()
        while time.perf_counter() - begun < seconds or len(speeds) < 3:
            wait()
            start = time.perf_counter()
            a @ b
            wait()
            speeds.append(2e-9 * rows * inner * columns / (time.perf_counter() - start))
        found.append((statistics.median(speeds), [rows, inner, columns]))
    best, shape = max(found)
    print(json.dumps({"gflops": best, "shape": shape, "precision": precision, "threads": threads}))


if __name__ == "__main__":
    main()
