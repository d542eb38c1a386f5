"""How the true reward goes up and down as a policy is optimised against a proxy (Gao et al., arXiv 2210.10760).

The distance is `d = √KL(π || π_init)`, the gold reward is counted from that of the initial policy, so `R(0) = 0`:

    best of n      R(d) = d (a - b d)           KL = log n - (n - 1)/n
    PPO            R(d) = d (a - b log d)       not meant for d near 0
    k refreshes    R(d) = d (a - b log(d/k))    each covers d/k: an assumption of theirs that nobody has tested

Both laws are linear in `a`, how well the proxy points at first, and `b`, how soon it misleads. The proxy's own score
does not follow them: fit gold, or what stands for it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from inverse_alignment.maths.bootstrap import Interval

LEAST_POINTS = 4
MOST_ALIKE = 20.0
RESAMPLES = 2000

Peak = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Where the curve of coefficients `a` (m,) and `b` (m,) is highest, (m,)."""


class Fit(NamedTuple):
    """The coefficients of a curve with their bootstrap percentile intervals.

    Attributes:
        a: gold reward per √nat at first.
        b: by how much that falls; above 0 the curve has a peak.
        peak: √KL at which gold is highest; infinite where `b` is not positive.
        residual: root mean squared distance of the points from the curve, gold reward.
    """

    a: Interval
    b: Interval
    peak: Interval
    residual: float


def best_of_n_divergence(n: np.ndarray) -> np.ndarray:
    """`KL = log n - (n - 1)/n` nats of best of n from the policy it samples, (m,), for n >= 1; at most that in fact
    (Beirami et al., arXiv 2401.01879)."""
    divergence: np.ndarray = np.log(n) - (n - 1) / n
    return divergence


def best_of_n_terms(distance: np.ndarray) -> np.ndarray:
    """`(d, -d²)`, (m, 2): best-of-n gold reward is this times `(a, b)` (arXiv 2210.10760, eq. 1)."""
    return np.column_stack([distance, -(distance**2)])


def policy_terms(distance: np.ndarray, refreshes: int | np.ndarray = 1) -> np.ndarray:
    """`(d, -d log(d/k))`, (m, 2), with 0 at d = 0: gold reward under PPO is this times `(a, b)`.

    Source: arXiv 2210.10760, eq. 1, and with k > 1 reward models one after the other its section 4.3.

    Args:
        distance: (m,) `√KL >= 0`.
        refreshes: k >= 1, how many reward models covered the distance; of all points, or (m,) of each.
    """
    away, logs = distance > 0, np.zeros_like(distance)
    logs[away] = np.log((distance / refreshes)[away])
    return np.column_stack([distance, -distance * logs])


def best_of_n_peak(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """`d* = a/(2b)`, (m,), where gold is `a²/(4b)`; never below 0, and infinite where b <= 0."""
    falls, peak = b > 0, np.full_like(a, np.inf)
    peak[falls] = np.maximum(a[falls], 0) / (2 * b[falls])
    return peak


def policy_peak(a: np.ndarray, b: np.ndarray, refreshes: int = 1) -> np.ndarray:
    """`d* = k exp(a/b - 1)`, (m,), where gold is `b d*`; infinite where b <= 0, or beyond the largest number."""
    falls, peak = b > 0, np.full_like(a, np.inf)
    with np.errstate(over="ignore"):
        peak[falls] = refreshes * np.exp(a[falls] / b[falls] - 1)
    return peak


def obstacle(terms: np.ndarray) -> str:
    """Why no curve can be told from points with these (m, 2) terms; empty if one can.

    Two coefficients need points at four distances or more, so that something is left to see whether the curve is any
    good; and distances far enough apart that the two terms differ in more than scale: of columns of length one, the
    larger singular value is at most 20 times the smaller.
    """
    away = terms[terms[:, 0] > 0]
    apart = len(np.unique(away[:, 0]))
    if apart < LEAST_POINTS:
        return f"{apart} of the {LEAST_POINTS} different distances that a curve needs"
    values = np.linalg.svd(away / np.linalg.norm(away, axis=0), compute_uv=False)
    if values[0] > MOST_ALIKE * values[1]:
        return f"distances between {away[:, 0].min():.2g} and {away[:, 0].max():.2g} are too close to tell a from b"
    return ""


def fit_curve(
    terms: np.ndarray,
    gold: np.ndarray,
    units: np.ndarray,
    peak: Peak,
    seed: int,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
) -> Fit:
    """Least squares `min |terms (a, b) - gold|²`, with intervals by resampling whole units.

    The points of one run are no independent units: where there are several runs, a unit is a run. With the points of a
    single run as units the interval says how the points scatter around the curve, nothing about other runs.

    Args:
        terms: (m, 2) of `policy_terms` or `best_of_n_terms`.
        gold: (m,) gold reward less that of the initial policy.
        units: (m,) which unit a point belongs to.
        peak: `policy_peak` or `best_of_n_peak`.
        seed: of the resampling.

    Raises:
        ValueError: the coefficients are not identified; `obstacle` says why.
    """
    if why := obstacle(terms):
        raise ValueError(f"no curve: {why}")
    names, unit = np.unique(units, return_inverse=True)
    gram, moment = np.zeros((len(names), 2, 2)), np.zeros((len(names), 2))
    np.add.at(gram, unit, terms[:, :, None] * terms[:, None])
    np.add.at(moment, unit, terms * gold[:, None])
    drawn = np.random.default_rng(seed).integers(len(names), size=(resamples, len(names)))
    times = [np.bincount(draw, minlength=len(names)) for draw in drawn]
    weights = np.stack([np.ones(len(names)), *times])  # all as it is, then the draws
    solved = np.linalg.pinv(np.einsum("ru,uij->rij", weights, gram), hermitian=True)
    coefficients = np.einsum("rij,rj->ri", solved, np.einsum("ru,ui->ri", weights, moment))
    residual = float(np.sqrt(np.mean((gold - terms @ coefficients[0]) ** 2)))

    def interval(values: np.ndarray) -> Interval:
        # an order statistic, not a mean of two: a peak may be infinite
        low, high = np.quantile(values[1:], [(1 - confidence) / 2, (1 + confidence) / 2], method="inverted_cdf")
        return Interval(float(values[0]), float(low), float(high))

    a, b = coefficients.T
    return Fit(interval(a), interval(b), interval(peak(a, b)), residual)
