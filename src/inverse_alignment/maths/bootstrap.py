"""Intervals by resampling."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Interval(NamedTuple):
    """A mean and its two-sided bootstrap percentile interval."""

    mean: float
    low: float
    high: float


def mean_interval(values: Tensor, seed: int, confidence: float = 0.95, resamples: int = 2000) -> Interval:
    """Mean of (n,) values with the percentile interval of its bootstrap distribution.

    Values must be independent units (prompts, not the several answers to one prompt).

    Raises:
        ValueError: there are no values.
    """
    if not values.numel():
        raise ValueError("no values to average")
    generator = torch.Generator().manual_seed(seed)
    values = values.double()
    draws = torch.randint(values.numel(), (resamples, values.numel()), generator=generator)
    bounds = torch.quantile(
        values[draws].mean(-1), torch.tensor([(1 - confidence) / 2, (1 + confidence) / 2], dtype=torch.float64)
    )
    return Interval(float(values.mean()), float(bounds[0]), float(bounds[1]))
