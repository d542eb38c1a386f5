"""Bradley-Terry preference likelihoods."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional


def preference_log_likelihood(chosen: Tensor, rejected: Tensor) -> Tensor:
    """`log σ(r(x, y_c) - r(x, y_r))` of each pair, in nats. Source: Bradley & Terry 1952; arXiv 1706.03741, eq. 1."""
    return functional.logsigmoid(chosen - rejected)


def bradley_terry_loss(
    chosen: Tensor,
    rejected: Tensor,
    weights: Tensor,
    margins: Tensor,
    labels: Tensor,
    smoothing: float = 0.0,
    centring: float = 0.0,
) -> Tensor:
    """Weighted Bradley-Terry loss: cross entropy between labels, certain or soft, and `σ(Δ - m)`.

    `L = Σ w [-p' log σ(Δ - m) - (1-p') log σ(-(Δ - m))] / Σ w + c · mean((r_c + r_r)²)` with `Δ = r_c - r_r` and
    `p' = p (1-ε) + (1-p) ε`.

    The soft label p is the probability that the chosen answer is the better one, for example the share of annotators
    who said so (μ of arXiv 1706.03741, the loss after eq. 1); ε is the probability that a label is wrong. The loss of a
    pair is least at `σ(Δ - m) = p'`: at p = ½ where its gap is its margin. Margin as in Llama 2 (arXiv 2307.09288,
    eq. 2); centring as in arXiv 2312.09244, eq. 2.

    Args:
        chosen: (n,) scores of the preferred answers.
        rejected: (n,) scores of the others.
        weights: (n,) positive weights.
        margins: (n,) margins in score units; zero for none.
        labels: (n,) p in [½, 1]; one for certain.
        smoothing: ε in [0, 0.5).
        centring: c >= 0.
    """
    gap = chosen - rejected - margins
    right = labels * (1.0 - smoothing) + (1.0 - labels) * smoothing
    losses = -right * functional.logsigmoid(gap) - (1.0 - right) * functional.logsigmoid(-gap)
    return (weights * losses).sum() / weights.sum() + centring * ((chosen + rejected) ** 2).mean()


def hinge_loss(chosen: Tensor, rejected: Tensor, weights: Tensor) -> Tensor:
    """`L = Σ w max(0, 1 - (r_c - r_r)) / Σ w`: what a pair gains beyond a gap of one teaches nothing more.

    Source: a max-margin loss of inverse reinforcement learning, one of those in the released code of arXiv 2410.12491.

    Args:
        chosen: (n,) scores of the preferred answers.
        rejected: (n,) scores of the others.
        weights: (n,) positive weights.
    """
    return (weights * functional.relu(1.0 - (chosen - rejected))).sum() / weights.sum()


def contrast_loss(chosen: Tensor, rejected: Tensor, weights: Tensor) -> Tensor:
    """`L = -Σ w (r_c - r_r) / Σ w`.

    With demonstrations as chosen and the policy's own answers as rejected, its gradient is that of maximum-likelihood
    inverse reinforcement learning, `E_π[∇r] - E_demo[∇r]`. It has no minimum: along any direction that tells the two
    apart it falls for ever, so steps must be few. Source: arXiv 2405.17888, whose code has the logistic loss of the
    same pairs in its place.

    Args:
        chosen: (n,) scores of the demonstrations.
        rejected: (n,) scores of the policy's answers.
        weights: (n,) positive weights.
    """
    return -(weights * (chosen - rejected)).sum() / weights.sum()


def accuracy(chosen: Tensor, rejected: Tensor) -> Tensor:
    """Share of pairs ranked as labelled; a tie counts one half. NaN for no pairs."""
    wins = (chosen > rejected).to(torch.float64) + 0.5 * (chosen == rejected).to(torch.float64)
    return wins.mean()


def best_scale(chosen: Tensor, rejected: Tensor, largest: float = 100.0) -> float:
    """The inverse temperature b >= 0 that maximises `mean log σ(b (r_c - r_r))` of labelled pairs.

    The mean is concave in b, and its slope `mean Δ σ(-b Δ)` falls: its zero is found by sixty bisections. Where no
    finite b is best (every pair ranked as labelled) the answer is `largest` divided by the mean absolute gap, which is
    also the upper end of the search, or where the slope becomes too small for a float if that is less; where the labels
    run against the scores it is 0.

    Raises:
        ValueError: there are no pairs, or every gap is zero.
    """
    gap = (chosen - rejected).to(torch.float64)
    if not gap.numel() or not bool(gap.any()):
        raise ValueError("a scale needs at least one pair with different scores")

    def slope(scale: float) -> float:
        return float((gap * torch.sigmoid(-scale * gap)).mean())

    low, high = 0.0, largest / float(gap.abs().mean())
    if slope(high) > 0:
        return high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) > 0 else (low, middle)
    return low


class PairGap(NamedTuple):
    """A paired comparison of two reward models on the same labelled pairs."""

    mean: float
    low: float
    detectable: float
    pairs: int


def paired_gain(challenger: Tensor, incumbent: Tensor, confidence: float, resamples: int, seed: int) -> PairGap:
    """Mean gain of a challenger over an incumbent on the same pairs, with a one-sided paired bootstrap bound.

    `gain_i = log σ(Δ_i^new) - log σ(Δ_i^old)` is what callers pass in as two (n,) log-likelihoods. `low` is the
    (1 - confidence) quantile of the bootstrap means. `detectable` is the smallest true gain that this many pairs would
    show with probability 0.8: `(z_confidence + z_0.8) · sd / √n`.

    Raises:
        ValueError: fewer than two pairs.
    """
    gains = (challenger - incumbent).to(torch.float64)
    count = gains.numel()
    if count < 2:
        raise ValueError(f"a paired comparison needs at least two pairs, got {count}")
    generator = torch.Generator().manual_seed(seed)
    draws = torch.randint(count, (resamples, count), generator=generator)
    means = gains[draws].mean(-1)
    normal = torch.distributions.Normal(0.0, 1.0)
    quantiles = normal.icdf(torch.tensor([confidence, 0.8], dtype=torch.float64)).sum()
    return PairGap(
        mean=float(gains.mean()),
        low=float(torch.quantile(means, 1.0 - confidence)),
        detectable=float(quantiles * gains.std(correction=1) / count**0.5),
        pairs=count,
    )
