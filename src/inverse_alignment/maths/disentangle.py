"""ODIN: a reward in two parts, one that follows the length of an answer and one that does not (arXiv 2402.07319)."""

from __future__ import annotations

import torch
from torch import Tensor


def pearson_correlation(x: Tensor, y: Tensor) -> Tensor:
    """`ρ = cov(x, y) / (sd x · sd y)` of (n,) numbers; 0 where one of them is constant."""
    a, b = x - x.mean(), y - y.mean()
    scale = (a.square().sum() * b.square().sum()).sqrt()
    return (a * b).sum() / scale if scale > 0 else torch.zeros_like(scale)


def length_loss(quality: Tensor, length: Tensor, tokens: Tensor) -> Tensor:
    """`|ρ(r_Q, L)| - ρ(r_L, L)`: least, -1, where the one head knows nothing of length and the other nothing else.

    Source: arXiv 2402.07319 and its code. The correlation is that within a batch of answers.

    Args:
        quality: (n,) r_Q, scores of the head that is kept.
        length: (n,) r_L, scores of the head that is dropped.
        tokens: (n,) L, tokens of the answers.
    """
    return pearson_correlation(quality, tokens).abs() - pearson_correlation(length, tokens)


def head_overlap(quality: Tensor, length: Tensor) -> Tensor:
    """`|cos(w_Q, w_L)|` of the weights (d,) of two heads: 0 where they are orthogonal. Source: arXiv 2402.07319.

    Args:
        quality: w_Q.
        length: w_L.
    """
    return torch.nn.functional.cosine_similarity(quality, length, dim=0).abs()
