"""A copy of the package with one piece replaced, and what a test says of it. No test: run by tests and by mutation."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

__all__ = ["ROOT", "SOURCE", "failing", "patched"]

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src" / "trueline"


def patched(folder: Path, file: str, text: str) -> Path:
    """A folder to put on the path: the package, with `file` holding `text`."""
    target = folder / "trueline"
    if not target.exists():
        shutil.copytree(SOURCE, target, ignore=shutil.ignore_patterns("__pycache__"))
    (target / file).write_text(text, encoding="utf-8")
    return folder


def failing(folder: Path, tests: list[str], *, timeout: float = 240) -> list[str]:
    """The tests (FILE or FILE::NAME below `tests/`) that fail with the package in `folder`; the first one ends it.

    A run that hangs or dies counts as a failure of what was running.
    """
    environment = os.environ | {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}
    environment |= {"PYTHONDONTWRITEBYTECODE": "1", "HYPOTHESIS_STORAGE_DIRECTORY": str(folder / "hypothesis")}
    environment.pop("TRUELINE_FIGURES", None)
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", "--no-header",
               "-m", "not nightly", "-W", "error", *(f"tests/{test}" for test in tests)]  # fmt: skip
    try:
        ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        return [f"{tests[0]} (hung)"]
    if ran.returncode == 0:
        return []
    found = re.findall(r"^(?:FAILED|ERROR) tests/([^\s\[]+)", ran.stdout, re.MULTILINE)
    return found or [f"{tests[0]} (exit {ran.returncode})"]
