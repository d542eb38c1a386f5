"""How a reward model with a belief about every token is trained: AVA, and the Preference Transformer. Imports no torch.

AVA is Cai et al. 2024, arXiv 2411.09341; the numbers it was run with are not known.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from inverse_alignment.core.configuration import Section
from inverse_alignment.core.errors import UserError


class PretrainedQ(Section):
    """Q is what the policy that the model starts from says: `Q = log softmax(α z)` with its logits z."""

    type: Literal["pretrained"] = "pretrained"
    alpha: float = Field(1.0, gt=0, description="α, sharpens the policy that Q is the log-probability of")


class FreshQ(Section):
    """Q is a head of its own, zero at first: AVRIL, whose demonstrator is `softmax(β Q)`."""

    type: Literal["fresh"] = "fresh"


class PreferencesObjective(Section):
    """AVA-p: chosen answers are demonstrations, rejected ones the opposite, and last tokens are compared (CER)."""

    type: Literal["preferences"] = "preferences"
    negatives: float = Field(1.0, ge=0, description="weight of the unlikelihood of rejected answers; 0 leaves it out")
    floor: float = Field(
        -10.0, lt=0, description="log-probability, nats, below which a rejected token is not made less likely"
    )
    cer: float = Field(1.0, ge=0, description="weight of CER, per pair; everything else is per token")
    cer_form: Literal["log", "printed"] = Field(
        "log", description="log σ of the difference of last rewards, as Bradley-Terry has it, or σ itself, as printed"
    )
    score: Literal["last", "sum"] = Field(
        "last", description="the reward of an answer: that of its last token, which CER trains, or the sum of all"
    )

    @model_validator(mode="after")
    def _last_is_trained(self) -> PreferencesObjective:
        if self.score == "last" and not self.cer:
            raise UserError(
                "without CER nothing trains the reward of the last token",
                where="reward.objective.score",
                fix="set it to sum, or reward.objective.cer above 0",
            )
        return self


class DemonstrationsObjective(Section):
    """AVA-d: chosen answers are demonstrations, rejected ones are not looked at; an answer's reward is its sum.

    Nothing of it trains the reward of the last token.
    """

    type: Literal["demonstrations"] = "demonstrations"


class AvaReward(Section):
    """Variational inverse reinforcement learning on a policy's trunk: AVA, arXiv 2411.09341.

    The standard deviation of a reward is how far residuals of Q lie from its mean, not what the model does not know. It
    cannot be refreshed.
    """

    type: Literal["ava"] = "ava"
    objective: Annotated[PreferencesObjective | DemonstrationsObjective, Field(discriminator="type")] = Field(
        PreferencesObjective(), description="what is made evident: preferences (AVA-p) or demonstrations (AVA-d)"
    )
    q: Annotated[PretrainedQ | FreshQ, Field(discriminator="type")] = Field(
        PretrainedQ(), description="whose action values they are"
    )
    beta: float = Field(
        1.0, gt=0, description="β: weight of log-probabilities of a pretrained Q, inverse temperature of a fresh one"
    )
    gamma: float = Field(1.0, ge=0, le=1, description="γ, discount of the residual `Q(s, a) - γ Q(s', a')`")
    consistency: float = Field(1.0, ge=0, description="λ, weight of the likelihood of residuals under the reward")
    inverse: float = Field(
        1.0, ge=0, description="weight of both terms that know the reward: its divergence from the prior, and λ's"
    )
    reward_weights: bool = Field(True, description="weight the reward of a token by the attention that it receives")
    log_std_bound: float = Field(3.0, gt=0, description="c, log σ of a reward stays between -c and c")
    epochs: float = Field(1, gt=0, description="passes over the pairs")
    learning_rate: float = Field(1e-3, gt=0, description="peak learning rate of AdamW, linear decay")
    batch_size: int = Field(32, ge=1, description="pairs per optimiser step")
    warmup_share: float = Field(0.05, ge=0, lt=1, description="share of the steps over which the learning rate rises")
    start: Literal["sft", "base"] = Field(
        "sft", description="whose trunk and logits the model starts from, if the tokenizers are equal"
    )


class PreferenceTransformerReward(Section):
    """Bradley-Terry on a sum of token rewards, weighted by the attention that tokens receive: arXiv 2303.00957.

    It cannot be refreshed.
    """

    type: Literal["preference_transformer"] = "preference_transformer"
    label_smoothing: float = Field(0.0, ge=0, lt=0.5, description="assumed probability that a label is wrong")
    epochs: float = Field(1, gt=0, description="passes over the pairs")
    learning_rate: float = Field(1e-3, gt=0, description="peak learning rate of AdamW, linear decay")
    batch_size: int = Field(32, ge=1, description="pairs per optimiser step")
    warmup_share: float = Field(0.05, ge=0, lt=1, description="share of the steps over which the learning rate rises")
    start: Literal["sft", "base"] = Field(
        "sft", description="whose trunk the model starts from, if the tokenizers are equal"
    )
