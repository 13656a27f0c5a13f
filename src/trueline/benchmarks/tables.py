"""Rewrites the tables of a page from the result files, so that no figure is typed by hand.

    python -m trueline.benchmarks.tables benchmarks/results docs/performance.md

A table stands between `<!-- table: NAME -->` and `<!-- end of table -->`; NAME is a function of `TABLES`.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from trueline.errors import InputError

__all__ = ["TABLES", "main", "read_results", "rewrite"]

Results = dict[str, dict[str, Any]]

_BLOCK = re.compile(r"(<!-- table: ([\w-]+) -->\n).*?(<!-- end of table -->)", re.DOTALL)
_NOTHING = "No results yet.\n"
_ORDER = ("ppo", "dpo", "reward", "sft", "grpo", "rloo", "rollout", "sandbox")
_NEEDED = {"name", "ours", "peer", "ratio", "work", "machine", "versions", "date", "equal"}


def read_results(folder: Path) -> Results:
    """The records in `folder` by the stem of their files. Raises InputError where one is none."""
    found = {}
    for path in sorted(folder.glob("*.json")):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(f"not JSON ({error})", where=str(path), remedy="measure it again") from None
        name = record.get("name") if isinstance(record, dict) else None
        missing = _NEEDED - set(record) if name in _ORDER else set()
        if missing or name not in (*_ORDER, "memory", "curves"):
            what = f"no {', '.join(sorted(missing))}" if missing else f"name {name!r} is not that of a benchmark"
            raise InputError(what, where=str(path), remedy="measure it again")
        found[path.stem] = record
    return found


def rewrite(page: str, results: Results) -> str:
    """The page with every table made anew. Raises InputError for a table that there is not, or one without an end."""
    if page.count("<!-- table:") != len(_BLOCK.findall(page)):
        raise InputError("a table has no end", where="page", remedy="close it with <!-- end of table -->")

    def fill(match: re.Match[str]) -> str:
        if match[2] not in TABLES:
            raise InputError(f"there is no table {match[2]!r}", where="page", remedy=f"use one of {', '.join(TABLES)}")
        return match[1] + (TABLES[match[2]](results) or _NOTHING) + match[3]

    return _BLOCK.sub(fill, page)


def speed(results: Results) -> str:
    """Seconds and ratio of every comparison with a peer."""
    head = ("work", "rows", "machine", "ours, s", "peer, s", "ratio", "lowest to highest", "peer")
    rows = []
    for record in _comparisons(results):
        ours, peer, ratio = (record[key] for key in ("ours", "peer", "ratio"))
        rows.append((
            _work(record), _rows(record), _machine(record), _seconds(ours), _seconds(peer),
            f"**{ratio['median']:.1f}x**", f"{ratio['min']:.1f} to {ratio['max']:.1f}", peer["what"] + _chosen(peer),
        ))  # fmt: skip
    return _table(head, rows)


def use(results: Results) -> str:
    """What the seconds are made of: processor seconds, memory, tokens, share of the best matrix product."""
    head = ("work", "rows", "", "CPU s", "peak MB", "tokens/s", "model GFLOP/s", "share of the best product")
    rows = []
    for record in _comparisons(results):
        for side in ("ours", "peer"):
            row = record[side]
            if "gemm_share" not in row:
                continue
            memory = f"{row['peak_mb']:.0f}" + (f", GPU {row['device_peak_mb']:.0f}" if "device_peak_mb" in row else "")
            rows.append((
                _work(record), _rows(record), side, _seconds({"seconds": row["cpu_seconds"]}), memory,
                f"{row['tokens_per_second']:.0f}", f"{row['gflops']:.1f}", f"{100 * row['gemm_share']:.1f}%",
            ))  # fmt: skip
    return _table(head, rows)


def equal(results: Results) -> str:
    """The proof that both sides did the same work."""
    head = ("work", "rows", "what was compared", "tolerance", "found")
    rows = []
    for record in _comparisons(results):
        found = record["equal"]
        if "metrics" in found:
            text = "; ".join(
                f"{n} {m['ours']:.4g} and {m['peer']:.4g} (z {m['z']:.1f})" for n, m in found["metrics"].items()
            )
        elif "largest_difference" in found:
            text = f"largest relative difference {found['largest_difference']:.1e}"
        else:
            text = "all" if found["agrees"] else "no"
        rows.append((_work(record), _rows(record), found["what"], str(found.get("tolerance", "none")), text))
    return _table(head, rows)


def control(results: Results) -> str:
    """Our side against itself: what the method of measurement adds."""
    rows = [
        (_work(r), _rows(r), f"{r['ratio']['median']:.2f}", f"{r['ratio']['min']:.2f} to {r['ratio']['max']:.2f}")
        for r in results.values()
        if r.get("against") == "self"
    ]
    return _table(("work", "rows", "ratio", "lowest to highest"), rows)


def memory(results: Results) -> str:
    """PPO's peak against its parts."""
    rows = []
    for record in results.values():
        if record["name"] == "memory":
            parts = ", ".join(f"{name} {mb:.0f}" for name, mb in record["parts_mb"].items())
            size, share = record["work"]["size"], f"{record['share']:.2f}"
            rows.append((size, _machine(record), f"{record['peak_mb']:.0f}", f"{record['sum_mb']:.0f}", share, parts))
    return _table(("model", "machine", "peak MB", "sum of parts MB", "peak / sum", "parts in MB"), rows)


