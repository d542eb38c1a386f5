"""Kullback-Leibler divergences, exact and estimated from samples, in nats."""

from __future__ import annotations

import torch
from torch import Tensor


def k1(log_prob: Tensor, ref_log_prob: Tensor) -> Tensor:
    """`log π(y) - log π_ref(y)` for y ~ π: unbiased for KL(π || π_ref), may be negative. Elementwise."""
    return log_prob - ref_log_prob


def k2(log_prob: Tensor, ref_log_prob: Tensor) -> Tensor:
    """`(log π - log π_ref)² / 2`: biased, low variance. Elementwise. Source: Schulman, "Approximating KL" (2020)."""
    return 0.5 * (log_prob - ref_log_prob) ** 2


def k3(log_prob: Tensor, ref_log_prob: Tensor) -> Tensor:
    """`exp(-d) - 1 + d` with `d = log π - log π_ref`, for y ~ π: unbiased for KL(π || π_ref) and never negative.

    Elementwise. Source: Schulman, "Approximating KL" (2020).
    """
    d = log_prob - ref_log_prob
    return torch.expm1(-d) + d


def exact_kl(logits: Tensor, ref_logits: Tensor) -> Tensor:
    """`Σ_v π(v) (log π(v) - log π_ref(v))` over the last dimension of two logit tensors of one shape (..., v)."""
    log_p, log_q = torch.log_softmax(logits, -1), torch.log_softmax(ref_logits, -1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def next_kl_coefficient(coefficient: float, kl: float, target: float, horizon: float, rows: int) -> float:
    """The adaptive controller's next KL coefficient.

    `β ← β (1 + e n / H)` with `e = clip(KL / target - 1, -0.2, 0.2)`, n rows seen and horizon H in rows.
    Source: Ziegler et al. 2019, arXiv 1909.08593, section 2.2.
    """
    error = min(max(kl / target - 1.0, -0.2), 0.2)
    return coefficient * (1.0 + error * rows / horizon)
