"""How likely a policy makes given answers: ratios, weights, and how many pairs weights are worth. All in log space.

Log-probabilities of whole answers are sums over tokens, hundreds of nats below zero: their exponentials underflow, and
a ratio of two of them is noise. Everything here takes and gives logarithms until the last step.
"""

from __future__ import annotations

import math

import numpy as np


def relative_log_ratio(log_probs: np.ndarray, ref_log_probs: np.ndarray, relative: float) -> np.ndarray:
    """`l~ = log π - log(a π + (1-a) π_ref) = -log(a + (1-a) π_ref / π)`, (n,) nats, at most `-log a`.

    With a = 0 this is the plain log-ratio `log π - log π_ref`; a > 0 bounds it from above (the relative density ratio
    of Yamada et al., arXiv 1106.4729, as OCRM uses it: arXiv 2507.15507 and its released code, there with exponentials
    that underflow).

    Args:
        log_probs: (n,) log-probabilities of answers under the policy.
        ref_log_probs: (n,) the same under the reference.
        relative: a in [0, 1).

    Raises:
        ValueError: a is not in [0, 1).
    """
    if not 0 <= relative < 1:
        raise ValueError(f"the relative part must be in [0, 1), got {relative}")
    least = math.log(relative) if relative else -math.inf
    ratio: np.ndarray = -np.logaddexp(least, math.log1p(-relative) + ref_log_probs - log_probs)
    return ratio


def pair_log_weights(chosen: np.ndarray, rejected: np.ndarray, temper: float) -> np.ndarray:
    """`log w = m (l~(y_c) + l~(y_r))` of each pair, (n,): OCRM's importance weight, tempered by m (arXiv 2507.15507).

    Args:
        chosen: (n,) log-ratios of the chosen answers.
        rejected: (n,) of the rejected ones.
        temper: m; 1 is the importance weight itself, 0 is no weight.
    """
    weights: np.ndarray = temper * (chosen + rejected)
    return weights


def likelihood_log_weights(chosen: np.ndarray, rejected: np.ndarray) -> np.ndarray:
    """`log w = min(0, log π(y_c)/|y_c| + log π(y_r)/|y_r|)`, (n,): WPO's weight (arXiv 2406.11827, as released).

    Args:
        chosen: (n,) mean log-probability per token of the chosen answers.
        rejected: (n,) of the rejected ones.
    """
    weights: np.ndarray = np.minimum(0.0, chosen + rejected)
    return weights


def mean_one_weights(log_weights: np.ndarray) -> np.ndarray:
    """`w_i = n exp(l_i) / Σ_j exp(l_j)`, (n,): proportional to `exp(l)`, with mean 1. A weight may underflow to 0."""
    grown = np.exp(log_weights - log_weights.max())
    weights: np.ndarray = grown / grown.mean()
    return weights


def effective_sample_size(log_weights: np.ndarray) -> float:
    """`(Σ w)² / Σ w²` with `w = exp(l)`: how many pairs of equal weight would be as noisy (Kish 1965). 0 for none."""
    if not len(log_weights):
        return 0.0
    grown = np.exp(log_weights - log_weights.max())
    return float(grown.sum() ** 2 / (grown**2).sum())


def implicit_margin(
    chosen: np.ndarray, ref_chosen: np.ndarray, rejected: np.ndarray, ref_rejected: np.ndarray, beta: float
) -> np.ndarray:
    """`β [(log π - log π_ref)(y_c) - (log π - log π_ref)(y_r)]`, (n,): by how much a policy's implicit reward prefers
    the chosen answer (arXiv 2305.18290, eq. 5).

    Args:
        chosen: (n,) log-probabilities of the chosen answers under the policy.
        ref_chosen: (n,) under the reference.
        rejected: (n,) of the rejected answers under the policy.
        ref_rejected: (n,) under the reference.
        beta: β > 0, the price of KL.
    """
    margin: np.ndarray = beta * ((chosen - ref_chosen) - (rejected - ref_rejected))
    return margin
