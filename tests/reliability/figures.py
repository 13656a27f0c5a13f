"""The figures that tests measure, written where `TRUELINE_FIGURES` says (a folder), so that a table can be made."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

__all__ = ["record"]


def record(figure: str, part: str, **measured: Any) -> None:
    """Write one part of a figure down; numbers of one name and figure are added up over parts by who collects them."""
    folder = os.environ.get("TRUELINE_FIGURES")
    if not folder:
        return
    path = Path(folder) / f"{figure}-{part}.json"
    path.write_text(json.dumps({"figure": figure, "part": part} | measured), encoding="utf-8")
