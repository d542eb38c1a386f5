"""Who embeds and scores a pool: this process, or workers of a Ray cluster. Light, like all settings."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from inverse_alignment.core.configuration import Section


class ThisProcess(Section):
    """The process that runs the stage."""

    type: Literal["none"] = "none"


class RayWorkers(Section):
    """Workers of a Ray cluster, each with an encoder or policy of its own; results are equal to the bit."""

    type: Literal["ray"] = "ray"
    address: str = Field(
        "local", min_length=1, description="of the cluster, as ray.init takes it; local starts one on this machine"
    )
    workers: int = Field(2, ge=1, description="that work at one time")
    gpus: float = Field(0, ge=0, description="GPUs of each; a share of one is possible")


SelectionWorkers = Annotated[ThisProcess | RayWorkers, Field(discriminator="type")]