def curves(results: Results) -> str:
    """Milliseconds of a sample along each curve."""
    rows = []
    for record in results.values():
        points = record["points"] if record["name"] == "curves" else []
        for key in sorted({(p["curve"], p["label"]) for p in points}):
            line = sorted((p["x"], p["per_sample"]) for p in points if (p["curve"], p["label"]) == key)
            rows.append((*key, "; ".join(f"{x:g}: {1000 * cost:.3g}" for x, cost in line)))
    return _table(("curve", "of", "x: milliseconds a sample"), rows)


def machines(results: Results) -> str:
    """Where and when, and with what."""
    found: dict[tuple[str, ...], list[str]] = {}
    for stem, record in results.items():
        machine, versions = record["machine"], record.get("versions", {})
        gemm = machine.get("gemm")
        best = (
            f"{gemm['gflops']:.0f} GFLOP/s {gemm['precision']} at {'x'.join(map(str, gemm['shape']))}" if gemm else ""
        )
        used = "; ".join(f"{side}: {', '.join(f'{k} {v}' for k, v in row.items())}" for side, row in versions.items())
        key = (_machine(record), f"{machine['threads']} of {machine['cores']}", f"{machine['memory_gb']:g} GB")
        found.setdefault((*key, best, used, record["date"]), []).append(stem)
    rows = [(", ".join(stems), *key) for key, stems in found.items()]
    head = ("results", "machine", "threads of cores", "memory", "best matrix product", "versions", "date")
    return _table(head, rows)


TABLES: dict[str, Callable[[Results], str]] = {
    "speed": speed, "use": use, "equal": equal, "control": control, "memory": memory, "curves": curves,
    "machines": machines,
}  # fmt: skip


def _comparisons(results: Results) -> list[dict[str, Any]]:
    found = [r for r in results.values() if r["name"] in _ORDER and r.get("against") != "self"]
    return sorted(found, key=lambda r: (_ORDER.index(r["name"]), r["work"].get("parameters", 0), _rows(r)))


def _work(record: dict[str, Any]) -> str:
    work = record["work"]
    if "parameters" not in work:
        return record["name"]
    batch = f"{work['batch_size']} rows" + (f", {work['epochs']} epochs" if work["epochs"] > 1 else "")
    return f"{record['name']}, {work['parameters'] / 1e6:.3g}M, {batch}"


def _rows(record: dict[str, Any]) -> str:
    work = record["work"]
    if "ragged" not in work:
        return ""
    return f"{work['prompt_tokens']}+{work['max_new_tokens']} " + ("at most" if work["ragged"] else "each")


def _machine(record: dict[str, Any]) -> str:
    return record["machine"].get("gpu") or record["machine"]["cpu"]


def _seconds(row: dict[str, Any]) -> str:
    seconds = row["seconds"]
    if not isinstance(seconds, dict):
        return f"{seconds:.3g}"
    return f"{seconds['median']:.3g} ({seconds['min']:.3g} to {seconds['max']:.3g})"


def _chosen(peer: dict[str, Any]) -> str:
    """The setting that the peer's set-up chose, where it had a choice."""
    return f" ({peer['setting']})" if "tried" in peer else ""


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return ""
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def main(arguments: Sequence[str]) -> None:
    """FOLDER PAGE: rewrite PAGE from the results in FOLDER."""
    folder, page = map(Path, arguments)
    page.write_text(rewrite(page.read_text(encoding="utf-8"), read_results(folder)), encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python -m trueline.benchmarks.tables FOLDER PAGE.md")
    try:
        main(sys.argv[1:])
    except InputError as error:
        sys.exit(f"trueline: {error}")
