"""What a stage is given besides its inputs and its configuration."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from inverse_alignment.core.launchers import InProcess, LauncherConfig
from inverse_alignment.core.metrics import Report


class VllmRuntime(BaseModel):
    """How the servers of `generation: vllm` are run. Bears no identity, like all of `RuntimeConfig`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    executable: str = Field("vllm", min_length=1, description="vLLM's program, a path or a name on the path")
    memory_share: float = Field(0.9, gt=0, le=1, description="share of a GPU's memory that the server takes")
    gpus: int = Field(1, ge=1, description="GPUs that the model is spread over")
    start_seconds: float = Field(600, gt=0, description="longest wait until the server is up")
    answer_seconds: float = Field(600, gt=0, description="longest wait for one answer")


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
    launcher: LauncherConfig = Field(InProcess(), description="what starts the stages that train")
    vllm: VllmRuntime = Field(VllmRuntime(), description="servers of generation: vllm")


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
