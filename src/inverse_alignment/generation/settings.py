"""Who samples from a frozen policy. Light: imports no torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from inverse_alignment.core.configuration import Section


class HfGeneration(Section):
    """The policy answers in this process; a row's noise depends on its seed alone."""

    type: Literal["hf"] = "hf"


class VllmGeneration(Section):
    """A vLLM server, started for the stage, answers: other samples than in this process from the same seeds."""

    type: Literal["vllm"] = "vllm"
    version: str = Field(
        min_length=1, description="version of vLLM, such as 0.32.0; a server of another one is refused"
    )
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="weights and arithmetic of the server")


LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE = 0.01, 2.0
"""What vLLM samples at: it takes a lower one for 0.01, which only its log says, and refuses a higher one."""

GenerationConfig = Annotated[HfGeneration | VllmGeneration, Field(discriminator="type")]
