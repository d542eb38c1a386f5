"""How a policy is optimised on preferences directly, without RL. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from inverse_alignment.core.configuration import Section
from inverse_alignment.optimise.settings import Lora


class FixedAnchor(Section):
    """Log-ratios are against the policy that the first round begins with: DPO, IPO and KTO as published."""

    type: Literal["frozen"] = "frozen"


class RoundAnchor(Section):
    """Log-ratios are against the policy that this round begins with."""

    type: Literal["last_round"] = "last_round"


class HardAnchor(Section):
    """Log-ratios are against a copy of the policy, taken every τ optimiser steps (arXiv 2404.09656, eq. 5)."""

    type: Literal["hard"] = "hard"
    every: int = Field(32, ge=1, description="τ, optimiser steps between two copies; the paper's best was 512")


class SoftAnchor(Section):
    """Log-ratios are against a moving average, `θ_ref ← (1 - α) θ_ref + α θ` after every optimiser step (eq. 4)."""

    type: Literal["soft"] = "soft"
    alpha: float = Field(0.6, ge=0, le=1, description="α, how much of the policy enters; 0 is a frozen reference")


AnchorConfig = Annotated[FixedAnchor | RoundAnchor | HardAnchor | SoftAnchor, Field(discriminator="type")]
MOVING = (HardAnchor, SoftAnchor)


class PpoMethod(Section):
    """Proximal policy optimisation against a reward model that is refreshed; its settings are those of `ppo`."""

    type: Literal["ppo"] = "ppo"


class DirectMethod(Section):
    """What all direct methods share."""

    epochs: float = Field(1, gt=0, description="passes over the pairs in a round")
    learning_rate: float = Field(3e-4, gt=0, description="peak learning rate of AdamW, linear decay in every round")
    batch_size: int = Field(32, ge=1, description="rows per forward pass")
    accumulation: int = Field(1, ge=1, description="forward passes per optimiser step")
    warmup_share: float = Field(0.1, ge=0, lt=1, description="share of the steps over which the learning rate rises")
    max_grad_norm: float = Field(1.0, gt=0, description="gradient norm is clipped to this")
    lora: Lora | None = Field(None, description="train adapters instead of the policy's own weights; null: all weights")


class AnchoredMethod(DirectMethod):
    """What methods share that know a reference."""

    beta: float = Field(0.1, gt=0, description="β, price of a nat of KL to the reference")
    reference: AnchorConfig = Field(FixedAnchor(), description="what log-ratios are against")


class PairMethod(AnchoredMethod):
    """What methods share that believe the labels of pairs."""

    label_smoothing: float = Field(0.0, ge=0, lt=0.5, description="assumed probability that a label is wrong")


class Dpo(PairMethod):
    """Direct preference optimisation (arXiv 2305.18290)."""

    type: Literal["dpo"] = "dpo"
    reference_gap: Literal["plain", "clipped"] = Field(
        "plain", description="the reference's own preference, or HyPO's max(0, ·) of it (arXiv 2602.11902)"
    )


class TrDpo(Dpo):
    """DPO with a reference that moves (arXiv 2404.09656)."""

    type: Literal["tr_dpo"] = "tr_dpo"  # type: ignore[assignment]
    reference: AnchorConfig = Field(SoftAnchor(), description="what log-ratios are against")


class Ipo(PairMethod):
    """Identity preference optimisation (arXiv 2310.12036), on whole answers as printed."""

    type: Literal["ipo"] = "ipo"


class TrIpo(Ipo):
    """IPO with a reference that moves (arXiv 2404.09656)."""

    type: Literal["tr_ipo"] = "tr_ipo"  # type: ignore[assignment]
    reference: AnchorConfig = Field(SoftAnchor(), description="what log-ratios are against")


class Kto(AnchoredMethod):
    """Kahneman-Tversky optimisation (arXiv 2402.01306): both answers of a pair, and judgements, one by one."""

    type: Literal["kto"] = "kto"
    undesirable_weight: float = Field(1.0, gt=0, description="λ_U, what a bad answer counts beside a good one")


class TrKto(Kto):
    """KTO with a reference that moves (arXiv 2404.09656)."""

    type: Literal["tr_kto"] = "tr_kto"  # type: ignore[assignment]
    reference: AnchorConfig = Field(SoftAnchor(), description="what log-ratios are against")


class Selm(PairMethod):
    """SELM (arXiv 2405.19332): DPO on the best and the worst of chosen, rejected and the policy's own answer, as the
    reward model ranks them, with a term that pushes off what the reference says already.
    """

    type: Literal["selm"] = "selm"
    optimism: float = Field(0.001, ge=0, description="α, weight of that term; 0 is iterative DPO")
    reference: AnchorConfig = Field(RoundAnchor(), description="what log-ratios are against")


class Irft(AnchoredMethod):
    """IRFT (arXiv 2405.17888), with one round SPIN: demonstrations are chosen, the policy's own answers rejected."""

    type: Literal["irft"] = "irft"
    loss: Literal["logistic", "hinge", "linear"] = Field(
        "logistic", description="of β times the gap; the linear one has no minimum: few steps"
    )
    reference: AnchorConfig = Field(RoundAnchor(), description="what log-ratios are against")


class AvaD(DirectMethod):
    """AVA on the policy itself (arXiv 2411.09341): demonstrations are made likely, and their log-probabilities made to
    differ as a reward says that is learned beside them. It knows no reference: nothing but `epochs` bounds the KL.

    Demonstrations are those of the data, or chosen answers where the data have none.
    """

    type: Literal["ava_d"] = "ava_d"
    beta: float = Field(1.0, gt=0, description="β, weight of log-probabilities")
    gamma: float = Field(1.0, ge=0, le=1, description="γ, discount of the residual `Q(s, a) - γ Q(s', a')`")
    consistency: float = Field(1.0, ge=0, description="λ, weight of the likelihood of residuals under the reward")
    inverse: float = Field(
        1.0, ge=0, description="weight of both terms that know the reward: its divergence from the prior, and λ's"
    )
    reward_weights: bool = Field(True, description="weight the reward of a token by the attention that it receives")
    log_std_bound: float = Field(3.0, gt=0, description="c, log σ of a reward stays between -c and c")


class AvaP(AvaD):
    """The same of pairs: rejected answers are made unlikely, and last rewards compared (CER)."""

    type: Literal["ava_p"] = "ava_p"  # type: ignore[assignment]
    negatives: float = Field(1.0, ge=0, description="weight of the unlikelihood of rejected answers; 0 leaves it out")
    floor: float = Field(
        -10.0, lt=0, description="log-probability, nats, below which a rejected token is not made less likely"
    )
    cer: float = Field(1.0, ge=0, description="weight of CER, per pair; everything else is per token")
    cer_form: Literal["log", "printed"] = Field(
        "log", description="log σ of the difference of last rewards, as Bradley-Terry has it, or σ itself, as printed"
    )


Anchored = Dpo | TrDpo | Ipo | TrIpo | Kto | TrKto | Selm | Irft
Direct = Anchored | AvaD | AvaP
OptimiseConfig = Annotated[PpoMethod | Direct, Field(discriminator="type")]
