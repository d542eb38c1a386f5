"""frozen policy + prompts -> sampled answers with their log-probabilities under policy and reference."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from inverse_alignment.core.configuration import Section
from inverse_alignment.core.context import StageContext
from inverse_alignment.core.records import Split


class RolloutConfig(Section):
    """Sampling from a frozen policy."""

    split: Split = Field("train", description="prompts come from this split of the preference set")
    prompts: int = Field(256, ge=0, description="distinct prompts; 0 for all of the split")
    samples: int = Field(2, ge=1, description="answers per prompt")
    max_new_tokens: int = Field(64, ge=1, description="longest answer in policy tokens")
    temperature: float = Field(1.0, gt=0, description="divides the logits; 1 samples the policy itself")


class RolloutStage(Section):
    """Identity of the stage."""

    rollout: RolloutConfig
    context: int = Field(description="most tokens of prompt and answer together")
