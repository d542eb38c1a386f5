"""Whether two lists of numbers order the same things alike."""

from __future__ import annotations

import numpy as np

from inverse_alignment.maths.bootstrap import Interval

RESAMPLES = 1000


def average_ranks(values: np.ndarray) -> np.ndarray:
    """Ranks of (n,) values from 1; equal values share the mean of their ranks."""
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: np.ndarray = (last - (counts - 1) / 2)[group]
    return ranks


def rank_correlation(first: np.ndarray, second: np.ndarray) -> float | None:
    """Spearman's ρ of two (n,) lists: Pearson's correlation of their ranks. None where one of them is constant."""
    a, b = average_ranks(first), average_ranks(second)
    a, b = a - a.mean(), b - b.mean()
    scale = np.sqrt((a**2).sum() * (b**2).sum())
    return float((a * b).sum() / scale) if scale > 0 else None


def rank_correlation_interval(
    first: np.ndarray,
    second: np.ndarray,
    units: np.ndarray,
    seed: int,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
) -> Interval | None:
    """`rank_correlation` with the percentile interval of resampled units; None where it has no value.

    Draws in which one of the lists is constant have no correlation and are left out.

    Args:
        first: (n,).
        second: (n,).
        units: (n,) which unit a row belongs to: rows of one unit are drawn together.
        seed: of the resampling.
    """
    value = rank_correlation(first, second)
    if value is None:
        return None
    rows = [np.flatnonzero(units == unit) for unit in np.unique(units)]
    generator, draws = np.random.default_rng(seed), []
    for _ in range(resamples):
        drawn = np.concatenate([rows[place] for place in generator.integers(len(rows), size=len(rows))])
        draws.append(rank_correlation(first[drawn], second[drawn]))
    there = [draw for draw in draws if draw is not None]
    low, high = np.quantile(there, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(value, float(low), float(high))
