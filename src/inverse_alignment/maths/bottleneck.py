"""InfoRM: a reward through a variational information bottleneck, and the outliers in its latent space.

Source: arXiv 2402.09345; the outlier probability (Mahalanobis, chi squared) is that of its longer version,
arXiv 2510.13694.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def standard_normal_divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """`KL(N(μ, σ²) ∥ N(0, I)) = ½ Σ_j (μ_j² + σ_j² - log σ_j² - 1)`, nats, (n,): what a latent code may cost.

    The mean over answers is taken of these, not of their μ and σ, which would cost less.

    Args:
        mean: (n, k) μ.
        log_variance: (n, k) log σ².
    """
    return 0.5 * (mean.square() + log_variance.exp() - log_variance - 1.0).sum(-1)


def mahalanobis_squared(points: np.ndarray, centre: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """`(z - m)ᵀ S⁻¹ (z - m)`, (n,).

    Args:
        points: (n, k) z.
        centre: (k,) m.
        covariance: (k, k) S, positive definite.
    """
    away = points - centre
    distances: np.ndarray = (np.linalg.solve(np.linalg.cholesky(covariance), away.T) ** 2).sum(0)
    return distances


def chi_squared_tail(squared: np.ndarray, degrees: int) -> np.ndarray:
    """`P(χ²_k > d²)`, (n,): how many points of a Gaussian are further out; small for an outlier.

    Args:
        squared: (n,) d².
        degrees: k.
    """
    x = torch.from_numpy(squared) / 2
    tail: np.ndarray = torch.special.gammaincc(torch.full_like(x, degrees / 2), x).numpy()
    return tail
