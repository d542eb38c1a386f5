"""sources or checkpoints -> the tokenizers of policy and reward model, each with its chat template."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from inverse_alignment.core.configuration import Section
from inverse_alignment.core.context import StageContext
from inverse_alignment.data.sources import SourceConfig
from inverse_alignment.models.specs import InitialisedModel, ModelSpec


class TokenizersConfig(Section):
    """Which tokenizers to make or to copy."""

    policy: ModelSpec = Field(InitialisedModel(), description="the policy's base model")
    reward: ModelSpec = Field(InitialisedModel(), description="the reward model's base model")
    sources: tuple[SourceConfig, ...] = Field((), description="texts a new tokenizer is trained on")
