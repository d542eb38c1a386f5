"""incumbent reward model + selected pairs -> calibrated challenger, or the incumbent where the gate refuses it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from inverse_alignment.core.configuration import Section
from inverse_alignment.core.context import StageContext
from inverse_alignment.stages.select import EncoderConfig, LexicalEncoder


class GateOn(Section):
    """Champion and challenger on held-out pairs near the policy; the champion stays unless the challenger is better."""

    type: Literal["paired"] = "paired"
    confidence: float = Field(
        0.5, ge=0.5, lt=1, description="one-sided bootstrap confidence that the challenger's log-likelihood is higher"
    )
    aligned_share: float = Field(
        0.5, gt=0, le=1, description="share of the gate split, nearest to the policy's rollouts, that is judged on"
    )
    resamples: int = Field(2000, ge=100, description="bootstrap resamples")
    encoder: EncoderConfig = Field(LexicalEncoder(), description="what measures nearness to the rollouts")


class GateOff(Section):
    """Every challenger is accepted: shows what the gate does."""

    type: Literal["off"] = "off"


class RefreshConfig(Section):
    """How a reward model is refreshed on the selected pairs."""

    pairs_seen: int = Field(
        900, ge=2, description="pairs presented in training, selected and replayed together; equal for every arm"
    )
    replay_share: float = Field(0.33, ge=0, lt=1, description="share of those that is drawn from the whole train split")
    learning_rate: float = Field(1e-4, gt=0, description="peak learning rate of AdamW, linear decay")
    batch_size: int = Field(32, ge=1, description="pairs per optimiser step")
    warmup_share: float = Field(0.1, ge=0, lt=1, description="share of the steps over which the learning rate rises")
    label_smoothing: float = Field(0.0, ge=0, lt=0.5, description="assumed probability that a label is wrong")
    centring: float = Field(0.01, ge=0, description="weight of the penalty on the squared sum of a pair's scores")
    use_margins: bool = Field(False, description="subtract the data's preference strength from the score gap")
    gate: Annotated[GateOn | GateOff, Field(discriminator="type")] = Field(
        GateOn(), description="whether and how a refreshed model must prove itself"
    )


class RefreshStage(Section):
    """Identity of the stage."""

    refresh: RefreshConfig
    context: int = Field(description="most tokens of prompt and answer together, in the reward model's tokens")
