"""How a reward model is refreshed: when, which weights learn, from which pairs, and who judges it. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from inverse_alignment.core.configuration import Section
from inverse_alignment.embedding.settings import EncoderConfig, LexicalEncoder


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


class MetaRule(Section):
    """MetaRM (arXiv 2405.00438): a step's gradient is found where the policy's answers are further apart in score.

    Each step costs a second pass, forward and backward, over the answers to some prompts.
    """

    type: Literal["meta"] = "meta"
    rate: float = Field(0.01, gt=0, description="η, length of the step towards more spread: this times the gradient")
    prompts: int = Field(8, ge=1, description="prompts whose answers are looked at in one step")


class PolicyNegativesRule(Section):
    """RFT (arXiv 2405.17888): in some selected pairs, the policy's own answer takes the place of the rejected one.

    It says that the data's chosen answer is better than what the policy writes now, which nobody has judged.
    """

    type: Literal["policy_negatives"] = "policy_negatives"
    share: float = Field(0.5, gt=0, le=1, description="share of the selected pairs presented that this happens to")
    loss: Literal["logistic", "linear"] = Field(
        "logistic", description="of these pairs: Bradley-Terry, or the gap itself, whose gradient is that of the method"
    )


class ExtremesRule(Section):
    """R2M's baseline (arXiv 2601.22664): the head alone learns that what the incumbent scores best beats what it scores
    worst among the policy's answers to a prompt. The selection is not used.

    No new knowledge enters: there the same on summaries fell from 75.3 to 66.9. It is here to be compared with.
    """

    type: Literal["extremes"] = "extremes"


RefreshRule = Annotated[
    FullRule | LoraRule | HeadRule | MetaRule | PolicyNegativesRule | ExtremesRule, Field(discriminator="type")
]


class ScheduleTrigger(Section):
    """A refresh in the first round, and in every so-manieth after it."""

    type: Literal["schedule"] = "schedule"
    every: int = Field(1, ge=1, description="rounds from one refresh to the next")


class DriftTrigger(Section):
    """A refresh once the policy has moved away from where the incumbent was last refreshed.

    - mmd: the maximum mean discrepancy, squared, between its answers now and then rises above the threshold;
    - ess: the share of the answers from then that still count, weighted by how likely the policy finds them now, falls
      below it;
    - variance: the incumbent's variance among answers to one prompt, as a share of that on the reference sample, falls
      below it.
    """

    type: Literal["drift"] = "drift"
    measure: Literal["mmd", "ess", "variance"] = Field("mmd", description="what is compared with the threshold")
    threshold: float = Field(0.01, gt=0, description="bound of the measure: at most 1 for ess")
    encoder: EncoderConfig = Field(LexicalEncoder(), description="what turns an answer into a vector for mmd")


RefreshTrigger = Annotated[ScheduleTrigger | DriftTrigger, Field(discriminator="type")]


class GateOn(Section):
    """Champion and challenger on held-out pairs near the policy; the champion stays unless the challenger is better."""

    type: Literal["paired"] = "paired"
    confidence: float = Field(
        0.8, ge=0.5, lt=1, description="one-sided bootstrap confidence that the challenger explains the pairs better"
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
    """How a reward model is refreshed on the selected pairs.

    Weights of selected pairs are divided by their mean, and a replayed pair weighs 1. The loss of a batch is
    `Σ w l / Σ w` over its pairs: within a batch, only weights relative to each other count.
    """

    rule: RefreshRule = Field(FullRule(), description="which weights learn, and from which pairs")
    start: Literal["last", "first"] = Field(
        "last", description="what a refresh starts from: the incumbent, or the first reward model again"
    )
    trigger: RefreshTrigger = Field(
        ScheduleTrigger(), description="when a round refreshes; where it does not, the incumbent goes on as it is"
    )
    pairs_seen: int = Field(
        900, ge=2, description="pairs presented in training, selected and replayed together; equal for every arm"
    )
    replay_share: float = Field(0.33, ge=0, lt=1, description="share of those that is drawn from the whole train split")
    learning_rate: float = Field(5e-4, gt=0, description="peak learning rate of AdamW, linear decay")
    batch_size: int = Field(32, ge=1, description="pairs per optimiser step")
    warmup_share: float = Field(0.1, ge=0, lt=1, description="share of the steps over which the learning rate rises")
    label_smoothing: float = Field(0.0, ge=0, lt=0.5, description="assumed probability that a label is wrong")
    centring: float = Field(0.01, ge=0, description="weight of the penalty on the squared sum of a pair's scores")
    use_margins: bool = Field(False, description="subtract the data's preference strength from the score gap")
    gate: Annotated[GateOn | GateOff, Field(discriminator="type")] = Field(
        GateOn(), description="whether and how a refreshed model must prove itself"
    )
