"""The pairs of which the reward model is least sure: the variance of its reward difference, by its last layer."""

from __future__ import annotations

import numpy as np

from inverse_alignment.core.seeding import derive_seed
from inverse_alignment.maths.linear_reward import fit_linear_reward, gap_variance, pair_curvature
from inverse_alignment.models.score_features import PairFeatures
from inverse_alignment.selection.keep import PairScores, scored


def laplace_scores(pairs: PairFeatures, prior: float, ties: np.ndarray) -> PairScores:
    """Variance by the Laplace approximation around the reward model as it is (arXiv 2402.13210, for the last layer).

    The pool is what the reward model has learned from, so its curvature is the data's.

    Args:
        prior: precision of the Gaussian prior on each weight.
    """
    precision = prior * np.eye(len(pairs.weights))
    for _, differences, gaps in pairs.blocks():
        precision += pair_curvature(differences, gaps, np.ones(len(gaps)), 0.0)
    return scored(np.concatenate([gap_variance(block, precision) for _, block, _ in pairs.blocks()]), ties)


def ensemble_scores(pairs: PairFeatures, prior: float, members: int, seed: int, ties: np.ndarray) -> PairScores:
    """Variance over an ensemble of last layers, each refitted on a bootstrap resample of the pool.

    Each is anchored at a draw of its own from the prior around the reward model's last layer (arXiv 1810.05546). In
    directions that no pair shows they differ by the prior, as Laplace's posterior does; without anchors they would
    agree there, and call sure what nobody has seen. Where the log-likelihood is quadratic, both posteriors are equal.
    Every fit goes through the pool several times: all features are held in memory, in float64.

    Args:
        prior: precision of the Gaussian prior on each weight.
        members: of the ensemble.
        seed: of resamples and anchors.
    """
    differences = pairs.differences.astype(np.float64)
    count, width = differences.shape
    gaps = np.empty((members, count))
    for member in range(members):
        generator = np.random.Generator(np.random.Philox(key=derive_seed("member", seed, member)))
        drawn = np.bincount(generator.integers(count, size=count), minlength=count).astype(np.float64)
        anchor = pairs.weights + generator.normal(size=width) / np.sqrt(prior)
        gaps[member] = differences @ fit_linear_reward(differences, drawn, prior, anchor)
    return scored(gaps.var(0, ddof=1), ties)
