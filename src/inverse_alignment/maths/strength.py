"""How strong the preference in a pair is, told by several reward models."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class PairStrength(NamedTuple):
    """What M models make of n pairs.

    Attributes:
        mean: (n,) u, the mean gap; below zero the models think that the label is wrong.
        std: (n,) s, the standard deviation of the gap.
    """

    mean: Tensor
    std: Tensor


def pair_strength(gaps: Tensor, judges: Tensor) -> PairStrength:
    """`u_i = 1/M_i Σ_m Δ_im` and `s_i = sqrt(1/M_i Σ_m (Δ_im - u_i)²)`, over the M_i models that judge pair i.

    Source: arXiv 2401.06080, where all of M models judge. Models that learned from a pair may know its label by heart;
    those that did not are the better judges.

    Args:
        gaps: (m, n) Δ, score of the chosen answer minus that of the rejected one, by each model.
        judges: (m, n) bool, which model judges which pair; a pair that has no judge is judged by all.
    """
    counted = judges | ~judges.any(0)
    count = counted.sum(0)
    mean = torch.where(counted, gaps, 0.0).sum(0) / count
    variance = torch.where(counted, (gaps - mean) ** 2, 0.0).sum(0) / count
    return PairStrength(mean, variance.sqrt())


def strata(values: Tensor, groups: int) -> Tensor:
    """Which of g equal shares of n values, from the smallest to the largest, each one is in: (n,) int64, from 0.

    `⌊g · |{j : v_j < v_i}| / n⌋`: values that are equal are in one stratum, so strata of few distinct values differ in
    size.

    Args:
        values: (n,).
        groups: g.
    """
    below = torch.searchsorted(values.sort().values, values)
    return below * groups // len(values)
