"""Statistics over groups of rows: prompts are the independent units, their answers are not."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def group_means(values: np.ndarray, groups: Sequence[str]) -> np.ndarray:
    """Mean of each group's values, (n,) to (g,), groups in order of first appearance."""
    return np.array([float(np.mean(rows)) for rows in _by_group(values, groups)])


def within_group_variance(values: np.ndarray, groups: Sequence[str]) -> float:
    """Mean over groups of the sample variance inside each; NaN if no group has two values.

    Over prompts and standardised rewards this is what a policy gradient can climb (Razin et al., arXiv 2503.15477).
    """
    variances = [float(np.var(rows, ddof=1)) for rows in _by_group(values, groups) if len(rows) > 1]
    return float(np.mean(variances)) if variances else float("nan")


def _by_group(values: np.ndarray, groups: Sequence[str]) -> list[list[float]]:
    rows: dict[str, list[float]] = {}
    for group, value in zip(groups, values, strict=True):
        rows.setdefault(group, []).append(float(value))
    return list(rows.values())
