"""What a score is where a reward model says how sure it is. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from inverse_alignment.core.configuration import Section


class MeanScore(Section):
    """The mean: how sure the model is does not matter."""

    type: Literal["mean"] = "mean"


class LowerBound(Section):
    """The mean less so many standard deviations."""

    type: Literal["lower_bound"] = "lower_bound"
    k: float = Field(1.0, gt=0, description="standard deviations that are subtracted")


class WorstCase(Section):
    """The least that any member of an ensemble says (WCO, arXiv 2310.02743)."""

    type: Literal["worst_case"] = "worst_case"


class UncertaintyWeighted(Section):
    """The mean less a share of the variance (UWO, arXiv 2310.02743)."""

    type: Literal["uwo"] = "uwo"
    coefficient: float = Field(
        0.5, gt=0, description="weight of the variance, per standard deviation of the reference sample"
    )


CautionConfig = Annotated[MeanScore | LowerBound | WorstCase | UncertaintyWeighted, Field(discriminator="type")]
