"""The machine: the precision that pays, the best matrix product, the parts of a peak, the points of the curves."""

from __future__ import annotations

import pytest

from trueline.benchmarks.curves import points_of
from trueline.benchmarks.figure import draw_curves
from trueline.benchmarks.flops import parameter_count
from trueline.benchmarks.machine import describe, peak_gemm, precision_for
from trueline.benchmarks.memory import parts_of
from trueline.benchmarks.work import standard_work
from trueline.errors import RunError


@pytest.mark.parametrize(
    ("device", "flags", "precision"),
    [
        ("cpu", {"avx2", "avx512f"}, "fp32"),
        ("cpu", {"avx512f", "avx512_bf16"}, "bf16"),
        ("cpu", {"amx_bf16"}, "bf16"),
        ("cuda", set(), "bf16"),
    ],
)
def test_bf16_only_where_the_machine_has_it(device, flags, precision) -> None:
    assert precision_for(device, flags) == precision


def test_the_machine_is_described_and_a_failing_product_says_why() -> None:
    with pytest.raises(RunError, match="fp7"):
        peak_gemm("fp7", "cpu", 1)
    machine = describe("cpu", 1)
    assert machine["cores"] >= 1 and machine["memory_gb"] > 0.5 and machine["cpu"]


def test_parts_of_a_peak_by_hand() -> None:
    model = 4 * parameter_count("tiny") / 2**20
    parts = parts_of(standard_work("ppo", size="tiny"), 100.0, 200.0)
    # policy, critic, reference, reward; two moments and a gradient of policy and critic
    assert sum(parts.values()) == pytest.approx((4 + 2 * 2 + 2) * model + 300.0)


def test_each_curve_moves_one_thing() -> None:
    points = points_of()
    assert {p.curve for p in points} == {"batch", "length", "size"} | {p.curve for p in points if p.processes > 1}
    for curve, name in (("batch", "batch_size"), ("length", "max_new_tokens"), ("size", "size")):
        works = [p.work.described() for p in points if p.curve == curve and p.work.kind == "sft"]
        moving = {key for key in works[0] if len({str(work[key]) for work in works}) > 1}
        assert moving == {name}, curve
    assert {p.x for p in points if p.curve == "length" and p.work.kind == "rollout"} == {32, 64, 128, 256, 512, 1024}
    assert 0 < len(points_of(quick=True)) < 6


def test_the_curves_are_drawn(tmp_path) -> None:
    points = [{"curve": "batch", "label": "sft", "x": x, "per_sample": 0.5 / x} for x in (16, 32, 64)]
    draw_curves({"points": points}, tmp_path / "images" / "curves.png")
    drawn = (tmp_path / "images" / "curves.png").read_bytes()
    draw_curves({"points": points[:1]}, tmp_path / "less.png")
    assert drawn[:8] == b"\x89PNG\r\n\x1a\n" and drawn != (tmp_path / "less.png").read_bytes()
