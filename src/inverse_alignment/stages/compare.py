"""evaluations of every arm, seed and round -> one comparison and one report page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from inverse_alignment.core.configuration import Section
from inverse_alignment.core.context import StageContext


class CompareStage(Section):
    """Identity of the stage: which arms, seeds and rounds are set side by side."""

    title: str
    arms: tuple[str, ...]
    seeds: tuple[int, ...]
    rounds: int
    config_digest: str = Field(description="sha256 of the identity-bearing configuration")
