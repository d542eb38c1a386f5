"""How a reward model is refreshed: which weights learn, and from which pairs. Light: imports no torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from inverse_alignment.core.configuration import Section


class FullRule(Section):
    """All weights learn, from the selected pairs."""

    type: Literal["full"] = "full"


class LoraRule(Section):
    """Low-rank adapters on the trunk (arXiv 2106.09685) and the score head learn; then they are merged."""

    type: Literal["lora"] = "lora"
    rank: int = Field(8, ge=1, description="r, inner width of an adapter")
    alpha: float = Field(16.0, gt=0, description="α; an adapter's output is scaled by α / r")
    targets: tuple[str, ...] = Field(
        (), description="endings of the names of linear layers of the trunk that get one; empty: all"
    )


class HeadRule(Section):
    """The score head alone learns; the trunk says of every text what it said before."""

    type: Literal["head"] = "head"


RefreshRule = Annotated[FullRule | LoraRule | HeadRule, Field(discriminator="type")]
