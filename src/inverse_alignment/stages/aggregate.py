"""sources + tokenizers -> one preference set: pooled, cleaned, split by prompt, counted."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from inverse_alignment.core.configuration import Section
from inverse_alignment.core.context import StageContext
from inverse_alignment.data.aggregate import AggregateSettings
from inverse_alignment.data.sources import SourceConfig


class AggregateStage(Section):
    """Identity of the stage."""

    sources: tuple[SourceConfig, ...]
    aggregate: AggregateSettings
    context: int = Field(description="most tokens of prompt and answer together, in policy tokens")
    reward_context: int = Field(description="the same in the reward model's tokens")
