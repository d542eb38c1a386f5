"""PPO's clipped losses. Losses are returned with the numbers that explain them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from inverse_alignment.maths.masked import masked, masked_mean


class Loss(NamedTuple):
    """A scalar loss and the share of positions at which clipping decided it."""

    loss: Tensor
    clipped: Tensor


def policy_loss(log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, mask: Tensor, clip: float) -> Loss:
    """Clipped surrogate: `-E[min(ρ A, clip(ρ, 1-ε, 1+ε) A)]` with `ρ = exp(log π - log π_old)`.

    Source: Schulman et al. 2017, arXiv 1707.06347, eq. 7. All tensors (b, t); the mean is over masked positions.
    """
    ratio = torch.exp(masked(log_probs - old_log_probs, mask))
    unclipped, bounded = ratio * advantages, ratio.clamp(1.0 - clip, 1.0 + clip) * advantages
    return Loss(
        -masked_mean(torch.minimum(unclipped, bounded), mask),
        masked_mean((bounded < unclipped).to(advantages.dtype), mask),
    )


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, clip: float) -> Loss:
    """Clipped value loss: `½ E[max((V - R)², (clip(V, V_old - ε, V_old + ε) - R)²)]`.

    Source: the PPO of Ziegler et al. 2019 (arXiv 1909.08593, released code). All tensors (b, t).
    """
    values = masked(values, mask)
    bounded = values.clamp(old_values - clip, old_values + clip)  # exact inside: rounding is no clipping
    free_error, bounded_error = (values - returns) ** 2, (bounded - returns) ** 2
    return Loss(
        0.5 * masked_mean(torch.maximum(free_error, bounded_error), mask),
        masked_mean((bounded_error > free_error).to(values.dtype), mask),
    )


def token_entropy(logits: Tensor) -> Tensor:
    """Entropy in nats of the categorical distribution in the last dimension: (..., v) -> (...)."""
    log_p = torch.log_softmax(logits, -1)
    return -(log_p.exp() * log_p).sum(-1)
