"""Whether a reward model is as often right as it says: reliability, expected calibration error, temperature.

Of a labelled pair the model says `p = σ(Δ)` with Δ the score of the chosen answer less that of the other one. Its
confidence is that of the answer which it prefers, `c = σ(|Δ|)`, at least one half; it is right where Δ > 0.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from inverse_alignment.maths.pairwise import best_scale


class Reliability(NamedTuple):
    """Pairs by confidence, in k bins of equal width from one half to one; NaN where a bin has no pair.

    Attributes:
        confidence: (k,) mean confidence.
        accuracy: (k,) share of right pairs; a tie counts one half.
        pairs: (k,) number of pairs.
    """

    confidence: np.ndarray
    accuracy: np.ndarray
    pairs: np.ndarray


def reliability(gaps: np.ndarray, bins: int = 10) -> Reliability:
    """The reliability table of n pairs (Guo et al., arXiv 1706.04599, section 2).

    Args:
        gaps: (n,) Δ, nats.
        bins: k.

    Raises:
        ValueError: there are no pairs.
    """
    if not len(gaps):
        raise ValueError("calibration needs at least one pair")
    confidence = 1.0 / (1.0 + np.exp(-np.abs(gaps)))
    right = (gaps > 0) + 0.5 * (gaps == 0)
    place = np.minimum(((confidence - 0.5) * 2 * bins).astype(np.int64), bins - 1)
    pairs = np.bincount(place, minlength=bins)
    with np.errstate(invalid="ignore"):
        means = [np.bincount(place, values, minlength=bins) / pairs for values in (confidence, right)]
    return Reliability(means[0], means[1], pairs)


def expected_calibration_error(table: Reliability) -> float:
    """`ECE = Σ_b n_b / n |accuracy_b - confidence_b|`. Source: arXiv 1706.04599, eq. 3."""
    seen = table.pairs > 0
    gaps = np.abs(table.accuracy[seen] - table.confidence[seen])
    return float((table.pairs[seen] * gaps).sum() / table.pairs.sum())


def fitted_temperature(gaps: np.ndarray) -> float:
    """The T > 0 that maximises `mean log σ(Δ / T)`; infinite where the labels run against the scores.

    Source: temperature scaling, arXiv 1706.04599, section 4.2; for pairs it has one parameter and one optimum.

    Args:
        gaps: (n,) Δ of pairs that the model was not trained on.

    Raises:
        ValueError: there are no pairs, or every gap is zero.
    """
    scores = torch.from_numpy(gaps)
    scale = best_scale(scores, torch.zeros_like(scores))
    return 1.0 / scale if scale else float("inf")


def tempered(gaps: np.ndarray) -> np.ndarray:
    """`Δ / T`, (n,), with the T that the other half of the pairs asks for: no pair is judged by what it fitted.

    Pairs with an even number and pairs with an odd number are the halves. A half in which all gaps are zero fits
    nothing, and the other is left as it is.

    Args:
        gaps: (n,) Δ.
    """
    found = np.array(gaps)
    for half in (0, 1):
        given = gaps[1 - half :: 2]
        if given.any():
            found[half::2] = gaps[half::2] / fitted_temperature(given)
    return found
