"""Selectors that ask what the policy, and its reference, think of the pool's answers."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np

from inverse_alignment.maths.density_ratio import (
    implicit_margin,
    likelihood_log_weights,
    pair_log_weights,
    relative_log_ratio,
)
from inverse_alignment.models.answer_log_probs import LogProbs
from inverse_alignment.selection.keep import PairScores, scored


class PairLogProbs(NamedTuple):
    """What one policy says of both answers of n pairs."""

    chosen: LogProbs
    rejected: LogProbs


def likelihood_scores(policy: PairLogProbs, ties: np.ndarray) -> PairScores:
    """Log of WPO's weight: the sum of both answers' mean log-probabilities per token, nats."""
    return scored(likelihood_log_weights(policy.chosen.means, policy.rejected.means), ties)


def density_ratio_scores(
    policy: PairLogProbs, reference: PairLogProbs, relative: float, temper: float, ties: np.ndarray
) -> PairScores:
    """Log of OCRM's weight: the tempered sum of both answers' relative log-ratios, nats.

    Args:
        relative: a of `relative_log_ratio`.
        temper: m of `pair_log_weights`.
    """
    ratios = [
        relative_log_ratio(ours.sums, theirs.sums, relative) for ours, theirs in zip(policy, reference, strict=True)
    ]
    return scored(pair_log_weights(ratios[0], ratios[1], temper), ties)


def margin_scores(
    policy: PairLogProbs, reference: PairLogProbs, beta: float, prefer: Literal["large", "small"], ties: np.ndarray
) -> PairScores:
    """The size of the implicit reward margin, or the same negated where small ones are preferred."""
    margins = implicit_margin(
        policy.chosen.sums, reference.chosen.sums, policy.rejected.sums, reference.rejected.sums, beta
    )
    return scored(np.abs(margins) if prefer == "large" else -np.abs(margins), ties)
