"""`trueline bench ppo` and its kin: our side against the tuned peer, or against itself, in one run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from trueline.benchmarks.comparison import compare, default_rounds
from trueline.benchmarks.machine import precision_for, threads_here
from trueline.benchmarks.work import Work, standard_work
from trueline.commands.progress import bar
from trueline.errors import InputError
from trueline.runs.cell import write_json

__all__ = ["bench_compare", "bench_curves", "bench_memory", "keep", "work_of"]

_AGAINST = ("trl", "self")
_DEVICES = ("auto", "cpu", "cuda")


def bench_compare(
    name: str, console: Console, *, against: str = "trl", size: str = "small", rounds: int | None = None,
    even: bool = False, device: str = "auto", out: Path | None = None,
) -> dict[str, Any]:  # fmt: skip
    """The record of one comparison; progress and the result in words go to `console`, the record to `out`.

    Raises InputError for a wrong name, size or count and where the peer cannot be installed.
    """
    if against not in _AGAINST:
        raise _wrong(against, "--against", _AGAINST)
    if rounds is not None and rounds < 1:
        raise InputError(f"{rounds} rounds measure nothing", where="bench", field="--rounds", remedy="take at least 1")
    work = work_of(name, size=size, even=even, device=device)
    keep(out, None)
    count = 2 * ((rounds or default_rounds(name)) + 1)
    with bar(console, f"{name}, {size}: rounds", count) as step:
        record = compare(work, against, rounds=rounds, say=_say(console), step=step)
    keep(out, record)
    _show(console, record)
    return record


def bench_memory(console: Console, *, size: str, device: str = "auto", out: Path | None = None) -> dict[str, Any]:
    """The record of PPO's peak memory against its parts."""
    from trueline.benchmarks.memory import measure_memory

    work = work_of("ppo", size=size, even=True, device=device)
    keep(out, None)
    record = measure_memory(work, say=_say(console))
    keep(out, record)
    parts = ", ".join(f"{name} {mb:.0f}" for name, mb in record["parts_mb"].items())
    console.print(f"peak {record['peak_mb']:.0f} MB; its parts {record['sum_mb']:.0f} MB: {parts}", markup=False)
    return record


def bench_curves(
    console: Console, *, quick: bool = False, out: Path | None = None, figure: Path | None = None
) -> dict[str, Any]:
    """The record of the scaling curves, and their figure."""
    from trueline.benchmarks.curves import measure_curves, points_of

    keep(out, None)
    with bar(console, "points", len(points_of(quick))) as step:
        record = measure_curves(quick, step=step)
    keep(out, record)
    if figure is not None:
        from trueline.benchmarks.figure import draw_curves

        draw_curves(record, figure)
    for point in record["points"]:
        console.print(
            f"{point['curve']:10} {point['label']:8} x={point['x']!s:8} {point['per_sample']:.4g} s", markup=False
        )
    return record


def work_of(name: str, *, size: str, even: bool, device: str) -> Work:
    """The standard work with this machine's threads, device and precision."""
    if device not in _DEVICES:
        raise _wrong(device, "--device", _DEVICES)
    standard_work(name, size=size)  # wrong names first: what follows takes a while
    from trueline.benchmarks.ours import has_precision

    device = _device() if device == "auto" else device
    precision = precision_for(device)
    precision = precision if has_precision(precision) else "fp32"  # one class on both sides
    # on a CPU four micro-batches of 16 were faster for the peer than one of 64: 30.5 s against 33 to 37 s
    peer = {"gradient_accumulation_steps": 4} if name == "ppo" and device == "cpu" else {}
    return standard_work(
        name, size=size, ragged=not even, device=device, precision=precision, threads=threads_here(), peer=peer
    )


def keep(out: Path | None, record: dict[str, Any] | None) -> None:
    """Write the record; with None see before the work is done that it can be written."""
    if out is None:
        return
    try:
        if out.is_dir():
            raise IsADirectoryError("it is a folder")
        out.parent.mkdir(parents=True, exist_ok=True)
        if record is not None:
            write_json(out, record)
    except OSError as error:
        raise InputError(
            f"cannot be written ({error})", where=str(out), field="-o", remedy="name another file"
        ) from None


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _wrong(value: str, field: str, known: tuple[str, ...]) -> InputError:
    return InputError(f"there is no {value!r}", where="bench", field=field, remedy=f"use one of {', '.join(known)}")


def _say(console: Console) -> Callable[[str], None]:
    return lambda text: console.print(text, style="dim", markup=False)


def _show(console: Console, record: dict[str, Any]) -> None:
    for side in ("ours", "peer"):
        row = record[side]
        seconds = row["seconds"]
        console.print(
            f"{side}: {seconds['median']:.3f} s a round ({seconds['min']:.3f} to {seconds['max']:.3f}), "
            f"{row['tokens_per_second']:.0f} tokens/s, {row['peak_mb']:.0f} MB, "
            f"{100 * row['gemm_share']:.1f}% of the best matrix product; {row['what']}",
            markup=False,
        )
    ratio = record["ratio"]
    console.print(
        f"{record['name']}: {ratio['median']:.2f} times as fast ({ratio['min']:.2f} to {ratio['max']:.2f}), equal",
        markup=False,
    )
