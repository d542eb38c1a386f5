"""Who compares a policy's answers with the SFT policy's where there is no gold reward. Light."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from inverse_alignment.core.configuration import NOT_IDENTITY, Section


class NoJudge(Section):
    """Nobody is asked."""

    type: Literal["none"] = "none"


class EndpointJudgeConfig(Section):
    """A language model behind an OpenAI-compatible endpoint."""

    type: Literal["endpoint"] = "endpoint"
    url: str = Field(
        description="base of the endpoint, as https://host/v1", pattern=r"^https?://", json_schema_extra=NOT_IDENTITY
    )
    model: str = Field(min_length=1, description="its name there")
    key_variable: str = Field(
        "", description="environment variable that holds the key; empty: none", json_schema_extra=NOT_IDENTITY
    )
    prompts: int = Field(100, ge=1, description="prompts whose first answers are compared, each in both orders")


JudgeConfig = Annotated[NoJudge | EndpointJudgeConfig, Field(discriminator="type")]
