"""policy + reward models + gold -> what the policy is worth, and whether the reward model still sees it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from inverse_alignment.core.configuration import Section
from inverse_alignment.core.context import StageContext


class TextWorldGold(Section):
    """The exact reward of the embedded text world; only for its prompts."""

    type: Literal["text_world"] = "text_world"


class NoGold(Section):
    """Nobody knows the true reward: what needs it is reported as null."""

    type: Literal["none"] = "none"


class EvaluationConfig(Section):
    """What is measured after every round."""

    gold: Annotated[TextWorldGold | NoGold, Field(discriminator="type")] = Field(
        TextWorldGold(), description="the reward that is right by construction, if there is one"
    )
    prompts: int = Field(0, ge=0, description="prompts of the test split; 0 for all")
    samples: int = Field(8, ge=1, description="answers per prompt")
    temperature: float = Field(1.0, gt=0, description="sampling temperature")
    max_new_tokens: int = Field(64, ge=1, description="longest answer in policy tokens")
    shown_prompts: int = Field(4, ge=0, description="prompts whose answers the report shows")


class EvaluateStage(Section):
    """Identity of the stage."""

    evaluation: EvaluationConfig
    context: int = Field(description="most tokens of prompt and answer together, in policy tokens")
    reward_context: int = Field(description="the same in the reward model's tokens")
