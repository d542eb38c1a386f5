"""What is compared with what: the methods, the data, and how much of both. Light: imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field

from inverse_alignment.core.artifact import canonical_json, sha256_text
from inverse_alignment.core.configuration import Section
from inverse_alignment.core.fingerprint import code_digest, versions
from inverse_alignment.models.caution_settings import (
    CautionConfig,
    LowerBound,
    MeanScore,
    UncertaintyWeighted,
    WorstCase,
)
from inverse_alignment.models.specs import InitialisedModel
from inverse_alignment.optimise.credit_settings import CreditConfig, DenseCredit, TerminalCredit
from inverse_alignment.optimise.settings import PpoConfig
from inverse_alignment.reward.ava_settings import (
    AvaReward,
    DemonstrationsObjective,
    FreshQ,
    PreferencesObjective,
    PreferenceTransformerReward,
)
from inverse_alignment.reward.family_settings import (
    EnsembleReward,
    InformReward,
    LaplaceReward,
    OdinReward,
    SharedTrunk,
    WarmReward,
)
from inverse_alignment.reward.training_settings import TrainReward
from inverse_alignment.stages.registry import STAGES
from inverse_alignment.world.text import WorldConfig

ROOT = Path(__file__).parents[2]
WORLD, REAL = "world", ("hh_harmless_base", "alpaca_eval", "qlora_vicuna")
MEASURED = 3
"""Raised when a row comes to say something else."""
BASELINE, REFERENCE = "longer_wins", "bt"

TRAINING: dict[str, Any] = {"epochs": 2, "learning_rate": 2e-3, "batch_size": 16}
"""The same for every method."""


def _ava(**changes: Any) -> AvaReward:
    return AvaReward(**TRAINING, **changes)


Family = EnsembleReward | LaplaceReward | WarmReward | OdinReward | InformReward
METHODS: dict[str, TrainReward | AvaReward | PreferenceTransformerReward | Family] = {
    REFERENCE: TrainReward(**TRAINING),
    "preference_transformer": PreferenceTransformerReward(**TRAINING),
    "ava_p": _ava(),
    "ava_p_without_weights": _ava(reward_weights=False),
    "ava_p_without_negatives": _ava(objective=PreferencesObjective(negatives=0.0)),
    "ava_p_without_irl": _ava(inverse=0.0),
    "ava_p_without_cer": _ava(objective=PreferencesObjective(cer=0.0, score="sum")),
    "ava_p_printed_cer": _ava(objective=PreferencesObjective(cer_form="printed")),
    "ava_p_fresh_q": _ava(q=FreshQ()),
    "ava_d": _ava(objective=DemonstrationsObjective()),
    "ava_d_discounted": _ava(objective=DemonstrationsObjective(), gamma=0.9),
    "ensemble": EnsembleReward(trunk=SharedTrunk(), bootstrap=True, training=TrainReward(**TRAINING)),
    "laplace": LaplaceReward(prior=None, training=TrainReward(**TRAINING)),
    "warm": WarmReward(training=TrainReward(**TRAINING)),
    "odin": OdinReward(training=TrainReward(**TRAINING)),
    "inform": InformReward(training=TrainReward(**TRAINING)),
}
"""AVA's ablations are those of the paper; `printed_cer` has σ in place of log σ, `without_cer` scores by the sum.

At γ = 1 the residuals of an answer add up to two ends, below it to a share of the log-likelihood: the paper has no γ.
"""


CAUTIONS: dict[str, CautionConfig] = {
    "lower_bound": LowerBound(),
    "uwo": UncertaintyWeighted(),
    "worst_case": WorstCase(),
}
"""How the best of n is picked besides by the mean, where a model says how sure it is."""


class Policy(NamedTuple):
    """A policy that PPO makes.

    Attributes:
        method: whose reward model it is optimised against.
        credit: how the score, or the model's own token rewards, reach the tokens.
        caution: what the score is where the model says how sure it is.
    """

    method: str
    credit: CreditConfig
    caution: CautionConfig = MeanScore()


PPO = PpoConfig(steps=40, batch_size=32, max_new_tokens=48)
"""The project's own settings, but for these."""
POLICIES = {
    "ppo_bt": Policy(REFERENCE, TerminalCredit()),
    "ppo_preference_transformer": Policy("preference_transformer", TerminalCredit()),
    "ppo_ava_p": Policy("ava_p", TerminalCredit()),
    "ppo_ava_p_dense": Policy("ava_p", DenseCredit()),
    "ppo_ava_d_dense": Policy("ava_d", DenseCredit()),
    "ppo_ensemble": Policy("ensemble", TerminalCredit()),
    "ppo_ensemble_uwo": Policy("ensemble", TerminalCredit(), UncertaintyWeighted()),
}
"""`dense` pays the mean reward of every token, as the paper's J(w) does."""


class Sizes(Section):
    """How much of the data is used, and how large the backbone is."""

    model: InitialisedModel = Field(
        InitialisedModel(vocab_size=1024, hidden_size=64, layers=2, heads=4, context=160),
        description="the backbone of every method",
    )
    train_pairs: int = Field(600, ge=1, description="pairs that every method learns from")
    test_pairs: int = Field(300, ge=1, description="most held-out pairs")
    sft_epochs: float = Field(5, gt=0, description="passes over both answers, which make the backbone a policy")
    world: WorldConfig = Field(
        WorldConfig(heterogeneity=0.0, pairs=2400), description="annotators agree, so that labels say what gold says"
    )
    bon_samples: int = Field(16, ge=2, description="answers of the backbone to each held-out prompt of the world")
    bon_tokens: int = Field(48, ge=1, description="longest of them")


class Unit(NamedTuple):
    """One backbone: a set of data and a seed of everything."""

    data: str
    seed: int


def digest_of_code() -> str:
    """Of everything that decides a row but its settings."""
    stages = {
        name: [code_digest(STAGES[name].module), versions(STAGES[name].packages)] for name in ("sft", "reward_model")
    }
    world = code_digest("inverse_alignment.world.text")
    return sha256_text(canonical_json({"stages": stages, "world": world, "measured": MEASURED}))[:16]


def digest_of(sizes: Sizes, name: str | None = None) -> str:
    """Of the settings that a method, or a policy, depends on; without a name, of those that its backbone does."""
    policy = POLICIES.get(name or "")
    method = METHODS.get(policy.method if policy else name or "")
    settings: dict[str, Any] = {"sizes": sizes.model_dump(), "method": None if method is None else method.model_dump()}
    if policy:
        stage = code_digest(STAGES["ppo"].module)
        settings |= {"credit": policy.credit.model_dump(), "caution": policy.caution.model_dump()}
        settings |= {"ppo": PPO.model_dump(), "stage": stage}
    return sha256_text(canonical_json(settings))[:16]
