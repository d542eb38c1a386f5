"""Whether a second reward model, which nothing is optimised against, sees in answers what the first one sees."""

from __future__ import annotations

import numpy as np

from inverse_alignment.evaluation.reward_accuracy import AnswerPairs


def agreement(pairs: AnswerPairs, scores: np.ndarray, audit: np.ndarray) -> float | None:
    """Share of pairs of answers that two reward models rank alike; a tie in either counts one half.

    `mean (1 + sgn(Δ) sgn(Δ')) / 2`. Only ranks within a prompt enter, so that no scale and no offset of a prompt does.

    Args:
        pairs: of rows of the two others.
        scores: (m,) of one model.
        audit: (m,) of the other.

    Returns:
        None without pairs.
    """
    if not len(pairs.left):
        return None
    signs = [np.sign(values[pairs.left] - values[pairs.right]) for values in (scores, audit)]
    return float(((1 + signs[0] * signs[1]) / 2).mean())


def correlation(scores: np.ndarray, audit: np.ndarray) -> float | None:
    """Pearson's correlation of two standardised scores (m,) over answers; None where one of them is constant."""
    a, b = scores - scores.mean(), audit - audit.mean()
    if min(a.std(), b.std()) < 1e-9:  # what rounding leaves of a constant
        return None
    return float((a * b).mean() / (a.std() * b.std()))
