"""The settings of a cluster: where it is, what a cell takes of it, and which parts of a cell run elsewhere."""

from __future__ import annotations

from pydantic import Field

from trueline.config import Section

__all__ = ["ClusterSettings"]


class ClusterSettings(Section):
    """`cluster.*`"""

    address: str = Field("", description="of a Ray cluster: HOST:6379, auto, or local to start one here; empty: none")
    cells: bool = Field(True, description="cells of a study run on the cluster; false: here, with their helpers there")
    cpus: float = Field(1.0, gt=0, description="cores of a cell, and of each sampler, scorer and judge")
    gpus: float = Field(0.0, ge=0, description="GPUs of a cell, and of each sampler and scorer")
    samplers: int = Field(0, ge=0, description="workers of each cell that sample; 0: the cell itself")
    scorers: int = Field(0, ge=0, description="workers of each cell that score with its reward model; 0: the cell")
    judges: int = Field(0, ge=0, description="workers of each cell that run programs; 0: the cell itself")
    unsafe: bool = Field(False, description="permit a cluster without token authentication: its port runs any code")

    @property
    def cell_cpus(self) -> float:
        """Cores of a cell with its helpers."""
        return self.cpus * (1 + self.samplers + self.scorers + self.judges)

    @property
    def cell_gpus(self) -> float:
        """GPUs of a cell with its helpers; judges need none."""
        return self.gpus * (1 + self.samplers + self.scorers)
