"""Bradley-Terry rewards that are linear in fixed features: fit, curvature, uncertainty, and what spreads their scores.

A reward model's last layer is one: `r = w · φ(x, y)`. Of a pair only `δ = φ(x, y_c) - φ(x, y_r)` matters.
"""

from __future__ import annotations

import numpy as np

STEPS, NEAR = 100, 1e-12
"""Newton steps at most (about ten are taken), and squared length below which one is the last."""


def fit_linear_reward(differences: np.ndarray, weights: np.ndarray, prior: float, centre: np.ndarray) -> np.ndarray:
    """The w (d,) that maximises `Σ c_i log σ(w · δ_i) - λ/2 |w - w_0|²`, by Newton's method.

    The objective is strictly concave, so there is one. A step that would worsen it is halved. Near the optimum a step's
    error is of the order of its square, and the objective has none of its digits: the last step is taken as it is.

    Args:
        differences: (n, d) δ.
        weights: (n,) c >= 0, for example how often a bootstrap drew each pair.
        prior: λ > 0, precision of the Gaussian prior.
        centre: (d,) w_0, its mean.

    Raises:
        ValueError: λ is not positive.
    """
    if not prior > 0:
        raise ValueError(f"the prior's precision must be positive, got {prior}")

    def objective(at: np.ndarray) -> float:
        away = at - centre
        return float(-(weights * np.logaddexp(0.0, -(differences @ at))).sum() - prior / 2 * (away @ away))

    w = centre
    for _ in range(STEPS):
        gaps = differences @ w
        slope = (weights * _sigmoid(-gaps)) @ differences - prior * (w - centre)
        step = np.linalg.solve(pair_curvature(differences, gaps, weights, prior), slope)
        if step @ step < NEAR:
            break
        while objective(w + step) < objective(w):
            step = step / 2
        w = w + step
    return w + step


def pair_curvature(differences: np.ndarray, gaps: np.ndarray, weights: np.ndarray, prior: float) -> np.ndarray:
    """`H = Σ c_i p_i (1-p_i) δ_i δ_iᵀ + λ I` with `p = σ(Δ)`, (d, d): the precision of the Laplace approximation.

    Source: the Gauss-Newton matrix of arXiv 2402.13210, for the last layer and the pair's likelihood: there it is the
    Hessian.

    Args:
        differences: (n, d) δ.
        gaps: (n,) Δ = r_c - r_r.
        weights: (n,) c.
        prior: λ.
    """
    uncertain = weights * _sigmoid(gaps) * _sigmoid(-gaps)
    curvature: np.ndarray = (differences * uncertain[:, None]).T @ differences + prior * np.eye(differences.shape[1])
    return curvature


def gap_variance(differences: np.ndarray, precision: np.ndarray) -> np.ndarray:
    """`δ_iᵀ H⁻¹ δ_i`, (n,): the variance of each pair's reward difference under `w ~ N(·, H⁻¹)`.

    Args:
        differences: (n, d) δ.
        precision: (d, d) H, positive definite.
    """
    whitened = np.linalg.solve(np.linalg.cholesky(precision), differences.T)
    variance: np.ndarray = (whitened**2).sum(0)
    return variance


def spread_gradient(features: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Gradient in w, (d,), of `J = 2/k² Σ_{i<j} |r_i - r_j|`: how far apart k answers to one prompt are scored.

    `∇J = 2/k² Σ_i φ_i Σ_j sign(r_i - r_j)`; equal scores pull neither way. Source: the difference loss of MetaRM (arXiv
    2405.00438), for the last layer.

    Args:
        features: (k, d) φ of the answers.
        scores: (k,) r.
    """
    pulls = np.sign(scores[:, None] - scores[None, :]).sum(1)
    gradient: np.ndarray = 2.0 / len(scores) ** 2 * (pulls @ features)
    return gradient


def gradient_agreement(differences: np.ndarray, gaps: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """`σ(-Δ_i) δ_i · g`, (n,): how far a step on pair i's log-likelihood moves w along g.

    `σ(-Δ) δ` is the gradient of `log σ(w · δ)`. Source: first order in the inner step of MetaRM (arXiv 2405.00438), for
    the last layer.

    Args:
        differences: (n, d) δ.
        gaps: (n,) Δ = w · δ.
        direction: (d,) g, or (n, d) one for each pair.
    """
    along = (differences * direction).sum(1)
    agreement: np.ndarray = _sigmoid(-gaps) * along
    return agreement


def _sigmoid(x: np.ndarray) -> np.ndarray:
    half: np.ndarray = 0.5 + 0.5 * np.tanh(0.5 * x)  # no exponential that could overflow
    return half
