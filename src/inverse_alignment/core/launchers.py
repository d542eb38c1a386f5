"""How the stages that train are started: in this process, or as several that share out each batch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from inverse_alignment.core.configuration import Section

TrainingStage = Literal["sft", "reward_model", "token_reward", "refresh", "ppo"]
TRAINING_STAGES: tuple[TrainingStage, ...] = ("sft", "reward_model", "token_reward", "refresh", "ppo")
_STAGES = Field(TRAINING_STAGES, min_length=1, description="stages it starts; the others run in this process")


class InProcess(Section):
    """Every stage runs in the process that runs the flow."""

    type: Literal["none"] = "none"


class Torchrun(Section):
    """Processes of `torchrun` on this machine: each holds the whole model and learns from its share of every batch."""

    type: Literal["torchrun"] = "torchrun"
    processes: int = Field(2, ge=1, description="processes, on GPUs one for each; they share out every batch")
    stages: tuple[TrainingStage, ...] = _STAGES


class Accelerate(Section):
    """Processes of `accelerate launch` on this machine, as its configuration file says: data parallel, or sharded."""

    type: Literal["accelerate"] = "accelerate"
    config: str = Field(min_length=1, description="file for `accelerate launch --config_file`; launch/ has some")
    processes: int = Field(2, ge=2, description="processes, on GPUs one for each; they share out every batch")
    stages: tuple[TrainingStage, ...] = _STAGES


LauncherConfig = Annotated[InProcess | Torchrun | Accelerate, Field(discriminator="type")]
