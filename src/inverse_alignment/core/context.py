"""What a stage is given besides its inputs and its configuration."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from inverse_alignment.core.metrics import Report


class RuntimeConfig(BaseModel):
    """Where and how stages run. Bears no identity: changing it reuses what is there."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="where models live; auto takes a GPU if it sees one"
    )
    threads: int = Field(1, ge=0, description="CPU threads of torch; 0 leaves torch's own choice")
    generation_rows: int = Field(256, ge=1, description="rows sampled at once")
    scoring_rows: int = Field(128, ge=1, description="rows scored or embedded at once")
    training_tokens: int = Field(
        16_384, ge=1, description="padded tokens that PPO reads at once; a larger minibatch takes several passes"
    )
    checkpoint_seconds: float = Field(60, gt=0, description="least seconds between two checkpoints of a long stage")


@dataclass(frozen=True)
class StageContext:
    """Where a stage writes, where it keeps partial state, and whom it tells.

    `out` is scratch that becomes the artifact; `partial` survives a kill and is empty on a first start.
    """

    out: Path
    partial: Path
    report: Report
    runtime: RuntimeConfig
    seed: int = 0
