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


def within_group_correlation(first: np.ndarray, second: np.ndarray, groups: Sequence[str]) -> float:
    """Pearson correlation of what is left of two rewards when each group's mean is taken off; NaN if nothing is.

    It is the cosine of the two as functions of answers that are only known up to a function of the prompt, as
    preferences and optimal policies leave them. (n,) each.
    """
    one, other = (values - _spread_out(values, groups) for values in (first, second))
    lengths = np.sqrt((one @ one) * (other @ other))
    return float(one @ other / lengths) if lengths else float("nan")


def order_agreement(first: np.ndarray, second: np.ndarray, groups: Sequence[str]) -> float:
    """Share of the pairs inside groups that two rewards order alike, of those that either tells apart; NaN if none.

    Where one of them sees a tie, the pair counts one half. Kendall's τ_a is twice this less one if nobody sees ties.
    """
    same = np.array(groups)[:, None] == groups  # every pair both ways round, which changes no share
    signs = [np.sign(values[:, None] - values)[same] for values in (first, second)]
    told = (signs[0] != 0) | (signs[1] != 0)
    return float((1 + signs[0] * signs[1])[told].mean() / 2) if told.any() else float("nan")


def _spread_out(values: np.ndarray, groups: Sequence[str]) -> np.ndarray:
    """The mean of its group for every value, (n,); exactly the value where all of a group are equal."""
    names = list(dict.fromkeys(groups))
    rows = [names.index(group) for group in groups]
    means: np.ndarray = group_means(values, groups)[rows]
    return means


def _by_group(values: np.ndarray, groups: Sequence[str]) -> list[list[float]]:
    rows: dict[str, list[float]] = {}
    for group, value in zip(groups, values, strict=True):
        rows.setdefault(group, []).append(float(value))
    return list(rows.values())
