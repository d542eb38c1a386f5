"""Generalised advantage estimation over padded batches."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from inverse_alignment.maths.masked import masked


class Advantages(NamedTuple):
    """Advantages and the value targets that belong to them, both of shape (b, t), zero where the mask is False."""

    advantages: Tensor
    returns: Tensor


def generalised_advantages(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float) -> Advantages:
    """GAE of token-level rewards.

    `δ_t = r_t + γ V_{t+1} - V_t`, `A_t = δ_t + γλ A_{t+1}`, `R_t = A_t + V_t`, where the step after the last position
    that counts has value and advantage zero (the episode ends there).

    Special cases: λ = 0 gives the TD residual; λ = 1 gives `Σ γ^k r_{t+k} - V_t`.
    Source: Schulman et al. 2015, arXiv 1506.02438, eq. 11-16.

    Args:
        rewards: (b, t), reward received for the action at t.
        values: (b, t), value of the state in which the action at t was taken.
        mask: (b, t) bool, True at response positions; must be one run of True per row.
        gamma: discount in [0, 1].
        lam: λ in [0, 1].
    """
    advantages = torch.empty_like(rewards)
    next_advantage = next_value = rewards.new_zeros(len(rewards))
    for t in reversed(range(rewards.shape[1])):
        counts = mask[:, t]
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        next_advantage = masked(delta + gamma * lam * next_advantage, counts)
        next_value = masked(values[:, t], counts)
        advantages[:, t] = next_advantage
    return Advantages(advantages, masked(advantages + values, mask))
