"""Losses that optimise a policy on preferences directly, without a reward model.

The policy's implicit reward of an answer is `β (log π(y|x) - log π_ref(y|x))`; of a pair only the gap of log-ratios
matters. The reference may move (TR methods, arXiv 2404.09656): that changes what is given here, and no loss.

Symbols: β price of KL, Δ the policy's `log π(y_c) - log π(y_r)`, Δ_ref the reference's, in nats of whole answers.
"""

from __future__ import annotations

import torch
from torch import Tensor

from inverse_alignment.maths.pairwise import bradley_terry_loss


def log_ratio_gap(chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor) -> Tensor:
    """`h = Δ - Δ_ref`, (n,) nats: by how much more than its reference a policy prefers the chosen answer.

    Source: DPO, arXiv 2305.18290, eq. 7.

    Args:
        chosen, rejected: (n,) log π of both answers, summed over their tokens.
        ref_chosen, ref_rejected: (n,) the same of the reference.
    """
    return (chosen - rejected) - (ref_chosen - ref_rejected)


def clipped_reference_gap(chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor) -> Tensor:
    """`h = Δ - max(0, Δ_ref)`, (n,) nats: a reference that prefers the rejected answer asks for nothing less.

    With Δ_ref < 0 a DPO policy is satisfied while it still prefers the rejected answer. Source: HyPO, arXiv 2602.11902.
    Arguments as in `log_ratio_gap`.
    """
    return (chosen - rejected) - (ref_chosen - ref_rejected).clamp(min=0.0)


def dpo_loss(gaps: Tensor, weights: Tensor, labels: Tensor, beta: float, smoothing: float = 0.0) -> Tensor:
    """`Σ w [-p' log σ(β h) - (1-p') log σ(-β h)] / Σ w`: Bradley-Terry of implicit rewards, see `bradley_terry_loss`.

    Source: DPO, arXiv 2305.18290, eq. 7; smoothed as there in the released code.

    Args:
        gaps: (n,) h.
        weights: (n,) positive weights.
        labels: (n,) p, probability that the chosen answer is the better one.
        beta: β > 0.
        smoothing: ε in [0, 0.5), probability that a label is wrong.
    """
    zeros = torch.zeros_like(gaps)
    return bradley_terry_loss(beta * gaps, zeros, weights, zeros, labels, smoothing)


def ipo_loss(gaps: Tensor, weights: Tensor, labels: Tensor, beta: float, smoothing: float = 0.0) -> Tensor:
    """`Σ w (p' (h - 1/2β)² + (1-p') (h + 1/2β)²) / Σ w`: least where `h = (2 p' - 1) / 2β`, never without bound.

    h is of whole answers, as printed; TRL divides each log-ratio by the length of its answer. Source: IPO,
    arXiv 2310.12036, eq. 17. Arguments as in `dpo_loss`.
    """
    right = labels * (1.0 - smoothing) + (1.0 - labels) * smoothing
    target = 0.5 / beta
    losses = right * (gaps - target) ** 2 + (1.0 - right) * (gaps + target) ** 2
    return (weights * losses).sum() / weights.sum()


def kto_baseline(mismatched: Tensor) -> Tensor:
    """`z_0 = max(0, mean log π(y'|x) / π_ref(y'|x))`, a number without gradient, of answers to other prompts.

    Source: KTO, arXiv 2402.01306, the estimate of KL(π ‖ π_ref) in section 4.1.

    Args:
        mismatched: (n,) log-ratios of prompts with an answer that was given to another one.
    """
    return mismatched.detach().mean().clamp(min=0.0)


def kto_loss(
    log_ratios: Tensor, good: Tensor, weights: Tensor, baseline: Tensor, beta: float, losses: float = 1.0
) -> Tensor:
    """`Σ w λ (1 - σ(± β (l - z_0))) / Σ w`: plus for good answers, for which λ = 1, minus for bad ones.

    Source: KTO, arXiv 2402.01306, eq. 8, with λ_D = 1.

    Args:
        log_ratios: (n,) l = log π / π_ref of whole answers.
        good: (n,) bool.
        weights: (n,) positive weights.
        baseline: z_0, see `kto_baseline`.
        beta: β > 0.
        losses: λ_U > 0, what a bad answer counts.
    """
    away = beta * (log_ratios - baseline)
    value = torch.sigmoid(torch.where(good, away, -away))
    counts = torch.where(good, 1.0, losses) * weights
    return (counts * (1.0 - value)).sum() / weights.sum()


def optimism(log_ratios: Tensor, weights: Tensor, alpha: float, beta: float) -> Tensor:
    """`α β Σ w log(π / π_ref)(y_g) / Σ w` of answers that the reference wrote: SELM's term, added to the loss of pairs.

    It pushes probability off what the reference says already. Its gradient at π = π_ref is zero in expectation over
    `y_g ~ π_ref`, and not for a greedy y_g. Source: arXiv 2405.19332, with the sign of the released code: the most that
    a KL-regularised reward can gain over its reference is `β KL(π_ref ‖ π)`.

    Args:
        log_ratios: (n,).
        weights: (n,) positive weights.
        alpha: α >= 0.
        beta: β > 0.
    """
    return alpha * beta * (weights * log_ratios).sum() / weights.sum()
