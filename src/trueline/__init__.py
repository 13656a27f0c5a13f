"""trueline: DPO or PPO for aligning this language model, or both? Measured, with evidence, then trained."""

from __future__ import annotations

__all__ = ["__version__"]

__version__ = "0.1.0"
