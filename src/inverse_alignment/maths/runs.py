"""What the scores of several runs say together: rliable's statistics (Agarwal et al., arXiv 2108.13264, section 4).

A stratum holds the independent runs of one task, here the seeds of one heterogeneity. Runs are resampled inside their
stratum and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from inverse_alignment.maths.bootstrap import Interval


def interquartile_mean(scores: np.ndarray) -> np.ndarray:
    """Mean of the middle half of the last axis, (..., n) to (...): ⌊n/4⌋ scores are cut at each end.

    As robust to outliers as the median, and of a smaller variance (arXiv 2108.13264, section 4.3).
    """
    cut = scores.shape[-1] // 4
    means: np.ndarray = np.sort(scores, -1)[..., cut : scores.shape[-1] - cut].mean(-1, dtype=np.float64)
    return means


def interquartile_interval(
    strata: Sequence[np.ndarray], seed: int, confidence: float = 0.95, resamples: int = 2000
) -> Interval:
    """Interquartile mean of all scores of (n_s,) strata, with its stratified bootstrap percentile interval.

    Raises:
        ValueError: there is no stratum, or one without scores.
    """
    _require_scores(strata)
    generator = np.random.default_rng(seed)
    draws = [_resampled(scores, resamples, generator) for scores in strata]
    means = interquartile_mean(np.concatenate(draws, 1))
    return _interval(float(interquartile_mean(np.concatenate(strata))), means, confidence)


def probability_of_improvement(first: Sequence[np.ndarray], second: Sequence[np.ndarray]) -> float:
    """How probably a run of the first method scores higher than one of the second: strata of (n_s,) against (m_s,).

    `P(X > Y) = 1/S Σ_s 1/(n_s m_s) Σ_i Σ_j 𝟙[x_si > y_sj] + ½ 𝟙[x_si = y_sj]`, Mann and Whitney's U (arXiv 2108.13264,
    section 4.3).

    Raises:
        ValueError: the methods have different numbers of strata, none, or one without scores.
    """
    _require_scores([*first, *second])
    shares = [_wins(one[None], other[None]) for one, other in zip(first, second, strict=True)]
    return float(np.mean(np.stack(shares)))


def improvement_interval(
    first: Sequence[np.ndarray],
    second: Sequence[np.ndarray],
    seed: int,
    confidence: float = 0.95,
    resamples: int = 2000,
) -> Interval:
    """`probability_of_improvement` with its interval: both methods' runs are resampled, each inside its stratum.

    Raises:
        ValueError: the methods have different numbers of strata, none, or one without scores.
    """
    value, generator = probability_of_improvement(first, second), np.random.default_rng(seed)
    shares = [
        _wins(_resampled(first[stratum], resamples, generator), _resampled(second[stratum], resamples, generator))
        for stratum in range(len(first))
    ]
    return _interval(value, np.stack(shares).mean(0), confidence)


def _require_scores(strata: Iterable[np.ndarray]) -> None:
    if not all(scores.size for scores in strata):
        raise ValueError("a stratum without scores")


def _resampled(scores: np.ndarray, resamples: int, generator: np.random.Generator) -> np.ndarray:
    """(n,) to (resamples, n), with replacement."""
    draws: np.ndarray = scores[generator.integers(scores.size, size=(resamples, scores.size))]
    return draws


def _wins(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(b, n) and (b, m) to (b,): share of pairs in which the first is higher, a tie counts one half."""
    gaps = first[:, :, None] - second[:, None]
    shares: np.ndarray = (np.sign(gaps) / 2 + 0.5).mean((1, 2))
    return shares


def _interval(value: float, draws: np.ndarray, confidence: float) -> Interval:
    low, high = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(value, float(low), float(high))
