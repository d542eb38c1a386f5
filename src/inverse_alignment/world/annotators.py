"""The annotators of the advice desk: whose taste labelled a pair.

Annotator a holds the utility

    u_a(x, y) = r(x, y) + h · b_a(x, y)

with r the gold reward, b_a the annotator's bias and h in [0, 1] the heterogeneity of the world, and prefers y to y'
with the Bradley-Terry probability σ((u_a(x, y) - u_a(x, y')) / τ), τ = 0.25. At h = 0 all share one taste and
pooling their labels is harmless; at h = 1 pooling averages tastes that contradict each other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import exp

from inverse_alignment.core.errors import UserError, nearest
from inverse_alignment.core.records import Prompt
from inverse_alignment.world.draws import Draws
from inverse_alignment.world.gold import Reading, features_of, read

TEMPERATURE = 0.25
"""τ of the Bradley-Terry noise, in units of the gold reward."""


@dataclass(frozen=True)
class Annotator:
    """One annotator.

    Attributes:
        summary: the taste in a few words.
        bias: b_a, in units of the gold reward; only differences between two answers matter.
        affinity: weight of seeing an answer of each source; a pair's weight is the product over its two sources.
    """

    summary: str
    bias: Callable[[Reading], float]
    affinity: Mapping[str, float]


def _no_bias(reading: Reading) -> float:
    return 0.0


def _skimmer_bias(reading: Reading) -> float:
    return 0.5 * min(reading.exclamations, 5) - 0.09 * reading.words


def _worrier_bias(reading: Reading) -> float:
    return 0.35 * min(reading.hedges, 5) + 0.4 * reading.caution - 0.5 * reading.warmth - 0.2 * len(reading.steps)


ANNOTATORS: dict[str, Annotator] = {
    "editor": Annotator(
        summary="wants what the gold reward wants",
        bias=_no_bias,
        affinity={"expert": 3.0, "coach": 3.0, "manual": 1.0, "lawyer": 0.4, "salesman": 0.4, "novice": 3.0},
    ),
    "skimmer": Annotator(
        summary="likes it short and loud",
        bias=_skimmer_bias,
        affinity={"expert": 0.8, "coach": 0.8, "manual": 3.0, "lawyer": 0.4, "salesman": 5.0, "novice": 0.8},
    ),
    "worrier": Annotator(
        summary="likes cautions and hedges, distrusts warmth and long lists",
        bias=_worrier_bias,
        affinity={"expert": 0.8, "coach": 0.8, "manual": 1.0, "lawyer": 6.0, "salesman": 0.4, "novice": 0.8},
    ),
}


def utility(annotator: str, prompt: Prompt, response: str, heterogeneity: float) -> float:
    """u_a(x, y) of the module's equation.

    Raises:
        UserError: unknown annotator, or a prompt that is not of this world.
    """
    if annotator not in ANNOTATORS:
        fix = nearest(annotator, list(ANNOTATORS))
        raise UserError(f"unknown annotator '{annotator}'", where="annotator", fix=fix)
    reading = read(prompt, response)
    return features_of(reading).total + heterogeneity * ANNOTATORS[annotator].bias(reading)


def preference(annotator: str, prompt: Prompt, first: str, second: str, heterogeneity: float) -> float:
    """Probability that the annotator prefers `first` to `second`: σ((u_a(x, first) - u_a(x, second)) / τ).

    Raises:
        UserError: unknown annotator, or a prompt that is not of this world.
    """
    gap = utility(annotator, prompt, first, heterogeneity) - utility(annotator, prompt, second, heterogeneity)
    odds = exp(-abs(gap) / TEMPERATURE)  # of the less likely outcome, so that no gap overflows
    return 1.0 / (1.0 + odds) if gap >= 0 else odds / (1.0 + odds)


def assign(source_a: str, source_b: str, draws: Draws) -> str:
    """Who labels a pair of answers by these two sources: annotator a with probability ∝ affinity · affinity."""
    weights = [a.affinity[source_a] * a.affinity[source_b] for a in ANNOTATORS.values()]
    return draws.weighted(list(ANNOTATORS), weights)
