"""The selectors every other one has to beat."""

from __future__ import annotations

import numpy as np

from inverse_alignment.selection.selection import Selection, require_at_most


def select_random(pool: int, k: int, seed: int, key: str = "selection") -> Selection:
    """k rows drawn uniformly without replacement.

    Raises:
        UserError: k is larger than the pool.
    """
    require_at_most(k, pool, "are in the train split", f"{key}.k")
    generator = np.random.Generator(np.random.Philox(key=seed))
    indices = np.sort(generator.choice(pool, size=k, replace=False)).astype(np.int64)
    return Selection(indices, np.ones(k), np.full(k, np.nan))


def select_all(pool: int) -> Selection:
    """Every row."""
    return Selection(np.arange(pool, dtype=np.int64), np.ones(pool), np.full(pool, np.nan))


def select_length_matched(
    picked: np.ndarray, chosen: np.ndarray, rejected: np.ndarray, strata: int, seed: int
) -> Selection:
    """For every picked row a random row of the same stratum of lengths, drawn from the whole pool without replacement.

    A stratum is a pair of classes: of the chosen answer's length, and of the rejected one's. The classes are the
    pool's quantiles, as many as `strata`, of equal size up to equal lengths, which share a class. As many rows as are
    picked from a stratum lie in it, so that none ever runs out; picked rows may be drawn again.

    Args:
        picked: rows of the pool.
        chosen: (n,) lengths of the pool's chosen answers.
        rejected: (n,) of the rejected ones.
    """
    of_pair = _quantile_class(chosen, strata) * strata + _quantile_class(rejected, strata)
    generator = np.random.Generator(np.random.Philox(key=seed))
    drawn = [
        generator.choice(np.flatnonzero(of_pair == stratum), size=count, replace=False)
        for stratum, count in zip(*np.unique(of_pair[picked], return_counts=True), strict=True)
    ]
    rows = np.sort(np.concatenate(drawn)).astype(np.int64)
    return Selection(rows, np.ones(len(rows)), np.full(len(rows), np.nan))


def _quantile_class(lengths: np.ndarray, classes: int) -> np.ndarray:
    inner = np.quantile(lengths, np.arange(1, classes) / classes, method="lower")
    return np.searchsorted(inner, lengths, side="left")
