"""How the score of an answer is shared out among its tokens. Light: imports no torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from inverse_alignment.core.configuration import Section


class TerminalCredit(Section):
    """The last token gets the whole score."""

    type: Literal["terminal"] = "terminal"


class UniformCredit(Section):
    """Every token gets an equal part of the score: the control for every dense reward."""

    type: Literal["uniform"] = "uniform"


class RedistributedCredit(Section):
    """RED: a token gets what it changes the reward model's score by (arXiv 2411.08302)."""

    type: Literal["red"] = "red"
    mix: float = Field(1.0, ge=0, le=1, description="β_c, weight of the changes; the rest of the score goes to the end")


class AttentionCredit(Section):
    """ABC: a token gets its part of the reward model's attention (arXiv 2402.00782); biased, see docs/methods.md."""

    type: Literal["abc"] = "abc"
    mix: float = Field(0.8, ge=0, le=1, description="β, share that goes by attention; the rest goes to the last token")


class PotentialCredit(Section):
    """The last token gets the score, and every token what it adds to the likeness with a given answer to the prompt."""

    type: Literal["potential"] = "potential"
    weight: float = Field(1.0, gt=0, description="reward for all of the likeness, standard deviations of the score")


class TokenCredit(Section):
    """Rewards of a token-level reward model beside the score (after arXiv 2406.02756)."""

    type: Literal["token"] = "token"
    share: float = Field(
        0.5,
        ge=0,
        le=1,
        description="α, weight of the token rewards; the score, the missing-EOS penalty in it, weighs 1 - α",
    )


class DenseCredit(Section):
    """The reward model's own rewards of tokens, where it has them: AVA (arXiv 2411.09341), Preference Transformer.

    With `reward.objective.score: last` the score is the last token's reward alone, so that share 0 is the sparse use of
    the same model.
    """

    type: Literal["dense"] = "dense"
    share: float = Field(
        1.0,
        ge=0,
        le=1,
        description="α, weight of the token rewards; the score, the missing-EOS penalty in it, weighs 1 - α",
    )


CreditConfig = Annotated[
    TerminalCredit
    | UniformCredit
    | RedistributedCredit
    | AttentionCredit
    | PotentialCredit
    | TokenCredit
    | DenseCredit,
    Field(discriminator="type"),
]
