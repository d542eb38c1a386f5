"""Reward models that say how sure they are, or are harder to fool: how they are made. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field, model_validator

from inverse_alignment.core.configuration import Section
from inverse_alignment.core.errors import UserError
from inverse_alignment.reward.ava_settings import AvaReward, DemonstrationsObjective, PreferenceTransformerReward
from inverse_alignment.reward.settings import LoraRule
from inverse_alignment.reward.training_settings import CheckpointReward, TrainReward

PLAIN = frozenset(
    {"type", "epochs", "learning_rate", "batch_size", "warmup_share", "label_smoothing", "centring", "use_margins"}
    | {"start"}
)
"""What of `training` the models with several outputs know."""


class SeparateTrunks(Section):
    """Every member is a whole model."""

    type: Literal["separate"] = "separate"


class SharedTrunk(Section):
    """One trunk with a score head for every member, all trained together: as cheap as one model."""

    type: Literal["shared"] = "shared"


class LoraTrunks(Section):
    """Every member has adapters (arXiv 2106.09685) and a score head of its own; the trunk below them is kept once."""

    type: Literal["lora"] = "lora"
    rank: int = Field(8, ge=1, description="r, inner width of an adapter")
    alpha: float = Field(16.0, gt=0, description="α; an adapter's output is scaled by α / r")
    targets: tuple[str, ...] = Field(
        (), description="endings of the names of linear layers of the trunk that get one; empty: all"
    )


class EnsembleReward(Section):
    """Several models that differ in what chance decides: the score is their mean, and they say how sure they are.

    Source: arXiv 2310.02743; that it lessens reward hacking and does not end it: arXiv 2312.09244.
    """

    type: Literal["ensemble"] = "ensemble"
    members: int = Field(4, ge=2, description="models; each is trained in turn, but for a shared trunk")
    trunk: Annotated[SeparateTrunks | SharedTrunk | LoraTrunks, Field(discriminator="type")] = Field(
        SeparateTrunks(), description="what the members have of their own: all, a score head, or adapters and a head"
    )
    bootstrap: bool = Field(
        False, description="each member learns from as many pairs drawn with replacement, not from all of them"
    )
    training: TrainReward = Field(TrainReward(), description="how a member is trained: see type train")

    @model_validator(mode="after")
    def _heads_know_the_training(self) -> EnsembleReward:
        if isinstance(self.trunk, SharedTrunk):
            require_plain(self.training, "a shared trunk")
        if isinstance(self.trunk, LoraTrunks):
            _require_full(self.training, "set reward.trunk.type to separate")
        return self


class LastLayer(Section):
    """The weights that make the score of what the last layer reads; the trunk counts as known."""

    type: Literal["last_layer"] = "last_layer"


class LaplaceReward(Section):
    """One model, and a Gaussian posterior over some of its weights, by which it says how sure it is: arXiv 2402.13210.

    Needs laplace-torch. Every score takes a product with the posterior's covariance, and with lora a backward pass.
    """

    type: Literal["laplace"] = "laplace"
    weights: Annotated[LastLayer | LoraTrunks, Field(discriminator="type")] = Field(
        LastLayer(), description="whose posterior it is: the last layer's, or that of adapters and score head"
    )
    prior: float | None = Field(
        1.0, gt=0, description="precision of the Gaussian prior on each weight; null: the one of most evidence"
    )
    training: TrainReward = Field(TrainReward(), description="how the model is trained: see type train")

    @model_validator(mode="after")
    def _adapters_once(self) -> LaplaceReward:
        if isinstance(self.weights, LoraTrunks):
            _require_full(self.training, "set reward.weights.type to last_layer")
        return self


class WarmReward(Section):
    """The mean of the weights of several fine-tunings from one start, of trunk and head: WARM, arXiv 2401.12187.

    As cheap as one model once it is made. It does not say how sure it is.
    """

    type: Literal["warm"] = "warm"
    members: int = Field(4, ge=2, description="fine-tunings, each with another order of the pairs")
    training: TrainReward = Field(TrainReward(), description="how each is trained: see type train")


class OdinReward(Section):
    """Two heads whose sum learns the pairs, one of them drawn to the answer's length and dropped: arXiv 2402.07319."""

    type: Literal["odin"] = "odin"
    length: float = Field(
        1.0,
        gt=0,
        description="weight of the correlations with length: small for the kept head, large for the other",
    )
    orthogonality: float = Field(1.0, ge=0, description="weight of the absolute cosine of both heads' weights")
    training: TrainReward = Field(TrainReward(), description="how it is trained: see type train")

    @model_validator(mode="after")
    def _heads_know_the_training(self) -> OdinReward:
        require_plain(self.training, "a reward model of type odin")
        return self


