"""What a stage is given besides its inputs and its configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field

from inverse_alignment.core.blocks import in_order
from inverse_alignment.core.launchers import InProcess, LauncherConfig
from inverse_alignment.core.metrics import Report
from inverse_alignment.core.protocols import Cache, Spread
from inverse_alignment.core.workers import SelectionWorkers, ThisProcess

if TYPE_CHECKING:
    import numpy as np


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
    selection_mib: int = Field(
        1024, ge=1, description="MiB of the policy's embedded answers that a selection holds; more lie in a file"
    )
    selection_workers: SelectionWorkers = Field(ThisProcess(), description="who embeds and scores a pool of pairs")
    cache_gib: float = Field(
        4, ge=0, description="GiB of embeddings and log-probabilities that are kept for later rounds; 0: none"
    )
    checkpoint_seconds: float = Field(60, gt=0, description="least seconds between two checkpoints of a long stage")
    launcher: LauncherConfig = Field(InProcess(), description="what starts the stages that train")
    vllm: VllmRuntime = Field(VllmRuntime(), description="servers of generation: vllm")


class Forgetful:
    """A cache that keeps nothing."""

    def get(self, space: str, unit: str) -> Mapping[str, np.ndarray] | None:
        """See `Cache.get`."""
        return None

    def put(self, space: str, unit: str, arrays: Mapping[str, np.ndarray]) -> None:
        """See `Cache.put`."""


@dataclass(frozen=True)
class StageContext:
    """Where a stage writes, where it keeps partial state, whom it tells, and who helps.

    `out` is scratch that becomes the artifact; `partial` survives a kill and is empty on a first start. `digests` are
    those of the inputs, for keys of the `cache`; where they are not known nothing is kept. Neither `cache` nor `spread`
    changes a result.
    """

    out: Path
    partial: Path
    report: Report
    runtime: RuntimeConfig
    seed: int = 0
    digests: Mapping[str, str] = field(default_factory=dict)
    cache: Cache = field(default_factory=Forgetful)
    spread: Spread = in_order
