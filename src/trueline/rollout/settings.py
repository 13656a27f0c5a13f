"""The settings of sampling: which engine, where its server is, and how far it may be from the trainer."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from trueline.config import Section

__all__ = ["RolloutSettings"]


class RolloutSettings(Section):
    """`rollout.*`"""

    engine: Literal["native", "vllm"] = Field("native", description="who samples: this process, or a vLLM server")
    url: tuple[str, ...] = Field(
        (), description="of running vLLM servers, each for one cell at a time: http://127.0.0.1:8000"
    )
    command: str = Field(
        "", description="the vllm command of another environment: a server is started for the run, and ended with it"
    )
    options: tuple[str, ...] = Field((), description="more arguments of `vllm serve`: --tensor-parallel-size=2")
    reward_url: str = Field(
        "", description="of a vLLM server of the reward model in reward.path (vllm serve FOLDER --runner pooling)"
    )
    folder: str = Field("", description="where weights are handed over, seen by both; empty: /dev/shm")
    transfer: Literal["files", "group"] = Field(
        "files", description="how weights go to a server: files that both see, or a process group (NCCL, or gloo)"
    )
    sleep: bool = Field(False, description="the server gives its GPU's memory back while it does not sample")
    timeout: float = Field(600.0, gt=0, description="seconds that a server has for an answer, retries in it")
    gap_warn: float = Field(1.05, ge=1, description="mean exp |engine's - trainer's log-prob| that is told")
    gap_stop: float = Field(1.1, ge=1, description="the same that ends the run")
    importance: Literal["off", "token"] = Field(
        "off", description="weights min(cap, pi_trainer / pi_engine) of the policy's loss, token by token"
    )
    importance_cap: float = Field(2.0, ge=1, description="the most that a token weighs")

    @property
    def servers(self) -> int:
        """How many cells can sample at a time; 0: as many as there are workers."""
        return 0 if self.engine == "native" else max(1, len(self.url))
