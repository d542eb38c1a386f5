"""Scores that count less where a reward model is not sure of them."""

from __future__ import annotations

import numpy as np


def lower_bound(mean: np.ndarray, std: np.ndarray, k: float) -> np.ndarray:
    """`r - k s`, (n,): where k is the 1 - p quantile of a normal posterior, the reward is above it with probability p.

    Source: the penalty of arXiv 2402.13210. k = 0 is the mean.

    Args:
        mean: (n,) r.
        std: (n,) s.
        k: standard deviations.
    """
    bound: np.ndarray = mean - k * std
    return bound


def uncertainty_weighted(mean: np.ndarray, std: np.ndarray, coefficient: float) -> np.ndarray:
    """UWO: `r - c s²`, (n,). Source: arXiv 2310.02743, there with the variance over members of an ensemble.

    Args:
        mean: (n,) r.
        std: (n,) s.
        coefficient: c, per unit of the score.
    """
    weighted: np.ndarray = mean - coefficient * std**2
    return weighted


def worst_case(members: np.ndarray) -> np.ndarray:
    """WCO: `min_i r_i`, (n,). Source: arXiv 2310.02743.

    Args:
        members: (m, n) scores of each member of an ensemble.
    """
    worst: np.ndarray = members.min(0)
    return worst
