"""Which precision a model's matrix products get where the user leaves it open."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from trueline.models.decoder import DecoderConfig, Precision

__all__ = ["choose_precision"]

_WORTH_IT = 2_000_000
"""Parameters: below, bf16 was slower than fp32 on a CPU that has instructions for it."""


def choose_precision(wanted: Literal["auto", "fp32", "bf16"], shape: DecoderConfig, device: str) -> Precision:
    """bf16 on a GPU, and on a CPU with bf16 matrix instructions (AMX) for models that are large enough; else fp32."""
    if wanted != "auto":
        return wanted
    if device == "cuda":
        return "bf16"
    return "bf16" if shape.parameter_count >= _WORTH_IT and _has_amx() else "fp32"


def _has_amx(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    try:
        return "amx_bf16" in cpuinfo.read_text(encoding="utf-8").split()
    except OSError:
        return False
