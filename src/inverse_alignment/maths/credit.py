"""From one score per answer to a reward per token."""

from __future__ import annotations

import torch
from torch import Tensor


def final_positions(mask: Tensor) -> Tensor:
    """Index of the last True position of each row, shape (b,).

    Raises:
        ValueError: a row has no True position.
    """
    if not bool(mask.any(-1).all()):
        raise ValueError("a row of the mask has no True position: an answer without tokens has no last token")
    positions = torch.arange(mask.shape[-1], device=mask.device).expand_as(mask)
    return torch.where(mask, positions, -1).max(-1).values


def terminal_rewards(scores: Tensor, log_ratios: Tensor, mask: Tensor, kl_coefficient: float) -> Tensor:
    """`r_t = -β (log π(y_t) - log π_ref(y_t)) + 1[t = T] s`: (b,) scores and (b, t) log-ratios to (b, t) rewards.

    Zero where the mask is False. Source: Ziegler et al. 2019, arXiv 1909.08593, eq. 2; Stiennon et al. 2020.
    """
    rewards = torch.where(mask, -kl_coefficient * log_ratios, torch.zeros_like(log_ratios))
    last = final_positions(mask).unsqueeze(-1)
    return rewards.scatter_add(-1, last, scores.to(rewards.dtype).unsqueeze(-1))
