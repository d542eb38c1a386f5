"""From one score per answer to a reward per token.

The functions named `*_credit` share (b,) scores s out among the tokens of the answers: they give (b, t) rewards, zero
where the mask is False, whatever stands there in their arguments. `penalised` then takes the price of KL off.

Symbols: T is the last position of a row that counts; token t is chosen in the state x, y_<t. What a method does to the
expected policy gradient, where rewards after a token are what it is judged by: `terminal`, `redistributed` at any β_c
and `potential` (at the γ of the estimator) leave it as it is; `uniform` and `attention` change it, because they give to
tokens before t what tokens from t on earned.
"""

from __future__ import annotations

import torch
from torch import Tensor

from inverse_alignment.maths.masked import masked


def final_positions(mask: Tensor) -> Tensor:
    """Index of the last True position of each row, shape (b,).

    Raises:
        ValueError: a row has no True position.
    """
    if not bool(mask.any(-1).all()):
        raise ValueError("a row of the mask has no True position: an answer without tokens has no last token")
    positions = torch.arange(mask.shape[-1], device=mask.device).expand_as(mask)
    return torch.where(mask, positions, -1).max(-1).values


def terminal_credit(scores: Tensor, mask: Tensor) -> Tensor:
    """`r_t = 1[t = T] s`: all of it to the last token. Source: Ziegler et al. 2019, arXiv 1909.08593, eq. 2.

    Args:
        scores: (b,).
        mask: (b, t) bool, True at response positions.

    Raises:
        ValueError: a row has no position that counts.
    """
    last = final_positions(mask).unsqueeze(-1)
    return scores.new_zeros(mask.shape).scatter(-1, last, scores.unsqueeze(-1))


def uniform_credit(scores: Tensor, mask: Tensor) -> Tensor:
    """`r_t = s / n` with n positions that count: the control of Chan et al. 2024, arXiv 2402.00782.

    Token t is judged by `s (n - t) / n`, so later tokens learn more slowly than under `terminal_credit`.

    Args:
        scores: (b,).
        mask: (b, t) bool, True at response positions.

    Raises:
        ValueError: a row has no position that counts.
    """
    return attention_credit(scores, torch.ones_like(mask, dtype=scores.dtype), mask, 1.0)


def redistributed_credit(prefix_scores: Tensor, scores: Tensor, mask: Tensor, mix: float) -> Tensor:
    """RED: a token earns what it changes the score by.

    `r̃_t = S_t - S_{t-1}` and `r_t = β_c r̃_t + (1 - β_c) 1[t = T] s`, where `S_t = R(x, y_≤t)` and S_0 is the score of
    the bare prompt. Source: Li et al. 2025, RED (first R3HF), arXiv 2411.08302, eq. 6-7.

    A row sums to `s - β_c S_0` where `S_T = s`; the offset depends on the prompt alone. At β_c = 1 and γ = 1 it is
    `potential_credit` with Φ = S and the offset: a critic V - S makes the same advantages as V makes of the score at
    the end. β_c = 0 is `terminal_credit`.

    Args:
        prefix_scores: (b, t + 1), S_0 first; column t + 1 belongs to position t of the mask.
        scores: (b,).
        mask: (b, t) bool, True at response positions.
        mix: β_c in [0, 1].

    Raises:
        ValueError: a row has no position that counts.
    """
    changes = prefix_scores[:, 1:] - prefix_scores[:, :-1]
    return _mixed(changes, scores, mask, mix)


def attention_credit(scores: Tensor, attention: Tensor, mask: Tensor, mix: float) -> Tensor:
    """ABC: a token earns in proportion to how much the reward model looked at it.

    `r_t = β a_t s + (1 - β) 1[t = T] s` with `a_t` renormalised over the positions that count. A row sums to s.
    β = 0 is `terminal_credit`; equal attention at β = 1 is `uniform_credit`.
    Source: Chan et al. 2024, arXiv 2402.00782, and the authors' released code.

    The weights depend on the finished answer, so a token may be paid early for what later ones did: they are no
    potential of the state, and the expected policy gradient differs from that of `terminal_credit`.

    Args:
        scores: (b,).
        attention: (b, t), not negative.
        mask: (b, t) bool, True at response positions.
        mix: β in [0, 1].

    Raises:
        ValueError: a row has no position that counts, or no attention on any of them.
    """
    seen = masked(attention.to(scores.dtype), mask)
    total = seen.sum(-1, keepdim=True)
    if not bool((total > 0).all()):
        raise ValueError("a row has no attention on any position that counts")
    return _mixed(scores.unsqueeze(-1) * seen / total, scores, mask, mix)


def potential_credit(scores: Tensor, potentials: Tensor, mask: Tensor, gamma: float) -> Tensor:
    """Potential shaping: `r_t = 1[t = T] s + γ Φ(y_≤t) - Φ(y_<t)`, with Φ of the finished answer 0.

    It keeps every optimal policy of the reward discounted by γ: `Σ γ^t (r_t - 1[t = T] s) = -Φ` of the first state.
    Source: Ng, Harada & Russell 1999, theorem 1; the idea to shape by a demonstration is that of D-Shape, arXiv
    2210.14428.

    Args:
        scores: (b,).
        potentials: (b, t), Φ of the state in which the token at t was chosen.
        mask: (b, t) bool, True at response positions; must be one run of True per row.
        gamma: γ of the advantages that are estimated from these rewards.

    Raises:
        ValueError: a row has no position that counts.
    """
    here = masked(potentials.to(scores.dtype), mask)
    after = torch.cat([here[:, 1:], torch.zeros_like(here[:, :1])], -1)
    return masked(gamma * after - here, mask) + terminal_credit(scores, mask)


def token_credit(token_rewards: Tensor, scores: Tensor, mask: Tensor, share: float) -> Tensor:
    """`r_t = α g_t + (1 - α) 1[t = T] s`: rewards of a token-level reward model beside the score. α = 0 is terminal.

    Source: our reconstruction of Xu et al. 2024, arXiv 2406.02756, whose method section was not available to us.

    Args:
        token_rewards: (b, t), g.
        scores: (b,).
        mask: (b, t) bool, True at response positions.
        share: α in [0, 1].

    Raises:
        ValueError: a row has no position that counts.
    """
    return _mixed(token_rewards, scores, mask, share)


def penalised(credit: Tensor, log_ratios: Tensor, mask: Tensor, kl_coefficient: float) -> Tensor:
    """`r_t - β (log π(y_t) - log π_ref(y_t))`, zero where the mask is False. All (b, t), in the type of the log-ratios.

    Source: Ziegler et al. 2019, arXiv 1909.08593, eq. 2.
    """
    return masked(credit.to(log_ratios.dtype) - kl_coefficient * log_ratios, mask)


def terminal_rewards(scores: Tensor, log_ratios: Tensor, mask: Tensor, kl_coefficient: float) -> Tensor:
    """`r_t = -β (log π(y_t) - log π_ref(y_t)) + 1[t = T] s`: (b,) scores and (b, t) log-ratios to (b, t) rewards.

    Zero where the mask is False. Source: Ziegler et al. 2019, arXiv 1909.08593, eq. 2; Stiennon et al. 2020.
    """
    return penalised(terminal_credit(scores.to(log_ratios.dtype), mask), log_ratios, mask, kl_coefficient)


def _mixed(shares: Tensor, scores: Tensor, mask: Tensor, mix: float) -> Tensor:
    """`mix · shares + (1 - mix) · terminal`, zero where the mask is False."""
    return masked(mix * shares.to(scores.dtype), mask) + (1.0 - mix) * terminal_credit(scores, mask)
