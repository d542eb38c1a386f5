"""Contrastive learning of features: two noisy views of one thing are to be nearer than views of different things."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def info_nce(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """`-log (exp(cos(h_i, h'_i) / τ) / Σ_j exp(cos(h_i, h'_j) / τ))` of each of n rows, (n,), in nats.

    log n for features that cannot be told apart. Source: arXiv 1807.03748, with the cosine of SimCSE (arXiv
    2104.08821), which arXiv 2401.06080 adds to the loss of reward models.

    Args:
        first: (n, d) one view of each row.
        second: (n, d) another.
        temperature: τ > 0.
    """
    likeness = functional.normalize(first, dim=-1) @ functional.normalize(second, dim=-1).T
    return -functional.log_softmax(likeness / temperature, -1).diagonal()
