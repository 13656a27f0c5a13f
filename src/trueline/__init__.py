"""trueline: DPO or PPO for aligning this language model, or both? Measured, with evidence, then trained.

The names below are the public interface; each is imported when it is first used, so that `import trueline` stays light.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "ChatTokenizer": "data.chat",
    "Decoder": "models.decoder",
    "Demonstration": "types",
    "InputError": "errors",
    "Judgement": "types",
    "LearnedReward": "rewards.learned",
    "Message": "types",
    "NativeEngine": "rollout.native",
    "Pair": "types",
    "Prompt": "types",
    "Rollout": "rollout.engine",
    "Sampling": "models.scoring",
    "Task": "tasks.task",
    "TruelineError": "errors",
    "build_report": "study.report:build",
    "check_data": "data.check:check",
    "load_decoder": "models.checkpoints",
    "load_pairs": "data.loading",
    "load_scalar": "models.checkpoints",
    "response_logprobs": "models.scoring",
    "run_stage": "commands.run",
    "run_study": "commands.run",
    "save_model": "models.checkpoints",
    "settings": "commands.resolve:resolve",
}

__all__ = [*_HOMES, "__version__"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'trueline' has no attribute {name!r}")
    home, _, attribute = _HOMES[name].partition(":")
    return getattr(importlib.import_module(f"trueline.{home}"), attribute or name)
