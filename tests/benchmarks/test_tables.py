"""The page's tables are the result files: every figure comes from one, and writing them again changes nothing."""

from __future__ import annotations

import copy
import json

import pytest

from trueline.benchmarks.tables import main, read_results, rewrite
from trueline.errors import InputError

SECONDS = {"median": 2.0, "min": 1.9, "max": 2.25, "all": [2.0, 1.9, 2.25]}
SIDE = {
    "what": "TRL 1.16.0 dpo", "seconds": SECONDS, "cpu_seconds": SECONDS, "peak_mb": 812.4, "tokens_per_second": 1234.5,
    "gflops": 17.31, "gemm_share": 0.1234,
}  # fmt: skip
RECORD = {
    "name": "dpo", "against": "trl", "ours": SIDE | {"what": "trueline"}, "peer": SIDE,
    "ratio": {"median": 2.345, "min": 2.0, "max": 2.6},
    "equal": {"what": "loss of every round", "tolerance": 0.002, "largest_difference": 1.7e-7, "agrees": True},
    "work": {"parameters": 5_640_000, "batch_size": 16, "epochs": 1, "prompt_tokens": 64, "max_new_tokens": 64,
             "ragged": True},
    "machine": {"cpu": "A CPU", "cores": 2, "threads": 2, "memory_gb": 24.0,
                "gemm": {"gflops": 151.2, "precision": "fp32", "shape": [1, 2, 3]}},
    "versions": {"ours": {"torch": "2.13.0"}, "peer": {"trl": "1.16.0"}}, "date": "2026-11-22",
}  # fmt: skip
MEMORY = {
    "name": "memory", "peak_mb": 760.0, "sum_mb": 700.0, "share": 760 / 700, "parts_mb": {"policy": 118.0},
    "work": {"size": "medium"}, "machine": RECORD["machine"], "date": "2026-11-22",
}  # fmt: skip
POINT = {"curve": "batch", "label": "sft", "x": 32, "per_sample": 0.0125}
CURVES = {"name": "curves", "points": [POINT, POINT | {"x": 16, "per_sample": 0.02}], "machine": RECORD["machine"]}
CURVES["date"] = "2026-11-22"
NAMES = ("speed", "use", "equal", "control", "memory", "curves", "machines")
PAGE = "# Page\n\n" + "\n".join(f"<!-- table: {name} -->\nold\n<!-- end of table -->\n" for name in NAMES)


@pytest.fixture
def folder(tmp_path):
    control = copy.deepcopy(RECORD) | {"against": "self", "ratio": {"median": 1.01, "min": 0.97, "max": 1.05}}
    records = {"dpo-small": RECORD, "dpo-self": control, "memory": MEMORY, "curves": CURVES}
    for name, record in records.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(record))
    return tmp_path


def test_every_table_is_filled_from_the_files(folder, tmp_path) -> None:
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    main([str(folder), str(page)])
    text = page.read_text()
    blocks = dict(zip(NAMES, text.split("<!-- table: ")[1:], strict=True))
    assert "old" not in text and text.startswith("# Page\n")
    assert "| dpo, 5.64M, 16 rows | 64+64 at most | A CPU | 2 (1.9 to 2.25) |" in blocks["speed"]
    assert "**2.3x** | 2.0 to 2.6 | TRL 1.16.0 dpo |" in blocks["speed"] and "1.01" not in blocks["speed"]
    assert "| 812 | 1234 | 17.3 | 12.3% |" in blocks["use"]
    assert "1.7e-07" in blocks["equal"]
    assert "| 1.01 | 0.97 to 1.05 |" in blocks["control"]
    assert "| 760 | 700 | 1.09 | policy 118 |" in blocks["memory"]
    assert "16: 20; 32: 12.5" in blocks["curves"]
    assert "151 GFLOP/s fp32 at 1x2x3" in blocks["machines"] and "trl 1.16.0" in blocks["machines"]
    assert rewrite(text, read_results(folder)) == text


def test_without_results_a_table_says_so() -> None:
    assert rewrite(PAGE, {}).count("No results yet.") == len(NAMES)


@pytest.mark.parametrize(
    ("page", "said"),
    [("<!-- table: spede -->\n<!-- end of table -->", "no table 'spede'"), ("<!-- table: speed -->\n", "no end")],
)
def test_pages_that_cannot_be_filled(page, said) -> None:
    with pytest.raises(InputError, match=said):
        rewrite(page, {})


@pytest.mark.parametrize(
    ("text", "said"),
    [("{", "not JSON"), ("[]", "name None"), ('{"name": "dqo"}', "'dqo'"), ('{"name": "dpo"}', "no date, equal")],
)
def test_files_that_are_no_records(tmp_path, text, said) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(InputError, match=said):
        read_results(tmp_path)


def test_the_shipped_page_can_be_filled() -> None:
    from pathlib import Path

    page = Path(__file__).resolve().parents[2] / "docs" / "performance.md"
    assert rewrite(page.read_text(), {}).count("<!-- table:") == len(NAMES)
