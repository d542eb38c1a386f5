"""Hyper-parameters of the optimisers. Light: imports no torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from inverse_alignment.core.configuration import Section
from inverse_alignment.models.caution_settings import CautionConfig, MeanScore
from inverse_alignment.optimise.credit_settings import CreditConfig, TerminalCredit
from inverse_alignment.text.phrases import STOCK_PHRASES

AlarmName = Literal["audit", "length", "refusal", "stock_phrases", "repetition", "variance", "disagreement", "coverage"]


class FixedKl(Section):
    """A constant KL coefficient."""

    type: Literal["fixed"] = "fixed"
    coefficient: float = Field(0.15, ge=0, description="β, reward units per nat")


class AdaptiveKl(Section):
    """A KL coefficient steered to a target (arXiv 1909.08593, section 2.2)."""

    type: Literal["adaptive"] = "adaptive"
    coefficient: float = Field(0.05, gt=0, description="first β, reward units per nat")
    target: float = Field(6.0, gt=0, description="KL to the SFT policy per answer, nats")
    horizon: float = Field(5000, gt=0, description="rollouts over which β may change by a factor of about e^0.2")


class FrozenReference(Section):
    """The KL is priced against the SFT policy."""

    type: Literal["frozen"] = "frozen"


class HardReference(Section):
    """The KL is priced against a copy of the policy, taken anew now and then."""

    type: Literal["hard"] = "hard"
    every: int = Field(20, ge=1, description="iterations between two copies")


class SoftReference(Section):
    """The KL is priced against a moving average: `θ_ref ← (1 - α) θ_ref + α θ` (arXiv 2404.09656, eq. 4)."""

    type: Literal["soft"] = "soft"
    alpha: float = Field(0.05, gt=0, le=1, description="α, how much of the policy enters")
    every: int = Field(1, ge=1, description="iterations between two updates")


class LastRoundReference(Section):
    """The KL is priced against the policy as it was when the round began (as in OCRM, arXiv 2507.15507)."""

    type: Literal["last_round"] = "last_round"


class ContinueStart(Section):
    """Each round goes on from the last round's policy, with its optimisers, critic and KL coefficient."""

    type: Literal["continue"] = "continue"


class SftStart(Section):
    """Each round begins at the SFT policy again, with fresh optimisers, critic and KL coefficient."""

    type: Literal["sft"] = "sft"


class InterpolateStart(Section):
    """Each round begins between the two: `θ = (1 - s) θ_sft + s θ_last` (arXiv 2505.18126); all else is fresh."""

    type: Literal["interpolate"] = "interpolate"
    share: float = Field(0.5, gt=0, lt=1, description="s, how much of the last round's policy enters")


class SeparateCritic(Section):
    """A value model with a trunk of its own, which starts as a copy of the policy's."""

    type: Literal["separate"] = "separate"


class SharedCritic(Section):
    """A value head on the policy's trunk: half the memory, and one pass for log-probabilities and values."""

    type: Literal["shared"] = "shared"
    coefficient: float = Field(0.1, gt=0, description="weight of the value loss beside the policy loss")


class Lora(Section):
    """Low-rank adapters (arXiv 2106.09685): a few weights learn, and without them the policy is the SFT policy."""

    rank: int = Field(16, ge=1, description="r, inner width of an adapter")
    alpha: float = Field(32.0, gt=0, description="α; an adapter's output is scaled by α / r")
    targets: tuple[str, ...] = Field(
        (), description="endings of the names of linear layers that get one; empty: all but the head"
    )


class WatchConfig(Section):
    """What is looked at beside the reward while the policy is trained; nothing is learned from it."""

    every: int = Field(20, ge=0, description="iterations between two looks at held-out prompts; 0: no looks")
    prompts: int = Field(16, ge=2, description="prompts of the validation split asked at a look, the same every time")
    samples: int = Field(2, ge=2, description="answers to each of them")
    stock_phrases: tuple[str, ...] = Field(
        STOCK_PHRASES, description="phrases whose share among the answers is counted, in any case"
    )
    stop_at: tuple[AlarmName, ...] = Field(
        (), description="alarms that end the round when a look finds them; empty: they are only reported"
    )


class PpoConfig(Section):
    """Proximal policy optimisation with a value model and generalised advantage estimation."""

    steps: int = Field(20, ge=1, description="iterations per round: rollouts, then updates")
    batch_size: int = Field(64, ge=1, description="rollouts per iteration")
    epochs: int = Field(2, ge=1, description="passes over an iteration's rollouts")
    minibatches: int = Field(2, ge=1, description="optimiser steps per pass; divides batch_size")
    learning_rate: float = Field(3e-4, gt=0, description="AdamW on the policy, constant")
    value_learning_rate: float = Field(1e-3, gt=0, description="AdamW on the value model, constant")
    start: Annotated[ContinueStart | SftStart | InterpolateStart, Field(discriminator="type")] = Field(
        ContinueStart(), description="which policy a round begins at"
    )
    kl: Annotated[FixedKl | AdaptiveKl, Field(discriminator="type")] = Field(
        FixedKl(), description="how the KL to the SFT policy is priced"
    )
    reference: Annotated[
        FrozenReference | HardReference | SoftReference | LastRoundReference, Field(discriminator="type")
    ] = Field(
        FrozenReference(), description="which policy the KL is priced against; the KL to SFT is reported in any case"
    )
    critic: Annotated[SeparateCritic | SharedCritic, Field(discriminator="type")] = Field(
        SeparateCritic(), description="whose trunk the values are read from"
    )
    credit: CreditConfig = Field(
        TerminalCredit(), description="how the score of an answer is shared out among its tokens"
    )
    caution: CautionConfig = Field(
        MeanScore(), description="what the score is where the reward model says how sure it is"
    )
    lora: Lora | None = Field(None, description="train adapters instead of the policy's own weights; null: all weights")
    max_update_kl: float | None = Field(
        None, gt=0, description="nats per token from the policy that sampled at which an iteration stops updating it"
    )
    clip: float = Field(0.2, gt=0, lt=1, description="ε of the clipped surrogate")
    value_clip: float = Field(
        0.2, gt=0, description="how far a value may move per iteration before its loss is clipped"
    )
    gamma: float = Field(1.0, gt=0, le=1, description="discount per token")
    lam: float = Field(0.95, ge=0, le=1, description="λ of generalised advantage estimation")
    temperature: float = Field(
        1.0, gt=0, description="sampling temperature; log-probabilities are of the same distribution"
    )
    max_new_tokens: int = Field(64, ge=1, description="longest answer in policy tokens")
    missing_eos_penalty: float = Field(1.0, ge=0, description="subtracted from the score of an answer that did not end")
    score_clip: float = Field(5.0, gt=0, description="bound on the standardised score, standard deviations")
    max_grad_norm: float = Field(1.0, gt=0, description="gradient norm is clipped to this, policy and value apart")
    value_warmup_steps: int = Field(
        3,
        ge=0,
        description="iterations that update only the value model: at the start, after the reward model changed, and in "
        "every round whose critic is fresh",
    )
    samples_every: int = Field(4, ge=1, description="iterations between two batches of answers kept for the report")
    watch: WatchConfig = Field(WatchConfig(), description="what is looked at beside the reward")
