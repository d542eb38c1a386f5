"""preferences + tokenizer (+ checkpoint) -> the SFT policy, also the frozen reference."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from inverse_alignment.core.configuration import Section
from inverse_alignment.core.context import StageContext
from inverse_alignment.models.specs import ModelSpec


class TrainSft(Section):
    """Supervised fine-tuning on chosen answers."""

    type: Literal["train"] = "train"
    sources: tuple[str, ...] = Field((), description="source policies whose chosen answers are imitated; empty for all")
    pairs: int = Field(0, ge=0, description="most demonstrations to use; 0 for all")
    epochs: float = Field(3, gt=0, description="passes over the demonstrations")
    learning_rate: float = Field(2e-3, gt=0, description="peak learning rate of AdamW, linear decay")
    batch_size: int = Field(32, ge=1, description="demonstrations per optimiser step")
    warmup_share: float = Field(0.05, ge=0, lt=1, description="share of the steps over which the learning rate rises")


class CheckpointSft(Section):
    """The policy's checkpoint is an SFT model already; it is used as it is."""

    type: Literal["checkpoint"] = "checkpoint"


SftConfig = Annotated[TrainSft | CheckpointSft, Field(discriminator="type")]


class SftStage(Section):
    """Identity of the stage: how to train, and which model."""

    sft: SftConfig
    model: ModelSpec
