"""The compiled passes of `kernels.c` and `generate.c`: built once per machine with its C compiler, apart from torch.

Where there is no compiler, or `TRUELINE_KERNELS=0`, everything runs through plain torch with equal results: that path
is the reference that the tests hold these kernels against.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

__all__ = ["HEAD_WIDTH", "Families", "available", "library", "pointer", "threads"]

HEAD_WIDTH = 8
"""Head dimensions must be a multiple of this for the attention kernels."""
_SOURCES = [Path(__file__).with_name(name) for name in ("generate.c", "kernels.c")]  # the first includes the second
# Not -ffast-math: it would change how the whole process rounds denormal numbers.
_FLAGS = ("-O3", "-march=native", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-shared")
_OPENMP = ("-fopenmp",)


class Families(ctypes.Structure):
    """`Families` of kernels.c: which rows attend to which."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("first", "start", "length", "skip")),
        *((name, ctypes.c_int32) for name in ("families", "heads", "kv_heads", "dim", "longest")),
    ]


@cache
def library() -> ctypes.CDLL | None:
    """The loaded kernels; None where they are switched off, or cannot be built or loaded here."""
    if os.environ.get("TRUELINE_KERNELS", "1") == "0":
        return None
    try:
        return _declared(ctypes.CDLL(str(_built())))
    except (OSError, subprocess.SubprocessError):
        return None


def available(like: Tensor) -> bool:
    """Whether the kernels can work on tensors like this one: fp32 on the CPU."""
    return like.dtype == torch.float32 and like.device.type == "cpu" and library() is not None


def pointer(tensor: Tensor | None) -> int | None:
    """The address of a contiguous tensor's data."""
    return None if tensor is None else tensor.data_ptr()


def threads() -> int:
    """As many as torch uses, from the same pool."""
    return torch.get_num_threads()


def _built() -> Path:
    """The shared library in the user's cache; compiled where this source was never compiled on such a processor."""
    compiler = next((found for name in ("cc", "gcc", "clang") if (found := shutil.which(name))), None)
    if compiler is None:
        raise OSError("no C compiler")
    described = "\n".join(
        (*(path.read_text() for path in _SOURCES), *_FLAGS, compiler, platform.machine(), _processor())
    )
    cache_home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    target = cache_home / "trueline" / f"kernels-{hashlib.sha256(described.encode()).hexdigest()[:16]}.so"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            made = Path(folder, "kernels.so")
            for openmp in (_OPENMP, ()):  # a compiler without OpenMP makes kernels of one thread
                command = [compiler, *_FLAGS, *openmp, "-o", str(made), str(_SOURCES[0]), "-lm"]
                if subprocess.run(command, capture_output=True, timeout=120).returncode == 0:
                    break
            else:
                raise OSError("the kernels do not compile")
            os.replace(made, target)
    return target


def _processor() -> str:
    """What -march=native depends on: a cache may be shared by machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())


def _declared(lib: ctypes.CDLL) -> ctypes.CDLL:
    p, n, i, f = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_float
    families = ctypes.POINTER(Families)
    lib.rms_norm.argtypes = [p, p, p, p, n, n, f, i]
    lib.rms_norm_backward.argtypes = [p, p, p, p, p, p, p, n, n, i]
    lib.swiglu.argtypes = [p, p, n, n, i]
    lib.swiglu_backward.argtypes = [p, p, p, n, n, i]
    lib.rotate.argtypes = [p, p, p, p, n, n, i, i, f, i]
    lib.attention.argtypes = [p, p, p, families, i]
    lib.attention_backward.argtypes = [p, p, p, p, p, families, i]
    lib.pick_logprobs.argtypes = [p, p, p, p, p, n, n, i]
    lib.pick_logprobs_backward.argtypes = [p, p, p, p, p, n, n, i]
    lib.generate.argtypes = [p, p, i]
    lib.pack_weight.argtypes = [p, p, n, n]
    for name in (
        "pack_weight",
        "rms_norm",
        "rms_norm_backward",
        "swiglu",
        "swiglu_backward",
        "rotate",
        "pick_logprobs",
    ):
        getattr(lib, name).restype = None
    lib.pick_logprobs_backward.restype = None
    return lib