class InformReward(Section):
    """A score that is read from a noisy latent code, which costs what it says of an answer: InfoRM, arXiv 2402.09345.

    Answers whose codes are outliers among those of the SFT policy are counted at every evaluation.
    """

    type: Literal["inform"] = "inform"
    latent: int = Field(16, ge=1, description="k, numbers of a code")
    divergence: float = Field(
        0.1, ge=0, description="β, weight of the code's divergence from a standard normal, per nat and answer"
    )
    training: TrainReward = Field(TrainReward(), description="how it is trained: see type train")

    @model_validator(mode="after")
    def _codes_know_the_training(self) -> InformReward:
        require_plain(self.training, "a reward model of type inform")
        return self


TRAINED = (EnsembleReward, LaplaceReward, WarmReward, OdinReward, InformReward)
"""Types that train as their `training` says."""


def training_of(reward: BaseModel) -> TrainReward | AvaReward | PreferenceTransformerReward | None:
    """How a way to make a reward model trains; None where it does not."""
    if isinstance(reward, (TrainReward, AvaReward, PreferenceTransformerReward)):
        return reward
    return reward.training if isinstance(reward, TRAINED) else None


def says_how_sure(reward: BaseModel) -> bool:
    """Whether the models that are made this way give a standard deviation."""
    return isinstance(reward, (EnsembleReward, LaplaceReward, AvaReward))


def rewards_tokens(reward: BaseModel) -> bool:
    """Whether the models that are made this way give a reward for every token."""
    return isinstance(reward, (AvaReward, PreferenceTransformerReward))


def learns_from_both(reward: BaseModel) -> bool:
    """Whether both answers of a pair are looked at in training, and not the chosen one alone."""
    return not (isinstance(reward, AvaReward) and isinstance(reward.objective, DemonstrationsObjective))


def is_classifier(reward: BaseModel) -> bool:
    """Whether what is made this way is one sequence classifier, which can be looked into and refreshed."""
    return isinstance(reward, (TrainReward, CheckpointReward, WarmReward, OdinReward, InformReward))


def whole_models(reward: BaseModel) -> int:
    """How many whole models are in memory where scores are asked for."""
    return reward.members if isinstance(reward, EnsembleReward) and isinstance(reward.trunk, SeparateTrunks) else 1


def has_outputs(reward: BaseModel) -> bool:
    """Whether it is trained as one classifier with several outputs: by one process, on batches that stay whole."""
    shared = isinstance(reward, EnsembleReward) and isinstance(reward.trunk, SharedTrunk)
    return shared or isinstance(reward, (OdinReward, InformReward))


def require_plain(training: TrainReward, what: str) -> None:
    """Refuse settings of the training that a model with several outputs does not know.

    Raises:
        UserError: names the first of them.
    """
    for name, field in TrainReward.model_fields.items():
        if name not in PLAIN and getattr(training, name) != field.default:
            raise UserError(
                f"{what} is trained without training.{name}",
                where=f"reward.training.{name}",
                fix=f"leave it at {field.default}, or set reward.type to train",
            )


def _require_full(training: TrainReward, instead: str) -> None:
    if isinstance(training.weights, LoraRule):
        raise UserError(
            "there are adapters already",
            where="reward.training.weights.type",
            fix=f"leave it at full, or {instead}",
        )
