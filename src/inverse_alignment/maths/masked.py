"""Statistics over the positions that count. One convention: mask `True` means "this position counts".

Values outside the mask may be anything, NaN included: they are replaced, not multiplied by zero, so that neither a
result nor its gradient depends on them.
"""

from __future__ import annotations

import torch
from torch import Tensor


def masked(values: Tensor, mask: Tensor) -> Tensor:
    """`values` where `mask` is True, zero elsewhere; the mask is bool and broadcastable."""
    return torch.where(mask, values, 0)


def masked_sum(values: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """Sum of `values` where `mask` is True.

    Args:
        values: any shape.
        mask: bool, broadcastable to `values`.
        dim: dimension to sum over; None sums all.
    """
    kept = masked(values, mask)
    return kept.sum() if dim is None else kept.sum(dim)


def masked_mean(values: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """Mean of `values` where `mask` is True: `Σ m v / Σ m`; NaN where nothing counts."""
    count = mask.expand_as(values).sum() if dim is None else mask.expand_as(values).sum(dim)
    return masked_sum(values, mask, dim) / count


def masked_var(values: Tensor, mask: Tensor) -> Tensor:
    """Population variance of `values` where `mask` is True: `Σ m (v - mean)² / Σ m`."""
    kept = masked(values, mask)
    return masked_mean((kept - masked_mean(kept, mask)) ** 2, mask)


def masked_whiten(values: Tensor, mask: Tensor, epsilon: float = 1e-8) -> Tensor:
    """`(v - mean) / sqrt(var + ε)` with the statistics of the masked positions; zero elsewhere.

    Population variance, as in Ziegler et al. 2019 (arXiv 1909.08593, their released code).
    """
    kept = masked(values, mask)
    return masked((kept - masked_mean(kept, mask)) * torch.rsqrt(masked_var(kept, mask) + epsilon), mask)
