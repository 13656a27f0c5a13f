"""The program as a user starts it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}

SHORT = (
    "world.demonstrations=300", "world.pairs=80", "sft.epochs=1", "reward.epochs=1", "dpo.epochs=1", "ppo.steps=2",
    "ppo.batch_size=16", "ppo.minibatches=1", "ppo.critic_warmup=0", "ppo.min_ended=0", "study.arms=dpo,ppo",
    "study.no_shift=false", "evaluate.test_prompts=12", "evaluate.samples=1", "select.prompts=6",
)  # fmt: skip
"""Settings of a study that is over soon, for what is true of every study."""


def trueline(*arguments: str | Path, cwd: Path, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    """`trueline ARGUMENTS` in the folder `cwd`, one computing thread a process."""
    command = [sys.executable, "-m", "trueline", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, timeout=timeout)
