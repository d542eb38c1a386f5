"""How a first reward model is made. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from inverse_alignment.core.configuration import Section
from inverse_alignment.core.errors import UserError
from inverse_alignment.reward.settings import FullRule, LoraRule


class LastStop(Section):
    """Training ends with its last step."""

    type: Literal["last"] = "last"


class HeldOutStop(Section):
    """Training ends once it no longer helps on pairs of the validation split; the weights best on them are kept."""

    type: Literal["held_out"] = "held_out"
    every: int = Field(10, ge=1, description="steps from one look at the held-out pairs to the next")
    patience: int = Field(3, ge=1, description="looks without a better loss after which training ends")
    pairs: int = Field(256, ge=1, description="held-out pairs that are looked at, the first of the split")


class FreePrefixes(Section):
    """Nothing is asked of what the model says of the beginnings of answers."""

    type: Literal["off"] = "off"


class ValuePrefixes(Section):
    """TCRM (arXiv 2604.22981): the score of a beginning is to be what the whole will score, like a value."""

    type: Literal["values"] = "values"
    smoothness: float = Field(0.1, ge=0, description="weight of the squared change of the score from token to token")
    look_ahead: float = Field(0.01, ge=0, description="weight of its squared distance from the score of the whole")


class UnknownStrength(Section):
    """All pairs are taken as they are labelled."""

    type: Literal["off"] = "off"


class EnsembleStrength(Section):
    """Preference strength (Secrets of RLHF II, arXiv 2401.06080): models trained first say how strong each pair is.

    A pair's strength is their mean gap between its answers; below zero they think that its label is wrong. Without a
    recipe it is reported alone, by deciles. Recipes of the source: flip, margin, flip and margin, soften and margin.
    """

    type: Literal["ensemble"] = "ensemble"
    members: int = Field(5, ge=2, description="M, models that are trained first, as the reward model is")
    share: float = Field(
        0.5,
        gt=0,
        le=1,
        description="share of the pairs that each of them learns from; those that did not see a pair judge it. "
        "1, as in the source: all see all, and judge all",
    )
    flip: float = Field(0.0, ge=0, lt=1, description="share of the pairs, the weakest, whose label is turned round")
    soften: float = Field(0.0, ge=0, le=1, description="share of the pairs, the weakest of the rest, that are doubted")
    soften_strong: float = Field(0.0, ge=0, le=1, description="share of the pairs, the strongest, that are doubted")
    soft_label: float = Field(0.9, ge=0.5, le=1, description="probability that the label of a doubted pair is right")
    margin: float = Field(
        0.0, ge=0, description="times its strength, if above zero, is what the gap of a pair has to exceed"
    )

    @model_validator(mode="after")
    def _shares_fit(self) -> EnsembleStrength:
        if self.flip + self.soften + self.soften_strong > 1:
            raise UserError(
                "flip, soften and soften_strong are more than all pairs",
                where="reward.strength",
                fix="lower them so that they add up to 1 at most",
            )
        return self


class NoContrast(Section):
    """Features learn from the scores alone."""

    type: Literal["off"] = "off"


class InfoNceContrast(Section):
    """Contrastive term of Secrets of RLHF II (arXiv 2401.06080): features of pairs are to differ, through noise."""

    type: Literal["info_nce"] = "info_nce"
    weight: float = Field(0.1, gt=0, description="of the term in the loss; the source does not say which it took")
    temperature: float = Field(0.1, gt=0, description="τ, by which cosines are divided")
    dropout: float = Field(0.1, gt=0, lt=1, description="probability that a feature is dropped from a view")


class TrainReward(Section):
    """Bradley-Terry training on one split of all sources: train, and audit for the model that audits it."""

    type: Literal["train"] = "train"
    epochs: float = Field(1, gt=0, description="passes over the pairs")
    learning_rate: float = Field(1e-3, gt=0, description="peak learning rate of AdamW, linear decay")
    batch_size: int = Field(32, ge=1, description="pairs per optimiser step")
    warmup_share: float = Field(0.05, ge=0, lt=1, description="share of the steps over which the learning rate rises")
    label_smoothing: float = Field(0.0, ge=0, lt=0.5, description="assumed probability that a label is wrong")
    centring: float = Field(0.01, ge=0, description="weight of the penalty on the squared sum of a pair's scores")
    use_margins: bool = Field(False, description="subtract the data's preference strength from the score gap")
    start: Literal["sft", "base"] = Field(
        "sft", description="whose trunk the model starts from, if the tokenizers are equal"
    )
    strength: Annotated[UnknownStrength | EnsembleStrength, Field(discriminator="type")] = Field(
        UnknownStrength(), description="whether and how the strength of each preference is found out and used"
    )
    prefixes: Annotated[FreePrefixes | ValuePrefixes, Field(discriminator="type")] = Field(
        FreePrefixes(), description="what is asked of the scores of beginnings of answers"
    )
    contrast: Annotated[NoContrast | InfoNceContrast, Field(discriminator="type")] = Field(
        NoContrast(), description="whether features are to tell pairs apart"
    )
    weights: Annotated[FullRule | LoraRule, Field(discriminator="type")] = Field(
        FullRule(), description="which weights learn: all, or adapters and the score head"
    )
    stop: Annotated[LastStop | HeldOutStop, Field(discriminator="type")] = Field(
        LastStop(), description="when training ends"
    )


class CheckpointReward(Section):
    """The reward model's checkpoint is a trained sequence classifier with one label; it is used as it is."""

    type: Literal["checkpoint"] = "checkpoint"
