"""Judges programs that nobody has read: each runs behind walls of the kernel, and what it says is compared elsewhere.

`Pool.judge` takes `Program`s (a source and its tests) and gives a `Verdict` for each. See docs/sandbox.md for what
holds and what does not.
"""

from __future__ import annotations

from .pool import Pool
from .program import AssertTest, CallTest, Limits, Program, SandboxError, StdioTest, Test, Verdict
from .tiers import Control, TierReport, self_test

__all__ = [
    "AssertTest",
    "CallTest",
    "Control",
    "Limits",
    "Pool",
    "Program",
    "SandboxError",
    "StdioTest",
    "Test",
    "TierReport",
    "Verdict",
    "self_test",
]
