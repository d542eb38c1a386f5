"""How far two samples are apart: whether a policy still writes what a reward model was last fitted near."""

from __future__ import annotations

import numpy as np


def median_bandwidth(points: np.ndarray) -> float:
    """Half the median of the squared distances of all pairs of different points: `σ²` of a Gaussian kernel.

    The median heuristic (Gretton et al. 2012, JMLR 13, section 8). Pairs of equal points do not count, so that a sample
    that repeats itself still has a scale; 1 where all points are equal.

    Args:
        points: (n, d).
    """
    squared = _squared_distances(points, points)[np.triu_indices(len(points), 1)]
    apart = squared[squared > 0]
    return float(np.median(apart)) / 2 if len(apart) else 1.0


def mmd_squared(first: np.ndarray, second: np.ndarray, bandwidth: float) -> float:
    """Unbiased estimate of the squared maximum mean discrepancy of two samples, kernel `exp(-|a - b|² / (2 σ²))`.

    `Σ_{i≠j} k(x_i, x_j) / (m(m-1)) + Σ_{i≠j} k(y_i, y_j) / (n(n-1)) - 2/(mn) Σ_ij k(x_i, y_j)`: 0 in expectation where
    both samples are of one distribution, hence sometimes below. Source: Gretton et al. 2012, JMLR 13, eq. 3.

    Args:
        first: (m, d), m >= 2.
        second: (n, d), n >= 2.
        bandwidth: σ² > 0.

    Raises:
        ValueError: a sample has fewer than two points.
    """
    if min(len(first), len(second)) < 2:
        raise ValueError(f"two samples of two points or more are compared, got {len(first)} and {len(second)}")

    def within(points: np.ndarray) -> float:
        kernel = _kernel(points, points, bandwidth)
        return float((kernel.sum() - np.trace(kernel)) / (len(points) * (len(points) - 1)))

    return within(first) + within(second) - 2 * float(_kernel(first, second, bandwidth).mean())


def _kernel(first: np.ndarray, second: np.ndarray, bandwidth: float) -> np.ndarray:
    kernel: np.ndarray = np.exp(-_squared_distances(first, second) / (2 * bandwidth))
    return kernel


def _squared_distances(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(m, n) squared Euclidean distances, in float64; never negative."""
    first, second = first.astype(np.float64), second.astype(np.float64)
    squared = (first**2).sum(-1)[:, None] + (second**2).sum(-1)[None, :] - 2 * first @ second.T
    distances: np.ndarray = np.maximum(squared, 0.0)
    return distances
